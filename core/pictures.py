"""Pictures that clients send: checked before their pixels are read, and brought to a size."""

import io
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from .errors import InvalidParams
from .picture_files import look_at

MAX_PIXELS = 1 << 24

Resize = Literal["fit", "fill", "stretch"]
"""fit: all of the picture, black where it leaves room; fill: all of the room, the picture cropped at its centre;
stretch: the picture's ratio is ignored."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture of each orientation the right way up."""


def read_picture(data: bytes, max_pixels: int = MAX_PIXELS, alpha: bool = False) -> Image.Image:
    """The pixels of a PNG, JPEG or WebP file, in mode RGB and upright; of an animation the first frame.

    What is transparent becomes black: a drawing on an empty canvas is then an outline on black, as ControlNets want it.

    Args:
        data: The file.
        max_pixels: Width times height at most; more is refused before anything is decoded.
        alpha: Gives one with transparency in mode RGBA instead, as it is.

    Raises:
        InvalidParams: it is another kind of file, broken or too large.
    """
    if not data:
        raise InvalidParams("the picture is an empty file; wanted a PNG, JPEG or WebP")
    try:
        file = look_at(data)
        if file is None:
            raise InvalidParams(f"the picture's file begins with {data[:12]!r}; wanted a PNG, JPEG or WebP")
        if file.width * file.height > max_pixels:
            raise InvalidParams(
                f"the picture is {file.width}x{file.height} pixels; wanted at most {max_pixels} in all; make it smaller"
            )
        picture: Image.Image = Image.open(io.BytesIO(file.data), formats=(file.format,))
        if picture.size != (file.width, file.height):
            raise ValueError(f"it is {picture.width}x{picture.height} pixels, and says {file.width}x{file.height}")
        turn = UPRIGHT.get(file.orientation)
        picture = picture if turn is None else picture.transpose(turn)
        return picture.convert("RGBA") if alpha and picture.has_transparency_data else _to_rgb(picture)
    except InvalidParams:
        raise
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
