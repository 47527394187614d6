"""Pictures that clients send: read without trusting the file, and brought to a size.

A file from outside may cost far more than its bytes: a header that claims billions of pixels, text that unpacks to
megabytes, a JPEG of ten thousand scans, EXIF that points at itself. So what Pillow gets is not the file but a lean one:
of a known size, and only with the parts that its pixels are made of.
"""

import io
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from .errors import InvalidParams

Resize = Literal["fit", "fill", "stretch"]

WANTED = "wanted the bytes of a PNG, JPEG or WebP file"
PNG_BEGIN = b"\x89PNG\r\n\x1a\n"
MAX_SCANS = 64  # of a JPEG; usual ones have 1 to 20, and each costs as much time as the whole picture's coefficients

# the next marker of a JPEG: neither a stuffed zero, nor filling, nor one that stands alone among the pixels
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers whose segment gives the size
_JPEG_DROPPED = {*range(0xE1, 0xEE), 0xEF, 0xFE}  # EXIF, colour profiles and such, but neither JFIF's nor Adobe's

# what an EXIF orientation other than 1 asks for
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_picture(data: bytes, max_pixels: int = 16_777_216) -> Image.Image:
    """The pixels of a PNG, JPEG or WebP file, in mode RGB and turned as its EXIF asks; of an animation the first frame.

    Transparency becomes black, since what is not there must be nothing to a ControlNet or a mask: light strokes on a
    transparent canvas come out as drawn, dark ones need a background of their own. Gray of 16 bits is scaled to 8.
    Colour profiles are ignored.

    Args:
        data: The file.
        max_pixels: Width times height at most; more is refused before anything is decoded.

    Raises:
        InvalidParams: it is another kind of file, broken, without pixels or too large.
    """
    if not data:
        raise InvalidParams(f"the picture is an empty file; {WANTED}")
    kind = next((kind for kind in _KINDS if kind.begin.match(data)), None)
    if kind is None:
        raise InvalidParams(f"the picture's file begins with {bytes(data[:12])!r}; {WANTED}")
    try:
        lean = kind.trim(data)
    except (ValueError, struct.error) as error:
        raise _broken(kind, error) from error
    size = f"{lean.width} x {lean.height}"
    if not lean.width * lean.height:
        raise InvalidParams(f"the picture is {size} pixels; wanted at least one")
    if lean.width * lean.height > max_pixels:
        raise InvalidParams(f"the picture is {size} pixels; wanted at most {max_pixels} in all; make it smaller")
    try:
        image = kind.read(io.BytesIO(lean.file))
        if image.size != (lean.width, lean.height):
            raise ValueError(f"it gives two sizes, {size} and {image.width} x {image.height}")
        image.load()
        picture = _on_black(image)
    except Exception as error:  # decoders raise a dozen kinds, and warnings about odd files may be errors too
        raise _broken(kind, error) from error
    turn = _TURNS.get(_orientation(image.info.get("exif", lean.exif)))
    return picture if turn is None else picture.transpose(turn)


