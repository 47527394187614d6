"""Pictures that clients send: which files are read, how, and how the rest is refused."""

import io
import pickle
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentwire import InvalidParams, read_picture, resized


def file_of(picture: Image.Image, format: str = "png", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be huge."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


RED = Image.new("RGB", (4, 2), (200, 10, 30))


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_the_three_formats_are_read(format: str) -> None:
    picture = read_picture(file_of(RED, format))
    assert (picture.mode, picture.size) == ("RGB", (4, 2))
    assert np.abs(np.asarray(picture, int) - (200, 10, 30)).max() < 12


@pytest.mark.parametrize(
    ("picture", "wanted"),
    [
        (Image.new("L", (2, 2), 77), (77, 77, 77)),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (200, 100, 50, 255)), (200, 100, 50)),
        (Image.new("RGBA", (2, 2), (200, 100, 50, 0)), (0, 0, 0)),
        (Image.new("LA", (2, 2), (100, 0)), (0, 0, 0)),
        (Image.new("I;16", (2, 2), 32896), (128, 128, 128)),
        (RED.convert("P", palette=Image.Palette.ADAPTIVE), (200, 10, 30)),
    ],
    ids=["gray", "bits", "opaque", "transparent", "transparent gray", "16 bits", "palette"],
)
def test_every_kind_of_pixel_becomes_rgb_and_what_is_transparent_black(
    picture: Image.Image, wanted: tuple[int, int, int]
) -> None:
    assert read_picture(file_of(picture)).getpixel((0, 0)) == wanted


def test_cmyk_and_rotated_photos_come_upright_in_rgb() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture = read_picture(file_of(Image.new("CMYK", (8, 4), (0, 255, 255, 0)), "jpeg", exif=exif))
    assert (picture.mode, picture.size) == ("RGB", (4, 8))
    red, green, blue = picture.getpixel((1, 1))  # type: ignore[misc]
    assert red > 200 > 60 > max(green, blue)


def test_of_an_animation_the_first_picture_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = file_of(frames[0], "webp", save_all=True, append_images=frames[1:], lossless=True)
    assert read_picture(data).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("format", ["gif", "bmp", "tiff", "ico", "ppm"])
def test_other_formats_are_refused_with_those_that_are_read(format: str) -> None:
    with pytest.raises(InvalidParams, match=r"begins with .* wanted a PNG, JPEG or WebP"):
        read_picture(file_of(RED, format))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        pickle.dumps({"a": 1}),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\x89PNG\r\n\x1a\n",
        bytes(5000),
    ],
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidParams, match="picture"):
        read_picture(data)


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_a_truncated_file_is_refused(format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    data = file_of(Image.fromarray(noise), format)
    with pytest.raises(InvalidParams, match="broken"):
        read_picture(data[: len(data) // 2])


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (4097, 4096), (2**31 - 1, 1)])
def test_a_decompression_bomb_is_refused_by_its_size_alone(width: int, height: int) -> None:
    with pytest.raises(InvalidParams, match=rf"{width}x{height} pixels|far too large"):
        read_picture(bomb(width, height))


def test_the_three_ways_to_bring_a_picture_to_a_size() -> None:
    wide = Image.new("RGB", (200, 100), "white")
    wide.paste("red", (0, 0, 50, 100))
    fit, fill, stretch = (np.asarray(resized(wide, 100, 100, how)) for how in ("fit", "fill", "stretch"))
    assert fit.shape == fill.shape == stretch.shape == (100, 100, 3)
    assert not fit[:24].any()
    assert not fit[-24:].any()
    assert tuple(fit[50, 10]) == (255, 0, 0)
    assert (fill == 255).all()  # the red quarter is cut off
    assert tuple(stretch[50, 10]) == (255, 0, 0)
    assert tuple(stretch[50, 40]) == (255, 255, 255)


def test_a_picture_of_the_right_size_stays_as_it_is() -> None:
    assert resized(RED, 4, 2, "fill") is RED


def test_a_progressive_jpeg_of_countless_scans_is_refused_and_a_photo_with_something_behind_it_is_read() -> None:
    plain, progressive = file_of(RED, "jpeg"), file_of(RED, "jpeg", progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    with pytest.raises(InvalidParams, match="more than 64 scans"):
        read_picture(progressive[:-2] + scan * 100 + b"\xff\xd9")
    assert read_picture(plain + b"\xff\xda" * 1000).size == (4, 2)
