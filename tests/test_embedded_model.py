"""The embedded model draws what the prompt says: through the host, on prompts with plain answers."""

import asyncio
import io
from typing import Any

import numpy as np
from PIL import Image as PILImage

from latentwire.core.events import Event, Image
from latentwire.core.settings import EMBEDDED_MODEL
from latentwire.training.data import COLOURS

from .conftest import Served

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


def test_the_model_is_small_half_precision_and_safetensors_only() -> None:
    files = [file for file in EMBEDDED_MODEL.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 25_000_000
    for file in files:
        assert "_name_or_path" not in (file.read_text() if file.suffix == ".json" else ""), file
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]
