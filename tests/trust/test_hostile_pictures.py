"""Pictures that are made to take time or memory: refused before a pixel is decoded, and metadata is never unpacked."""

import io
import json
import random
import struct
import tracemalloc
import zlib
from time import thread_time
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from latentwire import InvalidParams, read_picture
from latentwire.core.images import encode
from latentwire.core.picture_files import look_at

from ..conftest import Served
from ..wire import SMALL, in_loop, wire

MIB = 1 << 20
SIGNATURE = b"\x89PNG\r\n\x1a\n"
RED = Image.new("RGB", (4, 2), (200, 10, 30))


def file_of(picture: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width: int, height: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def png(*chunks: bytes, width: int = 4, height: int = 2) -> bytes:
    """A PNG with further chunks between its header and its pixels."""
    pixels = zlib.compress((b"\0" + bytes(3 * 4)) * 2)
    return b"".join((SIGNATURE, header(width, height), *chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b"")))


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"WEBP" + b"".join(
        kind + len(data).to_bytes(4, "little") + data + bytes(len(data) & 1) for kind, data in chunks
    )
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def segment(kind: int, data: bytes) -> bytes:
    return bytes([0xFF, kind]) + (len(data) + 2).to_bytes(2, "big") + data


def exif(entries: int, size: int) -> bytes:
    """Exif whose every entry claims a value of that size, all of them the same bytes."""
    return b"II*\0\x08\0\0\0" + struct.pack("<H", entries) + b"".join(
        struct.pack("<HHII", tag, 1, size, 8) for tag in range(1, entries + 1)
    )  # fmt: skip


JPEG = file_of(RED, "jpeg")
WEBP = file_of(RED, "webp")
PNG = file_of(RED, "png")
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (512, 512, 3), np.uint8))
START_OF_FRAME = JPEG.index(b"\xff\xc0")


def jpeg_of_size(width: int, height: int) -> bytes:
    return JPEG[: START_OF_FRAME + 5] + struct.pack(">HH", height, width) + JPEG[START_OF_FRAME + 9 :]


def vp8l_of_size(width: int, height: int) -> bytes:
    return b"\x2f" + ((width - 1) | (height - 1) << 14).to_bytes(4, "little") + bytes(20)


REFUSED: dict[str, bytes] = {
    "a PNG of 60,000 x 60,000": png(width=60_000, height=60_000),
    "a PNG as large as can be": png(width=2**31 - 1, height=2**31 - 1),
    "a PNG of 2^32-1 x 1": png(width=2**32 - 1, height=1),
    "a PNG without a side": png(width=0, height=5),
    "a PNG of one pixel more than allowed": png(width=4097, height=4096),
    "a PNG with two headers, a small and a huge one": png(header(60_000, 60_000)),
    "a PNG whose first chunk is no header": SIGNATURE + chunk(b"tEXt", b"a\0b") + png()[8:],
    "a PNG whose header is too short": SIGNATURE + chunk(b"IHDR", b"\0\0\0\4") + png()[33:],
    "a PNG of countless empty chunks": png(*[chunk(b"IDAT", b"")] * 80_000),
    "a PNG whose chunk claims 4 GiB": SIGNATURE + header(4, 2) + b"\xff\xff\xff\xffIDAT" + bytes(MIB),
    "a PNG cut off after its header": png()[:33],
    "a large PNG whose second half is missing": file_of(NOISE, "png")[:400_000],
    "a JPEG of 65,535 x 65,535": jpeg_of_size(65_535, 65_535),
    "a JPEG without a height": jpeg_of_size(65_535, 0),
    "a JPEG of two sizes": jpeg_of_size(60_000, 60_000)[: START_OF_FRAME + 19] + JPEG[START_OF_FRAME:],
    "a JPEG of countless segments": JPEG[:2] + segment(0xFE, b"") * 260_000 + JPEG[2:],
    "a JPEG of nothing but fill bytes": b"\xff\xd8" + b"\xff" * MIB,
    "a JPEG cut off in its tables": JPEG[:60],
    "a large JPEG whose second half is missing": file_of(NOISE, "jpeg", quality=95)[:150_000],
    "a JPEG with no picture": b"\xff\xd8\xff\xda\xff\xd9",
    "a WebP of 16,383 x 16,383": riff((b"VP8L", vp8l_of_size(16_383, 16_383))),
    "a WebP whose canvas is 2^24 x 2^24": riff((b"VP8X", b"\x02\0\0\0" + b"\xff" * 6), (b"ANIM", bytes(6))),
    "a WebP animation of 40,000 empty frames": riff(*[(b"ANMF", bytes(16))] * 40_000),
    "a WebP animation in an animation": riff((b"ANMF", bytes(16) + riff((b"ANMF", bytes(16) + WEBP[12:]))[12:])),
    "a WebP of countless chunks": riff(*[(b"XMP ", b"")] * 100_000),
    "a WebP whose chunk claims 4 GiB": b"RIFF\xff\xff\xff\xffWEBPVP8 \xff\xff\xff\xff" + bytes(MIB),
    "a WebP cut off": file_of(NOISE, "webp")[:20_000],
    "a WebP with no picture": riff((b"EXIF", exif(10, 10))),
    "a GIF": file_of(RED, "gif"),
    "a TIFF": file_of(RED, "tiff"),
    "a PostScript file": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n" + bytes(1000),
    "an SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "a zip": b"PK\x03\x04" + bytes(MIB),
    "a page that ends as a PNG": b"<html><script>alert(1)</script>" + png(),
}  # fmt: skip

