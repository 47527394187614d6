"""Memory that runs out costs one job at most, and leaves nothing behind."""

import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from latentwire import Host
from latentwire.core.build import PipelineBuild
from latentwire.core.errors import JobCancelled, JobFailed, OutOfMemory
from latentwire.core.faults import is_device, is_memory, typed
from latentwire.core.tiles import in_tiles
from latentwire.testing import fault_in

from ..conftest import running_host, wait_for
from .injection import Forward, draw, draw_all, forward_of, gate

KINDS: dict[str, Callable[[], BaseException]] = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ..."),
    "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cpu": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8796093022 bytes"),
    "python": MemoryError,
}


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with running_host() as host:
        yield host


def really_out_of_memory() -> BaseException:
    """What torch itself raises."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    return caught.value


def test_kinds_are_told_apart() -> None:
    for make in (*KINDS.values(), really_out_of_memory):
        assert is_memory(make())
        assert not is_device(make())
    assert not is_memory(ValueError("out of memory"))  # some library's opinion of its own
    assert not is_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert isinstance(typed(ValueError("no")), JobFailed)
    assert isinstance(typed(KINDS["cpu"](), "512x512"), OutOfMemory)


@pytest.mark.parametrize("component", ["unet", "text_encoder", "vae.decoder"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_that_runs_out_of_memory_once_is_made_again(host: Host, component: str, kind: str) -> None:
    fields = {"mode": "exact", "prompt": f"a {kind} {component}"}  # a prompt not heard before
    expected = draw(host, **fields).data
    host.store.make_room()  # nor remembered now
    with fault_in(host, component, KINDS[kind](), times=1):
        made = draw(host, **fields).data
    assert made == expected  # the same bits, for exact is a promise
    assert draw(host, **fields).data == expected


@pytest.mark.parametrize("component", ["unet", "vae.decoder"])
@pytest.mark.parametrize("mode", ["exact", "reproducible", "fast"])
def test_what_still_does_not_fit_fails_alone_and_says_what_to_do(host: Host, component: str, mode: str) -> None:
    expected = draw(host, mode=mode).data
    with fault_in(host, component, KINDS["cuda"]()):
        failed = draw(host, mode=mode)
    assert failed.code == "out_of_memory"
    for said in ("128x128", "20.00 GiB", "smaller picture", "fewer", "vae_tiling"):
        assert said in failed.message
    assert draw(host, mode=mode).data == expected


def test_rows_that_do_not_fit_together_run_one_by_one(host: Host) -> None:
    requests = [{"seed": seed, "num_inference_steps": 6} for seed in range(4)]
    shared: list[int] = []

    def wrap(real: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            rows = (kwargs["sample"] if "sample" in kwargs else args[0]).shape[0]
            shared.append(rows)
            if rows > 2:
                raise KINDS["cuda"]()
            return real(*args, **kwargs)

        return forward

    with forward_of(gate(host, "unet"), wrap):
        made = draw_all(host, *requests)
    assert max(shared) > 2
    assert all(len(pictures.data) == 1 for pictures in made)


def test_a_decode_that_does_not_fit_is_made_in_tiles_for_this_picture_alone(host: Host) -> None:
    expected = draw(host, width=256, height=256).data
    vae = gate(host, "vae", "decoder").whole
    sizes: list[tuple[int, ...]] = []

    def wrap(real: Forward) -> Forward:
        def forward(sample: torch.Tensor) -> Any:
            sizes.append(tuple(sample.shape[2:]))
            if max(sample.shape[2:]) > 16:
                raise KINDS["cuda"]()
            return real(sample)

        return forward

    with forward_of(gate(host, "vae", "decoder"), wrap):
        made = draw(host, width=256, height=256).data
        assert draw(host, width=256, height=256, mode="exact").code == "out_of_memory"  # tiles have other bits
    assert sizes[0] == (32, 32)
    assert (16, 16) in sizes
    assert made != expected
    assert not vae.use_tiling
    assert not vae.use_slicing
    assert draw(host, width=256, height=256).data == expected


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_tiles_give_nearly_the_same(host: Host, half: str) -> None:
    lease = host.store.lease(PipelineBuild("emoji", "ddim", "float32"))
    vae = lease.components["vae"]
    torch.manual_seed(0)
    with torch.inference_mode():
        picture = torch.nn.functional.interpolate(torch.rand(2, 3, 4, 4), size=(256, 256), mode="bicubic") * 2 - 1
        given = picture if half == "encoder" else vae.post_quant_conv(vae.encode(picture).latent_dist.mean)
        whole = getattr(vae, half)(given)
        tiled = in_tiles(vae, getattr(vae, half), (given,), {})
    host.store.release(lease)
    assert tiled.shape == whole.shape
    assert (tiled - whole).abs().mean() < 0.25 * whole.std()
    assert not torch.equal(tiled, whole)


def test_memory_is_given_back_before_the_second_try(host: Host) -> None:
    """The failed forward's tensors are gone when it is tried again, and so is what nobody uses."""
    draw(host)
    alive: list[int] = []

    class Marked(torch.nn.Module):
        count = 0

        def __init__(self) -> None:
            super().__init__()
            Marked.count += 1

        def __del__(self) -> None:
            Marked.count -= 1

    def wrap(real: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            gc.collect()
            alive.append(Marked.count)
            if len(alive) == 1:
                marked = Marked()
                assert marked is not None
                raise KINDS["cuda"]()
            return real(*args, **kwargs)

        return forward

    with forward_of(gate(host, "unet"), wrap):
        assert draw(host).data
    assert alive[:2] == [0, 0]


def test_a_model_that_does_not_fit_is_an_error_of_its_own_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Faults of loading: simulated, since only the second try may have the memory."""
    from latentwire.core import model_store

    real = model_store.to_device
    left = 1

    def to_device(*args: Any, **kwargs: Any) -> None:
        nonlocal left
        if left:
            left -= 1
            raise KINDS["cuda"]()
        real(*args, **kwargs)

    with running_host() as fresh:
        monkeypatch.setattr(model_store, "to_device", to_device)
        with caplog.at_level(logging.WARNING):
            expected = draw(fresh).data
        assert "memory ran out while something was loaded" in caplog.text
        fresh.store.make_room()
        left = 100
        assert draw(fresh).code == "out_of_memory"
        left = 0
        assert draw(fresh).data == expected


def test_what_nobody_uses_makes_room(host: Host) -> None:
    expected = draw(host).data
    wait_for(lambda: not any(row["leases"] for row in host.store.loaded()), "the leases' end")
    assert host.store.loaded()
    host.store.make_room()
    assert host.store.loaded() == []
    assert draw(host).data == expected


def test_a_run_that_was_cancelled_in_a_forward_that_failed_holds_nothing(host: Host) -> None:
    """What it used may be unloaded meanwhile, so the forward may fail; its tensors go without the garbage collector."""
    seen: list[weakref.ref[torch.Tensor]] = []

    def wrap(real: Forward) -> Forward:
        def forward(**arguments: Any) -> Any:
            seen.append(weakref.ref(arguments["sample"]))
            (job,) = host.jobs.all()
            job.fail(JobCancelled("cancelled in the middle of a forward"))
            raise RuntimeError("its module was unloaded")

        return lambda *args, **kwargs: forward(**dict(zip(("sample", "timestep"), args, strict=False)), **kwargs)

    draw(host)
    gc.collect()
    gc.disable()
    try:
        with forward_of(gate(host, "unet"), wrap):
            assert draw(host).code == "cancelled"
        wait_for(lambda: not host.engine.running, "the run to end")
        wait_for(lambda: seen[0]() is None, "its tensors to go", 10)
    finally:
        gc.enable()
    assert draw(host).data
