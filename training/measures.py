"""What a picture shows, in figures: which thing, on which colour, in which shape, in which style.

Pictures are 128x128 RGB; arrays of them `(n, 128, 128, 3)` uint8.
"""

import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from .pictures import PICTURE_SIZE, Placement, place
from .things import COLOURS, Thing

Pictures = npt.NDArray[np.uint8]
Shape = npt.NDArray[np.bool_]

BORDER = 6  # pixels at the edge that show the background, whatever stands in the middle
SMALL = 32  # side that pictures are compared at: what counts is the thing, not its fine print
CELL = PICTURE_SIZE // 16  # side of one of the large pixels of pixel art


def as_array(pictures: Sequence[Image.Image]) -> Pictures:
    """`(n, h, w, 3)` of n pictures, at least one."""
    return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])


def background(picture: Pictures) -> npt.NDArray[np.float64]:
    """Median colour of one picture's border."""
    inside = np.zeros(picture.shape[:2], dtype=bool)
    inside[BORDER:-BORDER, BORDER:-BORDER] = True
    return np.asarray(np.median(picture[~inside], axis=0))


def colour_of(picture: Pictures) -> str:
    """The one of the ten colours that one picture's background is nearest to."""
    found = background(picture)
    return min(COLOURS, key=lambda name: float(np.square(found - COLOURS[name]).sum()))


def silhouette_of(picture: Pictures) -> Shape:
    """Where one picture is not its background."""
    return np.asarray(np.abs(picture - background(picture)).max(axis=2) > 40)


def overlap(a: Shape, b: Shape) -> float:
    """Intersection over union."""
    return float((a & b).sum() / max(1, (a | b).sum()))


def saturation(picture: Pictures) -> float:
    """Mean of the largest less the smallest of red, green and blue, 0..1: none in gray pictures."""
    return float(np.ptp(picture.astype(np.float64), axis=2).mean() / 255)


def blockiness(picture: Pictures) -> float:
    """Share of all changes between neighbours that lies on the borders of 8x8 cells: 1/8 by chance, 1 in pixel art."""
    across = np.abs(np.diff(picture.astype(np.float64), axis=1)).sum(axis=(0, 2))
    down = np.abs(np.diff(picture.astype(np.float64), axis=0)).sum(axis=(1, 2))
    changes = across + down
    return float(changes[CELL - 1 :: CELL].sum() / max(1.0, changes.sum()))


class Recogniser:
    """Finds the thing whose emoji is nearest to a picture.

    The distance is that of all pixels at 32x32, with the emoji on the background that the prompt asked for, in the best
    of 54 sizes and places near the middle.
    """

    def __init__(self, things: Sequence[Thing]) -> None:
        self.things = list(things)
        layers = [
            np.asarray(
                place(thing, Placement(scale, scale, x, y, mirrored)).resize((SMALL, SMALL), Image.Resampling.BOX)
            )
            for thing in self.things
            for scale in (0.70, 0.75, 0.80)
            for x in (0.4, 0.5, 0.6)
            for y in (0.4, 0.5, 0.6)
            for mirrored in (False, True)
        ]
        stack = torch.from_numpy(np.stack(layers)).float() / 255
        self._opacity, self._colour = stack[..., 3:], stack[..., :3]

    def nearest(self, pictures: Pictures, colour: str) -> list[list[str]]:
        """For each picture, on a background of the colour, the names of all things, the nearest first."""
        plain = torch.tensor(COLOURS[colour]) / 255
        emoji = (self._colour * self._opacity + plain * (1 - self._opacity)).flatten(1)
        small = [Image.fromarray(picture).resize((SMALL, SMALL), Image.Resampling.BOX) for picture in pictures]
        seen = torch.from_numpy(as_array(small)).float().flatten(1) / 255
        distances = torch.cdist(seen, emoji).view(len(seen), len(self.things), -1).amin(dim=2)
        return [[self.things[index].name for index in row] for row in distances.argsort(dim=1).tolist()]


def new_prompts(things: Sequence[Thing], count: int, seed: int) -> list[tuple[Thing, str]]:
    """Things and colours to ask for, every thing about as often as any other."""
    rng = random.Random(seed)
    rounds = -(-count // len(things))
    order = [thing for _ in range(rounds) for thing in rng.sample(list(things), len(things))]
    return [(thing, rng.choice(list(COLOURS))) for thing in order[:count]]
