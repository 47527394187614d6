"""A T2I-Adapter on real jobs makes what diffusers' own pipeline for them makes, with the host's every comfort."""

import asyncio
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageDraw

from latentwire import Host, InvalidParams, LatentwireError, ModelLoadError, NotLoaded
from latentwire.testing import (
    Events,
    assert_same_latents,
    assert_same_picture,
    call,
    difference,
    fault_in,
    generate,
    out_of_memory,
    running_host,
)

# what the model's UNet adds after its three blocks, the first of which has no attention, and in the middle
KIND = {
    "adapter_type": "full_adapter_xl",
    "channels": [64, 128, 160, 160],
    "num_res_blocks": 1,
    "downscale_factor": 16,
}
FIELDS = {"num_inference_steps": 4, "guidance_scale": 5.0, "output_type": "latent"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random T2I-Adapters for the model that comes along, and one that is for another."""
    root = tmp_path_factory.mktemp("models")
    for name, changes in {
        "shape": {},
        "sketch": {"in_channels": 1},
        "wide": {"channels": [320, 640, 1280, 1280]},
        "large": {"downscale_factor": 8},
    }.items():
        torch.manual_seed(7)
        diffusers.T2IAdapter(**KIND | changes).save_pretrained(root / name)
    shutil.copytree(root / "shape", root / "damaged")
    (root / "damaged" / "diffusion_pytorch_model.safetensors").write_bytes(b"nothing of use")
    (root / "empty").mkdir()
    return root


@pytest.fixture(scope="module")
def host(folder: Path) -> Iterator[Host]:
    with running_host("t2i_adapter", files={"roots": [str(folder)]}) as host:
        call(host, "t2i_adapter.load", {"path": "shape"})
        call(host, "t2i_adapter.load", {"path": "sketch"})
        yield host


def drawing(kind: str = "ellipse", size: int = 128) -> bytes:
    """A white shape on black, as a PNG."""
    picture = Image.new("RGB", (size, size))
    getattr(ImageDraw.Draw(picture), kind)((size // 4, size // 4, size // 2, 3 * size // 4), "white")
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()


def use(**fields: Any) -> dict[str, Any]:
    return {"name": "shape", "image": drawing(), **fields}


@torch.no_grad()
def plain(host: Host, folder: Path, image: bytes, scale: float, guidance: float) -> npt.NDArray[np.float32]:
    """The same latents from diffusers' pipeline for T2I-Adapters, of the same modules."""
    adapter = diffusers.T2IAdapter.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    with host.store.leased("emoji") as lease:
        scheduler = diffusers.DDIMScheduler.from_config(dict(lease.card.scheduler_config))
        components = {name: part for name, part in lease.components.items() if name != "image_encoder"}
        pipeline = diffusers.StableDiffusionAdapterPipeline(
            **components, scheduler=scheduler, adapter=adapter, requires_safety_checker=False
        )
        pipeline.set_progress_bar_config(disable=True)
        latents = pipeline(
            "red apple",
            Image.open(io.BytesIO(image)).convert("L" if adapter.config.in_channels == 1 else "RGB"),
            generator=torch.Generator().manual_seed(1),
            adapter_conditioning_scale=scale,
            **FIELDS | {"guidance_scale": guidance},
        ).images
    array: npt.NDArray[np.float32] = latents[0].numpy()
    return array


@pytest.mark.parametrize(
    ("name", "scale", "guidance"), [("shape", 1.0, 5.0), ("shape", 0.5, 1.0), ("sketch", 2.0, 5.0)]
)
def test_it_is_what_diffusers_makes(host: Host, folder: Path, name: str, scale: float, guidance: float) -> None:
    fields = FIELDS | {"guidance_scale": guidance}
    made = generate(host, t2i_adapter=use(name=name, scale=scale), **fields)
    assert_same_latents(made.latents, plain(host, folder / name, drawing(), scale, guidance), within=1e-5)
    assert difference(made.latents, generate(host, **fields).latents) > 0.1
    assert len(made.events.named("step")) == 4


def test_at_scale_zero_it_is_as_without_it(host: Host) -> None:
    assert_same_latents(generate(host, t2i_adapter=use(scale=0), **FIELDS).latents, generate(host, **FIELDS).latents)


def test_another_size_than_the_models_own(host: Host) -> None:
    made = generate(host, t2i_adapter=use(), width=192, height=64)
    assert made.picture.size == (192, 64)


def test_the_stored_request_makes_the_same_picture_again(host: Host) -> None:
    first = generate(host, t2i_adapter=use(scale=0.7))
    stored = json.loads(first.picture.info["latentwire"])
    assert stored["t2i_adapter"]["scale"] == 0.7
    assert_same_picture(generate(host, **stored).picture, first.picture)


def test_two_jobs_with_different_images_share_their_forwards(host: Host) -> None:
    fields = {"prompt": "red apple", "seed": 1, "mode": "fast", **FIELDS}
    images = [drawing("ellipse"), drawing("rectangle")]
    alone = [generate(host, t2i_adapter=use(image=image), **FIELDS).latents for image in images]
    before = call(host, "pipeline.state")["engine"]

    async def both() -> list[Events]:
        events = [Events(), Events()]
        jobs = [
            host.dispatch("generate", fields | {"t2i_adapter": use(image=image)}, "test", emit)
            for image, emit in zip(images, events, strict=True)
        ]
        await asyncio.gather(*jobs)
        return events

    shared = asyncio.run(both())
    after = call(host, "pipeline.state")["engine"]
    calls, forwards = after["calls"] - before["calls"], after["forwards"] - before["forwards"]
    assert calls - forwards >= 2  # of four steps each
    for events, wanted in zip(shared, alone, strict=True):
        (event,) = events.named("image")
        got = np.frombuffer(event.latents.data, "<f4").reshape(event.latents.shape)
        assert_same_latents(got, wanted, within=1e-3)
    assert difference(*alone) > 0.1


def test_a_job_without_one_is_not_disturbed(host: Host) -> None:
    before = generate(host, **FIELDS).latents
    generate(host, t2i_adapter=use(scale=3.0), **FIELDS)
    assert_same_latents(generate(host, **FIELDS).latents, before)


def test_a_forward_that_ran_out_of_memory_is_tried_again_with_the_adapter(host: Host) -> None:
    def runs_out(_: Any) -> Any:
        raise out_of_memory()

    wanted = generate(host, t2i_adapter=use(), **FIELDS).latents
    with fault_in(host, "unet", runs_out, at=2, times=1):
        assert_same_latents(generate(host, t2i_adapter=use(), **FIELDS).latents, wanted)


def test_loaded_ones_are_listed_and_can_be_unloaded(host: Host) -> None:
    call(host, "t2i_adapter.load", {"path": "shape", "name": "other"})
    rows = call(host, "t2i_adapter.list")["t2i_adapters"]
    assert [row["name"] for row in rows] == ["shape", "sketch", "other"]
    assert rows[0]["model"] == "emoji"
    assert rows[0]["bytes"] > 0
    assert rows[0]["leases"] == 0
    assert call(host, "t2i_adapter.unload", {"name": "other"}) == {"name": "other", "unloaded": True}
    with pytest.raises(InvalidParams, match="no T2I-Adapter 'other' is loaded"):
        generate(host, t2i_adapter=use(name="other"))
    with pytest.raises(NotLoaded, match="loaded: shape, sketch"):
        call(host, "t2i_adapter.unload", {"name": "other"})


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("wide", r"gives channels and sizes \[\[320, 8\].*the UNet takes \[\[64, 8\], \[128, 8\], \[160, 4\]\]"),
        ("large", r"gives channels and sizes \[\[64, 16\]"),
        ("empty", r"its config\.json: No such file"),
        ("damaged", "cannot load module 'damaged'"),
        ("emoji/unet", r"its config\.json is of UNet2DConditionModel"),
    ],
)
def test_what_is_no_adapter_for_the_model_is_refused(host: Host, path: str, says: str) -> None:
    with pytest.raises(ModelLoadError, match=says):
        call(host, "t2i_adapter.load", {"path": path})
    assert [row["name"] for row in call(host, "t2i_adapter.list")["t2i_adapters"]] == ["shape", "sketch"]


