"""uvicorn's HTTP connection with bounds: how many there may be, and how long a client may take.

Every WebSocket begins as one of these, so the bounds on their number are for all.
"""

import asyncio
import functools
import ipaddress
from asyncio.transports import BaseTransport
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..core.settings import LimitSettings
from .watch import Watched
from .websocket import STUCK_S

REQUEST_S = 10.0  # for a request's head, from its first byte or the connection's start
BODY_S = 30.0  # without a byte of a body that is still to come
REFUSED_S = 1.0  # to take the refusal


class HostHttp(Watched, H11Protocol):
    """One connection. Needs the lifespan's state: `watch`, `limits` and `counters`."""

    _refused = False
    _waiting_since = 0.0  # for a request's head
    _heard_at = 0.0
    _unsent = 0
    _moved_at = 0.0  # when bytes of an answer were last taken

    def connection_made(self, transport: BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        self._waiting_since = self._heard_at = self.loop.time()
        reason = self._over_limit()
        if reason is None:
            self._watch.add(self)
            return
        self._refused = True
        self._counters.add("refused_connections", "limit")
        text = f"{reason}; try again later\n"
        transport.write(
            f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: {len(text)}\r\n"
            f"Connection: close\r\nRetry-After: 5\r\n\r\n{text}".encode()
        )
        transport.close()
        self.loop.call_later(REFUSED_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        self._heard_at = self.loop.time()
        if not self._refused:
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.discard(self)
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._watch.discard(self)
        super().handle_websocket_upgrade(event)

    def on_response_complete(self) -> None:
        self._waiting_since = self.loop.time()
        super().on_response_complete()

    def check(self, now: float) -> None:
        """Drop whoever is slow on purpose, or gone; called every second or so."""
        if self.cycle is None or self.cycle.response_complete:
            late = now - self._waiting_since >= REQUEST_S
        elif self.cycle.more_body and not self.flow.read_paused:
            late = now - self._heard_at >= BODY_S
        else:
            unsent = self.transport.get_write_buffer_size()
            if not unsent or unsent != self._unsent:
                self._moved_at = now
            self._unsent = unsent
            late = now - self._moved_at >= STUCK_S
        if late:
            self._counters.add("dropped_connections", "slow")
            self.transport.abort()

    def _over_limit(self) -> str | None:
        """Why this connection is one too many, if it is."""
        limits: LimitSettings = self.app_state["limits"]
        if len(self.connections) > limits.connections:
            return f"this host has {limits.connections} connections, its limit"
        mine = _place(self.client)
        others = (getattr(other, "client", None) for other in self.connections)
        if sum(_place(other) == mine for other in others) > limits.connections_per_address:
            return f"your address has {limits.connections_per_address} connections, the limit"
        return None


def _place(client: Any) -> str:
    return _network(client[0]) if client else ""


@functools.lru_cache(4096)
def _network(address: str) -> str:
    """What counts as one address: of IPv6 a /64, which is what one household or machine is given."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address
