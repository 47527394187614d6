"""Models people have: SDXL and SD3 as folders, one-file checkpoints; what each can do, beside plain diffusers."""

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from latentwire import Host, InvalidParams
from latentwire.core.events import Event, Image, Preview, Step
from latentwire.core.model_store import LOADING

from . import small_models
from .conftest import running_host

REQUEST: dict[str, Any] = {"prompt": "red apple", "seed": 3, "num_inference_steps": 3, "mode": "exact"}
LATENT = {"output_type": "latent"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("sdxl", "sd3", "sd2"):
        getattr(small_models, name)(folder / name)
    small_models.sdxl_checkpoint(folder / "xl.safetensors")
    return folder


@pytest.fixture(scope="module")
def host(folder: Path) -> Iterator[Host]:
    models: dict[str, Any] = {name: {"path": folder / name} for name in ("sdxl", "sd3", "sd2")}
    models["half"] = {"path": folder / "sdxl", "dtype": "bfloat16"}
    models["tiled"] = {"path": folder / "sdxl", "vae_tiling": True, "vae_slicing": True}
    models["offloaded"] = {"path": folder / "sdxl", "cpu_offload": True}
    with running_host(models=models, files={"roots": [folder]}) as host:
        yield host


def generate(host: Host, **fields: Any) -> list[Event]:
    events: list[Event] = []
    asyncio.run(host.dispatch("generate", REQUEST | fields, "test", events.append))
    return events


def image_of(events: list[Event]) -> Image:
    (event,) = [event for event in events if isinstance(event, Image)]
    return event


def latents_of(events: list[Event]) -> torch.Tensor:
    tensor = image_of(events).latents
    assert tensor is not None
    return torch.frombuffer(bytearray(tensor.data), dtype=torch.float32).reshape(tensor.shape)


def png(width: int = 64, height: int = 64) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def plain(kind: Any, folder: Path, scheduler: Any = None, **arguments: Any) -> torch.Tensor:
    """The latents of diffusers' own pipeline, with modules of its own."""
    with LOADING:
        pipeline = kind.from_pretrained(folder, dtype=torch.float32)
    if scheduler is not None:
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    with torch.inference_mode():
        images = pipeline(
            "red apple", num_inference_steps=3, generator=generator, output_type="latent", **arguments
        ).images
    latents: torch.Tensor = images[0]
    return latents


SIZE = {"width": 64, "height": 64}
FAMILIES = [
    ("sdxl", diffusers.StableDiffusionXLPipeline, diffusers.DDIMScheduler),
    ("sd3", diffusers.StableDiffusion3Pipeline, diffusers.FlowMatchEulerDiscreteScheduler),
    ("sd2", diffusers.StableDiffusionPipeline, diffusers.DDIMScheduler),
]


@pytest.mark.parametrize(("model", "kind", "scheduler"), FAMILIES, ids=lambda value: str(value))
def test_a_picture_is_bit_identical_to_plain_diffusers(
    host: Host, folder: Path, model: str, kind: Any, scheduler: Any
) -> None:
    wanted = plain(kind, folder / model, scheduler, guidance_scale=5.0, negative_prompt="leaf", **SIZE)
    got = latents_of(generate(host, model=model, guidance_scale=5.0, negative_prompt="leaf", **SIZE, **LATENT))
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("model", ["sdxl", "sd3"])
def test_image_to_image_and_inpainting_are_bit_identical_to_plain_diffusers(
    host: Host, folder: Path, model: str
) -> None:
    name = {"sdxl": "StableDiffusionXL", "sd3": "StableDiffusion3"}[model]
    scheduler = {"sdxl": diffusers.DDIMScheduler, "sd3": diffusers.FlowMatchEulerDiscreteScheduler}[model]
    picture = PILImage.open(io.BytesIO(png())).convert("RGB")
    mask = PILImage.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    buffer = io.BytesIO()
    mask.save(buffer, "png")
    size = SIZE if model == "sd3" else {}  # the other one takes its size from the picture
    wanted = plain(
        getattr(diffusers, f"{name}Img2ImgPipeline"),
        folder / model,
        scheduler,
        image=picture,
        strength=0.7,
        guidance_scale=5.0,
        **size,
    )
    events = generate(
        host, model=model, guidance_scale=5.0, img2img={"image": png(), "strength": 0.7}, **SIZE, **LATENT
    )
    assert torch.equal(latents_of(events), wanted)
    made = {"sdxl": 2, "sd3": 3}[model]  # diffusers rounds 2.1 down for the one, up for the other
    steps = [(event.step, event.steps) for event in events if isinstance(event, Step)]
    assert steps == [(step, made) for step in range(1, made + 1)]
    wanted = plain(
        getattr(diffusers, f"{name}InpaintPipeline"),
        folder / model,
        scheduler,
        image=picture,
        mask_image=mask,
        strength=1.0,
        guidance_scale=5.0,
        **SIZE,
    )
    section = {"image": png(), "mask": buffer.getvalue()}
    got = latents_of(generate(host, model=model, guidance_scale=5.0, img2img=section, **SIZE, **LATENT))
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("model", ["sdxl", "sd3", "sd2", "half", "tiled", "offloaded"])
def test_pictures_and_previews_come_and_rows_share_forwards(host: Host, model: str) -> None:
    before = host.engine.figures.forwards, host.engine.figures.calls
    events = generate(host, model=model, mode="fast", num_images=3, stream={"previews": {}}, **SIZE)
    pictures = [event.image for event in events if isinstance(event, Image)]
    assert [(picture.width, picture.height) for picture in pictures if picture] == [(64, 64)] * 3
    assert [event for event in events if isinstance(event, Preview)]
    forwards, calls = (
        now - then for now, then in zip((host.engine.figures.forwards, host.engine.figures.calls), before, strict=True)
    )
    assert forwards < calls


def test_offloaded_and_tiled_models_make_the_same_picture(host: Host) -> None:
    wanted = image_of(generate(host, model="sdxl", **SIZE)).image
    assert wanted is not None
    for model in ("offloaded", "tiled"):
        got = image_of(generate(host, model=model, **SIZE)).image
        assert got is not None
        pixels = [np.asarray(PILImage.open(io.BytesIO(picture.data))) for picture in (got, wanted)]
        assert np.array_equal(pixels[0], pixels[1])


def test_sdxls_autoencoder_stays_in_float32_among_half_precision(host: Host) -> None:
    section = {"image": png(), "strength": 0.7}
    assert image_of(generate(host, model="half", img2img=section, **SIZE)).image
    rows = {row["component"]: row for row in host.store.loaded() if row["model"] == "half"}
    with host.store.leased("half") as lease:
        assert lease.components["vae"].dtype == torch.float32
        assert lease.components["unet"].dtype == torch.bfloat16
    assert rows["vae"]["bytes"] == sum(part.nbytes for part in lease.components["vae"].parameters())


def test_a_scheduler_of_the_other_kind_is_refused_with_those_that_fit(host: Host) -> None:
    with pytest.raises(InvalidParams, match=r"no scheduler 'ddim' for StableDiffusion3Pipeline.*flow_euler, flow_heun"):
        generate(host, model="sd3", scheduler="ddim", **SIZE)
    with pytest.raises(InvalidParams, match="no scheduler 'flow_euler' for StableDiffusionXLPipeline"):
        generate(host, model="sdxl", scheduler="flow_euler", **SIZE)
    assert image_of(generate(host, model="sd3", scheduler="flow_heun", **SIZE)).image


def test_a_controlnet_of_sdxl_works_and_sd3_says_it_has_none(host: Host, folder: Path) -> None:
    with host.store.leased("sdxl") as lease:
        torch.manual_seed(0)
        net = diffusers.ControlNetModel.from_unet(
            lease.components["unet"], conditioning_embedding_out_channels=(8, 8, 16, 16)
        )
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    net.save_pretrained(folder / "nets" / "xl")
    load = {"path": "nets/xl", "model": "sdxl"}
    assert asyncio.run(host.dispatch("controlnet.load", load, "test", lambda _: None))["name"] == "xl"
    with_it = generate(host, model="sdxl", controlnet=[{"image": png()}], **SIZE, **LATENT)
    assert not torch.equal(latents_of(with_it), latents_of(generate(host, model="sdxl", **SIZE, **LATENT)))
    with pytest.raises(Exception, match="for which this host has no ControlNets"):
        asyncio.run(host.dispatch("controlnet.load", load | {"model": "sd3"}, "test", lambda _: None))


def test_a_checkpoint_file_makes_the_picture_of_its_folder(folder: Path) -> None:
    configs = small_models.configs_of(folder / "xl", folder / "configs")
    models = {"file": {"path": folder / "xl.safetensors", "config": configs}, "folder": {"path": folder / "xl"}}
    with running_host(models=models) as host:
        assert host.store.card("file").family == "StableDiffusionXLPipeline"
        got, wanted = (latents_of(generate(host, model=model, **SIZE, **LATENT)) for model in ("file", "folder"))
        # where a weight lies in memory decides the last bits
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_the_longest_unused_model_makes_room_and_comes_back(host: Host, folder: Path) -> None:
    sizes = {}
    for name in ("sdxl", "sd2", "sd3"):
        with host.store.leased(name):
            sizes[name] = sum(row["bytes"] for row in host.store.loaded() if row["model"] == name)
    budget = (max(sizes["sdxl"] + sizes["sd2"], sizes["sd2"] + sizes["sd3"]) >> 20) + 1
    assert budget << 20 < sum(sizes.values())
    models = {name: {"path": folder / name} for name in sizes}
    with running_host(models=models, engine={"device": "cpu", "memory_mib": budget}) as small:

        def loaded() -> set[str]:
            return {row["model"] for row in small.store.loaded() if row["component"] in ("unet", "transformer")}

        first = latents_of(generate(small, model="sdxl", **SIZE, **LATENT))
        generate(small, model="sd2", **SIZE)
        assert loaded() == {"sdxl", "sd2"}
        generate(small, model="sd3", **SIZE)
        assert loaded() == {"sd2", "sd3"}
        assert sum(row["bytes"] for row in small.store.loaded()) <= budget << 20
        assert torch.equal(latents_of(generate(small, model="sdxl", **SIZE, **LATENT)), first)


def test_a_model_in_use_never_makes_room(folder: Path) -> None:
    models = {name: {"path": folder / name} for name in ("sdxl", "sd3")}
    with running_host(models=models, engine={"device": "cpu", "memory_mib": 1}) as host:
        with host.store.leased("sdxl") as lease:
            generate(host, model="sd3", **SIZE)
            rows = {row["component"]: row for row in host.store.loaded() if row["model"] == "sdxl"}
            assert rows.keys() >= {"unet", "vae", "text_encoder", "text_encoder_2"}
            assert lease.components["unet"].dtype == torch.float32
        assert sum(row["bytes"] for row in host.store.loaded()) <= 1 << 20  # nothing is used any more