NEVER_UNPACKED: dict[str, bytes] = {
    "a zTXt of 1 GiB": png(chunk(b"zTXt", b"bomb\0\0" + zlib.compress(bytes(1 << 28)))),
    "sixty zTXt of 1 MiB each": png(*[chunk(b"zTXt", b"bomb\0\0" + zlib.compress(bytes(MIB)))] * 60),
    "sixty iTXt of 1 MiB each": png(*[chunk(b"iTXt", b"bomb\0\1\0\0\0" + zlib.compress(bytes(MIB)))] * 60),
    "a colour profile of 256 MiB": png(chunk(b"iCCP", b"bomb\0\0" + zlib.compress(bytes(1 << 28)))),
    "an animated PNG of 9,000 frames": png(chunk(b"acTL", bytes(8)), *[chunk(b"fcTL", bytes(26))] * 9000),
    "Exif of 60,000 entries that are the same MiB in a PNG": png(chunk(b"eXIf", exif(60_000, 700_000))),
    "Exif of 60,000 entries that are the same MiB in a WebP": riff(
        (b"VP8X", b"\x08\0\0\0\3\0\0\1\0\0"), (WEBP[12:16], WEBP[20:]), (b"EXIF", exif(60_000, 700_000))
    ),
    "Exif of many parts in a JPEG": JPEG[:2]
    + segment(0xE1, b"Exif\0\0" + exif(5_000, 60_000))
    + segment(0xE1, b"Exif\0\0" + bytes(60_000)) * 12
    + JPEG[2:],
    "Exif that points behind its end": JPEG[:2] + segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff") + JPEG[2:],
    "a JPEG with 200 parts of a colour profile": JPEG[:2]
    + b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes([n, 200]) + bytes(5_000)) for n in range(1, 201))
    + JPEG[2:],
    "a JPEG that says it is many": JPEG[:2] + segment(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff" + bytes(60_000)) + JPEG[2:],
    "a JPEG with a page in its comment": JPEG[:2] + segment(0xFE, b"--><script>alert(1)</script>") + JPEG[2:],
    "a JPEG with a zip behind it": JPEG + b"PK\x03\x04" + bytes(MIB),
    "a PNG with a zip behind it": PNG + b"PK\x03\x04" + bytes(MIB),
}  # fmt: skip


