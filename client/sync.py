"""The plain client: the async one, run by an event loop in a thread of its own."""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, TypeVar

from ..core.events import Event
from .connection import Connection, Result, connect

T = TypeVar("T")


class SyncConnection:
    """A connected host, for code without async; made by `connect_sync`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: Connection) -> None:
        self._loop = loop
        self._connection = connection

    @property
    def hello(self) -> dict[str, Any]:
        """The host's greeting: versions and limits."""
        return self._connection.hello

    def call(self, command: str, **params: Any) -> dict[str, Any]:
        """See `Connection.call`."""
        return _wait(self._loop, self._connection.call(command, **params))

    def generate(self, prompt: str, **fields: Any) -> Iterator[Event | Result]:
        """See `Connection.generate`."""
        events: AsyncIterator[Event | Result] = self._connection.generate(prompt, **fields)
        try:
            while (event := _wait(self._loop, anext(events, None))) is not None:
                yield event
        finally:
            _wait(self._loop, events.aclose())  # type: ignore[attr-defined]


@contextmanager
def connect_sync(url: str = "ws://127.0.0.1:8000/ws", *, token: str | None = None) -> Iterator[SyncConnection]:
    """Connect to a host: `with latentwire.connect_sync() as host: ...`. See `connect`."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="latentwire-client", daemon=True)
    thread.start()
    context: AbstractAsyncContextManager[Connection] = connect(url, token=token)
    try:
        connection = _wait(loop, context.__aenter__())
        try:
            yield SyncConnection(loop, connection)
        finally:
            _wait(loop, context.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _wait(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T] | Any) -> T:
    async def run() -> T:
        result: T = await work
        return result

    return asyncio.run_coroutine_threadsafe(run(), loop).result()
