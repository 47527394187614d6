"""Image to image and inpainting: what plain diffusers makes, which steps are made, and what is refused."""

import asyncio
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline
from PIL import Image as PILImage
from PIL import ImageDraw, ImageOps

from latentwire import Host, InvalidParams, LatentwireError, testing
from latentwire.core.describe import error_codes
from latentwire.core.errors import UnknownImage
from latentwire.core.settings import EMBEDDED_MODEL
from latentwire.plugins.img2img import Img2Img
from latentwire.testing import Events, Generated, assert_same_latents, assert_same_picture, call, running_host

from .conftest import Served
from .pages import PLUGIN_PAGES, blocks, json_default, section, table
from .test_docs_protocol import assert_same_shape
from .wire import in_loop, wire

SMALL: dict[str, Any] = {
    "prompt": "red apple on a blue background",
    "width": 64,
    "height": 64,
    "num_inference_steps": 6,
    "guidance_scale": 4.0,
    "seed": 1,
    "mode": "exact",
}


def painted(size: tuple[int, int] = (64, 64)) -> Any:
    """A yellow disc on green."""
    picture = PILImage.new("RGB", size, (40, 150, 70))
    ImageDraw.Draw(picture).ellipse((size[0] * 0.2, size[1] * 0.2, size[0] * 0.8, size[1] * 0.8), fill=(240, 210, 50))
    return picture


