"""Graphs on the other families of models: what generate makes of the same request, and what no request can say."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latentwire import Host
from latentwire.testing import assert_same_picture, generate, running_host

from . import small_models
from .graphs import NEGATIVE, PROMPT, Draft, Model, painted
from .test_graph_shared import put, run

REQUEST: dict[str, Any] = {
    "prompt": PROMPT,
    "negative_prompt": NEGATIVE,
    "num_inference_steps": 4,
    "guidance_scale": 4.0,
    "seed": 7,
}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder: Path = tmp_path_factory.mktemp("models")
    models = {
        "sdxl": {"path": small_models.sdxl(folder / "sdxl")},
        "sd3": {"path": small_models.sd3(folder / "sd3")},
    }
    with running_host("graph", "img2img", models=models) as host:
        yield host


def start(name: str) -> Model:
    model = Model(Draft())
    model.draft.nodes["1"]["inputs"]["ckpt_name"] = name
    return model


@pytest.mark.parametrize(("name", "scheduler"), [("sdxl", "euler"), ("sd3", "flow_euler")])
def test_text_to_image(host: Host, name: str, scheduler: str) -> None:
    model = start(name)
    (picture,) = run(host, model.saved(model.sampled()))
    wanted = generate(host, **REQUEST, model=name, width=64, height=64, scheduler=scheduler).picture
    assert_same_picture(picture, wanted, within=1)


@pytest.mark.parametrize(("name", "scheduler"), [("sdxl", "euler"), ("sd3", "flow_euler")])
def test_image_to_image(host: Host, name: str, scheduler: str) -> None:
    model = start(name)
    image = put(host, painted())
    (loaded,) = model.draft.add("LoadImage", image=image)
    (picture,) = run(host, model.saved(model.sampled(model.encoded(loaded), denoise=0.5)))
    request = REQUEST | {"num_inference_steps": 8, "img2img": {"image": image, "strength": 0.5}}
    wanted = generate(host, **request, model=name, width=64, height=64, scheduler=scheduler).picture
    assert_same_picture(picture, wanted, within=1)


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_a_prompt_that_is_embedded_before_is_that_prompt(host: Host, name: str) -> None:
    model = start(name)
    (plain,) = run(host, model.saved(model.sampled()))
    zeroed = start(name)
    zeroed.negative = zeroed.draft.one("ConditioningZeroOut", conditioning=zeroed.negative)
    (other,) = run(host, zeroed.saved(zeroed.sampled()))
    assert other.tobytes() != plain.tobytes()
    unguided = start(name)
    unguided.positive = unguided.draft.one("ConditioningZeroOut", conditioning=unguided.positive)
    assert run(host, unguided.saved(unguided.sampled(cfg=1.0)))


def test_prompts_are_combined(host: Host) -> None:
    model = start("sdxl")
    (plain,) = run(host, model.saved(model.sampled()))
    twice = start("sdxl")
    both = {"conditioning_1": twice.positive, "conditioning_2": twice.positive}
    twice.positive = twice.draft.one("ConditioningCombine", **both)
    (picture,) = run(host, twice.saved(twice.sampled()))
    assert_same_picture(picture, plain, within=1)


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_latents_are_upscaled_and_encoded(host: Host, name: str) -> None:
    model = start(name)
    (loaded,) = model.draft.add("LoadImage", image=put(host, painted()))
    larger = {"upscale_method": "bilinear", "width": 96, "height": 96, "crop": "disabled"}
    latent = model.draft.one("LatentUpscale", samples=model.encoded(loaded), **larger)
    (picture,) = run(host, model.saved(model.sampled(latent, denoise=0.5)))
    assert picture.size == (96, 96)


def test_two_samplers_in_a_row(host: Host) -> None:
    model = start("sdxl")
    first = model.sampled_some(model.empty(), end_at_step=2, return_with_leftover_noise="enable")
    (picture,) = run(host, model.saved(model.sampled_some(first, start_at_step=2, add_noise="disable")))
    whole = start("sdxl")
    (plain,) = run(host, whole.saved(whole.sampled()))
    assert_same_picture(picture, plain, within=1)
