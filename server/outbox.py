"""What waits to be sent to one client: two kinds of message in one order.

Life-cycle messages stay until they are sent. A latest-wins message takes the place of an unsent one with
the same key. Any thread may put; one task takes. A client that does not read costs the others nothing:
its outbox fills up to a bound, and then its connection is closed.
"""

import asyncio
import threading
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any

MAX_WAITING = 20_000  # messages
MAX_WAITING_BYTES = 256 << 20  # of pictures and tensors; 64 pictures of 1024x1024 may be ready all at once


class Outbox:
    """The unsent messages of one client.

    Attributes:
        overflow: Set once more waits than the bound allows. Nothing is taken in from then on.
    """

    def __init__(self) -> None:
        self.overflow = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._messages: dict[Hashable, dict[str, Any]] = {}  # in order of arrival
        self._bytes = 0
        self._sent = 0
        self._full = False
        self._awake = asyncio.Event()
        self._waking = False

    def put(self, message: dict[str, Any], latest_of: Hashable = None) -> None:
        """Add a message, from any thread; one with the key `latest_of` that is still unsent is dropped."""
        with self._lock:
            if self._full:
                return
            key = object() if latest_of is None else latest_of
            old = self._messages.pop(key, None)
            self._messages[key] = message
            self._bytes += _weight(message) - (_weight(old) if old else 0)
            # here and not in `take`: whoever takes may be stuck in sending to this very client
            self._full = len(self._messages) > MAX_WAITING or self._bytes > MAX_WAITING_BYTES
            wake, self._waking = not self._waking, True
            full = self._full
        if full:
            self._call_soon(self.overflow.set)
        if wake:
            self._call_soon(self._awake.set)

    async def take(self) -> dict[str, Any]:
        """Wait for the next message, numbered by `seq`; only one task may take."""
        while True:
            with self._lock:
                if self._messages:
                    message = self._messages.pop(next(iter(self._messages)))
                    self._bytes -= _weight(message)
                    self._sent += 1
                    return message | {"seq": self._sent}
                self._waking = False
                self._awake.clear()
            await self._awake.wait()

    def _call_soon(self, call: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed, and with it the connection
            self._loop.call_soon_threadsafe(call)


def _weight(value: Any) -> int:
    """The bytes of the files and tensors in a message, wherever they are."""
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_weight, value.values()))
    return sum(map(_weight, value)) if isinstance(value, list) else 0
