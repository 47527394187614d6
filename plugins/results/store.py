"""Keeps pictures: a file each, and its row in the index.

The file comes first and the row last, and they go the other way round: so a row always has its file. What a killed
host may leave behind is a file without a row, which the next one sweeps up.
"""

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from latentwire import Caller, Clock, Picture, UnknownImage

from .files import Files, is_id, new_id
from .index import PATIENCE_S, Index, Result
from .settings import Settings

MOST_STRAYS = 16  # each kill leaves two at most; a folder with more may have got back an index from before them
PAGE_SIZE = 4 << 20  # letters of a list's requests
SWEEP_AGE_S = 600.0  # a younger file may still be waiting for its row, in this host or another one

log = logging.getLogger(__name__)


class Store:
    """The kept pictures of one folder. All of it blocks: it is for worker threads.

    A folder that cannot be used just now is tried again with each picture.

    Raises:
        PluginError: a newer version of the plugin has made the index.
        sqlite3.DatabaseError: the index's file is something else.
    """

    def __init__(self, folder: Path, bounds: Settings) -> None:
        self.folder = folder
        self.clock = Clock()  # until the plugin is registered
        self._bounds = bounds
        self._files = Files(folder)
        self._index = Index(folder)  # of the commands: a long search must not keep a finished picture waiting
        self._writer = Index(folder)
        self._trouble: str | None = None
        self._missed = 0  # pictures, since it has been failing
        self._state_lock = threading.Lock()
        try:
            self._writer.check_writable(PATIENCE_S)
        except (OSError, sqlite3.OperationalError) as error:  # a full disk, a lock: that may pass
            self._note_failing(error, missed=0)

    def keep(self, picture: Picture, made: dict[str, Any], job: str, index: int, owner: str) -> str | None:
        """Keep a picture; its id once it is safe, None where it could not be kept. Never raises."""
        result = Result(
            id=new_id(),
            created=self.clock.time(),
            job=job,
            index=index,
            prompt=made["prompt"],
            negative_prompt=made["negative_prompt"],
            model=made["model"],
            seed=made["seed"],
            width=picture.width,
            height=picture.height,
            bytes=len(picture.data),
            request=made,
            owner=owner,
        )
        try:
            # a lock that somebody never gives back costs one picture some time, not all of them
            self._writer.check_writable(0 if self._trouble else PATIENCE_S)
            self._write(result, picture.data)
        except Exception as error:  # whatever it is, the picture itself goes out
            self._note_failing(error, missed=1)
            return None
        self._note_working()
        return result.id

    @property
    def trouble(self) -> str | None:
        """Why pictures cannot be kept just now, with none of the host's paths; None where they can."""
        return self._trouble

    def newest(
        self, caller: Caller, limit: int, before: int | None, words: Sequence[str], job: str | None
    ) -> tuple[list[Result], int | None]:
        """Results that the caller may see, newest first, and the `before` of the next ones; None where there are none.

        There are fewer than `limit` where their requests are very long.
        """
        self._remove_files(self._index.trim(self._bounds, self.clock.time()))
        owner = None if caller.observer else caller.owner
        rows = self._index.newest(limit + 1, before, words, job, owner)
        sizes = accumulate(len(result.prompt) + len(json.dumps(result.request)) for _, result in rows)
        fitting = max(1, sum(size <= PAGE_SIZE for size in sizes))
        shown = rows[: min(limit, fitting)]
        more = shown[-1][0] if len(rows) > len(shown) else None
        return [result for _, result in shown], more

    def get(self, result: str, caller: Caller) -> Result:
        """One result.

        Raises:
            UnknownImage: there is none with the id, or no longer, or it is not the caller's to see.
        """
        found = self._index.get(result) if is_id(result) else None
        if found is None or not caller.may_see(found.owner):
            raise UnknownImage(f"you have no result {result!r:.80}, or no longer; results.list lists them")
        return found

    def read(self, result: str, caller: Caller) -> bytes:
        """A result's PNG.

        Raises:
            UnknownImage: as `get`, or its file has been removed by hand.
        """
        self.get(result, caller)
        try:
            return self._files.read(result)
        except FileNotFoundError as error:
            raise UnknownImage(f"the file of result {result} is gone from the host's folder") from error

    def delete(self, results: Sequence[str], caller: Caller) -> list[str]:
        """Remove results of the caller's own; the ids of those that there were."""
        gone = self._index.delete([result for result in dict.fromkeys(results) if is_id(result)], caller.owner)
        self._remove_files(gone)
        return gone

    def close(self) -> None:
        """Close the index's file; it is opened again should anybody still need it."""
        self._index.close()
        self._writer.close()

    def tidy(self) -> None:
        """Apply the bounds, and sweep up the files that a killed host has left without a row. Never raises."""
        try:
            self._remove_files(self._index.trim(self._bounds, self.clock.time()))
            begun = self._index.begun()  # older files are of an index that was lost: not for us to remove
            strays = [stray for shelf in self._files.shelves() for stray in self._strays(shelf, begun)]
            if len(strays) > MOST_STRAYS:
                text = "results: %d files in %s are named by no result, more than kills leave behind; they stay"
                log.warning(text, len(strays), self.folder)
                return
            for result, path in strays:
                self._index.unless_kept(result, partial(path.unlink, missing_ok=True))
            if strays:
                log.info("results: swept up %d files in %s that no result names", len(strays), self.folder)
        except Exception as error:
            log.warning("results: cannot sweep %s: %s", self.folder, error)

    def _write(self, result: Result, data: bytes) -> None:
        path = self._files.path(result.id)
        self._files.write(result.id, data)
        try:
            gone = self._writer.add(result, self._bounds, self.clock.time(), path.exists)
        except BaseException:
            with suppress(Exception):  # else a later sweep will do it
                self._writer.unless_kept(result.id, path.unlink)
            raise
        self._remove_files(gone)

    def _strays(self, shelf: str, begun: float) -> list[tuple[str, Path]]:
        known = self._index.ids(shelf)
        return list(self._files.written(shelf, begun, time.time() - SWEEP_AGE_S, but=known))

    def _remove_files(self, results: Iterable[str]) -> None:
        """Those of rows that are gone; one that cannot be removed is a stray for the next sweep."""
        for result in results:
            try:
                self._files.remove(result)
            except OSError as error:
                log.warning("results: the file of %s cannot be removed: %s", result, error)

    def _note_failing(self, error: Exception, missed: int) -> None:
        with self._state_lock:
            first, self._trouble = self._trouble is None, _reason(error)
            self._missed += missed
        if first:
            reason = f"{type(error).__name__}: {error}"
            log.error("results: cannot keep pictures in %s: %s; each picture tries again", self.folder, reason)

    def _note_working(self) -> None:
        with self._state_lock:
            again, self._trouble = self._trouble is not None, None
            missed, self._missed = self._missed, 0
        if again:
            log.warning("results: pictures are kept in %s again; %d were not", self.folder, missed)


def _reason(error: Exception) -> str:
    """In a few words; an OSError's own text would name the file."""
    return str(getattr(error, "strerror", None) or error)[:200] or type(error).__name__
