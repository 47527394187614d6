"""Looks after all connections together: one timer in place of several for each."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from ..core.counters import Counters

log = logging.getLogger(__name__)

PERIOD_S = 1.0


class Watched:
    """A connection of uvicorn's, with what the app's lifespan lends it: `watch` and `counters`."""

    app_state: dict[str, Any]

    @property
    def _watch(self) -> "Watch":
        watch: Watch = self.app_state["watch"]
        return watch

    @property
    def _counters(self) -> Counters:
        counters: Counters = self.app_state["counters"]
        return counters

    def check(self, now: float) -> None:
        """Look after it; `now` is the loop's time."""
        raise NotImplementedError


class Watch:
    """Checks each connection every second, while there is one.

    Args:
        also: What else is to be done then.
    """

    def __init__(self, also: Callable[[], None]) -> None:
        self._also = also
        self._loop = asyncio.get_running_loop()
        self._connections: set[Watched] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, connection: Watched) -> None:
        """Look after a connection."""
        self._connections.add(connection)
        if self._timer is None:
            self._timer = self._loop.call_later(PERIOD_S, self._check)

    def discard(self, connection: Watched) -> None:
        """It has ended."""
        self._connections.discard(connection)

    def _check(self) -> None:
        self._timer = self._loop.call_later(PERIOD_S, self._check) if self._connections else None
        now = self._loop.time()
        checks: list[Callable[[], None]] = [partial(connection.check, now) for connection in self._connections]
        for check in [*checks, self._also]:
            try:
                check()
            except Exception:
                log.exception("a connection could not be looked after")
