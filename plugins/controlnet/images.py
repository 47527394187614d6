"""Control images: brought to the picture's size, preprocessed, and made an array."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL.Image import Image, Resampling

from latentwire import Resize, resized


def prepare(picture: Image, width: int, height: int, resize: Resize, preprocess: Any) -> Image:
    """A picture as a control image of that size: `preprocess` sees no border that `resize` adds."""
    if resize != "fit":
        result: Image = preprocess(resized(picture, width, height, resize))
        return result
    scale = min(width / picture.width, height / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    small = picture if size == picture.size else picture.resize(size, Resampling.LANCZOS)
    return resized(preprocess(small), width, height, "fit")


def to_array(image: Image) -> npt.NDArray[np.float32]:
    """`(1, 3, h, w)` in 0..1, the values that diffusers makes of a PIL image; `torch.from_numpy` copies nothing."""
    pixels = (np.asarray(image, np.float32) / 255).transpose(2, 0, 1)[None]
    return np.ascontiguousarray(pixels)
