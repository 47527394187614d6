"""Paints previews in threads of its own; when they fall behind, a newer preview replaces one that still waits."""

import logging
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor

log = logging.getLogger(__name__)


class Painter:
    """At most one preview of each picture waits; the pictures take turns."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(2, "paint")
        self._lock = threading.Lock()
        self._waiting: dict[Hashable, Callable[[], None]] = {}

    def paint(self, picture: Hashable, work: Callable[[], None]) -> None:
        """Paint soon, in place of what still waits for the same picture."""
        with self._lock:
            scheduled = picture in self._waiting
            self._waiting[picture] = work
        if not scheduled:
            self._pool.submit(self._work, picture)

    def close(self) -> None:
        """Drop what waits."""
        self._pool.shutdown(cancel_futures=True)

    def _work(self, picture: Hashable) -> None:
        with self._lock:
            work = self._waiting.pop(picture)
        try:
            work()
        except Exception:
            log.exception("a preview of %s could not be painted", picture)
