"""The scheduler's noise levels, told by real steps, and the pictures that come of them."""

import itertools
import math
from collections.abc import Callable, Iterator

import diffusers
import numpy as np
import pytest
from latentwire_polyexponential import Plugin, Settings, scheduler_class

from latentwire import Host, InvalidParams
from latentwire.testing import assert_same_latents, call, difference, generate, plugin, running_host

NAME = "euler_polyexponential"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with running_host(plugin("polyexponential", rho=2.0)) as host:
        yield host


def sigmas(host: Host, steps: int) -> list[float]:
    """The noise levels that the steps of a job began from."""
    made = generate(host, scheduler=NAME, num_inference_steps=steps)
    return [event.sigma for event in made.events.named("step")]


def test_the_noise_levels_fall_as_the_formula_says(host: Host) -> None:
    levels = np.log(sigmas(host, 5))
    ramp = (levels - levels[-1]) / (levels[0] - levels[-1])
    assert ramp == pytest.approx([1, 0.75**2, 0.5**2, 0.25**2, 0], abs=1e-4)


def test_they_begin_and_end_where_the_model_was_trained(host: Host) -> None:
    euler = generate(host, scheduler="euler", num_inference_steps=4)
    highest = euler.events.named("step")[0].sigma
    assert sigmas(host, 4)[0] == pytest.approx(highest, rel=1e-4)
    assert 0.02 < sigmas(host, 4)[-1] < 0.05  # of the first of a thousand betas


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_a_job_has_as_many_steps_as_it_asks_for(host: Host, steps: int) -> None:
    levels = sigmas(host, steps)
    assert len(levels) == steps
    assert levels == sorted(levels, reverse=True)


def test_rho_one_is_exponential(latentwire_host: Callable[..., Host]) -> None:
    levels = sigmas(latentwire_host(plugin("polyexponential", rho=1.0)), 5)
    ratios = [math.log(before / after) for before, after in itertools.pairwise(levels)]
    assert ratios == pytest.approx([ratios[0]] * 4, rel=1e-3)


def test_its_pictures_are_finite_near_eulers_and_its_own(host: Host) -> None:
    fields = {"num_inference_steps": 20, "output_type": "latent"}
    own, euler = generate(host, scheduler=NAME, **fields), generate(host, scheduler="euler", **fields)
    assert own.result["scheduler"] == NAME
    assert_same_latents(own.latents, generate(host, scheduler=NAME, **fields).latents)
    assert 0 < difference(own.latents, euler.latents) < np.abs(euler.latents).max()


def test_img2img_begins_further_down(latentwire_host: Callable[..., Host]) -> None:
    host = latentwire_host("polyexponential", "img2img")
    begin = {"image": generate(host).files[0], "strength": 0.5}
    steps = generate(host, scheduler=NAME, num_inference_steps=6, img2img=begin).events.named("step")
    assert [event.step for event in steps] == [1, 2, 3]
    assert steps[0].sigma < sigmas(host, 6)[0] / 2


def test_timesteps_of_the_callers_own_are_left_alone() -> None:
    scheduler = scheduler_class(1.5)()
    scheduler.set_timesteps(timesteps=[900, 500, 100])
    assert scheduler.timesteps.tolist() == [900, 500, 100]


def test_a_flow_model_is_refused_with_the_place_in_the_request() -> None:
    with pytest.raises(InvalidParams, match="flow matching") as caught:
        Plugin(Settings()).make(diffusers.FlowMatchEulerDiscreteScheduler().config)
    assert caught.value.details[0]["path"] == ["scheduler"]


def test_describe_lists_it(host: Host) -> None:
    assert NAME in call(host, "describe")["schedulers"]
