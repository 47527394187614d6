"""Training pictures: a thing somewhere on a plain background, its outline, and the styles that LoRAs learn."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageChops, ImageFilter

from .things import COLOURS, Thing, caption

PICTURE_SIZE = 128
ELSEWHERE = 0.15  # the share of things that are not near the middle


@dataclass(frozen=True)
class Placement:
    """Where a thing is put: its sides against the glyph's, its middle in shares of the free room, its tilt."""

    width: float
    height: float
    x: float
    y: float
    mirrored: bool
    degrees: float = 0.0


def near_the_middle(rng: random.Random) -> Placement:
    """Where things usually are: large, in the middle, give or take a few pixels."""
    scale = rng.uniform(0.70, 0.80)
    return Placement(scale, scale, rng.uniform(0.4, 0.6), rng.uniform(0.4, 0.6), rng.random() < 0.15)


def anywhere(rng: random.Random) -> Placement:
    """Any place, and any size that fits into the picture."""
    scale = rng.uniform(0.4, 0.92)
    return Placement(scale, scale, rng.random(), rng.random(), rng.random() < 0.15)


def as_drawn(rng: random.Random) -> Placement:
    """What an outline may ask for: any place and size, stretched and tilted."""
    scale, stretch = rng.uniform(0.42, 0.85), rng.uniform(0.87, 1.15)
    width, height = min(0.92, scale * stretch), min(0.98, scale / stretch)
    return Placement(width, height, rng.random(), rng.random(), rng.random() < 0.15, rng.uniform(-15, 15))


def place(thing: Thing, at: Placement) -> Image.Image:
    """The thing's glyph at its place on a transparent 128x128 RGBA picture."""
    width, height = round(136 * at.width), round(128 * at.height)
    glyph = thing.glyph.resize((width, height), Image.Resampling.LANCZOS)
    if at.mirrored:
        glyph = glyph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if at.degrees:
        glyph = glyph.rotate(at.degrees, Image.Resampling.BICUBIC)
    layer = Image.new("RGBA", (PICTURE_SIZE, PICTURE_SIZE), (0, 0, 0, 0))
    layer.paste(glyph, (round((PICTURE_SIZE - width) * at.x), round((PICTURE_SIZE - height) * at.y)))
    return layer


def paint(layer: Image.Image | None, colour: str, rng: random.Random) -> Image.Image:
    """A 128x128 RGB picture: the layer, or nothing, on the colour, give or take a little."""
    red, green, blue = (max(0, min(255, c + rng.randint(-8, 8))) for c in COLOURS[colour])
    picture = Image.new("RGB", (PICTURE_SIZE, PICTURE_SIZE), (red, green, blue))
    if layer is not None:
        picture.paste(layer, (0, 0), layer)
    return picture


def sample(things: list[Thing], rng: random.Random) -> tuple[Image.Image, str]:
    """One training pair, picture and caption."""
    thing = None if rng.random() < 0.02 else rng.choice(things)
    colour = rng.choice(list(COLOURS))
    layer = None
    if thing is not None:
        layer = place(thing, anywhere(rng) if rng.random() < ELSEWHERE else near_the_middle(rng))
    return paint(layer, colour, rng), caption(thing, colour, rng)


def silhouette(layer: Image.Image) -> Image.Image:
    """Where a layer hides the background: mode L, 0 or 255."""
    return layer.getchannel("A").point(lambda alpha: 255 if alpha > 127 else 0)


def outline(layer: Image.Image, width: int = 3, inner: bool = False) -> Image.Image:
    """White lines on black (mode L), as edge and scribble detectors give: the silhouette's, and the edges inside.

    Args:
        width: of the line, in pixels, odd.
    """
    shape = silhouette(layer)
    lines = ImageChops.difference(
        shape.filter(ImageFilter.MaxFilter(width)), shape.filter(ImageFilter.MinFilter(width))
    )
    if not inner:
        return lines
    flat = Image.new("RGB", layer.size, (128, 128, 128))
    flat.paste(layer, (0, 0), layer)
    return ImageChops.lighter(lines, Image.fromarray(((_edges(flat) > 40) * 255).astype(np.uint8)))


def _edges(picture: Image.Image) -> np.ndarray:
    """`(h, w)` float32: how much the colour changes at a pixel."""
    across, down = np.gradient(np.asarray(picture, dtype=np.float32), axis=(1, 0))
    return np.asarray(np.abs(across).max(axis=2) + np.abs(down).max(axis=2))


def pixel_art(picture: Image.Image) -> Image.Image:
    """The picture as 16x16 large pixels of at most 12 colours."""
    small = picture.resize((16, 16), Image.Resampling.BOX).quantize(12, dither=Image.Dither.NONE)
    return small.convert("RGB").resize(picture.size, Image.Resampling.NEAREST)


def pencil(picture: Image.Image) -> Image.Image:
    """The picture as a pencil drawing: dark lines where it has edges, faint shades of gray on white paper."""
    light = np.asarray(picture.convert("L"), dtype=np.float32)
    drawn = 205 + 0.2 * light - 2.2 * _edges(picture)
    return Image.fromarray(drawn.clip(25, 255).astype(np.uint8)).convert("RGB")


STYLES: dict[str, Callable[[Image.Image], Image.Image]] = {"pixel-art": pixel_art, "pencil": pencil}


def sample_in_any_style(things: list[Thing], rng: random.Random) -> Image.Image:
    """A picture, one in eight in a style that a LoRA will want: for what decodes latents."""
    picture, _ = sample(things, rng)
    return rng.choice(list(STYLES.values()))(picture) if rng.random() < 1 / 8 else picture


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """RGB picture -> float32 tensor (3, h, w) in -1..1."""
    array = np.asarray(picture, dtype=np.float32) / 127.5 - 1.0
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()
