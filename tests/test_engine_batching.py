"""How the loop shares forwards: jobs level with one another, ControlNet and plain rows in one batch."""

import itertools
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline

from latentwire import Host
from latentwire.core.build import PipelineBuild, assemble
from latentwire.core.engine import Engine
from latentwire.core.errors import HostClosing, JobCancelled
from latentwire.core.gates import Gate, install_gate
from latentwire.core.model_store import Lease
from latentwire.core.run import Run

from .conftest import running_host


@pytest.fixture(scope="module")
def shared() -> Iterator[Host]:
    with running_host() as host:
        yield host


@pytest.fixture(scope="module")
def lease(shared: Host) -> Lease:
    return shared.store.lease(PipelineBuild("emoji", "ddim", "float32"))


@pytest.fixture(scope="module")
def controlnet(lease: Lease) -> ControlNetModel:
    """A ControlNet with random weights, so that its residuals are not the zeros of a new one."""
    torch.manual_seed(0)
    net = ControlNetModel.from_unet(lease.components["unet"], conditioning_embedding_out_channels=(8, 16, 32, 64))
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    net.eval().requires_grad_(False)
    install_gate(net)
    return net


def plain(shared: Host, lease: Lease, seed: int, steps: int, scheduler: str = "ddim") -> Any:
    made = shared.registry.schedulers[scheduler](lease.card.scheduler_config)
    pipeline = assemble(StableDiffusionPipeline, lease.components, made, lease.device)
    return lambda: (
        pipeline(
            "red apple",
            num_inference_steps=steps,
            guidance_scale=4.0,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        ).images
    )


def controlled(shared: Host, lease: Lease, net: ControlNetModel, seed: int, steps: int) -> Any:
    made = shared.registry.schedulers["ddim"](lease.card.scheduler_config)
    pipeline = StableDiffusionControlNetPipeline(
        **lease.components, controlnet=net, scheduler=made, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    hint = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(seed))
    return lambda: (
        pipeline(
            "red apple",
            image=hint,
            num_inference_steps=steps,
            guidance_scale=4.0,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        ).images
    )


def run_all(engine: Engine, calls: list[Any], mode: Any = "fast") -> list[Any]:
    outcomes: list[Future[Any]] = []
    for call in calls:
        outcome: Future[Any] = Future()
        outcomes.append(outcome)

        def done(result: Any, error: BaseException | None, outcome: Future[Any] = outcome) -> None:
            outcome.set_exception(error) if error else outcome.set_result(result)

        engine.submit(Run(mode, call, done))
    return [outcome.result() for outcome in outcomes]


def test_plain_and_controlnet_jobs_share_their_unet_forwards(
    shared: Host, lease: Lease, controlnet: ControlNetModel
) -> None:
    steps = 5
    calls = [plain(shared, lease, seed, steps) for seed in range(3)]
    calls += [controlled(shared, lease, controlnet, seed, steps) for seed in range(3)]
    expected = [call() for call in calls]
    before = shared.engine.figures.forwards
    results = run_all(shared.engine, calls)
    forwards = shared.engine.figures.forwards - before
    for result, wanted in zip(results, expected, strict=True):
        assert (result - wanted).abs().max() < 1e-3 * wanted.std()
    assert (expected[0] - expected[3]).abs().max() > 0.01  # the ControlNet does something
    # 54 calls: per step one ControlNet and one UNet forward once all are level, the text encoders, a few to get level
    assert forwards <= 2 * steps + 12


def test_exact_and_reproducible_controlnet_jobs_keep_their_promises(
    shared: Host, lease: Lease, controlnet: ControlNetModel
) -> None:
    call = controlled(shared, lease, controlnet, 1, 4)
    others = [plain(shared, lease, seed, 4) for seed in range(2)]
    expected = call()
    assert torch.equal(run_all(shared.engine, [call, *others], "exact")[0], expected)
    alone = run_all(shared.engine, [call], "reproducible")[0]
    assert torch.equal(run_all(shared.engine, [*others, call], "reproducible")[2], alone)


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_a_padded_row_depends_neither_on_its_place_nor_on_its_neighbours(lease: Lease, rows: int) -> None:
    gate = lease.components["unet"].forward.__wrapped_gate__
    random = torch.Generator().manual_seed(rows)

    def call(count: int) -> dict[str, Any]:
        return {
            "sample": torch.randn(count, 4, 16, 16, generator=random),
            "timestep": torch.tensor(500),
            "encoder_hidden_states": torch.randn(count, 77, 128, generator=random),
        }

    mine = call(2)
    others = [call(count) for count in itertools.repeat(1, rows)]
    parts = [gate.batcher.take_apart((), each) for each in (mine, *others)]
    with torch.inference_mode():
        first = gate.forward(**gate.batcher.put_together(parts, 8)).sample[:2]
        last = gate.forward(**gate.batcher.put_together([*parts[1:], parts[0]], 8)).sample[rows : rows + 2]
        alone = gate.forward(**gate.batcher.put_together(parts[:1], 8)).sample[:2]
    assert torch.equal(first, last)
    assert torch.equal(first, alone)


def test_a_job_joins_running_jobs_at_their_next_step(shared: Host, lease: Lease) -> None:
    order: list[int] = []

    def noting(seed: int, steps: int) -> Any:
        call = plain(shared, lease, seed, steps)

        def run() -> Any:
            result = call()
            order.append(seed)
            return result

        return run

    run_all(shared.engine, [noting(1, 30), noting(2, 30), noting(3, 3)])
    assert order[0] == 3


