"""Control images made of pictures without any model: lines white on black, as most ControlNets are trained on.

Each takes a picture in mode RGB and its options, and gives one of the same mode and size.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from pydantic import Field, model_validator

from latentwire import Strict, Whole

Bools: TypeAlias = npt.NDArray[np.bool_]
Numbers: TypeAlias = npt.NDArray[Any]

STEEP = np.tan(np.pi / 8)  # a gradient this flat or flatter counts as horizontal: the circle in eight equal parts
FAINT = 24.0  # response times sigma of an edge of 13 in 255, the faintest that is brightened up to white


class Canny(Strict):
    """Options of `canny`; a gradient is |d/dx| + |d/dy| of Sobel's 3 x 3 filters, 4 times a sharp edge's step."""

    low: Whole = Field(100, ge=0, le=2040, description="gradient above which a pixel continues a line")
    high: Whole = Field(200, ge=0, le=2040, description="gradient above which a pixel begins a line")
    sigma: float = Field(0, ge=0, le=16, description="pixels of blur beforehand, against noise and texture")

    @model_validator(mode="after")
    def _low_is_not_above_high(self) -> "Canny":
        if self.low > self.high:
            raise ValueError(f"wanted low no higher than high, got low {self.low} and high {self.high}")
        return self


class SoftEdge(Strict):
    """Options of `soft_edge`."""

    sigma: float = Field(1.5, ge=0.5, le=8, description="pixels of blur: more gives fewer and wider lines")


class Scribble(Strict):
    """Options of `scribble`."""

    sigma: float = Field(2.5, ge=0.5, le=8, description="pixels of blur: more leaves out more detail")
    level: Whole = Field(96, ge=1, le=255, description="how bright in soft_edge a line must be somewhere to be drawn")
    thickness: Whole = Field(5, ge=1, le=32, description="pixels across a line")


class Threshold(Strict):
    """Options of `threshold`."""

    level: Whole = Field(128, ge=0, le=255, description="gray that is white, as all that is brighter")


class Invert(Strict):
    """`invert` has no options."""


def canny(picture: Image.Image, options: Canny) -> Image.Image:
    """Thin lines along edges; with sigma 0 the very pixels that OpenCV's `Canny` finds in an RGB picture."""
    magnitude, dx, dy = _gradient(picture, options.sigma, 1)
    ridge = _ridge(magnitude, dx, dy) & (magnitude > options.low)
    return _white_where(_linked(ridge, magnitude > options.high))


def soft_edge(picture: Image.Image, options: SoftEdge) -> Image.Image:
    """Soft lines along outlines, bright where the edge is strong, as of HED."""
    soft, _, _ = _softness(picture, options.sigma)
    return _rgb(Image.fromarray((np.minimum(soft, 1) * 255).astype(np.uint8)))


def scribble(picture: Image.Image, options: Scribble) -> Image.Image:
    """Lines of one thickness along outlines, as drawn with a pen."""
    soft, dx, dy = _softness(picture, options.sigma)
    level = options.level / 255
    ridge = _ridge(soft, dx, dy) & (soft > level / 2)
    return _white_where(_thickened(_linked(ridge, soft >= level), options.thickness))


def threshold(picture: Image.Image, options: Threshold) -> Image.Image:
    """Black and white."""
    return _white_where(np.asarray(picture.convert("L")) >= options.level)


def invert(picture: Image.Image, options: Invert) -> Image.Image:
    """Each colour's opposite: dark lines on white become white lines on black."""
    return ImageOps.invert(picture)


PREPROCESSORS: dict[str, tuple[type[Strict], Callable[[Image.Image, Any], Image.Image]]] = {
    "canny": (Canny, canny),
    "soft_edge": (SoftEdge, soft_edge),
    "scribble": (Scribble, scribble),
    "threshold": (Threshold, threshold),
    "invert": (Invert, invert),
}


def _white_where(mask: Bools) -> Image.Image:
    return _rgb(Image.fromarray(mask.astype(np.uint8) * np.uint8(255)))


def _rgb(gray: Image.Image) -> Image.Image:
    return gray.convert("RGB")


def _channels(picture: Image.Image, sigma: float) -> list[Numbers]:
    """Each channel on 0..255, `(h, w)`, blurred in float32 where sigma is over 0; in 8 bits lines would have steps."""
    if not sigma:
        return [np.asarray(channel).astype(np.int16) for channel in picture.split()]
    # what a wide blur leaves fits into fewer pixels, which take less time
    factor = max(1, int(sigma / 1.5))
    width, height = picture.size
    channels = []
    for channel in picture.split():
        small = np.asarray(channel.convert("F").reduce(factor))
        small = _smoothed(_smoothed(small, sigma / factor).T, sigma / factor).T
        if factor > 1:
            box = (0, 0, width / factor, height / factor)
            wide = Image.fromarray(np.ascontiguousarray(small))
            small = np.asarray(wide.resize((width, height), Image.Resampling.BICUBIC, box))
        channels.append(small)
    return channels


def _smoothed(rows: npt.NDArray[np.float32], sigma: float) -> npt.NDArray[np.float32]:
    """`(h, w)`: a Gaussian down the columns."""
    reach = int(2.5 * sigma + 0.5)
    weights = np.exp(-((np.arange(reach + 1) / sigma) ** 2) / 2).astype(np.float32)
    weights /= weights[0] + 2 * weights[1:].sum()
    height = rows.shape[0]
    around = np.pad(rows, ((reach, reach), (0, 0)), mode="edge")
    result: npt.NDArray[np.float32] = around[reach : reach + height] * weights[0]
    for far, weight in enumerate(weights[1:], start=1):
        result += weight * (around[reach - far : reach - far + height] + around[reach + far : reach + far + height])
    return result


