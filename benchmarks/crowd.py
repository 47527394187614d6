"""Many WebSockets in one process, with as little work a message as can be: clients share the machine with the host.

Knows of WebSockets (RFC 6455) only what a host of this project sends: whole binary frames, pings and a close.
"""

import os
import selectors
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from latentwire.server.codec import SUBPROTOCOL, decode_trusted, encode

BINARY, CLOSE, PING, PONG = 2, 8, 9, 10
NO_MASK = b"\0\0\0\0"  # a client's frames must be masked; this mask leaves them as they are
CHUNK = 1 << 18
ENDS = ("result", "error")
KEY = "all of this crowd"  # so that each may watch the others' jobs


@dataclass(eq=False)
class Member:
    """One client.

    Attributes:
        heard: Each message that came, with the time when it was whole.
        ended: The ids of its commands that are over.
    """

    socket: socket.socket
    port: int
    heard: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    ended: set[int] = field(default_factory=set)
    open: bool = True
    _unread: bytearray = field(default_factory=bytearray)

    def send(self, message_id: int, command: str, **params: Any) -> None:
        """A command."""
        self._send(BINARY, encode({"id": message_id, "command": command, "params": params}))

    def read(self) -> None:
        """What has come; blocks where nothing has."""
        try:
            data = self.socket.recv(CHUNK)
        except ConnectionError:
            data = b""
        now = perf_counter()
        self.open = self.open and bool(data)
        self._unread += data
        while (frame := self._next_frame()) is not None:
            kind, payload = frame
            if kind == BINARY:
                message = decode_trusted(payload)
                self.heard.append((now, message))
                if message["event"] in ENDS:
                    self.ended.add(message["id"])
            elif kind == PING:
                self._send(PONG, payload)
            elif kind == CLOSE:
                self.open = False

    def _send(self, kind: int, payload: bytes) -> None:
        size = len(payload)
        length = struct.pack("!B", 128 + size) if size < 126 else struct.pack("!BH", 128 + 126, size)
        self.socket.sendall(bytes([128 + kind]) + length + NO_MASK + payload)

    def _next_frame(self) -> tuple[int, bytes] | None:
        unread = self._unread
        if len(unread) < 2:
            return None
        begin, size = 2, unread[1]
        for mark, letter, more in ((126, "!H", 2), (127, "!Q", 8)):
            if unread[1] == mark:
                if len(unread) < 2 + more:
                    return None
                begin, size = 2 + more, struct.unpack_from(letter, unread, 2)[0]
        if len(unread) < begin + size:
            return None
        kind, payload = unread[0] & 15, bytes(unread[begin : begin + size])
        del unread[: begin + size]
        return kind, payload


class Crowd:
    """Clients of one host; for a process of its own."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname, parts.port)
        self.members: list[Member] = []

    def open(self, count: int) -> list[int]:
        """Let more clients connect; their ports, once each has been greeted."""
        members = [self._connected() for _ in range(count)]
        self.members += members
        for member in members:
            while not member.heard:
                member.read()
        return [member.port for member in members]

    def leave(self) -> None:
        """Let all clients go."""
        for member in self.members:
            member.socket.close()
        self.members.clear()

    def listen(self, members: Iterable[Member], until: Callable[[], bool], timeout_s: float) -> None:
        """Read what comes to some until something holds.

        Raises:
            TimeoutError: it does not.
        """
        end = perf_counter() + timeout_s
        with selectors.DefaultSelector() as selector:
            for member in members:
                selector.register(member.socket, selectors.EVENT_READ, member)
            while not until():
                if perf_counter() > end:
                    raise TimeoutError(f"the host did not do within {timeout_s} s what was waited for")
                for key, _ in selector.select(1.0):
                    key.data.read()
                    if not key.data.open:
                        selector.unregister(key.fileobj)

    def _connected(self) -> Member:
        connection = socket.create_connection(self._address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        host, port = self._address
        lines = [
            "GET /ws HTTP/1.1",
            f"Host: {host}:{port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {os.urandom(12).hex()[:22]}==",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Protocol: {SUBPROTOCOL}",
            f"Latentwire-Key: {KEY}",
        ]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):  # byte by byte: what follows is a frame
            part = connection.recv(1)
            if not part:
                raise ConnectionError("the host closed the connection in its handshake")
            answer += part
        if not answer.startswith(b"HTTP/1.1 101"):
            raise ConnectionError(f"the host refuses: {answer.decode(errors='replace')}")
        return Member(connection, connection.getsockname()[1])
