"""What Pillow gets to see of a client's picture: its size known, and everything that is no picture left out.

Pillow unpacks texts and colour profiles, and reads Exif, as soon as it opens a file: a few kilobytes could take
gigabytes there. So a file's parts are walked here first, by their headers alone. Of an animation its first frame stays.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

MAX_PARTS = 10_000  # chunks or segments of one file
MAX_SCANS = 64  # of a progressive JPEG; usual ones have ten, and each costs as much time as the whole picture

PNG, RIFF, JPEG = b"\x89PNG\r\n\x1a\n", b"RIFF", b"\xff\xd8\xff"
PNG_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # the segments that tell a size
JPEG_SEGMENTS = JPEG_FRAMES | {0xC4, 0xDB, 0xDD, 0xE0, 0xEE}  # and tables, restarts, JFIF, Adobe's colours
ORIENTATION = 0x0112
EXIF = b"Exif\0\0"


@dataclass(frozen=True)
class PictureFile:
    """A picture's file.

    Attributes:
        data: The file without what is no picture.
        orientation: As Exif numbers them, from 1 (upright) to 8.
    """

    format: str
    width: int
    height: int
    data: bytes
    orientation: int = 1


def look_at(data: bytes) -> PictureFile | None:
    """A PNG's, JPEG's or WebP's size and substance; None of any other file.

    Raises:
        ValueError: it is cut off, or not put together as such a file is.
    """
    try:
        if data.startswith(PNG):
            return _png(data)
        if data.startswith(JPEG):
            return _jpeg(data)
        if data.startswith(RIFF) and data[8:12] == b"WEBP":
            return _webp(data)
    except (struct.error, IndexError) as error:
        raise ValueError("it is cut off") from error
    return None


def _png(data: bytes) -> PictureFile:
    kept, orientation, size = [PNG], 1, (0, 0)
    for kind, begin, end in _chunks(data, len(PNG), ">I4s", 4):
        body = begin + 8
        if kind == b"IHDR" and size == (0, 0) and len(kept) == 1:
            size = struct.unpack_from(">II", data, body)
        elif kind == b"eXIf":
            orientation = _orientation(data[body : end - 4])
        elif kind == b"IHDR" or len(kept) == 1:
            raise ValueError("it does not begin with its one header")
        if kind in PNG_CHUNKS:
            kept.append(data[begin:end])
        if kind == b"IEND":
            return PictureFile("PNG", *size, b"".join(kept), orientation)
    raise ValueError("it is cut off")


def _webp(data: bytes) -> PictureFile:
    end_of_file = 8 + int.from_bytes(data[4:8], "little")
    if end_of_file > len(data):
        raise ValueError("it is cut off")
    kept: list[bytes] = []
    orientation, size, canvas, is_still = 1, (0, 0), (0, 0), True
    for kind, begin, end in _chunks(data[:end_of_file], 12, "<4sI", 0):
        body = begin + 8
        if kind == b"VP8X" and canvas == (0, 0):
            extent = struct.unpack_from("<4x3s3s", data, body)
            canvas = int.from_bytes(extent[0], "little") + 1, int.from_bytes(extent[1], "little") + 1
        elif kind == b"EXIF":
            orientation = _orientation(data[body:end].removeprefix(EXIF))
        elif size == (0, 0) and kind in (b"VP8 ", b"VP8L", b"ANMF", b"ALPH", b"ANIM"):
            kept.append(data[begin:end])
            if kind == b"ANMF":
                size, is_still = canvas, False
            elif kind.startswith(b"VP8"):
                size = _webp_size(kind, data[body : body + 10])
    if size == (0, 0):
        raise ValueError("it holds no picture")
    if len(kept) > 1 or not is_still:
        flags = 0x10 if is_still else 0x12  # transparency, animation
        sides = b"".join((side - 1).to_bytes(3, "little") for side in size)
        kept.insert(0, b"VP8X" + struct.pack("<II", 10, flags) + sides)
    substance = b"WEBP" + b"".join(kept)
    return PictureFile("WEBP", *size, RIFF + len(substance).to_bytes(4, "little") + substance, orientation)


def _webp_size(kind: bytes, head: bytes) -> tuple[int, int]:
    if kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", head, 6)
    return width & 0x3FFF, height & 0x3FFF


def _chunks(data: bytes, begin: int, head: str, tail: int) -> Iterator[tuple[bytes, int, int]]:
    """The kind of each chunk, and where it begins and ends; padded to an even length where nothing follows it."""
    for _ in range(MAX_PARTS):
        if begin >= len(data):
            return
        one, other = struct.unpack_from(head, data, begin)
        kind, length = (other, one) if tail else (one, other)
        end = begin + 8 + length + (tail or length & 1)
        if end > len(data):
            raise ValueError("it is cut off")
        yield kind, begin, end
        begin = end
    raise ValueError(f"it has more than {MAX_PARTS} parts")


def _jpeg(data: bytes) -> PictureFile:
    kept, orientation, size = [data[:2]], 1, (0, 0)
    begin, progressive = 2, False
    for _ in range(MAX_PARTS):
        if data[begin] != 0xFF:
            raise ValueError("a segment does not begin as one")
        kind = data[begin + 1]
        if kind == 0xFF:  # there may be more of them than one
            begin += 1
            continue
        if kind == 0xDA:
            if size == (0, 0):
                raise ValueError("it has no size")
            if progressive and data.count(b"\xff\xda", begin) > MAX_SCANS:
                raise ValueError(f"it is a JPEG of more than {MAX_SCANS} scans; save it as a plain one")
            if data.find(b"\xff\xd9", begin) < 0:
                raise ValueError("it is cut off")
            return PictureFile("JPEG", *size, b"".join((*kept, data[begin:])), orientation)
        end = begin + 2 + int.from_bytes(data[begin + 2 : begin + 4], "big")
        if not begin + 4 <= end <= len(data):
            raise ValueError("it is cut off")
        body = data[begin + 4 : end]
        if kind in JPEG_FRAMES:
            if size != (0, 0):
                raise ValueError("it has two sizes")
            height, width = struct.unpack_from(">HH", body, 1)
            size, progressive = (width, height), kind in (0xC2, 0xC6, 0xCA, 0xCE)
        elif kind == 0xE1 and body.startswith(EXIF):
            orientation = _orientation(body.removeprefix(EXIF))
        if kind in JPEG_SEGMENTS:
            kept.append(data[begin:end])
        begin = end
    raise ValueError(f"it has more than {MAX_PARTS} parts")


def _orientation(exif: bytes) -> int:
    """Which way up, of the first directory of an Exif block; 1 where it does not say."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 10:
        return 1
    (begin,) = struct.unpack_from(f"{order}I", exif, 4)
    if begin + 2 > len(exif):
        return 1
    (count,) = struct.unpack_from(f"{order}H", exif, begin)
    for entry in range(begin + 2, min(begin + 2 + 12 * min(count, 256), len(exif) - 11), 12):
        tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, entry)
        if (tag, kind) == (ORIENTATION, 3):
            return value if 1 <= value <= 8 else 1
    return 1
