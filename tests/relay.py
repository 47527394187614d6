"""A line between client and host that a test can cut."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress


class Relay:
    """Passes bytes on in both directions.

    Attributes:
        url: For clients, in place of the host's.
        down: Whether new connections are refused, too.
        connections: How many there have been.
    """

    def __init__(self, url: str) -> None:
        self.lead_to(url)
        self._writers: set[asyncio.StreamWriter] = set()
        self._to_clients: set[asyncio.StreamWriter] = set()
        self._silenced: set[asyncio.StreamWriter] = set()
        self.url = ""
        self.down = False
        self.connections = 0

    def lead_to(self, url: str) -> None:
        """Lead new connections to this host."""
        host, _, port = url.removeprefix("ws://").removesuffix("/ws").partition(":")
        self._to = host, int(port)

    def cut(self) -> None:
        """End all connections, and lose what is on its way."""
        for writer in self._writers:
            writer.transport.abort()

    def silence(self) -> None:
        """Let all connections stand, and nothing more come by them from the host."""
        self._silenced |= self._to_clients

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.down:
            writer.transport.abort()
            return
        self.connections += 1
        try:
            to_reader, to_writer = await asyncio.open_connection(*self._to)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, to_writer}
        self._writers |= both
        self._to_clients.add(writer)
        try:
            await asyncio.gather(self._pass(reader, to_writer), self._pass(to_reader, writer))
        finally:
            self._writers -= both
            self._to_clients.discard(writer)
            self._silenced.discard(writer)
            for end in both:
                end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if writer not in self._silenced:
                    writer.write(data)
                    await writer.drain()
        writer.transport.abort() if writer.is_closing() else writer.close()


@asynccontextmanager
async def relay(url: str) -> AsyncIterator[Relay]:
    """A line to the host at `url`."""
    line = Relay(url)
    server = await asyncio.start_server(line.take, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        line.url = f"ws://127.0.0.1:{port}/ws"
        yield line
    finally:
        server.close()
        line.cut()
        await asyncio.sleep(0.05)  # their tasks end


@contextmanager
def relay_in_thread(url: str) -> Iterator[tuple[Relay, Callable[[], None]]]:
    """A line for tests that run no event loop, and its `cut` for any thread."""
    lines: list[Relay] = []
    loop = asyncio.new_event_loop()
    laid, over = threading.Event(), asyncio.Event()

    async def keep_line() -> None:
        async with relay(url) as line:
            lines.append(line)
            laid.set()
            await over.wait()

    def cut() -> None:
        loop.call_soon_threadsafe(lines[0].cut)

    thread = threading.Thread(target=loop.run_until_complete, args=(keep_line(),))
    thread.start()
    try:
        assert laid.wait(10)
        yield lines[0], cut
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()
