"""Whom to tell what: each client by the id that it has chosen, with whatever WebSockets it has open just now.

On the event loop alone. Messages of a graph's life are never lost: for a client that is away the latest of them are
kept. Progress, previews and the queue's length are latest wins: a newer one takes the place of one that a slow client
has not been sent.
"""

import asyncio
import itertools
import json
import struct
import time
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

KEPT = 200  # messages for a client that is away
MOST_AWAY = 200  # clients
KEPT_SIZE = 1 << 20  # of them together
MOST_WAITING = 2000  # messages for one socket; more, and it has to come back
MOST_SIZE = 64 << 20  # of them together

PREVIEW, PREVIEW_WITH_METADATA = 1, 4
FORMATS = {"jpeg": 1, "png": 2}


@dataclass(frozen=True, slots=True)
class Preview:
    """A picture in the making."""

    format: str
    data: bytes
    metadata: dict[str, Any]

    def plain(self) -> bytes:
        """The form that every client knows."""
        return struct.pack(">II", PREVIEW, FORMATS[self.format]) + self.data

    def with_metadata(self) -> bytes:
        """The form that says which node it is of."""
        notes = json.dumps({**self.metadata, "image_type": f"image/{self.format}"}).encode()
        return struct.pack(">II", PREVIEW_WITH_METADATA, len(notes)) + notes + self.data


class Outbox:
    """What waits to be sent on one WebSocket.

    Attributes:
        features: What the client has said that it can do; None before it has.
    """

    def __init__(self) -> None:
        self.features: dict[str, Any] | None = None
        self._waiting: OrderedDict[Hashable, str | bytes] = OrderedDict()
        self._size = 0
        self._sending: dict[Hashable, str | bytes] = {}
        self._numbers = itertools.count()
        self._there = asyncio.Event()
        self._closed = False

    def put(self, message: str | bytes, key: Hashable = None) -> None:
        """Send a message; with a `key`, in place of an unsent one that has the same."""
        key = next(self._numbers) if key is None else key
        self._size += len(message) - len(self._waiting.pop(key, ""))
        self._waiting[key] = message
        while len(self._waiting) > MOST_WAITING or self._size > MOST_SIZE:
            self._size -= len(self._waiting.popitem(last=False)[1])
            self._closed = True  # yet it may take long until whoever sends them hears of it
        self._there.set()

    async def next(self) -> str | bytes | None:
        """The next message; None when the client is too far behind. The one before has been sent."""
        self._sending = {}
        while not self._waiting:
            self._there.clear()
            await self._there.wait()
        if self._closed:
            return None
        key, message = self._waiting.popitem(last=False)
        self._size -= len(message)
        self._sending = {key: message}
        return message

    def unsent(self) -> Iterator[str]:
        """What has not been sent, but for what a newer one could have replaced."""
        waiting = (*self._sending.items(), *self._waiting.items())
        return (text for key, text in waiting if isinstance(key, int) and isinstance(text, str))


@dataclass
class Client:
    """One client: its sockets, and what was not sent because it had none."""

    sockets: set[Outbox] = field(default_factory=set)
    kept: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT))

    def keep(self, texts: Iterable[str]) -> None:
        """Keep the latest of what could not be sent."""
        self.kept.extend(texts)
        size = sum(map(len, self.kept))
        while size > KEPT_SIZE:
            size -= len(self.kept.popleft())


class Clients:
    """All clients of a host."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, Client] = OrderedDict()  # those that were away longest first

    def connect(self, name: str) -> Outbox:
        """A new WebSocket of a client; what the client has missed waits in it."""
        client = self._clients.setdefault(name, Client())
        outbox = Outbox()
        for text in client.kept:
            outbox.put(text)
        client.kept.clear()
        client.sockets.add(outbox)
        return outbox

    def disconnect(self, name: str, outbox: Outbox) -> None:
        """A WebSocket has ended."""
        client = self._clients[name]
        client.sockets.discard(outbox)
        if not client.sockets:
            client.keep(outbox.unsent())
            self._clients.move_to_end(name)
            self._forget()

    def tell(self, name: str | None, kind: str, **data: Any) -> None:
        """Tell a client something of a graph's life."""
        if name is None:
            return
        client = self._clients.get(name)
        if client is None:  # libraries send the graph first and connect then
            client = self._clients[name] = Client()
            self._forget()
        text = _text(kind, data)
        for outbox in client.sockets:
            outbox.put(text)
        if not client.sockets:
            client.keep([text])

    def is_there(self, name: str | None) -> bool:
        """Whether a client is connected."""
        return bool(self._sockets(name))

    def tell_latest(self, name: str | None, key: Hashable, kind: str, **data: Any) -> None:
        """Tell a client how far something is."""
        for outbox in self._sockets(name):
            outbox.put(_text(kind, data), (kind, key))

    def show(self, name: str | None, key: Hashable, preview: Preview, asked: bool) -> None:
        """Show a client a preview.

        Args:
            asked: Whether it wants previews of this graph. Else those get it that have told of their features:
                libraries that connect after they have sent a graph take whatever is binary for a result.
        """
        for outbox in self._sockets(name):
            if outbox.features is not None and outbox.features.get("supports_preview_metadata") is True:
                outbox.put(preview.with_metadata(), ("preview", key))
            elif asked or outbox.features is not None:
                outbox.put(preview.plain(), ("preview", key))

    def tell_all(self, kind: str, **data: Any) -> None:
        """Tell everybody who is there how things stand."""
        text = _text(kind, data)
        for client in self._clients.values():
            for outbox in client.sockets:
                outbox.put(text, kind)

    def _sockets(self, name: str | None) -> set[Outbox]:
        client = self._clients.get(name) if name is not None else None
        return client.sockets if client is not None else set()

    def _forget(self) -> None:
        """Forget those who have been away longest, where there are many."""
        away = [name for name, client in self._clients.items() if not client.sockets]
        for name in away[: max(len(away) - MOST_AWAY, 0)]:
            del self._clients[name]


def now_ms() -> int:
    """The time as messages have it."""
    return int(time.time() * 1000)


def text_of(kind: str, **data: Any) -> str:
    """A message."""
    return _text(kind, data)


def _text(kind: str, data: dict[str, Any]) -> str:
    return json.dumps({"type": kind, "data": data})
