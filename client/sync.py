"""The plain client: the async one, run by an event loop in a thread of its own."""

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import aclosing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.events import Event
from .connection import DEFAULT_URL, Connection, connect
from .events import JobMessage, PluginEvent
from .link import ConnectionLost
from .live import Live

if TYPE_CHECKING:
    from PIL import Image as PILImage

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
        return _done(self._connection.call(command, **params), self._loop)

    def upload(self, picture: "bytes | PILImage.Image") -> str:
        """See `Connection.upload`."""
        return _done(self._connection.upload(picture), self._loop)

    def picture(self, prompt: str, *, progress: bool = False, **fields: Any) -> "PILImage.Image":
        """See `Connection.picture`."""
        return _done(self._connection.picture(prompt, progress=progress, **fields), self._loop)

    def pictures(self, prompt: str, *, progress: bool = False, **fields: Any) -> "list[PILImage.Image]":
        """See `Connection.pictures`."""
        return _done(self._connection.pictures(prompt, progress=progress, **fields), self._loop)

    @contextmanager
    def live(self, slot: str, **fields: Any) -> "Iterator[SyncLive]":
        """A live picture: `with host.live("canvas", seed=7) as live: ...`; see `Connection.live`."""
        live = Live(self._connection.generate, slot, fields)
        try:
            yield SyncLive(self._loop, live)
        finally:
            _done(live.close(), self._loop)

    def generate(self, prompt: str, **fields: Any) -> Iterator[JobMessage]:
        """See `Connection.generate`."""
        return self._stream(self._connection.generate(prompt, **fields))

    def subscribe(self, command: str, **params: Any) -> Iterator[PluginEvent | Event]:
        """See `Connection.subscribe`."""
        return self._stream(self._connection.subscribe(command, **params))

    def _stream(self, events_of: AsyncGenerator[T]) -> Iterator[T]:
        """What an async generator yields, from the client's own thread."""
        events: queue.SimpleQueue[T | None] = queue.SimpleQueue()

        async def collect() -> None:
            try:
                async with aclosing(events_of) as source:
                    async for event in source:
                        events.put(event)
            finally:
                events.put(None)

        collecting = _begin(collect(), self._loop)
        try:
            while (event := events.get()) is not None:
                yield event
            collecting.result()  # raises what ended the job
        finally:
            collecting.cancel()  # without effect on a job that has ended


class SyncLive:
    """As `Live`, for code without async; `send` may be called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, live: Live) -> None:
        self._loop = loop
        self._live = live

    def send(self, prompt: str, **fields: Any) -> None:
        """See `Live.send`."""
        self._loop.call_soon_threadsafe(partial(self._live.send, prompt, **fields))

    def end(self) -> None:
        """See `Live.end`."""
        self._loop.call_soon_threadsafe(self._live.end)

    def __iter__(self) -> Iterator[JobMessage]:
        while (event := _done(self._live.next(), self._loop)) is not None:
            yield event


@contextmanager
def connect_sync(
    url: str = DEFAULT_URL, *, token: str | None = None, key: str | None = None, resume: bool = True
) -> Iterator[SyncConnection]:
    """Connect to a host: `with latentwire.connect_sync() as host: ...`. See `connect`."""
    connected: Future[SyncConnection] = Future()
    leaving = asyncio.Event()

    async def stay() -> None:
        try:
            async with connect(url, token=token, key=key, resume=resume) as connection:
                if connected.cancelled():
                    return
                connected.set_result(SyncConnection(asyncio.get_running_loop(), connection))
                await leaving.wait()
        except BaseException as error:
            if not connected.done():
                connected.set_exception(error)
            elif not connected.cancelled():
                raise

    thread = threading.Thread(target=_run, args=(stay(),), name="latentwire-client", daemon=True)
    thread.start()
    try:
        connection = _wait(connected)
        try:
            yield connection
        finally:
            connection._loop.call_soon_threadsafe(leaving.set)
    finally:
        thread.join()


def _run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)  # ends what the work has left behind, unlike a bare loop


def _begin(work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> "Future[T]":
    """Have the client's own thread do something.

    Raises:
        ConnectionLost: there is none any more.
    """
    if loop.is_closed():
        work.close()
        raise ConnectionLost("this client has closed the connection")
    return asyncio.run_coroutine_threadsafe(work, loop)


def _done(work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T:
    return _wait(_begin(work, loop))


def _wait(future: "Future[T]") -> T:
    try:
        return future.result()
    except BaseException:
        future.cancel()  # Ctrl-C: nobody waits for it any more
        raise
