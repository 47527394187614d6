"""Pictures as graphs pass them on, arrays from 0 to 1, and as the rest of the host does."""

from typing import Any

import numpy as np
from PIL import Image as PILImage

from .values import Pixels


def to_pixels(picture: PILImage.Image) -> Pixels:
    """`(1, h, w, 3)` of an RGB picture."""
    return np.asarray(picture.convert("RGB"), np.float32)[None] / np.float32(255)


def picture_of(pixels: Any) -> PILImage.Image:
    """The picture of `(h, w, 3)`, or of `(h, w)` in grey, rounded as diffusers rounds."""
    return PILImage.fromarray((np.clip(pixels, 0, 1) * 255).round().astype(np.uint8))


def rescaled(picture: PILImage.Image, width: int, height: int, method: str, crop: str = "disabled") -> PILImage.Image:
    """A picture, or one channel of something, at another size; `center` crops it to the new ratio first."""
    if crop == "center":
        ratio, wanted = picture.width / picture.height, width / height
        x = round(picture.width * max(0, 1 - wanted / ratio) / 2)
        y = round(picture.height * max(0, 1 - ratio / wanted) / 2)
        x, y = min(x, (picture.width - 1) // 2), min(y, (picture.height - 1) // 2)  # something must be left
        picture = picture.crop((x, y, picture.width - x, picture.height - y))
    return picture if picture.size == (width, height) else picture.resize((width, height), METHODS[method])


METHODS = {
    "nearest-exact": PILImage.Resampling.NEAREST,
    "bilinear": PILImage.Resampling.BILINEAR,
    "area": PILImage.Resampling.BOX,
    "bicubic": PILImage.Resampling.BICUBIC,
    "lanczos": PILImage.Resampling.LANCZOS,
    "bislerp": PILImage.Resampling.BICUBIC,
}
"""Ways to bring something to another size; for latents as well, channel by channel."""


def rescaled_planes(planes: Pixels, width: int, height: int, method: str, crop: str = "disabled") -> Pixels:
    """`(..., h, w)` at another size, plane by plane, as floats."""
    flat = planes.reshape(-1, *planes.shape[-2:])
    made = [np.asarray(rescaled(PILImage.fromarray(plane), width, height, method, crop)) for plane in flat]
    return np.stack(made).reshape(*planes.shape[:-2], height, width)