def _gradient(picture: Image.Image, sigma: float, norm: int) -> tuple[Numbers, Numbers, Numbers]:
    """Magnitude, d/dx and d/dy, each `(h, w)`, of Sobel's filters on 0..255; of each pixel's steepest channel.

    Args:
        sigma: Pixels of blur beforehand; 0 keeps all in whole numbers of 16 bits, enough for norm 1 only.
        norm: The magnitude's, 1 or 2.
    """
    best: tuple[Numbers, Numbers, Numbers] | None = None
    for channel in _channels(picture, sigma):
        pixels = np.pad(channel, 1, mode="edge")
        rows = pixels[:-2] + 2 * pixels[1:-1] + pixels[2:]
        columns = pixels[:, :-2] + 2 * pixels[:, 1:-1] + pixels[:, 2:]
        dx, dy = rows[:, 2:] - rows[:, :-2], columns[2:] - columns[:-2]
        magnitude = np.abs(dx) + np.abs(dy) if norm == 1 else np.sqrt(dx * dx + dy * dy)
        if best is None:
            best = magnitude, dx, dy
        else:
            steeper = magnitude > best[0]
            for mine, new in zip(best, (magnitude, dx, dy), strict=True):
                np.copyto(mine, new, where=steeper)
    assert best is not None
    return best


def _ridge(magnitude: Numbers, dx: Numbers, dy: Numbers) -> Bools:
    """`(h, w)`: where the magnitude is greatest along its gradient, which is where an edge is."""
    height, width = magnitude.shape
    around = np.pad(magnitude, 1)

    def at(down: int, right: int) -> Numbers:
        return around[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    across, along = np.abs(dx), np.abs(dy)
    flat, upright = along < STEEP * across, across < STEEP * along
    falling = (dx < 0) == (dy < 0)  # the gradient points down and right, or up and left
    # of two equal neighbours one is taken, so that a line is one pixel thin; on slopes both may go, as in OpenCV
    return np.select(
        [flat, upright, falling],
        [
            (magnitude > at(0, -1)) & (magnitude >= at(0, 1)),
            (magnitude > at(-1, 0)) & (magnitude >= at(1, 0)),
            (magnitude > at(-1, -1)) & (magnitude > at(1, 1)),
        ],
        (magnitude > at(-1, 1)) & (magnitude > at(1, -1)),
    )


def _linked(mask: Bools, seeds: Bools) -> Bools:
    """`(h, w)`: those parts of the mask, linked at sides or corners, that hold a seed.

    Parts are merged in rounds, each of which links every part with a neighbour: a line of a million pixels takes
    about twenty rounds, where following it pixel by pixel would take a million.
    """
    places = np.flatnonzero(mask)
    numbers = np.full((mask.shape[0] + 1, mask.shape[1] + 2), -1, np.int32)
    numbers[:-1, 1:-1][mask] = np.arange(len(places), dtype=np.int32)
    pairs = []
    for right, down in ((1, 0), (-1, 1), (0, 1), (1, 1)):
        height, width = mask.shape
        others = numbers[down : down + height, 1 + right : 1 + right + width].ravel()[places]
        mine = np.flatnonzero(others >= 0)
        pairs.append((mine.astype(np.int32), others[mine]))
    first, second = (np.concatenate(side) for side in zip(*pairs, strict=True))
    part = np.arange(len(places), dtype=np.int32)  # of each pixel; named after one of the part's pixels
    while len(first):
        np.minimum.at(part, np.maximum(first, second), np.minimum(first, second))
        while not np.array_equal(part, above := part[part]):
            part = above
        first, second = part[first], part[second]
        apart = first != second
        first, second = first[apart], second[apart]
    holds = np.zeros(len(places), np.bool_)
    holds[part[seeds.ravel()[places]]] = True
    linked = np.zeros(mask.size, np.bool_)
    linked[places[holds[part]]] = True
    return linked.reshape(mask.shape)


def _softness(picture: Image.Image, sigma: float) -> tuple[Numbers, Numbers, Numbers]:
    """How much of an outline each pixel is, `(h, w)` from 0 to 1 and over, and the gradient's d/dx and d/dy.

    An outline shows in a slightly blurred picture and in a much blurred one; texture and noise only in the first.
    """
    fine, dx, dy = _gradient(picture, sigma, 2)
    coarse, _, _ = _gradient(picture, 3 * sigma, 2)
    response = np.sqrt(fine * coarse)
    # white is a little over the mean weighted with squares: the strength of lines, however few pixels they take
    square = response * response
    mean = float((response * square).sum() / max(float(square.sum()), 1e-9))
    return response / max(1.2 * mean, FAINT / sigma), dx, dy


def _thickened(mask: Bools, thickness: int) -> Bools:
    """`(h, w)`: the mask, drawn with a round pen so many pixels across."""
    height, width = mask.shape
    before, after = (thickness - 1) // 2, thickness // 2
    around = np.pad(mask, ((after, before), (after, before)))
    drawn = np.zeros_like(mask)
    for down, right in _disc(thickness):
        drawn |= around[down : down + height, right : right + width]
    return drawn


def _disc(across: int) -> Iterator[tuple[int, int]]:
    """Row and column of each pixel of a disc."""
    middle = (across - 1) / 2
    for row in range(across):
        for column in range(across):
            if (row - middle) ** 2 + (column - middle) ** 2 <= (across / 2) ** 2:
                yield row, column
