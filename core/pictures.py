"""Pictures that clients send: checked before their pixels are read, and brought to a size."""

import io
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import InvalidParams

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 1 << 24
MAX_SCANS = 64  # of a progressive JPEG; usual ones have ten, and each costs as much time as the whole picture

Resize = Literal["fit", "fill", "stretch"]
"""fit: all of the picture, black where it leaves room; fill: all of the room, the picture cropped at its centre;
stretch: the picture's ratio is ignored."""


def read_picture(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The pixels of a PNG, JPEG or WebP file, in mode RGB and upright; of an animation the first frame.

    What is transparent becomes black: a drawing on an empty canvas is then an outline on black, as ControlNets want it.

    Args:
        data: The file.
        max_pixels: Width times height at most; more is refused before anything is decoded.

    Raises:
        InvalidParams: it is another kind of file, broken or too large.
    """
    if not data:
        raise InvalidParams("the picture is an empty file; wanted a PNG, JPEG or WebP")
    too_large = f"wanted at most {max_pixels} pixels in all; make it smaller"
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        if picture.width * picture.height > max_pixels:
            raise InvalidParams(f"the picture is {picture.width}x{picture.height} pixels; {too_large}")
        if picture.info.get("progressive") and data.count(b"\xff\xda") > MAX_SCANS:
            raise InvalidParams(f"the picture is a JPEG of more than {MAX_SCANS} scans; save it as a plain one")
        return _to_rgb(ImageOps.exif_transpose(picture))
    except InvalidParams:
        raise
    except UnidentifiedImageError as error:
        begin = bytes(data[:12])
        raise InvalidParams(f"the picture's file begins with {begin!r}; wanted a PNG, JPEG or WebP") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidParams(f"the picture is far too large; {too_large}") from error
    except Exception as error:  # Pillow's readers raise a dozen kinds
        raise InvalidParams(f"the picture's file is broken: {error!s:.200}; wanted a PNG, JPEG or WebP") from error


def resized(
    picture: Image.Image,
    width: int,
    height: int,
    how: Resize,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> Image.Image:
    """A picture at `width` x `height` pixels; the very same object where it has that size already."""
    if picture.size == (width, height):
        return picture
    if how == "fit":
        return ImageOps.pad(picture, (width, height), resample)
    if how == "fill":
        return ImageOps.fit(picture, (width, height), resample)
    return picture.resize((width, height), resample)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits, which Pillow's own conversion would clip
        gray = np.asarray(picture, np.float32) / 257
        picture = Image.fromarray(gray.round().clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
    return picture.convert("RGB")
