"""A model whose convolutions work in channels_last: the same promises, with that format's bits."""

import asyncio
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from PIL import Image as PILImage
from PIL import ImageDraw

from latentwire import Host
from latentwire.core.events import Event, Image
from latentwire.core.settings import EMBEDDED_MODEL, MODELS_FOLDER

from .conftest import running_host

CONTROLNET, PENCIL, PIXELS = "controlnets/emoji-outline", "loras/emoji-pencil", "loras/emoji-pixel-art"
CONTROL_LORA = "control-loras/emoji-outline.safetensors"
PICTURE: dict[str, Any] = {
    "prompt": "red apple on a blue background",
    "width": 64,
    "height": 64,
    "num_inference_steps": 3,
    "guidance_scale": 4.0,
}


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    models = {"emoji": {"path": EMBEDDED_MODEL, "channels_last": True}, "plain": {"path": EMBEDDED_MODEL}}
    with running_host(models=models, engine={"device": "cpu", "reproducible_rows": 8}) as host:
        ask(host, "controlnet.load", path=CONTROLNET, name="outline")
        ask(host, "controlnet.load", lora_weights_path=CONTROL_LORA, name="lora")
        for path in (PENCIL, PIXELS):
            ask(host, "lora.load", path=path, name=path[-6:])
        yield host


def ask(host: Host, command: str, **params: Any) -> dict[str, Any]:
    return asyncio.run(host.dispatch(command, params, "me", lambda _: None))


async def drawn(host: Host, seed: int, **fields: Any) -> Any:
    """One picture: its latents, or its pixels."""
    events: list[Event] = []
    asked = PICTURE | {"seed": seed, "mode": "exact", "output_type": "latent"} | fields
    await host.dispatch("generate", asked, "me", events.append)
    (image,) = (event for event in events if isinstance(event, Image))
    if image.latents is not None:
        return np.frombuffer(image.latents.data, image.latents.dtype).reshape(image.latents.shape)
    assert image.image is not None
    return np.asarray(PILImage.open(io.BytesIO(image.image.data)))


def draw(host: Host, seed: int = 1, **fields: Any) -> Any:
    return asyncio.run(drawn(host, seed, **fields))


def outline() -> PILImage.Image:
    picture = PILImage.new("RGB", (64, 64))
    ImageDraw.Draw(picture).ellipse((10, 14, 54, 50), outline="white", width=2)
    return picture


def png() -> bytes:
    file = io.BytesIO()
    outline().save(file, "png")
    return file.getvalue()


def in_channels_last(kind: Any, **parts: Any) -> Any:
    """A plain pipeline whose denoiser, autoencoder and ControlNet are in that format."""
    pipeline = kind.from_pretrained(EMBEDDED_MODEL, torch_dtype=torch.float32, **parts)
    pipeline.set_progress_bar_config(disable=True)
    for name in ("unet", "vae", *parts):
        getattr(pipeline, name).to(memory_format=torch.channels_last)
    return pipeline


def test_denoiser_autoencoder_and_controlnet_are_in_that_format_and_nothing_else(host: Host) -> None:
    shelf = {(key.model, key.component): value for key, (value, *_) in host.store.shelf.contents().items()}
    for model, component, wanted in (
        ("emoji", "unet", True), ("emoji", "controlnet", True), ("emoji", "vae", True),
        ("plain", "unet", False), ("plain", "vae", False),
    ):  # fmt: skip
        with host.store.leased(model) as lease:
            module = lease.components.get(component) or shelf[model, component]
        weights = [part.weight for part in module.modules() if isinstance(part, torch.nn.Conv2d)]
        wide = [
            weight for weight in weights if weight.shape[1] > 1 and weight.shape[2] > 1
        ]  # else both formats are one
        assert {weight.is_contiguous(memory_format=torch.channels_last) for weight in wide} == {wanted}


@pytest.mark.parametrize("output", ["latent", "pil"])
def test_exact_is_bit_identical_to_a_plain_pipeline_in_that_format(host: Host, output: str) -> None:
    random = torch.Generator().manual_seed(1)
    made = in_channels_last(StableDiffusionPipeline)(**PICTURE, generator=random, output_type=output).images[0]
    got = draw(host, output_type="latent" if output == "latent" else "png")
    assert np.array_equal(got, np.asarray(made))
    if output == "latent":
        assert not np.array_equal(got, draw(host, model="plain"))  # the format is to be seen in the bits
        assert np.abs(got - draw(host, model="plain")).max() < 1e-3


def test_exact_with_a_controlnet_and_a_lora_is_bit_identical_as_well(host: Host) -> None:
    net = ControlNetModel.from_pretrained(MODELS_FOLDER / CONTROLNET)
    pipeline = in_channels_last(StableDiffusionControlNetPipeline, controlnet=net)
    weights = max((MODELS_FOLDER / PENCIL).glob("*.safetensors"))
    pipeline.load_lora_weights(weights, adapter_name="pencil")
    pipeline.set_adapters(["pencil"], [0.5])
    made = pipeline(**PICTURE, image=outline(), generator=torch.Generator().manual_seed(1), output_type="latent").images
    wanted = made[0].detach().numpy()
    use: dict[str, Any] = {
        "controlnet": [{"name": "outline", "image": png()}],
        "lora": [{"name": "pencil", "weight": 0.5}],
    }
    assert np.array_equal(draw(host, **use), wanted)


def test_a_control_lora_still_shares_the_bases_tensors(host: Host) -> None:
    with host.store.leased("emoji") as lease:
        theirs = {tensor.data_ptr() for tensor in lease.components["unet"].parameters()}
    nets = [value for key, (value, *_) in host.store.shelf.contents().items() if key.component == "controlnet"]
    shared = [sum(tensor.data_ptr() in theirs for tensor in net.parameters()) for net in nets]
    assert sorted(shared)[0] == 0
    assert sorted(shared)[1] > 100


def test_reproducible_gives_the_same_bytes_beside_loras_and_controlnets(host: Host) -> None:
    control = {"controlnet": [{"name": "outline", "image": png()}]}
    requests: list[dict[str, Any]] = [
        {},
        {"lora": [{"name": "pencil"}]},
        control,
        {"controlnet": [{"name": "lora", "image": png()}]},
        control | {"lora": [{"name": "el-art", "weight": 0.5}]},
    ]
    requests = [request | {"mode": "reproducible"} for request in requests]
    alone = [draw(host, seed, **request) for seed, request in enumerate(requests)]
    figures = host.engine.figures
    forwards, calls = figures.forwards, figures.calls
    for number in range(2):
        order = list(enumerate(requests))[:: 1 - 2 * number]

        async def together(order: Any = order) -> list[Any]:
            return await asyncio.gather(*(drawn(host, seed, **request) for seed, request in order))

        for (seed, _), got in zip(order, asyncio.run(together()), strict=True):
            assert np.array_equal(got, alone[seed])
    assert figures.forwards - forwards < figures.calls - calls  # they did share
