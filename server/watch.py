"""Looks after all connections together: one timer in place of several for each."""

import asyncio

from .websocket import HostWebSocket

PERIOD_S = 1.0


class Watch:
    """Checks each connection every second, while there is one."""

    def __init__(self) -> None:
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
        now = self._loop.time()
        for websocket in list(self._sockets):
            websocket.check(now)
        self._timer = self._loop.call_later(PERIOD_S, self._check) if self._sockets else None
