"""What is changed while a picture runs is, from that step on, what plain diffusers makes of the same change."""

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from PIL import Image as PILImage
from PIL import ImageDraw

from latentwire import Host
from latentwire.core.events import Accepted, Event, Image, Step
from latentwire.core.settings import EMBEDDED_MODEL, MODELS_FOLDER

from .conftest import running_host

LORA = MODELS_FOLDER / "loras" / "emoji-pencil" / "emoji-pencil-000400.safetensors"
CONTROLNET = MODELS_FOLDER / "controlnets" / "emoji-outline"
STEPS = 10
REQUEST: dict[str, Any] = {
    "prompt": "red apple on a blue background",
    "num_inference_steps": STEPS,
    "guidance_scale": 4.0,
    "seed": 3,
    "mode": "exact",
}


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with running_host() as host:
        asyncio.run(host.dispatch("lora.load", {"path": str(LORA), "name": "pencil"}, "me", lambda _: None))
        asyncio.run(host.dispatch("controlnet.load", {"path": str(CONTROLNET)}, "me", lambda _: None))
        yield host


def outline() -> PILImage.Image:
    picture = PILImage.new("RGB", (128, 128))
    ImageDraw.Draw(picture).ellipse((30, 30, 98, 98), outline="white", width=2)
    return picture


def png(picture: PILImage.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


async def changed(host: Host, request: dict[str, Any], update: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The pixels of a picture that was changed after its third step, and what its PNG says of the change."""
    events: list[Event] = []
    third_step = asyncio.Event()
    loop = asyncio.get_running_loop()

    def emit(event: Event) -> None:
        events.append(event)
        if isinstance(event, Step) and event.step == 3:
            loop.call_soon_threadsafe(third_step.set)

    making = asyncio.create_task(host.dispatch("generate", request, "me", emit))
    await third_step.wait()
    (job,) = (event.job for event in events if isinstance(event, Accepted))
    await host.dispatch("jobs.update", {"job": job} | update, "me", lambda _: None)
    await making
    (image,) = (event.image for event in events if isinstance(event, Image))
    assert image is not None
    picture = PILImage.open(io.BytesIO(image.data))
    (change,) = json.loads(picture.info["latentwire_changes"])
    assert 3 <= change["after_step"] < STEPS
    return np.asarray(picture), change


def plain(pipeline: Any, change: Callable[[Any], None] = lambda _: None, after: int = 0, **arguments: Any) -> Any:
    """The pixels that plain diffusers makes, changed after that step by a step callback."""
    pipeline.set_progress_bar_config(disable=True)

    def callback(pipe: Any, index: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index + 1 == after:
            change(pipe)
        return tensors

    with torch.inference_mode():
        images = pipeline(
            REQUEST["prompt"],
            num_inference_steps=STEPS,
            guidance_scale=4.0,
            generator=torch.Generator().manual_seed(3),
            callback_on_step_end=callback,
            output_type="pil",
            **arguments,
        ).images
    return np.asarray(images[0])


def text_to_image() -> Any:
    return StableDiffusionPipeline.from_pretrained(EMBEDDED_MODEL, dtype=torch.float32)


def test_guidance(host: Host) -> None:
    got, change = asyncio.run(changed(host, REQUEST, {"guidance_scale": 9.0}))

    def set_guidance(pipeline: Any) -> None:
        pipeline._guidance_scale = 9.0

    pipeline = text_to_image()
    assert np.array_equal(got, plain(pipeline, set_guidance, change["after_step"]))
    assert not np.array_equal(got, plain(pipeline))
    assert change == {"after_step": change["after_step"], "guidance_scale": 9.0}


@pytest.mark.parametrize("weight", [0.2, 0.0])
def test_the_weight_of_a_lora(host: Host, weight: float) -> None:
    request = REQUEST | {"lora": [{"name": "pencil", "weight": 1.0}]}
    got, change = asyncio.run(changed(host, request, {"lora": [{"name": "pencil", "weight": weight}]}))
    pipeline = text_to_image()
    pipeline.load_lora_weights(LORA, adapter_name="pencil")

    def set_weight(pipeline: Any) -> None:
        pipeline.set_adapters("pencil", weight)

    assert np.array_equal(got, plain(pipeline, set_weight, change["after_step"]))
    pipeline.set_adapters("pencil", 1.0)
    assert not np.array_equal(got, plain(pipeline))
    assert change["adapters"] == {"pencil": weight}


@pytest.mark.parametrize("scale", [0.3, 0.0])
def test_the_scale_of_a_controlnet_within_its_window(host: Host, scale: float) -> None:
    use = {"image": png(outline()), "controlnet_conditioning_scale": 1.0, "control_guidance_end": 0.8}
    update = {"controlnet": [{"name": "emoji-outline", "controlnet_conditioning_scale": scale}]}
    got, change = asyncio.run(changed(host, REQUEST | {"controlnet": [use]}, update))
    net = ControlNetModel.from_pretrained(CONTROLNET, dtype=torch.float32)
    parts = text_to_image().components
    # of several ControlNets, here one, the pipeline looks at the list of scales at each step
    pipeline = StableDiffusionControlNetPipeline(
        **parts, controlnet=MultiControlNetModel([net]), requires_safety_checker=False
    )
    scales = [1.0]

    def set_scale(_: Any) -> None:
        scales[0] = scale

    control: dict[str, Any] = {
        "image": [outline()],
        "controlnet_conditioning_scale": scales,
        "control_guidance_end": [0.8],
    }
    assert np.array_equal(got, plain(pipeline, set_scale, change["after_step"], **control))
    scales[0] = 1.0
    assert not np.array_equal(got, plain(pipeline, **control))
    assert change["controlnet_scales"] == {"emoji-outline": scale}


def test_what_a_job_did_not_begin_with_cannot_be_changed(host: Host) -> None:
    async def refused(request: dict[str, Any], update: dict[str, Any]) -> list[dict[str, Any]]:
        with pytest.raises(Exception, match=r"did not begin with|runs without") as caught:
            await changed(host, REQUEST | request, update)
        await host.dispatch("cancel", {"all": True}, "me", lambda _: None)
        details: list[dict[str, Any]] = getattr(caught.value, "details")  # noqa: B009
        return details

    scale = {"controlnet": [{"name": "emoji-outline", "controlnet_conditioning_scale": 0.5}]}
    silent = {"controlnet": [{"image": png(outline()), "controlnet_conditioning_scale": 0.0}]}
    for request in ({}, silent):
        assert asyncio.run(refused(request, scale))[0]["path"] == ["controlnet", 0, "name"]
    weight = {"lora": [{"name": "pencil", "weight": 0.5}]}
    for request in ({}, {"lora": [{"name": "pencil", "weight": 0.0}]}):
        assert asyncio.run(refused(request, weight))[0]["path"] == ["lora", 0, "name"]
