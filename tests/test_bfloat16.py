"""bfloat16 through the whole path, beside plain diffusers, and the warning where a CPU cannot do it."""

import asyncio
import io
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from PIL import Image as PILImage
from PIL import ImageDraw

from latentwire import Host
from latentwire.core import cpu
from latentwire.core.events import Event, Image, Preview
from latentwire.core.settings import EMBEDDED_MODEL, MODELS_FOLDER, ModelSettings

from .conftest import running_host

PICTURE: dict[str, Any] = {
    "prompt": "red apple on a blue background",
    "num_inference_steps": 3,
    "guidance_scale": 4.0,
    "width": 64,
    "height": 64,
}
CONTROLNET, PENCIL = "controlnets/emoji-outline", "loras/emoji-pencil"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    models = {"emoji": {"path": EMBEDDED_MODEL, "dtype": "bfloat16"}, "whole": {"path": EMBEDDED_MODEL}}
    with running_host(models=models) as host:
        asyncio.run(host.dispatch("controlnet.load", {"path": CONTROLNET, "name": "outline"}, "me", lambda _: None))
        asyncio.run(host.dispatch("lora.load", {"path": PENCIL, "name": "pencil"}, "me", lambda _: None))
        yield host


async def events_of(host: Host, **fields: Any) -> list[Event]:
    events: list[Event] = []
    asked = PICTURE | {"seed": 1, "mode": "exact", "output_type": "latent"} | fields
    await host.dispatch("generate", asked, "me", events.append)
    return events


def latents_of(events: list[Event]) -> Any:
    (latents,) = (event.latents for event in events if isinstance(event, Image))
    assert latents is not None
    return np.frombuffer(latents.data, latents.dtype).reshape(latents.shape)


def outline() -> PILImage.Image:
    picture = PILImage.new("RGB", (64, 64))
    ImageDraw.Draw(picture).ellipse((10, 14, 54, 50), outline="white", width=2)
    return picture


def with_everything() -> dict[str, Any]:
    file = io.BytesIO()
    outline().save(file, "png")
    return {
        "controlnet": [{"name": "outline", "image": file.getvalue()}],
        "lora": [{"name": "pencil", "weight": 0.5}],
    }


def test_exact_is_bit_identical_to_a_plain_pipeline_in_bfloat16(host: Host) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(EMBEDDED_MODEL, torch_dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    random = torch.Generator().manual_seed(1)
    wanted = pipeline(**PICTURE, generator=random, output_type="latent").images[0].float().numpy()
    got = latents_of(asyncio.run(events_of(host)))
    assert np.array_equal(got, wanted)
    whole = latents_of(asyncio.run(events_of(host, model="whole")))
    assert 0 < np.abs(got - whole).mean() < 0.2 * whole.std()  # rounded, and the same picture


def test_a_controlnet_and_a_lora_in_bfloat16_are_bit_identical_as_well(host: Host) -> None:
    net = ControlNetModel.from_pretrained(MODELS_FOLDER / CONTROLNET, torch_dtype=torch.bfloat16)
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(
        EMBEDDED_MODEL, controlnet=net, torch_dtype=torch.bfloat16
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(max((MODELS_FOLDER / PENCIL).glob("*.safetensors")), adapter_name="pencil")
    pipeline.set_adapters(["pencil"], [0.5])
    random = torch.Generator().manual_seed(1)
    made = pipeline(**PICTURE, image=outline(), generator=random, output_type="latent").images[0]
    wanted = made.detach().float().numpy()
    assert np.array_equal(latents_of(asyncio.run(events_of(host, **with_everything()))), wanted)


def test_previews_latents_and_pictures_of_jobs_that_share_forwards(host: Host) -> None:
    stream = {"previews": {"every": 1}, "latents": {"dtype": "float16"}}
    requests: list[dict[str, Any]] = [{}, with_everything(), {"lora": [{"name": "pencil"}]}, {"seed": 2}]

    async def together() -> list[list[Event]]:
        asked = {"mode": "fast", "stream": stream, "output_type": "png"}
        return await asyncio.gather(*(events_of(host, **asked | request) for request in requests))

    for events, request in zip(asyncio.run(together()), requests, strict=True):
        previews = [event for event in events if isinstance(event, Preview)]
        (image,) = (event.image for event in events if isinstance(event, Image))
        assert previews
        assert image is not None
        last = np.asarray(PILImage.open(io.BytesIO(previews[-1].image.data)).convert("RGB").resize((64, 64)), float)
        made = np.asarray(PILImage.open(io.BytesIO(image.data)).convert("RGB"), float)
        assert np.abs(last - made).mean() < 40, request  # of 255: the preview shows the picture


@pytest.mark.parametrize(
    ("has", "dtype", "warns"),
    [
        ({"avx2": True, "avx512_vnni": True}, "bfloat16", True),
        ({"avx2": True, "avx512_bf16": True}, "bfloat16", False),
        ({"amx_bf16": True}, "bfloat16", False),
        ({"neon": True, "bf16": True}, "bfloat16", False),
        ({"avx2": True}, "float16", True),
        ({"avx512_fp16": True}, "float16", False),
        ({"avx2": True}, "float32", False),
        ({}, "auto", False),
    ],
)
def test_a_dtype_that_the_cpu_cannot_do_is_warned_of(
    has: dict[str, bool], dtype: Any, warns: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert cpu.is_slow(dtype) is warns
    models = {"emoji": ModelSettings(path=EMBEDDED_MODEL, dtype=dtype)}
    with caplog.at_level(logging.WARNING), running_host(models={"emoji": models["emoji"].model_dump()}):
        pass
    assert ("no instructions for" in caplog.text) is warns
