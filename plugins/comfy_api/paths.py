"""Paths that clients name: below one folder, and nowhere else."""

import os
from pathlib import Path

from .asked import Refused

MAX_PARTS = 10
MAX_NAME = 200  # bytes
BLOCK = 4096


def below(folder: Path, *names: str) -> Path:
    """The path of names below a folder; each may have slashes in it, and is empty where there is none.

    Raises:
        Refused: it leads elsewhere, or is no name that every system takes.
    """
    parts = [part for name in names for part in name.replace("\\", "/").split("/") if name]
    if len(parts) > MAX_PARTS:
        raise Refused(400, f"the path has {len(parts)} parts; wanted at most {MAX_PARTS}")
    for part in parts:
        if part in ("", ".", "..") or not part.isprintable() or ":" in part or part != part.strip():
            raise Refused(400, f"a path cannot have the part {part!r:.80}")
        if len(part.encode(errors="replace")) > MAX_NAME:
            raise Refused(400, f"a name has at most {MAX_NAME} bytes, got {part!r:.80}")
    path = folder.joinpath(*parts)
    if not path.resolve().is_relative_to(folder.resolve()):  # by a link that somebody has put there
        raise Refused(400, f"{'/'.join(parts)!r:.80} leads out of its folder")
    return path


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder, none counted as less than what a disk takes for it."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += max(os.lstat(os.path.join(place, name)).st_size, BLOCK)
            except FileNotFoundError:  # just gone
                continue
    return total


def make_folder(folder: Path) -> None:
    """Make a folder, if there is none.

    Raises:
        Refused: a file has its name, or that of one that it is in.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise Refused(409, f"{folder.name!r:.80} cannot be a folder: a file is called so") from error


def write(path: Path, data: bytes) -> None:
    """Write a file, so that it is there whole or not at all."""
    make_folder(path.parent)
    part = path.with_name(f".{os.urandom(8).hex()}.part")
    try:
        part.write_bytes(data)
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
