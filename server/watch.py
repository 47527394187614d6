"""Looks after all connections together: one timer in place of several for each."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from .websocket import HostWebSocket

log = logging.getLogger(__name__)

PERIOD_S = 1.0


class Watch:
    """Checks each connection every second, while there is one.

    Args:
        also: What else is to be done then.
    """

    def __init__(self, also: Callable[[], None]) -> None:
        self._also = also
        self._loop = asyncio.get_running_loop()
        self._sockets: set[HostWebSocket] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, websocket: HostWebSocket) -> None:
        """Look after a connection."""
        self._sockets.add(websocket)
        if self._timer is None:
            self._timer = self._loop.call_later(PERIOD_S, self._check)

    def discard(self, websocket: HostWebSocket) -> None:
        """It has ended."""
        self._sockets.discard(websocket)

    def _check(self) -> None:
        self._timer = self._loop.call_later(PERIOD_S, self._check) if self._sockets else None
        now = self._loop.time()
        checks: list[Callable[[], None]] = [partial(websocket.check, now) for websocket in self._sockets]
        for check in [*checks, self._also]:
            try:
                check()
            except Exception:
                log.exception("a connection could not be looked after")