def test_modules_without_a_batching_rule_run_one_by_one(shared: Host) -> None:
    linear = torch.nn.Linear(3, 3)
    seen: list[int] = []
    linear.register_forward_hook(lambda _module, args, _output: seen.append(args[0].shape[0]))
    install_gate(linear)
    inputs = [torch.randn(count, 3) for count in (1, 2, 3)]
    results = run_all(shared.engine, [lambda x=x: linear(x) for x in inputs])
    with torch.inference_mode():
        for result, given in zip(results, inputs, strict=True):
            assert torch.equal(result, torch.nn.functional.linear(given, linear.weight, linear.bias))
    assert sorted(seen) == [1, 2, 3]


def test_a_gate_is_installed_once(lease: Lease) -> None:
    unet = lease.components["unet"]
    gate = unet.forward.__wrapped_gate__
    install_gate(unet)
    assert unet.forward.__wrapped_gate__ is gate
    assert not isinstance(getattr(gate.forward, "__wrapped_gate__", None), Gate)


def test_closing_ends_every_run_and_refuses_new_ones() -> None:
    engine = Engine(max_batch_rows=8, reproducible_rows=4)
    linear = torch.nn.Linear(2, 2)
    install_gate(linear)
    ended: Future[Any] = Future()

    def forever() -> None:
        while True:
            linear(torch.zeros(1, 2))

    engine.submit(Run("fast", forever, lambda _, error: ended.set_result(error)))
    engine.close()
    assert isinstance(ended.result(), HostClosing)
    assert not engine.alive
    with pytest.raises(HostClosing):
        engine.submit(Run("fast", forever, lambda *_: None))


def test_a_stopped_run_unwinds_its_pipeline(shared: Host) -> None:
    linear = torch.nn.Linear(2, 2)
    install_gate(linear)
    unwound: list[str] = []
    ended: Future[Any] = Future()

    def tidy() -> None:
        try:
            while True:
                linear(torch.zeros(1, 2))
        finally:
            linear(torch.zeros(1, 2))  # even a forward while unwinding must not hang the loop
            unwound.append("yes")

    run = Run("fast", tidy, lambda _, error: ended.set_result(error))
    shared.engine.submit(run)
    run.stop(JobCancelled("enough"))
    assert isinstance(ended.result(), JobCancelled)
    assert not shared.engine.running


def test_a_run_that_is_stopped_while_others_are_taken_out_has_its_end_too(shared: Host) -> None:
    ends = [Future[Any]() for _ in range(11)]
    *others, last = [Run("fast", lambda: None, lambda _, error, end=end: end.set_result(error)) for end in ends]  # type: ignore[misc]
    unstopped = list(others)

    class Reason(JobCancelled):
        """Each look at it stops another run, as another thread might just then."""

        def __bool__(self) -> bool:
            if unstopped:
                unstopped.pop().stop(JobCancelled("meanwhile"))
            return True

    for run in (*others, last):
        run.paused = True  # so that none begins
    shared.engine.submit(*others, last)
    last.stop(Reason("enough"))
    ends[-1].result(timeout=30)
    for run in others:
        run.stop(JobCancelled("enough"))
    for end in ends:
        assert isinstance(end.result(timeout=30), JobCancelled)


def test_gradients_stay_off_when_greenlets_leave_their_no_grad_blocks_out_of_order(shared: Host) -> None:
    linear = torch.nn.Linear(2, 2)
    install_gate(linear)

    def run(forwards: int) -> Any:
        def call() -> list[bool]:
            with torch.no_grad():
                for _ in range(forwards):
                    linear(torch.zeros(1, 2))
            return [linear(torch.zeros(1, 2)).requires_grad, torch.is_grad_enabled()]

        return call

    assert run_all(shared.engine, [run(1), run(3), run(2)]) == [[False, False]] * 3


def test_a_crowd_of_preparations_does_not_keep_others_from_their_steps(shared: Host, lease: Lease) -> None:
    """Text encodings go first, but only so many in a row while a run is ready for its step."""
    text_encoder = lease.components["text_encoder"]
    order: list[str] = []

    def preparing() -> None:
        for _ in range(3):
            text_encoder(torch.randint(1000, (1, 77)))  # never the same, which would be remembered
            order.append("prepared")

    call = plain(shared, lease, 1, 10)
    stepping = lease.components["unet"].register_forward_hook(lambda *_: order.append("stepped"))
    try:
        run_all(shared.engine, [call, *[preparing] * 40], "exact")
    finally:
        stepping.remove()
    begin, end = order.index("stepped"), len(order) - order[::-1].index("stepped")
    gaps = "".join("s" if entry == "stepped" else "p" for entry in order[begin:end]).split("s")
    assert max(map(len, gaps)) <= 8


def test_keyword_arguments_that_a_module_takes_loosely_survive_the_merge(lease: Lease) -> None:
    gate = lease.components["text_encoder"].forward.__wrapped_gate__
    ids = torch.zeros(1, 77, dtype=torch.long)
    parts = gate.batcher.take_apart((ids,), {"output_hidden_states": True})
    other = gate.batcher.take_apart((ids,), {"output_hidden_states": False})
    assert not parts.fits(other)
    assert gate.batcher.put_together([parts, parts], 2)["output_hidden_states"] is True


def test_a_run_whose_end_cannot_be_told_is_told_to_have_failed(shared: Host) -> None:
    told: Future[Any] = Future()

    def done(result: Any, error: BaseException | None) -> None:
        if error is None:
            raise ValueError("on purpose")
        told.set_result(error)

    shared.engine.submit(Run("fast", lambda: 1, done))
    assert "could not be told" in str(told.result())
    assert not shared.engine.running