def resized(
    picture: Image.Image,
    width: int,
    height: int,
    how: Resize,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> Image.Image:
    """A picture of any mode at `width` x `height` pixels; the very same object where it has that size already.

    Args:
        how: `fit`: all of it, centred on black; `fill`: cropped at its centre; `stretch`: its ratio ignored.
    """
    if picture.size == (width, height):
        return picture
    if how == "stretch":
        return picture.resize((width, height), resample)
    if how == "fill":
        return ImageOps.fit(picture, (width, height), resample)
    scale = min(width / picture.width, height / picture.height)
    inner = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    canvas = Image.new(picture.mode, (width, height))
    small = picture if inner == picture.size else picture.resize(inner, resample)
    canvas.paste(small, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas


@dataclass(frozen=True, slots=True)
class _Lean:
    """A file without what its pixels do not need, and what it says of itself."""

    width: int
    height: int
    file: bytes
    exif: bytes = b""  # where Pillow does not give it


@dataclass(frozen=True, slots=True)
class _Kind:
    """A format: how its files begin, what makes them lean, what reads them."""

    name: str
    begin: re.Pattern[bytes]
    trim: Callable[[bytes], _Lean]  # raises ValueError or struct.error where the file is broken
    read: Callable[[io.BytesIO], ImageFile]


def _broken(kind: _Kind, error: Exception) -> InvalidParams:
    reason = "it ends too soon" if isinstance(error, struct.error) else str(error) or type(error).__name__
    return InvalidParams(f"the picture's {kind.name} file cannot be read: {reason:.200}; {WANTED}")


def _trim_png(data: bytes) -> _Lean:
    """Its header, palette, transparency, EXIF and pixels; no text, no profile, no second frame."""
    kept: dict[bytes, bytes] = {}
    pixels = []
    at = len(PNG_BEGIN)
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if name in (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT"):
            body = data[at + 8 : end]
            if struct.unpack_from(">I", data, end) != (zlib.crc32(body, zlib.crc32(name)),):
                raise ValueError(f"the checksum of its part {name.decode()} is wrong")
            if name == b"IDAT":
                pixels.append(body)
            elif name in kept:
                raise ValueError(f"it has two parts {name.decode()}")
            else:
                kept[name] = body
        elif name == b"IEND":
            break
        at = end + 4
    if len(kept.get(b"IHDR", b"")) != 13 or next(iter(kept)) != b"IHDR":
        raise ValueError("it does not begin with its header")
    if not pixels:
        raise ValueError("it has no pixels")
    width, height = struct.unpack_from(">II", kept[b"IHDR"])
    parts = [*kept.items(), (b"IDAT", b"".join(pixels)), (b"IEND", b"")]
    return _Lean(width, height, b"".join([PNG_BEGIN, *(_chunk(name, body) for name, body in parts)]))


def _chunk(name: bytes, body: bytes) -> bytes:
    return b"".join(
        [struct.pack(">I", len(body)), name, body, struct.pack(">I", zlib.crc32(body, zlib.crc32(name)))],
    )


def _trim_jpeg(data: bytes) -> _Lean:
    """Its tables and scans up to its end; no metadata, and no second picture behind it. EXIF is kept apart."""
    kept = [data[:2]]
    width, height, scans, exif = 0, 0, 0, b""
    found = _MARKER.search(data, 2)
    while found is not None and found[1] != b"\xd9":
        marker, begin = found[1][0], found.start()
        end = begin + 2 + struct.unpack_from(">H", data, begin + 2)[0]
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, begin + 5)
        elif marker == 0xE1 and not exif and data.startswith(b"Exif\0\0", begin + 4):
            exif = data[begin + 4 : end]
        scans += marker == 0xDA
        if scans > MAX_SCANS:
            raise ValueError(f"it has more than {MAX_SCANS} scans")
        found = _MARKER.search(data, end)
        if marker == 0xDA:  # its pixels follow, up to the next marker
            end = found.start() if found is not None else len(data)
        if marker not in _JPEG_DROPPED:
            kept.append(data[begin:end])
    if not scans:
        raise ValueError("it has no pixels")
    if found is not None:
        kept.append(b"\xff\xd9")
    return _Lean(width, height, b"".join(kept), exif)


def _trim_webp(data: bytes) -> _Lean:
    """The whole file, whose decoder skips what it does not need; it takes the memory at once, so the size is first."""
    (kind,) = struct.unpack_from("4s", data, 12)
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":
        (packed,) = struct.unpack_from("<I", data, 21)
        width, height = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        raise ValueError(f"it has a part {kind!r} where its pixels should be")
    return _Lean(width, height, data)


_KINDS = (
    _Kind("PNG", re.compile(re.escape(PNG_BEGIN)), _trim_png, PngImageFile),
    _Kind("JPEG", re.compile(rb"\xff\xd8\xff"), _trim_jpeg, JpegImageFile),
    _Kind("WebP", re.compile(rb"RIFF....WEBP", re.DOTALL), _trim_webp, WebPImageFile),
)


def _on_black(image: Image.Image) -> Image.Image:
    """Any mode -> RGB, black where the image is transparent."""
    if image.mode.startswith("I"):  # Pillow would clip 16 bits to 8
        wide = np.asarray(image).astype(np.uint32)
        gray = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
        if "transparency" in image.info:
            gray.putalpha(Image.fromarray((wide != image.info["transparency"]).astype(np.uint8) * np.uint8(255)))
        image = gray
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    canvas = Image.new("RGB", image.size)
    canvas.paste(image, mask=image)
    return canvas


def _orientation(exif: bytes) -> int:
    """EXIF's orientation, 1 to 8; 1, as it is, where the EXIF is missing or broken.

    Read here, since Pillow would read everything else in there too.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (begin,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, begin)
        for entry in range(entries):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, begin + 2 + 12 * entry)
            if tag == 0x0112:
                return int(value)
    except struct.error:  # it ends too soon, which is no reason to refuse the picture
        pass
    return 1
