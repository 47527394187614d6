"""The embedded model draws what the prompt says: through the host, on prompts with plain answers."""

import asyncio
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image as PILImage
from safetensors import safe_open

from latentwire.core.events import Event, Image, Preview
from latentwire.core.settings import EMBEDDED_MODEL
from latentwire.training.evaluate import outlines_followed, style_moves, things_and_colours
from latentwire.training.finished import load_controlnets, load_pipeline, style_file
from latentwire.training.measures import blockiness, saturation
from latentwire.training.things import COLOURS, FONT, load_things

from .conftest import Served

MODELS = EMBEDDED_MODEL.parent
# things of one plain colour, and that colour
THINGS = {
    "red apple": "red", "red heart": "red", "banana": "yellow", "lemon": "yellow", "tangerine": "orange",
    "evergreen tree": "green", "frog": "green", "blue heart": "blue", "ghost": "white", "peach": "orange",
}  # fmt: skip


def draw(served: Served, prompts: list[str]) -> list[Any]:
    """One picture a prompt, `(128, 128, 3)`, all at once; seed 0, the model's own defaults."""

    async def all_at_once() -> list[list[Event]]:
        events: list[list[Event]] = [[] for _ in prompts]
        await asyncio.gather(
            *(
                served.host.dispatch("generate", {"prompt": prompt, "seed": 0}, str(index), events[index].append)
                for index, prompt in enumerate(prompts)
            )
        )
        return events

    images = [event.image for events in asyncio.run(all_at_once()) for event in events if isinstance(event, Image)]
    return [np.asarray(PILImage.open(io.BytesIO(image.data)), dtype=float) for image in images if image is not None]


def nearest_colour(pixels: Any) -> str:
    mean = pixels.reshape(-1, 3).mean(axis=0)
    return min(COLOURS, key=lambda name: float(np.abs(mean - np.array(COLOURS[name])).sum()))


def background_of(picture: Any) -> Any:
    return np.concatenate([picture[:8, :8], picture[:8, -8:], picture[-8:, :8], picture[-8:, -8:]])


def test_the_background_has_the_prompts_colour(served: Served) -> None:
    prompts = [f"{thing} on a {colour} background" for thing, colour in zip(THINGS, COLOURS, strict=True)]
    drawn = [nearest_colour(background_of(picture)) for picture in draw(served, prompts)]
    right = sum(got == wanted for got, wanted in zip(drawn, COLOURS, strict=True))
    assert right >= 9, dict(zip(prompts, drawn, strict=True))


def test_the_thing_is_there_and_has_its_colour(served: Served) -> None:
    pictures = draw(served, [f"{thing} on a gray background" for thing in THINGS])
    drawn = []
    for picture in pictures:
        middle = picture[44:84, 44:84].reshape(-1, 3)
        thing = middle[np.abs(middle - background_of(picture).reshape(-1, 3).mean(axis=0)).sum(axis=1) > 60]
        assert len(thing) > 0.3 * len(middle), "there is nothing in the middle"
        drawn.append(nearest_colour(np.median(thing, axis=0)))
    right = sum(got == wanted for got, wanted in zip(drawn, THINGS.values(), strict=True))
    assert right >= 7, dict(zip(THINGS, drawn, strict=True))


def test_a_late_preview_looks_like_the_picture(served: Served) -> None:
    async def run() -> list[Event]:
        events: list[Event] = []
        request = {"prompt": "panda on a green background", "seed": 1, "stream": {"previews": {"format": "png"}}}
        await served.host.dispatch("generate", request, "previews", events.append)
        return events

    events = asyncio.run(run())
    final = next(event.image for event in events if isinstance(event, Image) and event.image is not None)
    previews = [event for event in events if isinstance(event, Preview)]
    assert previews[-1].step > 15, "a late one was painted"
    got, wanted = (
        np.asarray(PILImage.open(io.BytesIO(one.data)).resize((32, 32)), dtype=float)
        for one in (previews[-1].image, final)
    )
    assert np.abs(got - wanted).mean() < 20


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    """The model as any program that uses diffusers loads it."""
    return load_pipeline(EMBEDDED_MODEL)


needs_font = pytest.mark.skipif(not FONT.exists(), reason="needs Debian's fonts-noto-color-emoji")


@needs_font
@pytest.mark.slow
def test_it_draws_the_thing_that_the_prompt_names(pipe: StableDiffusionPipeline) -> None:
    found = things_and_colours(pipe, load_things(), count=20)
    assert found["thing"]["top_5"] >= 0.8, found
    assert found["colour"]["right"] >= 0.9, found


@needs_font
@pytest.mark.slow
def test_controlnet_and_control_lora_put_things_where_the_outline_is(pipe: StableDiffusionPipeline) -> None:
    found = outlines_followed(pipe, load_controlnets(MODELS, pipe.unet), load_things(), count=8)
    assert found["with_controlnet"] > 0.65 > 0.5 > found["without"], found
    assert found["with_control_lora"] > 0.6, found


@needs_font
@pytest.mark.slow
@pytest.mark.parametrize(("style", "measure", "sign"), [("pixel-art", blockiness, 1), ("pencil", saturation, -1)])
def test_a_style_grows_with_its_scale_and_is_gone_with_its_adapter(
    pipe: StableDiffusionPipeline, style: str, measure: Callable[[Any], float], sign: int
) -> None:
    found = style_moves(pipe, style_file(MODELS, style), measure, load_things(), count=4)
    none, half, whole = (sign * value for value in found["scales"].values())
    assert none < half < whole, found
    assert found["same_when_gone"]


def test_a_loras_folder_holds_several_training_steps() -> None:
    names = [file.name for file in (MODELS / "loras/emoji-pixel-art").iterdir()]
    assert sorted(names) == ["emoji-pixel-art-000200.safetensors", "emoji-pixel-art-000400.safetensors"]


def test_the_model_is_small_half_precision_and_safetensors_only() -> None:
    files = [file for file in EMBEDDED_MODEL.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 25_000_000
    files = [file for file in MODELS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 40_000_000
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:
                assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} <= {"F16", "I64"}, file  # noqa: SIM118
        assert "_name_or_path" not in (file.read_text() if file.suffix == ".json" else ""), file
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]
