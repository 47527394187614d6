"""The three modes, against plain diffusers calls with the same modules, scheduler and seed."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from latentwire import Host
from latentwire.core.build import PipelineBuild, assemble
from latentwire.core.events import Event, Image
from latentwire.core.gates import Gate
from latentwire.core.model_store import Lease
from latentwire.core.run import Run
from latentwire.core.settings import EMBEDDED_MODEL

from .conftest import running_host

SCHEDULERS = ["ddim", "euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_karras", "unipc", "pndm", "heun", "lcm"]
PROMPTS = ["red apple on a blue background", "tiger face", "car on a yellow background", "a green background"]


@pytest.fixture(scope="module")
def shared() -> Iterator[Host]:
    with running_host(engine={"device": "cpu", "reproducible_rows": 4}) as host:
        yield host


@pytest.fixture(scope="module")
def lease(shared: Host) -> Iterator[Lease]:
    lease = shared.store.lease(PipelineBuild("emoji", "ddim", "float32"))
    yield lease
    shared.store.release(lease)


def call_of(shared: Host, lease: Lease, scheduler: str, seed: int, steps: int = 6, output: str = "latent") -> Any:
    """A pipeline call as a function; run from the engine it is gated, run directly it is plain diffusers."""
    made = shared.registry.schedulers[scheduler](lease.card.scheduler_config)
    pipeline = assemble(StableDiffusionPipeline, lease.components, made, lease.device)

    def call() -> torch.Tensor:
        images: torch.Tensor = pipeline(
            PROMPTS[seed % len(PROMPTS)],
            num_inference_steps=steps,
            guidance_scale=4.0,
            generator=torch.Generator().manual_seed(seed),
            output_type=output,
        ).images
        return images

    return call


def submit(shared: Host, mode: Any, call: Any) -> Future[torch.Tensor]:
    outcome: Future[torch.Tensor] = Future()

    def done(result: Any, error: BaseException | None) -> None:
        outcome.set_exception(error) if error else outcome.set_result(result)

    shared.engine.submit(Run(mode, call, done))
    return outcome


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_exact_is_bit_identical_to_plain_diffusers_while_others_run(shared: Host, lease: Lease, scheduler: str) -> None:
    plain = call_of(shared, lease, scheduler, seed=1)()
    others = [submit(shared, mode, call_of(shared, lease, "euler", seed)) for seed, mode in ((2, "fast"), (3, "exact"))]
    result = submit(shared, "exact", call_of(shared, lease, scheduler, seed=1)).result()
    for other in others:
        other.result()
    assert torch.equal(result, plain)


def test_reproducible_gives_the_same_bytes_alone_and_under_load(shared: Host, lease: Lease) -> None:
    alone = submit(shared, "reproducible", call_of(shared, lease, "ddim", seed=1)).result()
    outcomes = [
        submit(shared, mode, call_of(shared, lease, scheduler, seed, steps))
        for seed, mode, scheduler, steps in (
            (2, "reproducible", "euler", 9),
            (3, "fast", "ddim", 4),
            (1, "reproducible", "ddim", 6),
            (4, "reproducible", "unipc", 3),
            (5, "reproducible", "ddim", 6),
        )
    ]
    results = [outcome.result() for outcome in outcomes]
    assert torch.equal(results[2], alone)


def test_fast_shares_forwards_and_stays_within_rounding_of_a_plain_call(shared: Host, lease: Lease) -> None:
    jobs = [("ddim", 1, 6), ("euler", 2, 8), ("dpmpp_2m", 3, 5), ("unipc", 4, 6)]
    plain = [call_of(shared, lease, *job)() for job in jobs]
    before = shared.engine.figures.forwards
    outcomes = [submit(shared, "fast", call_of(shared, lease, *job)) for job in jobs]
    results = [outcome.result() for outcome in outcomes]
    forwards = shared.engine.figures.forwards - before
    for result, expected in zip(results, plain, strict=True):
        assert (result - expected).abs().max() < 1e-3 * expected.std()
    # each job would need its steps and a text encoding for each half of the guidance
    assert forwards < sum(steps + 2 for _, _, steps in jobs) * 0.7


def test_fast_pictures_differ_from_plain_ones_by_at_most_one_grey_level_in_a_thousandth_of_the_bytes(
    shared: Host, lease: Lease
) -> None:
    plain = [call_of(shared, lease, "ddim", seed, 8, "pt")() for seed in range(4)]
    outcomes = [submit(shared, "fast", call_of(shared, lease, "ddim", seed, 8, "pt")) for seed in range(4)]
    for outcome, expected in zip(outcomes, plain, strict=True):
        got, want = ((image * 255).round().byte().numpy().astype(int) for image in (outcome.result(), expected))
        assert (np.abs(got - want) <= 1).mean() >= 0.999


def test_the_next_picture_after_a_cancelled_one_is_bit_identical(shared: Host, lease: Lease) -> None:
    from latentwire.core.errors import JobCancelled

    plain = call_of(shared, lease, "ddim", seed=1)()
    outcome: Future[Any] = Future()
    stopped = Run("exact", call_of(shared, lease, "ddim", 2, steps=200), lambda _, error: outcome.set_result(error))
    shared.engine.submit(stopped)
    stopped.stop(JobCancelled("enough"))
    assert isinstance(outcome.result(), JobCancelled)
    assert torch.equal(submit(shared, "exact", call_of(shared, lease, "ddim", seed=1)).result(), plain)


def test_a_run_that_raises_fails_alone(shared: Host, lease: Lease) -> None:
    def broken() -> None:
        lease.components["unet"](torch.zeros(2, 3, 16, 16), 1, encoder_hidden_states=torch.zeros(2, 77, 128))

    plain = call_of(shared, lease, "ddim", seed=1)()
    failing = submit(shared, "fast", broken)
    working = submit(shared, "exact", call_of(shared, lease, "ddim", seed=1))
    with pytest.raises(RuntimeError):
        failing.result()
    assert torch.equal(working.result(), plain)


def test_a_gate_lets_calls_from_elsewhere_through(shared: Host, lease: Lease) -> None:
    gate = lease.components["unet"].forward.__wrapped_gate__
    assert isinstance(gate, Gate)
    forwards = shared.engine.figures.forwards
    call_of(shared, lease, "ddim", seed=1, steps=2)()
    assert shared.engine.figures.forwards == forwards


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpmpp_2m_karras", "unipc", "pndm", "lcm", "heun"])
def test_exact_requests_get_the_latents_of_a_diffusers_pipeline_of_their_own(shared: Host, scheduler: str) -> None:
    """Through the whole host, previews and all, while others run; against modules that never had a gate."""
    pipeline = StableDiffusionPipeline.from_pretrained(EMBEDDED_MODEL, torch_dtype=torch.float32)
    pipeline.scheduler = shared.registry.schedulers[scheduler](pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    random = torch.Generator().manual_seed(5)
    wanted = pipeline(
        PROMPTS[0], num_inference_steps=5, guidance_scale=4.0, generator=random, output_type="latent"
    ).images[0]
    asked = {"prompt": PROMPTS[0], "num_inference_steps": 5, "scheduler": scheduler, "output_type": "latent"}
    stream = {"previews": {}, "latents": {"dtype": "float32"}}
    events: list[Event] = []

    async def all_at_once() -> None:
        others = [{"mode": mode, "seed": 9, "num_inference_steps": 7} for mode in ("fast", "fast", "exact")]
        await asyncio.gather(
            shared.dispatch("generate", asked | {"mode": "exact", "seed": 5, "stream": stream}, "me", events.append),
            *(shared.dispatch("generate", asked | other, "other", lambda _: None) for other in others),
        )

    asyncio.run(all_at_once())
    got = next(event.latents for event in events if isinstance(event, Image))
    assert got is not None
    assert np.array_equal(np.frombuffer(got.data, got.dtype).reshape(got.shape), wanted.numpy())


def test_reproducible_requests_get_the_same_png_alone_and_under_load(shared: Host) -> None:
    asked = {"prompt": PROMPTS[1], "num_inference_steps": 4, "seed": 5, "mode": "reproducible"}

    async def ask(load: int) -> bytes:
        events: list[Event] = []
        others = [asked | {"seed": seed, "num_inference_steps": 3 + seed} for seed in range(load)]
        await asyncio.gather(
            *(shared.dispatch("generate", other, "other", lambda _: None) for other in others),
            shared.dispatch("generate", asked, "me", events.append),
        )
        image = next(event.image for event in events if isinstance(event, Image))
        assert image is not None
        return image.data

    assert asyncio.run(ask(0)) == asyncio.run(ask(5)) == asyncio.run(ask(2))
