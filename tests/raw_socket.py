"""A client that holds its socket in its own hand: it reads when and as much as a test wants."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgpack


class RawClient:
    """A WebSocket by hand.

    Attributes:
        hello: What the host said first.
        answers: Whether it answers pings, once it has read that far.
    """

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._unread = b""
        self.hello: dict[str, Any] = {}
        self.answers = False

    async def send(self, message_id: Any, command: str, **params: Any) -> None:
        frame = msgpack.packb({"id": message_id, "command": command, "params": params})
        assert 126 <= len(frame) < 1 << 16 or len(frame) < 126
        length = bytes([0x80 | len(frame)]) if len(frame) < 126 else b"\xfe" + len(frame).to_bytes(2, "big")
        await self._loop.sock_sendall(self._stream, b"\x82" + length + bytes(4) + frame)  # masked with zeros

    async def read_some(self, size: int = 1 << 16) -> int:
        """Take up to so many bytes from the socket; how many there were."""
        data = await self._loop.sock_recv(self._stream, size)
        self._unread += data
        return len(data)

    def take(self) -> tuple[int, bytes] | None:
        """The next whole frame of what was read: its opcode and payload."""
        if len(self._unread) < 2:
            return None
        length, begin = self._unread[1], 2
        if length >= 126:
            begin = 4 if length == 126 else 10
            length = int.from_bytes(self._unread[2:begin], "big")
        if len(self._unread) < max(begin + length, begin):
            return None
        opcode, payload = self._unread[0] & 15, self._unread[begin : begin + length]
        self._unread = self._unread[begin + length :]
        return opcode, payload

    async def receive(self, size: int = 1 << 16, pause_s: float = 0) -> dict[str, Any]:
        """The next message, read in bits of `size` bytes with a pause after each."""
        while True:
            frame = self.take()
            if frame is None:
                if not await self.read_some(size):
                    raise ConnectionResetError("the host has closed the connection")
                await asyncio.sleep(pause_s)
            elif frame[0] == 8:
                raise ConnectionResetError(f"the host has closed with code {int.from_bytes(frame[1][:2], 'big')}")
            elif frame[0] == 9 and self.answers:
                pong = bytes([0x8A, 0x80 | len(frame[1])]) + bytes(4) + frame[1]
                await self._loop.sock_sendall(self._stream, pong)
            elif frame[0] == 2:
                message: dict[str, Any] = msgpack.unpackb(frame[1])
                return message

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()


@asynccontextmanager
async def raw_client(url: str, receive_buffer: int = 4096) -> AsyncIterator[RawClient]:
    """Connect; leaving cuts the connection without a word."""
    host, _, port = url.removeprefix("ws://").removesuffix("/ws").partition(":")
    with socket.socket() as stream:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        stream.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(stream, (host, int(port)))
        await loop.sock_sendall(
            stream,
            f"GET /ws HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode(),
        )
        client = RawClient(stream)
        while b"\r\n\r\n" not in client._unread:
            await client.read_some(4096)
        client._unread = client._unread.partition(b"\r\n\r\n")[2]
        client.hello = await client.receive()
        yield client
