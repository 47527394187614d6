"""Paints previews in worker threads; when they fall behind, a newer preview replaces one that still waits."""

import logging
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Executor

log = logging.getLogger(__name__)


class Painter:
    """At most one preview of each picture waits or is being painted."""

    def __init__(self, pool: Executor) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._waiting: dict[Hashable, Callable[[], None] | None] = {}

    def paint(self, picture: Hashable, job: Callable[[], None]) -> None:
        """Paint soon, in place of what still waits for the same picture."""
        with self._lock:
            scheduled = picture in self._waiting
            self._waiting[picture] = job
        if not scheduled:
            self._pool.submit(self._work, picture)

    def _work(self, picture: Hashable) -> None:
        while True:
            with self._lock:
                job = self._waiting[picture]
                if job is None:
                    del self._waiting[picture]
                    return
                self._waiting[picture] = None
            try:
                job()
            except Exception:
                log.exception("a preview of %s could not be painted", picture)