def test_paths_stay_below_the_roots(host: Host) -> None:
    with pytest.raises(InvalidParams, match=r"files\.roots"):
        call(host, "t2i_adapter.load", {"path": "../../etc"})


@pytest.mark.parametrize(
    ("field", "path"),
    [
        (use(name="sahpe"), ["t2i_adapter", "name"]),
        (use(image=b"no picture"), ["t2i_adapter", "image"]),
        (use(scale=-1), ["t2i_adapter", "scale"]),
        (use() | {"strength": 1}, ["t2i_adapter", "strength"]),
    ],
)
def test_a_wrong_field_is_refused_with_its_place(host: Host, field: dict[str, Any], path: list[str]) -> None:
    with pytest.raises(LatentwireError) as caught:
        generate(host, t2i_adapter=field)
    assert caught.value.code == "invalid_params"
    assert caught.value.details[0]["path"] == path


def test_a_size_that_the_adapter_cannot_take_is_said(host: Host) -> None:
    with pytest.raises(InvalidParams, match="must be a multiple of 16") as caught:
        generate(host, t2i_adapter=use(), width=136)
    assert caught.value.details[0]["path"] == ["width"]


@pytest.mark.parametrize("order", [("t2i_adapter", "img2img"), ("img2img", "t2i_adapter")])
def test_it_says_that_it_works_with_text2img_alone(
    latentwire_host: Callable[..., Host], folder: Path, order: tuple[str, str]
) -> None:
    host = latentwire_host(*order, files={"roots": [str(folder)]})
    call(host, "t2i_adapter.load", {"path": "shape"})
    with pytest.raises(InvalidParams, match="text2img alone, and this request is for img2img"):
        generate(host, t2i_adapter=use(), img2img={"image": drawing()})


def test_a_model_of_another_family_is_refused_at_loading(
    host: Host, latentwire_host: Callable[..., Host], tmp_path: Path
) -> None:
    emoji = host.store.card("emoji").path
    for part in emoji.iterdir():
        if part.name != "model_index.json":
            (tmp_path / part.name).symlink_to(part)
    index = (emoji / "model_index.json").read_text().replace("StableDiffusionPipeline", "StableDiffusionXLPipeline")
    (tmp_path / "model_index.json").write_text(index)
    other = latentwire_host("t2i_adapter", models={"xl": {"path": tmp_path}})
    with pytest.raises(ModelLoadError, match="'xl' is a StableDiffusionXLPipeline"):
        call(other, "t2i_adapter.load", {"path": "shape", "model": "xl"})