def measured(data: bytes) -> tuple[float, int, Image.Image | InvalidParams]:
    """The seconds of the best of three, the most bytes at once, and what came of it."""
    times: list[float] = []
    for _ in range(3):
        begin = thread_time()
        attempt(data)
        times.append(thread_time() - begin)
    tracemalloc.start()
    outcome = attempt(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return min(times), peak, outcome


def attempt(data: bytes) -> Image.Image | InvalidParams:
    try:
        return read_picture(data)
    except InvalidParams as error:
        return error


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_picture_is_refused_within_20_ms_before_its_pixels(name: str) -> None:
    took, peak, outcome = measured(REFUSED[name])
    assert isinstance(outcome, InvalidParams)
    assert "picture" in outcome.message
    assert len(outcome.message) < 400
    assert took <= 0.020
    assert peak <= 8 * MIB


@pytest.mark.parametrize("name", NEVER_UNPACKED)
def test_what_comes_with_a_picture_is_never_looked_into(name: str) -> None:
    took, peak, outcome = measured(NEVER_UNPACKED[name])
    assert isinstance(outcome, Image.Image)
    assert outcome.size == (4, 2)
    assert not outcome.info.keys() & {"exif", "icc_profile", "xmp", "mp", "comment", "bomb", "default_image"}
    assert took <= 0.020
    assert peak <= 8 * MIB


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_still_come_upright(format: str, orientation: int) -> None:
    """As Pillow would turn them, for each of the eight ways; of a WebP only where it has a header for it."""
    given = Image.Exif()
    given[0x0112] = orientation
    corner = Image.new("RGB", (32, 16))
    corner.paste("white", (0, 0, 8, 8))
    data = file_of(corner, format, exif=given)
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(np.asarray(read_picture(data)), np.asarray(wanted))


def test_transparent_and_animated_webps_are_read_without_what_is_around_their_first_picture() -> None:
    clear = Image.new("RGBA", (8, 6), (200, 100, 50, 0))
    clear.paste((200, 100, 50, 255), (0, 0, 4, 6))
    for options in ({"lossless": True}, {"lossless": False, "quality": 90}):
        data = file_of(clear, "webp", **options)
        assert np.abs(np.asarray(read_picture(data), int)[:, 6:]).max() == 0
        assert np.abs(np.asarray(read_picture(data), int)[0, 0] - (200, 100, 50)).max() < 24
        others = [Image.new("RGBA", (8, 6), "blue")] * 3
        moving = file_of(clear, "webp", save_all=True, append_images=others, **options)
        looked = look_at(moving)
        assert looked is not None
        assert looked.data.count(b"ANMF") == 1
        assert np.array_equal(np.asarray(read_picture(moving)), np.asarray(read_picture(data)))


def test_a_damaged_file_is_a_picture_or_an_error_and_nothing_else() -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    originals = [file_of(NOISE.resize((24, 16)), format) for format in ("png", "jpeg", "webp")]
    originals.append(file_of(NOISE.resize((24, 16)), "jpeg", progressive=True))
    originals.append(file_of(RED, "webp", save_all=True, append_images=[RED.rotate(180)]))
    for number in range(3000):
        data = bytearray(chance.choice(originals))
        for _ in range(chance.randint(1, 6)):
            data[chance.randrange(min(len(data), chance.choice([40, 200, 10_000])))] = chance.choice(
                [0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)]
            )
        if chance.random() < 0.2:
            del data[chance.randrange(len(data)) :]
        outcome = attempt(bytes(data))
        assert isinstance(outcome, Image.Image | InvalidParams), number


@in_loop
async def test_a_real_host_refuses_each_and_goes_on(served: Served) -> None:
    async with wire(served.url) as client:
        for name, data in REFUSED.items():
            if len(data) < MIB - 1000:
                error = await client.error(1, "images.put", image=data)
                assert error["code"] == "invalid_params", name
        assert await client.ask("ping")


@in_loop
async def test_a_finished_picture_says_nothing_but_what_it_should_say(served: Served) -> None:
    prompt = 'apple\n"\0\\ --> <script>alert(1)</script> ü\u2028😀 Steps: 1\r\n'
    async with wire(served.url) as client:
        await client.send(1, "generate", **SMALL | {"prompt": prompt, "num_inference_steps": 1})
        data = (await client.until("image", 1))["image"]["data"]
    with Image.open(io.BytesIO(data)) as picture:
        texts = picture.text  # type: ignore[attr-defined]
    assert json.loads(texts["latentwire"])["prompt"] == prompt
    assert texts["latentwire"].isascii()
    assert not set("<\0\n\r") & set(texts["latentwire"])
    assert texts["parameters"].startswith(prompt.replace("\0", ""))
    assert b"\0" not in texts["parameters"].encode()


def test_half_a_surrogate_pair_becomes_no_text_chunk_at_all() -> None:
    with pytest.raises(UnicodeEncodeError):
        encode(RED, "png", metadata={"parameters": "\ud800"})
