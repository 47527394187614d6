"""Pictures as files: what clients sent (`input`), what graphs made to stay (`output`) and to be seen (`temp`).

All of it blocks: it is for worker threads.
"""

import io
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from PIL import Image

from latentwire import read_picture

from .asked import Refused
from .paths import below, size_of, write

Kind = Literal["input", "output", "temp"]

MOST_NAMES = 1000  # whose next number is remembered
SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
NOTED = re.compile(r"(.*?) ?\[(input|output|temp)\]")
"""A picture's name as graphs have it where it is not of `input`."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A picture that graphs and `/view` may name."""

    filename: str
    subfolder: str
    type: Kind

    def plain(self) -> dict[str, str]:
        """As clients get it."""
        return {"filename": self.filename, "subfolder": self.subfolder, "type": self.type}


class Pictures:
    """The three folders.

    Args:
        max_input: Bytes of `input`.
    """

    max_pixels = 1 << 24  # of a picture that a client sends, until the host is known

    def __init__(self, folder: Path, max_input: int) -> None:
        self._folder = folder
        self._max_input = max_input
        self._lock = threading.Lock()
        self._next: dict[tuple[Path, str], int] = {}

    def names(self, kind: str = "input") -> list[str]:
        """The names of all pictures of a kind, as graphs have them.

        Raises:
            Refused: there is no such kind.
        """
        folder = self._folder / _kind(kind)
        return sorted(
            str(file.relative_to(folder))
            for file in folder.rglob("*")
            if file.suffix.lower() in SUFFIXES and file.is_file()
        )

    def upload(self, data: bytes, name: str, subfolder: str, overwrite: bool) -> Stored:
        """Keep a picture that a client sends in `input`; under another name where another one has this one."""
        read_picture(data, self.max_pixels)
        return self._keep(name, subfolder, data, overwrite)

    def upload_mask(self, data: bytes, of: Path, name: str, subfolder: str, overwrite: bool) -> Stored:
        """Keep a copy of a picture that takes what is transparent from the one that a client sends."""
        original = of.read_bytes()
        for file in (data, original):
            read_picture(file, self.max_pixels)
        picture = Image.open(io.BytesIO(original)).convert("RGBA")
        mask = Image.open(io.BytesIO(data)).convert("RGBA").getchannel("A").resize(picture.size)
        picture.putalpha(mask)
        return self._keep(f"{name.rpartition('.')[0]}.png", subfolder, _encoded(picture, "png"), overwrite)

    def save(self, prefix: str, kind: Kind, data: bytes) -> Stored:
        """Keep a picture that a graph has made, under the next free number.

        Args:
            prefix: As `fitting_prefix` has let it through.
        """
        path = below(self._folder / kind, prefix)
        key = (path.parent, path.name)
        with self._lock:
            number = self._next.get(key) or _first_free(path.parent, path.name)
            while (file := path.with_name(f"{path.name}_{number:05}_.png")).exists():
                number += 1  # somebody else's, since
            if len(self._next) > MOST_NAMES:
                self._next.clear()
            self._next[key] = number + 1
        write(file, data)
        return self._stored(file, kind)

    def fitting_prefix(self, prefix: str, width: int = 0, height: int = 0) -> str:
        """A graph's `filename_prefix` with what it has places for.

        Raises:
            Refused: no file can be called so.
        """
        now = time.localtime()
        values = {"width": str(width), "height": str(height), "year": str(now.tm_year)}
        parts = ("month", now.tm_mon), ("day", now.tm_mday), ("hour", now.tm_hour), ("minute", now.tm_min)
        values |= {name: f"{value:02}" for name, value in (*parts, ("second", now.tm_sec))}
        for name, value in values.items():
            prefix = prefix.replace(f"%{name}%", value)
        prefix = prefix or "ComfyUI"
        below(self._folder / "output", prefix)
        below(self._folder / "output", f"{prefix}_00001_.png")  # which is longer
        return prefix

    def find(self, filename: str, subfolder: str = "", kind: str = "output") -> Path:
        """The file of a picture.

        Args:
            filename: Alone, or with its subfolder and kind in it, as graphs have them: `drawn/cat.png [input]`.

        Raises:
            Refused: the name is none, or there is no such file.
        """
        noted = NOTED.fullmatch(filename)
        if noted:
            filename, kind = noted[1], noted[2]
        path = below(self._folder / _kind(kind), subfolder, filename)
        if not filename or not path.is_file():
            raise Refused(404, f"there is no picture {filename!r:.80}")
        return path

    def remove(self, stored: Stored) -> None:
        """Remove a picture; one that is gone already is no error."""
        below(self._folder / stored.type, stored.subfolder, stored.filename).unlink(missing_ok=True)

    def _keep(self, name: str, subfolder: str, data: bytes, overwrite: bool) -> Stored:
        path = below(self._folder / "input", subfolder, name)
        if not name or path.suffix.lower() not in SUFFIXES:
            raise Refused(400, f"wanted a file .png, .jpg or .webp, got {name!r:.80}")
        with self._lock:
            wanted, number = path, 0
            while path.is_dir() or (not overwrite and path.exists() and path.read_bytes() != data):
                number += 1
                path = wanted.with_name(f"{wanted.stem} ({number}){wanted.suffix}")
            if size_of(self._folder / "input") + len(data) > self._max_input:
                raise Refused(507, f"uploaded pictures would have more than {self._max_input >> 20} MiB, the limit")
            write(path, data)
        return self._stored(path, "input")

    def _stored(self, file: Path, kind: Kind) -> Stored:
        subfolder = str(file.parent.relative_to(self._folder / kind))
        return Stored(file.name, "" if subfolder == "." else subfolder, kind)


def shown(file: Path, channel: str, preview: str) -> tuple[bytes, str]:
    """A picture's file and media type for `/view`: as it is, or without or only what is transparent, or smaller."""
    data = file.read_bytes()
    format, _, wanted = preview.partition(";")
    if preview and format not in ("webp", "jpeg"):
        raise Refused(400, f"a preview is webp or jpeg, got {preview!r:.40}")
    quality = min(max(int(wanted), 1), 100) if wanted.isdecimal() and len(wanted) < 4 else 90
    try:
        opened = Image.open(io.BytesIO(data), formats=tuple(SUFFIXES.values()))
        if channel not in ("rgb", "a") and not preview:
            return data, f"image/{(opened.format or 'png').lower()}"
        picture = opened.convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # somebody has put it there
        raise Refused(404, f"{file.name!r:.80} is no PNG, JPEG or WebP that can be read") from error
    if channel == "a":
        alpha = picture.getchannel("A")
        picture = Image.new("RGBA", alpha.size)
        picture.putalpha(alpha)
    if channel == "rgb" or format == "jpeg":
        picture = picture.convert("RGB")
    format = format or "png"
    return _encoded(picture, format, quality), f"image/{format}"


def _encoded(picture: Image.Image, format: str, quality: int = 90) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **({} if format == "png" else {"quality": quality}))
    return file.getvalue()


def _kind(kind: str) -> str:
    if kind not in get_args(Kind):
        raise Refused(400, f"a picture is of input, output or temp, got {kind!r:.40}")
    return kind


def _first_free(folder: Path, name: str) -> int:
    pattern = re.compile(rf"{re.escape(name)}_([0-9]{{5,9}})_\.png")
    taken = [int(match[1]) for file in folder.glob("*") if (match := pattern.fullmatch(file.name))]
    return max(taken, default=0) + 1
