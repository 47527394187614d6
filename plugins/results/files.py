"""Pictures as files: each is there whole or not at all, whatever ends the process."""

import math
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

OURS = re.compile(r"([0-9a-f]{32})\.(png|part)")
"""A finished file, or one that is being written; nothing else in the folder is ever touched."""

SHELF = re.compile(r"[0-9a-f]{2}")


def new_id() -> str:
    """An id that nobody can guess."""
    return secrets.token_hex(16)


def is_id(text: str) -> bool:
    """Whether a text has the shape of an id; of nothing else a path is ever made."""
    return re.fullmatch(r"[0-9a-f]{32}", text) is not None


class Files:
    """The files of one folder: `ab/abcd....png`, so that no folder grows too large for its file system.

    Everything raises OSError where the disk does not play along.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, result: str) -> Path:
        """Where a result's file is, or would be."""
        if not is_id(result):
            raise ValueError(f"{result!r:.80} is no result's id")
        return self.folder / result[:2] / f"{result}.png"

    def write(self, result: str, data: bytes) -> None:
        """Write a file; when this returns, it is on the disk, name and all."""
        path = self.path(result)
        part = path.with_suffix(".part")
        make_folder(path.parent)
        try:
            with part.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.rename(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        _sync(path.parent)

    def read(self, result: str) -> bytes:
        """A file's bytes."""
        return self.path(result).read_bytes()

    def remove(self, result: str) -> None:
        """Remove a file; one that is gone already is no error."""
        self.path(result).unlink(missing_ok=True)

    def shelves(self) -> list[str]:
        """The sub-folders that there are: the first two letters of the ids in each."""
        return sorted(entry.name for entry in os.scandir(self.folder) if SHELF.fullmatch(entry.name))

    def written(self, shelf: str, begin: float, end: float, but: set[str]) -> Iterator[tuple[str, Path]]:
        """The id and path of each file of a sub-folder that was written between two times, in seconds since 1970.

        Args:
            but: Ids to leave out.
        """
        with os.scandir(self.folder / shelf) as entries:
            for entry in entries:
                name = OURS.fullmatch(entry.name)
                if name and name[1] not in but and begin <= _written(entry) < end:
                    yield name[1], Path(entry.path)


def _written(entry: "os.DirEntry[str]") -> float:
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:  # it has got its real name just now, or is gone
        return math.inf


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, so that they are on the disk."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    """Have a folder's entries on the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
