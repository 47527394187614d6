"""A compiled denoiser: which calls it takes, that every mode keeps its promise, and that nothing compiles later."""

import asyncio
import gc
import io
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from PIL import ImageDraw

from latentwire import Host
from latentwire.core.compiled import CompiledForward
from latentwire.core.errors import InternalError, SettingsError
from latentwire.core.events import Event, Image
from latentwire.core.gates import gate_of
from latentwire.core.run import Run
from latentwire.core.settings import Settings, parse

from . import small_models
from .conftest import running_host, wait_for
from .test_lora import peft_keys, random_lora

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # its compiler warns of itself

PICTURE: dict[str, Any] = {"prompt": "red apple", "num_inference_steps": 3, "guidance_scale": 4.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small random models, and a ControlNet and a LoRA for one of them."""
    folder = tmp_path_factory.mktemp("models")
    for family in ("sd1", "sdxl", "sd3"):
        getattr(small_models, family)(folder / family)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder / "sd1")
    peft_keys(random_lora(pipeline), folder)
    torch.manual_seed(0)
    net = diffusers.ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(8, 8, 16, 16))
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    net.save_pretrained(folder / "net")
    return folder


def settings_of(folder: Path, family: str = "sd1", **more: Any) -> dict[str, Any]:
    return {
        "models": {family: {"path": folder / family, "compile": True, **more}},
        "defaults": {"model": family},
        "engine": {"device": "cpu", "reproducible_rows": 6, "max_batch_rows": 8},
        "files": {"roots": [folder]},
    }


@pytest.fixture(scope="module")
def host(folder: Path) -> Iterator[Host]:
    with running_host(**settings_of(folder)) as host:
        ask(host, "lora.load", path="lora.safetensors", name="lora")
        ask(host, "controlnet.load", path="net", name="net")
        host.warm_up()
        yield host


def ask(host: Host, command: str, **params: Any) -> dict[str, Any]:
    return asyncio.run(host.dispatch(command, params, "me", lambda _: None))


def compiled_of(host: Host, model: str = "sd1") -> CompiledForward:
    with host.store.leased(model) as lease:
        gate = gate_of(lease.components[lease.card.row.denoiser])
    assert gate is not None
    assert gate.compiled is not None
    return gate.compiled


async def drawn(host: Host, seed: int = 1, **fields: Any) -> Any:
    """The latents of one picture."""
    events: list[Event] = []
    await host.dispatch("generate", PICTURE | {"seed": seed, "output_type": "latent"} | fields, "me", events.append)
    (latents,) = (event.latents for event in events if isinstance(event, Image))
    assert latents is not None
    return np.frombuffer(latents.data, latents.dtype).reshape(latents.shape)


def draw(host: Host, seed: int = 1, **fields: Any) -> Any:
    return asyncio.run(drawn(host, seed, **fields))


def draw_together(host: Host, requests: list[dict[str, Any]]) -> list[Any]:
    """Pictures of jobs that begin at once, as far as they come to the engine in time."""

    async def together() -> list[Any]:
        go = threading.Event()
        host.engine.submit(Run("fast", go.wait, lambda *_: None))
        tasks = [asyncio.create_task(drawn(host, **request)) for request in requests]

        def running() -> bool:
            return sum(job.state == "running" for job in host.jobs.all()) == len(tasks)

        await asyncio.to_thread(wait_for, running, "the jobs to be prepared")
        go.set()
        return await asyncio.gather(*tasks)

    return asyncio.run(together())


def png() -> bytes:
    picture = PILImage.new("RGB", (64, 64))
    ImageDraw.Draw(picture).ellipse((10, 14, 54, 50), outline="white", width=2)
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()


def special_requests() -> list[dict[str, Any]]:
    """What the compiled code does not take: a LoRA, a ControlNet, another size."""
    return [
        {"lora": [{"name": "lora"}]},
        {"controlnet": [{"name": "net", "image": png()}]},
        {"width": 128, "height": 64},
    ]


@contextmanager
def compiling_is_noted() -> Iterator[list[Any]]:
    """What torch compiles within the block."""
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    seen: list[Any] = []
    yield seen
    if graphs["unique_graphs"] > before:
        seen.append(graphs)


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
def test_the_calls_of_each_familys_pipeline_are_the_ones_that_were_compiled_for(folder: Path, family: str) -> None:
    with running_host(**settings_of(folder, family)) as host:
        host.warm_up()
        compiled = compiled_of(host, family)
        before = compiled.forwards
        exact = draw(host, mode="exact")
        assert compiled.forwards == before
        for mode in ("fast", "reproducible"):
            forwards = compiled.forwards
            assert np.abs(draw(host, mode=mode) - exact).max() < 1e-3 * exact.std()
            assert compiled.forwards == forwards + PICTURE["num_inference_steps"], mode


def test_exact_is_bit_identical_to_plain_diffusers(host: Host, folder: Path) -> None:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder / "sd1")
    pipeline.set_progress_bar_config(disable=True)
    random = torch.Generator().manual_seed(1)
    wanted = pipeline(**PICTURE, generator=random, output_type="latent").images[0].numpy()
    assert np.array_equal(draw(host, mode="exact"), wanted)
    got, *_ = draw_together(host, [{"mode": "exact"}, {"mode": "fast"}, {"mode": "reproducible"}])
    assert np.array_equal(got, wanted)


def test_fast_shares_compiled_forwards_of_any_number_of_rows(host: Host) -> None:
    exact = [draw(host, seed, mode="exact") for seed in range(4)]
    compiled = compiled_of(host)
    for count in (1, 3, 4):
        before, forwards = compiled.forwards, host.engine.figures.forwards
        got = draw_together(host, [{"seed": seed, "mode": "fast"} for seed in range(count)])
        for result, wanted in zip(got, exact, strict=False):
            assert np.abs(result - wanted).max() < 1e-3 * wanted.std()
        assert compiled.forwards - before == PICTURE["num_inference_steps"]
        assert host.engine.figures.forwards - forwards <= PICTURE["num_inference_steps"] + 2


def test_what_was_not_compiled_for_runs_as_it_is_and_nothing_is_compiled_for_it(host: Host) -> None:
    compiled = compiled_of(host)
    before = compiled.forwards
    with compiling_is_noted() as seen:
        for mode in ("fast", "reproducible"):
            for request in [*special_requests(), {"guidance_scale": 1.0}]:
                exact, got = draw(host, mode="exact", **request), draw(host, mode=mode, **request)
                assert np.abs(got - exact).max() < 1e-3 * exact.std()
                alone = mode == "reproducible" and "guidance_scale" in request  # one row, padded
                assert (compiled.forwards > before) is alone
                before = compiled.forwards
    assert seen == []


def test_reproducible_gives_the_same_bytes_beside_calls_of_every_kind(host: Host) -> None:
    requests = [{"seed": seed} for seed in range(4)] + special_requests()
    requests = [{"mode": "reproducible"} | request for request in requests]
    alone = [draw(host, **request) for request in requests]
    compiled = compiled_of(host)
    before, figures = compiled.forwards, host.engine.figures
    forwards, calls = figures.forwards, figures.calls
    for order in (requests, requests[::-1]):
        for request, got in zip(order, draw_together(host, order), strict=True):
            assert np.array_equal(got, alone[requests.index(request)])
    assert compiled.forwards > before
    assert figures.forwards - forwards < figures.calls - calls  # they did share


def test_a_compiled_rows_bits_depend_neither_on_its_place_nor_on_its_neighbours(host: Host) -> None:
    compiled, random = compiled_of(host), torch.Generator().manual_seed(0)
    with host.store.leased("sd1") as lease:
        gate = gate_of(lease.components["unet"])
    assert gate is not None
    batcher = gate.batcher
    assert batcher is not None

    def parts() -> Any:
        sample, states = torch.randn(2, 4, 8, 8, generator=random), torch.randn(2, 77, 32, generator=random)
        return batcher.take_apart((sample, torch.tensor(500)), {"encoder_hidden_states": states, "return_dict": False})

    def forwards() -> list[torch.Tensor]:
        first, second, third = (parts() for _ in range(3))
        orders = [[first, second, third], [third, second, first], [first]]
        return [compiled(strict=True, **batcher.put_together(order, 6))[0] for order in orders]

    outcome: Future[Any] = Future()
    host.engine.submit(Run("exact", forwards, lambda result, error: outcome.set_result(error or result)))
    there, turned, alone = outcome.result()
    assert torch.equal(there[:2], turned[4:])
    assert torch.equal(there[:2], alone[:2])
    assert torch.equal(there[2:4], turned[2:4])


def test_bits_that_matter_are_never_made_by_other_code(host: Host) -> None:
    """Were the compiled code not to take a call after all, the job would hear of it."""
    compiled = compiled_of(host)
    with host.store.leased("sd1") as lease:
        unet = lease.components["unet"]
    call: dict[str, Any] = {"sample": torch.zeros(2, 4, 16, 16), "encoder_hidden_states": torch.zeros(2, 77, 32)}
    call |= {"timestep": torch.full((2,), 500.0), "return_dict": False}
    with torch.inference_mode(), compiling_is_noted() as seen:
        with pytest.raises(InternalError, match="compile"):
            compiled(strict=True, **call)
        gate = gate_of(unet)
        assert gate is not None
        assert torch.equal(compiled(**call)[0], gate.forward(**call)[0])
    assert seen == []


PROGRAM = """
import asyncio, json, logging, sys
from latentwire import Host, Settings
from latentwire.core.events import Image

logging.basicConfig(level=logging.INFO)
host = Host(Settings.model_validate({"discover": False, **json.loads(sys.argv[1])}))
host.warm_up()
for mode in ("fast", "exact"):
    asked = {"prompt": "red apple", "num_inference_steps": 2, "seed": 1, "mode": mode, "output_type": "latent"}
    events = []
    asyncio.run(host.dispatch("generate", asked, "me", events.append))
    print(hash(next(event for event in events if isinstance(event, Image)).latents.data))
host.close()
"""


def test_without_a_compiler_the_log_says_so_and_pictures_are_made_all_the_same(folder: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-c", PROGRAM, json.dumps(settings_of(folder), default=str)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    (line,) = [line for line in ended.stderr.splitlines() if "is not compiled" in line]
    assert "the denoiser of model sd1 is not compiled, and runs as it is: " in line
    assert "compiler" in line
    fast, exact = ended.stdout.split()
    assert fast == exact


def test_a_compiled_denoiser_goes_when_it_is_unloaded_and_comes_back_the_same(folder: Path) -> None:
    torch._dynamo.reset()
    with running_host(**settings_of(folder)) as host:
        before = draw(host, mode="reproducible")
        with host.store.leased("sd1") as lease:
            gone = weakref.ref(lease.components["unet"])
        del lease
        host.store.shelf.put_away([key for key in host.store.shelf.contents() if key.component == "unet"])
        for _ in range(3):
            gc.collect()
        assert gone() is None
        assert np.array_equal(draw(host, mode="reproducible"), before)
        assert compiled_of(host).forwards == PICTURE["num_inference_steps"]


def test_it_cannot_be_asked_for_together_with_offloading(tmp_path: Path) -> None:
    values = {"models": {"it": {"path": tmp_path, "compile": True, "cpu_offload": True}}}
    with pytest.raises(SettingsError, match="compile or cpu_offload"):
        parse(Settings, values, origin="plugins.toml")
