"""Every scheduler by name: it runs, and its predicted picture is right."""

import asyncio
import inspect
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from latentwire.core.events import Event, Image, Latents, Step
from latentwire.core.schedulers import DIFFUSERS, FLOW, diffusers_schedulers, noise_level, predict_original

from .conftest import Served

CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "timestep_spacing": "leading",
}
WANTED = {
    "ddim", "euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_karras", "unipc", "lcm", "pndm", "heun",
    "ddpm", "deis", "dpm2", "dpm2_ancestral", "dpmpp_2s",
}  # fmt: skip


def test_the_names_that_the_field_knows_are_there() -> None:
    assert set(diffusers_schedulers()) >= WANTED


@pytest.mark.parametrize("name", sorted(diffusers_schedulers()))
def test_each_picture_has_a_scheduler_of_its_own_that_is_as_diffusers_makes_it(name: str) -> None:
    class_name, changes, _ = DIFFUSERS[name]
    config: dict[str, Any] = {} if name in FLOW else CONFIG
    make = diffusers_schedulers()[name]
    for _ in range(2):  # the second one must know nothing of what the first one did
        made, wanted = make(config), getattr(diffusers, class_name).from_config(config, **changes)
        assert type(made) is type(wanted)
        assert made.config == wanted.config
        assert_same_state(made, wanted)
        for scheduler in (made, wanted):
            scheduler.set_timesteps(4)
        sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        for timestep in made.timesteps:
            steps = [
                scheduler.step(sample / 2, timestep, sample, **noise_of(scheduler)) for scheduler in (made, wanted)
            ]
            assert torch.equal(*(step.prev_sample for step in steps))
        assert_same_state(made, wanted)


def noise_of(scheduler: Any) -> dict[str, Any]:
    """The same random numbers for each scheduler that takes some."""
    takes = "generator" in inspect.signature(scheduler.step).parameters
    return {"generator": torch.Generator().manual_seed(1)} if takes else {}


def assert_same_state(scheduler: Any, other: Any) -> None:
    assert vars(scheduler).keys() == vars(other).keys()
    for name, value in vars(scheduler).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value.nan_to_num(), vars(other)[name].nan_to_num()), name
        elif name != "_internal_dict":
            assert np.array_equal(value, vars(other)[name]) or isinstance(value, list), name


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", sorted(diffusers_schedulers().keys() - FLOW))
def test_a_perfect_model_makes_the_predicted_picture_the_true_one(name: str, prediction: str) -> None:
    scheduler = diffusers_schedulers()[name]({**CONFIG, "prediction_type": prediction})
    scheduler.set_timesteps(10)
    random = torch.Generator().manual_seed(0)
    original, noise = torch.randn((2, 1, 4, 8, 8), generator=random)
    timestep = scheduler.timesteps[0]
    sample = scheduler.add_noise(original, noise, timestep[None])
    sigma = noise_level(scheduler)
    alpha = float(scheduler.alphas_cumprod[int(timestep)]) ** 0.5 if sigma is None else 1 / (sigma**2 + 1) ** 0.5
    velocity = alpha * noise - (1 - alpha**2) ** 0.5 * original
    output = velocity if prediction == "v_prediction" else noise
    predicted = predict_original(scheduler, output, sample, timestep, sigma)
    assert torch.allclose(predicted, original, atol=2e-3)


@pytest.mark.parametrize("name", sorted(FLOW))
def test_a_perfect_model_of_flow_matching_makes_the_predicted_picture_the_true_one(name: str) -> None:
    scheduler = diffusers_schedulers()[name]({"shift": 3.0})
    scheduler.set_timesteps(10)
    original, noise = torch.randn((2, 1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    sigma = float(scheduler.sigmas[0])
    sample = sigma * noise + (1 - sigma) * original
    predicted = predict_original(scheduler, noise - original, sample, scheduler.timesteps[0], sigma)
    assert torch.allclose(predicted, original, atol=1e-5)


@pytest.mark.parametrize("name", sorted(diffusers_schedulers().keys() - FLOW))
def test_a_request_runs_with_the_scheduler(served: Served, name: str) -> None:
    request = {
        "prompt": "red apple on a blue background",
        "scheduler": name,
        "num_inference_steps": 4,
        "seed": 3,
        "output_type": "latent",
        "mode": "exact",
        "stream": {"latents": {"dtype": "float32"}},
    }
    events: list[Event] = []
    again: list[Event] = []
    result = asyncio.run(served.host.dispatch("generate", request, "test", events.append))
    asyncio.run(served.host.dispatch("generate", request, "test", again.append))
    steps = [event for event in events if isinstance(event, Step)]
    assert result["scheduler"] == name
    assert [event.step for event in steps] == list(range(1, steps[0].steps + 1))
    assert steps[0].timestep > steps[-1].timestep
    final = _array(next(event.latents for event in events if isinstance(event, Image)))
    last = _array([event.latents for event in events if isinstance(event, Latents)][-1])
    assert np.isfinite(final).all()
    assert np.array_equal(final, last)
    assert np.array_equal(final, _array(next(event.latents for event in again if isinstance(event, Image))))


def _array(tensor: Any) -> Any:
    return np.frombuffer(tensor.data, tensor.dtype).reshape(tensor.shape)
