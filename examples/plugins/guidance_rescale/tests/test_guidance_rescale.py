"""Rescaled guidance is what diffusers' own pipeline makes of it."""

from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import pytest
import torch

from latentwire import Host, InvalidParams
from latentwire.testing import assert_same_latents, difference, generate, running_host

FIELDS = {"num_inference_steps": 4, "guidance_scale": 9.0, "output_type": "latent"}


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with running_host("guidance_rescale", "img2img") as host:
        yield host


@torch.inference_mode()
def plain(host: Host, rescale: float) -> npt.NDArray[np.float32]:
    """The same latents from a plain pipeline of the same modules."""
    with host.store.leased("emoji") as lease:
        scheduler = diffusers.DDIMScheduler.from_config(dict(lease.card.scheduler_config))
        pipeline = diffusers.StableDiffusionPipeline(
            **lease.components, scheduler=scheduler, requires_safety_checker=False
        )
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(1)
        latents = pipeline("red apple", generator=generator, guidance_rescale=rescale, **FIELDS).images
    array: npt.NDArray[np.float32] = latents[0].numpy()
    return array


@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_it_is_what_diffusers_makes(host: Host, rescale: float) -> None:
    made = generate(host, guidance_rescale=rescale, **FIELDS).latents
    assert_same_latents(made, plain(host, rescale), within=1e-5)
    assert difference(made, generate(host, **FIELDS).latents) > 0.1


def test_it_takes_the_spread_back(host: Host) -> None:
    spreads = [generate(host, guidance_rescale=rescale, **FIELDS).latents.std() for rescale in (0.0, 0.5, 1.0)]
    assert spreads[0] > spreads[1] > spreads[2]


def test_zero_changes_nothing(host: Host) -> None:
    assert_same_latents(generate(host, guidance_rescale=0, **FIELDS).latents, generate(host, **FIELDS).latents)


def test_a_pipeline_that_does_not_take_it_is_said(host: Host, latentwire_host: Callable[..., Host]) -> None:
    begin = {"image": generate(host).files[0]}
    with pytest.raises(InvalidParams, match="StableDiffusionImg2ImgPipeline takes no guidance_rescale") as caught:
        generate(host, img2img=begin, guidance_rescale=0.7)
    assert caught.value.details[0]["path"] == ["guidance_rescale"]
    assert generate(host, img2img=begin).result["images"] == 1


@pytest.mark.parametrize("wrong", [-0.1, 1.1, "0.7", float("nan"), True, {"scale": 0.7}])
def test_a_wrong_value_is_refused_with_its_place(host: Host, wrong: Any) -> None:
    with pytest.raises(InvalidParams) as caught:
        generate(host, guidance_rescale=wrong)
    assert caught.value.details[0]["path"][0] == "guidance_rescale"
