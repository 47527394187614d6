"""Paints previews in threads of its own; when they fall behind, a newer preview replaces one that still waits."""

import logging
import threading
from collections.abc import Callable, Hashable
from contextlib import suppress

from .threads import workers

log = logging.getLogger(__name__)


class Painter:
    """At most one preview of each picture waits; the pictures take turns."""

    def __init__(self) -> None:
        self._pool = workers(2, "paint")
        self._lock = threading.Lock()
        self._waiting: dict[Hashable, Callable[[], None]] = {}
        self._taken: set[Hashable] = set()  # pictures that a thread has, or will have

    def paint(self, picture: Hashable, work: Callable[[], None]) -> None:
        """Paint soon, in place of what still waits for the same picture."""
        with self._lock:
            taken = picture in self._taken
            self._taken.add(picture)
            self._waiting[picture] = work
        if not taken:
            self._pool.submit(self._work, picture)

    def close(self) -> None:
        """Drop what waits."""
        self._pool.shutdown(cancel_futures=True)

    def _work(self, picture: Hashable) -> None:
        with self._lock:
            work = self._waiting.pop(picture)
        try:
            work()
        except BaseException:
            log.exception("a preview of %s could not be painted", picture)
        with self._lock:  # only now: a picture's previews must not overtake one another
            more = picture in self._waiting
            if not more:
                self._taken.discard(picture)
        if more:
            with suppress(RuntimeError):  # closed meanwhile
                self._pool.submit(self._work, picture)