def right_half(size: tuple[int, int] = (64, 64)) -> Any:
    """A mask that is white on its right half."""
    mask = PILImage.new("L", size)
    mask.paste(255, (size[0] // 2, 0, *size))
    return mask


def file_of(picture: Any, format: str = "png", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


PICTURE = file_of(painted())
MASK = file_of(right_half())


def ask(host: Host, command: str, **params: Any) -> dict[str, Any]:
    result: dict[str, Any] = call(host, command, params)
    return result


def generate(host: Host, **params: Any) -> Generated:
    return testing.generate(host, **SMALL | params)


def latents_of(host: Host, **params: Any) -> torch.Tensor:
    """The final latents of a job of one picture."""
    return torch.from_numpy(generate(host, output_type="latent", **params).latents.copy())


def draw(host: Host, **params: Any) -> Any:
    """The picture of a job of one, `(h, w, 3)` in 0..255."""
    return np.asarray(generate(host, **params).picture.convert("RGB")).astype(float)


def refused(host: Host, kind: type[LatentwireError], **params: Any) -> LatentwireError:
    with pytest.raises(LatentwireError) as caught:
        ask(host, "generate", **SMALL | params)
    assert type(caught.value) is kind, caught.value
    return caught.value


@pytest.fixture(scope="module")
def loaded() -> Iterator[Host]:
    """A host with a ControlNet and a LoRA."""
    with running_host("img2img", "controlnet", "lora") as host:
        ask(host, "controlnet.load", path="controlnets/emoji-outline", name="outline")
        ask(host, "lora.load", path="loras/emoji-pencil", name="pencil")
        yield host


# Bit for bit what plain diffusers makes.


@pytest.fixture(scope="module")
def plain() -> StableDiffusionPipeline:
    """Modules that never had a gate."""
    return StableDiffusionPipeline.from_pretrained(EMBEDDED_MODEL, torch_dtype=torch.float32, safety_checker=None)


def as_plain(host: Host, plain: StableDiffusionPipeline, scheduler: str, strength: float, mask: Any = None) -> Any:
    """The final latents that diffusers makes of the same request, and its scheduler's timesteps."""
    kind = StableDiffusionImg2ImgPipeline if mask is None else StableDiffusionInpaintPipeline
    made = host.registry.schedulers[scheduler](plain.scheduler.config)
    pipeline = kind(**plain.components | {"scheduler": made}, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    sizes = {} if mask is None else {"mask_image": mask, "width": 64, "height": 64}
    steps: list[float] = []

    def note(_pipeline: Any, _index: int, timestep: Any, _tensors: Any) -> dict[str, Any]:
        steps.append(float(timestep))
        return {}

    latents = pipeline(
        SMALL["prompt"],
        image=painted(),
        strength=strength,
        num_inference_steps=SMALL["num_inference_steps"],
        guidance_scale=SMALL["guidance_scale"],
        generator=torch.Generator().manual_seed(SMALL["seed"]),
        output_type="latent",
        callback_on_step_end=note,
        **sizes,
    ).images[0]
    return latents, steps


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "heun", "dpmpp_2m_karras", "pndm", "euler_ancestral", "lcm"])
@pytest.mark.parametrize(("strength", "mask"), [(0.5, None), (1.0, None), (0.7, right_half()), (1.0, right_half())])
def test_mode_exact_gives_the_very_latents_and_timesteps_of_plain_diffusers(
    loaded: Host, plain: StableDiffusionPipeline, scheduler: str, strength: float, mask: Any
) -> None:
    wanted, timesteps = as_plain(loaded, plain, scheduler, strength, mask)
    given = {"image": PICTURE, "strength": strength} | ({} if mask is None else {"mask": MASK})
    got = generate(loaded, scheduler=scheduler, img2img=given, output_type="latent")
    assert_same_latents(got.latents, wanted)
    steps = got.events.named("step")
    assert [event.timestep for event in steps] == timesteps
    assert [event.step for event in steps] == [*range(1, len(timesteps) + 1)]
    assert {event.steps for event in steps} == {len(timesteps)}
    sigmas = [event.sigma for event in steps if event.sigma is not None]
    assert len(sigmas) == (0 if scheduler in ("ddim", "pndm", "lcm") else len(steps))
    assert sigmas == sorted(sigmas, reverse=True)


@pytest.mark.parametrize(("strength", "made"), [(1.0, 10), (0.7, 7), (0.75, 7), (0.1, 1)])
def test_only_the_steps_that_are_made_are_counted(loaded: Host, strength: float, made: int) -> None:
    stream = {"latents": {}, "previews": {"format": "png"}}
    given = {"image": PICTURE, "strength": strength}
    events = generate(loaded, num_inference_steps=10, img2img=given, stream=stream).events
    steps = events.named("step")
    assert [(event.step, event.steps) for event in steps] == [(step, made) for step in range(1, made + 1)]
    assert [event.step for event in events.named("latents")] == [event.step for event in steps]
    everything = [event.timestep for event in generate(loaded, num_inference_steps=10).events.named("step")]
    assert [event.timestep for event in steps] == everything[-made:]


def test_a_strength_that_is_left_out_is_the_documented_one(loaded: Host) -> None:
    steps = SMALL["num_inference_steps"]
    for given, made in (({"image": PICTURE}, int(0.8 * steps)), ({"image": PICTURE, "mask": MASK}, steps)):
        assert len(generate(loaded, img2img=given).events.named("step")) == made


# What it means.


def test_the_less_the_strength_the_nearer_the_result_is_to_the_picture(loaded: Host) -> None:
    start = np.asarray(painted((128, 128)), float)
    size = {"width": 128, "height": 128, "num_inference_steps": 10}
    given = {"image": file_of(painted((128, 128)))}
    distances = [
        np.abs(draw(loaded, **size, img2img=given | {"strength": strength}) - start).mean()
        for strength in (0.1, 0.4, 0.7, 1.0)
    ]
    assert distances == sorted(distances)
    assert distances[0] < 25 < 50 < distances[-1], distances


@pytest.mark.parametrize("strength", [0.6, 1.0, None])
def test_the_black_part_of_a_mask_is_kept_and_the_white_one_is_made_anew(loaded: Host, strength: float | None) -> None:
    size = (128, 128)
    given = {"image": file_of(painted(size)), "mask": file_of(right_half(size))}
    more = {} if strength is None else {"strength": strength}
    got = draw(loaded, width=128, height=128, num_inference_steps=10, img2img=given | more)
    changed = np.abs(got - np.asarray(painted(size), float)).mean(axis=2)
    kept, anew = changed[:, :56], changed[:, 72:]
    assert kept.mean() < 8  # the autoencoder is not without loss
    assert np.median(anew) > 4 * kept.mean()


def test_a_mask_may_be_of_any_mode_and_counts_by_its_brightness(loaded: Host) -> None:
    wanted = latents_of(loaded, img2img={"image": PICTURE, "mask": MASK})
    for mask in (right_half().convert("RGB"), right_half().convert("1"), right_half().convert("RGBA")):
        got = latents_of(loaded, img2img={"image": PICTURE, "mask": file_of(mask)})
        assert torch.equal(got, wanted)
    other = latents_of(loaded, img2img={"image": PICTURE, "mask": file_of(ImageOps.invert(right_half()))})
    assert not torch.equal(other, wanted)


@pytest.mark.parametrize("resize", ["fit", "fill", "stretch", None])
def test_image_and_mask_of_other_sizes_are_brought_to_the_pictures(loaded: Host, resize: str | None) -> None:
    """Of twice the width: `fill` shows the middle, `fit` all of it between borders, `stretch` all of it, narrowed."""
    wide, mask = painted((256, 128)), right_half((512, 256))
    given = {"image": file_of(wide), "mask": file_of(mask), "strength": 0.5}
    got = latents_of(loaded, img2img=given | ({} if resize is None else {"resize": resize}))
    small = {
        "fit": wide.resize((64, 32), PILImage.Resampling.LANCZOS),
        "stretch": wide.resize((64, 64), PILImage.Resampling.LANCZOS),
        "fill": ImageOps.fit(wide, (64, 64), PILImage.Resampling.LANCZOS),
    }[resize or "fill"]
    at_size, mask_at_size = PILImage.new("RGB", (64, 64)), PILImage.new("L", (64, 64))
    at_size.paste(small, (0, (64 - small.height) // 2))
    mask_at_size.paste(255, (32, (64 - small.height) // 2, 64, (64 + small.height) // 2))
    by_hand = {"image": file_of(at_size), "mask": file_of(mask_at_size), "strength": 0.5}
    assert torch.equal(got, latents_of(loaded, img2img=by_hand))


def test_the_picture_has_the_size_that_was_asked_for(loaded: Host) -> None:
    size = {"width": 96, "height": 72, "num_inference_steps": 2}
    for given in ({"image": PICTURE}, {"image": PICTURE, "mask": MASK}):
        assert draw(loaded, **size, img2img=given).shape == (72, 96, 3)


def test_several_pictures_of_one_job_start_from_the_same_one(loaded: Host) -> None:
    given = {"image": PICTURE, "strength": 0.5}
    two = generate(loaded, num_images=2, output_type="latent", img2img=given).events.named("image")
    assert len(two) == 2
    for event in two:
        alone = latents_of(loaded, seed=1 + event.index, img2img=given)
        assert np.array_equal(np.frombuffer(event.latents.data, np.float32), alone.numpy().ravel())


def test_fast_stays_within_rounding_and_reproducible_gives_the_same_bytes(loaded: Host) -> None:
    given = {"image": PICTURE, "strength": 0.5}
    exact = latents_of(loaded, img2img=given)

    async def beside_others(mode: str) -> Any:
        requests: list[dict[str, Any]] = [
            {"img2img": given},
            {"img2img": given | {"mask": MASK}, "seed": 2},
            {"seed": 3},
        ]
        events = [Events() for _ in requests]
        jobs = [
            loaded.dispatch("generate", SMALL | request | {"mode": mode}, "test", into)
            for request, into in zip(requests, events, strict=True)
        ]
        result, *_ = await asyncio.gather(*jobs)
        return Generated(result, events[0]).picture

    assert_same_picture(asyncio.run(beside_others("fast")), generate(loaded, img2img=given).picture, within=1)
    alone = generate(loaded, mode="reproducible", img2img=given).picture
    for _ in range(2):
        assert_same_picture(asyncio.run(beside_others("reproducible")), alone)
    assert torch.equal(latents_of(loaded, img2img=given), exact)


def test_it_goes_together_with_a_lora_and_a_controlnet(loaded: Host) -> None:
    given = {"image": PICTURE, "strength": 0.7}
    outline = PILImage.new("RGB", (64, 64))
    ImageDraw.Draw(outline).ellipse((10, 20, 40, 60), outline="white", width=2)
    lora, uses = [{"name": "pencil"}], [{"name": "outline", "image": file_of(outline)}]
    results = [
        latents_of(loaded, **fields, img2img=given | mask)
        for mask in ({}, {"mask": MASK})
        for fields in ({}, {"lora": lora}, {"controlnet": uses}, {"lora": lora, "controlnet": uses})
    ]
    for number, one in enumerate(results):
        assert torch.isfinite(one).all()
        assert all((one - other).abs().max() > 0.05 for other in results[:number])


def test_previews_show_the_picture_that_is_being_made(loaded: Host) -> None:
    given = {"image": file_of(painted((128, 128))), "mask": file_of(right_half((128, 128))), "strength": 0.6}
    stream = {"previews": {"format": "png", "size": 128}}
    size = {"width": 128, "height": 128, "num_inference_steps": 10}
    done = generate(loaded, **size, img2img=given, stream=stream)
    previews = done.events.named("preview")
    assert previews
    assert {event.steps for event in previews} == {6}
    final = np.asarray(done.picture.resize((32, 32)), float)
    last = PILImage.open(io.BytesIO(previews[-1].image.data)).convert("RGB").resize((32, 32))
    assert np.abs(np.asarray(last, float) - final).mean() < 25


# What stays in the PNG.


def test_the_request_in_the_png_names_its_pictures_and_makes_the_same_one_again(loaded: Host) -> None:
    (made,) = generate(loaded).events.named("image")
    given = {"image": made.image_id, "mask": MASK, "strength": 0.7}
    first = generate(loaded, img2img=given).picture
    request = json.loads(first.info["latentwire"])
    assert request["img2img"]["image"] == made.image_id
    assert request["img2img"]["mask"] == ask(loaded, "images.put", data=MASK)["image_id"]
    assert_same_picture(testing.generate(loaded, **request).picture, first)
    with running_host("img2img", "lora") as other:  # which has not seen the pictures
        error = refused(other, UnknownImage, **request)
        assert error.details[0]["path"] == ["img2img", "image"]


@in_loop
async def test_a_picture_comes_back_over_the_wire_as_the_next_ones_start(served: Served) -> None:
    async with wire(served.url) as client:
        await client.send(1, "generate", **SMALL)
        first = next(message for message in await client.all_of(1) if message["event"] == "image")
        given = {"image": first["image_id"], "strength": 0.2}
        await client.send(2, "generate", **SMALL | {"img2img": given})
        messages = await client.all_of(2)
    assert sum(message["event"] == "step" for message in messages) == 1
    second = next(message for message in messages if message["event"] == "image")
    start, result = (
        np.asarray(PILImage.open(io.BytesIO(message["image"]["data"])), float) for message in (first, second)
    )
    assert np.abs(result - start).mean() < 15


# What is refused.

BAD: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "no image": ({"strength": 0.5}, ["image"], "Field required"),
    "no picture": ({"image": b"hello"}, ["image"], "PNG, JPEG or WebP"),
    "an empty mask": ({"image": PICTURE, "mask": b""}, ["mask"], "empty file"),
    "half a mask": ({"image": PICTURE, "mask": MASK[:60]}, ["mask"], "PNG, JPEG or WebP"),
    "a GIF": ({"image": file_of(painted(), "gif")}, ["image"], "PNG, JPEG or WebP"),
    "strength 0": ({"image": PICTURE, "strength": 0.0}, ["strength"], "greater than 0"),
    "strength above 1": ({"image": PICTURE, "strength": 1.1}, ["strength"], "less than or equal to 1"),
    "too little strength": (
        {"image": PICTURE, "strength": 0.1}, ["strength"], "strength 0.1 of 6 steps leaves no step to make",
    ),
    "too little strength with a mask": ({"image": PICTURE, "mask": MASK, "strength": 0.16}, ["strength"], "no step"),
    "an unknown key": ({"image": PICTURE, "strenght": 0.5}, ["strenght"], "did you mean 'strength'"),
    "an unknown resize": ({"image": PICTURE, "resize": "crop"}, ["resize"], "'fit', 'fill' or 'stretch'"),
    "a number for an image": ({"image": 7}, ["image"], "valid bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_refused_with_a_path_that_leads_to_it(loaded: Host, case: str) -> None:
    given, path, reason = BAD[case]
    error = refused(loaded, InvalidParams, img2img=given)
    assert reason in error.message
    assert error.details[0]["path"] == ["img2img", *path]
    assert {row["leases"] for row in loaded.store.loaded()} <= {0}


@pytest.mark.parametrize("field", ["image", "mask"])
def test_an_unknown_image_id_is_refused(loaded: Host, field: str) -> None:
    error = refused(loaded, UnknownImage, img2img={"image": PICTURE} | {field: "0" * 32})
    assert error.details == [{"path": ["img2img", field], "message": error.message, "got": "0" * 32}]


def test_a_picture_of_too_many_pixels_is_refused() -> None:
    with running_host("img2img", limits={"input_pixels": 64 * 64}) as host:
        large = file_of(painted((65, 64)))
        for given, field in (({"image": large}, "image"), ({"image": PICTURE, "mask": large}, "mask")):
            assert refused(host, InvalidParams, img2img=given).details[0]["path"] == ["img2img", field]


# The page.

PAGE = PLUGIN_PAGES["img2img"]
MESSAGES: list[dict[str, Any]] = [json.loads(block) for block in blocks(PAGE, "json")]


def test_the_commands_on_the_page_run_in_order_and_give_what_it_says(host: Host) -> None:
    """The id in the examples stands for the one that the real upload gave."""
    results = {message["id"]: message["result"] for message in MESSAGES if "result" in message}
    ids: dict[str, str] = {}
    for message in (message for message in MESSAGES if "command" in message):
        result = ask(host, message["command"], **real(message["params"], ids))
        if message["id"] in results:
            documented = results[message["id"]]
            assert_same_shape(documented, result, message["command"])
            ids[documented["image_id"]] = result["image_id"]
        else:
            assert message["command"] == "generate"
    assert ids


def real(value: Any, ids: dict[str, str]) -> Any:
    """An example's params with a real picture for each count of bytes, and real ids for those in the examples."""
    if isinstance(value, dict):
        return file_of(painted()) if "$bytes" in value else {key: real(entry, ids) for key, entry in value.items()}
    return ids.get(value, value) if isinstance(value, str) else value


def test_the_keys_are_on_the_page_with_their_defaults() -> None:
    documented = {name: json_default(row[0]) for name, row in table(section(PAGE, "Request field `img2img`")).items()}
    assert documented == {name: field.default for name, field in Img2Img.model_fields.items()}


def test_the_error_codes_on_the_page_are_codes_of_the_host() -> None:
    assert table(section(PAGE, "Errors")).keys() < error_codes().keys()
