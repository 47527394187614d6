"""uvicorn's WebSocket, with a hand on the socket itself: whether it takes more, what it has taken, and its end.

uvicorn's own never frees a client that stops reading: its ping timeout, its close and its shutdown all wait for the
buffer to empty. And it keeps much in the kernel, where a newer preview can no longer take an older one's place.
"""

import asyncio
import fcntl
import logging
import socket
import struct
import termios
from asyncio.transports import BaseTransport
from collections.abc import Callable, Sequence

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.protocol import State

from .watch import Watched

log = logging.getLogger(__name__)

HARD_LIMIT = 4 << 20  # bytes of a message; the session refuses smaller ones more politely
STUCK_S = 14.0  # a client that takes not a byte for so long, while more waits for it, is given up within a second
PING_INTERVAL_S = 20.0  # without a sign of life
PING_TIMEOUT_S = 20.0
HANDSHAKE_S = 10.0  # from the request to the answer
CLOSE_TIMEOUT_S = 1.0  # for the client's own close frame
KERNEL_UNSENT = 32 << 10  # bytes that the kernel may hold beyond those on their way
READ_SIZE = 8 << 10  # bytes at once: the loop is everybody's, and a frame may have two bytes
MAX_FRAGMENTS = 1_000  # of a message, and one more for each so many bytes that there are
FRAGMENT_SIZE = 32
NO_ANSWER, TOO_BIG, NO_TEXT = 1011, 1009, 1007  # close codes

NO_HANDSHAKE = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

EXTENSION = "latentwire.websocket"
"""Where an ASGI scope has its `HostWebSocket`."""


class HostWebSocket(Watched, WebSocketsSansIOProtocol):
    """One connection.

    Attributes:
        on_room: Called when the socket takes more again.
    """

    on_room: Callable[[], None] | None = None
    _fragment_bytes = 0  # of the message that is coming in fragments
    _written = 0  # bytes so far, that is since it was accepted
    _taken = 0  # of them by the client's machine, when last looked at
    _taken_at = 0.0
    _made_at = 0.0
    _heard_at = 0.0
    _ping_at = 0.0
    _ping_end = 0  # in bytes written
    _pending = 0  # bytes that the client's machine has not taken, when last looked at

    @property
    def has_room(self) -> bool:
        """Whether a message goes to the kernel at once, in part at least."""
        return self.writable.is_set() and not self.close_sent and not self.transport.is_closing()

    @property
    def closed_by_client(self) -> bool:
        """Whether the client has said that it is done: by a close frame with code 1000, or with none."""
        return self.conn.close_rcvd is not None and self.conn.close_rcvd.code in (1000, 1005)

    def limit_messages(self, size: int) -> None:
        """Refuse what has more bytes, from the next message on."""
        self.conn.max_message_size = size

    def write_message(self, parts: Sequence[bytes | memoryview]) -> None:
        """Send one binary message, whose parts follow one another."""
        length = sum(map(len, parts))
        if length < 126:
            head = struct.pack("!BB", 0x82, length)
        elif length < 1 << 16:
            head = struct.pack("!BBH", 0x82, 126, length)
        else:
            head = struct.pack("!BBQ", 0x82, 127, length)
        self._write(b"".join((head, *parts)))

    def end(self, code: int, reason: str) -> None:
        """Close from this side; without a word where the client does not even take what was sent before."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        elif not self.close_sent and not self.transport.is_closing():
            self.conn.send_close(code, reason)
            self._write(b"".join(self.conn.data_to_send()))
            self.close_sent = True
            self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
            if self.read_paused:
                self.read_paused = False
                self.transport.resume_reading()
            self.close_timer = self.loop.call_later(CLOSE_TIMEOUT_S, self.transport.abort)

    def check(self, now: float) -> None:
        """Give the client up if it takes nothing or does not answer; called every second or so."""
        if self.transport.is_closing():
            return
        if not self.handshake_complete:
            if now - self._made_at >= HANDSHAKE_S:
                self._counters.add("dropped_connections", "slow")
                self.transport.abort()
            return
        if self.close_sent:
            return
        pending = self.transport.get_write_buffer_size() + _unacknowledged(self.transport)
        taken = self._written - pending
        moved = taken > self._taken or pending < self._pending  # a plugin's own WebSocket writes past `_write`
        self._taken, self._pending = taken, pending
        if moved:
            self._taken_at = now
        if not self.writable.is_set() and now - self._taken_at >= STUCK_S:
            log.warning("a client took nothing for %g s; its connection is dropped", STUCK_S)
            self._counters.add("dropped_connections", "stuck")
            self.transport.abort()
        elif self.pending_ping_payload is not None:
            if moved and taken < self._ping_end:
                self._ping_at = now  # it cannot have come to the ping yet
            elif now - self._ping_at >= PING_TIMEOUT_S:
                self._counters.add("dropped_connections", "silent")
                self.conn.fail(NO_ANSWER, "keepalive ping timeout")
                self._write(b"".join(self.conn.data_to_send()))
                self.transport.abort()
        elif now - self._heard_at >= PING_INTERVAL_S:
            self.pending_ping_payload = struct.pack("!I", int(now * 1000) & 0xFFFFFFFF)
            self.conn.send_ping(self.pending_ping_payload)
            self._write(b"".join(self.conn.data_to_send()))
            self._ping_at, self._ping_end = now, self._written

    def _write(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self._written += len(data)
            self.transport.write(data)

    # what uvicorn or the transport calls

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        # a message waits in the outbox, and in the transport's buffer only the rest of one that has been begun
        self.transport.set_write_buffer_limits(high=0)
        self.transport.max_size = READ_SIZE  # type: ignore[attr-defined]  # asyncio's own, of its selector transports
        raw = transport.get_extra_info("socket")
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, KERNEL_UNSENT)
        self._made_at = self._heard_at = self.loop.time()
        self._watch.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.discard(self)
        super().connection_lost(exc)

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if hasattr(self, "scope"):  # not of a request that is no WebSocket's
            extensions: dict[str, object] = self.scope["extensions"]  # type: ignore[assignment]
            extensions[EXTENSION] = self

    def data_received(self, data: bytes) -> None:
        self._heard_at = self.loop.time()
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated and not self.transport.is_closing():
            self.handshake_complete = self.close_sent = True  # uvicorn waits for what `websockets` gave up to read
            self.transport.write(NO_HANDSHAKE)
            self.transport.close()
            self._abort_soon()

    def handle_cont(self, event: Frame) -> None:
        if self.close_sent:
            return
        begun = len(self.frames[0]) if len(self.frames) == 1 else self._fragment_bytes
        self._fragment_bytes = begun + len(event.data)
        super().handle_cont(event)
        if len(self.frames) > MAX_FRAGMENTS + self._fragment_bytes // FRAGMENT_SIZE:
            self.frames = []
            self._counters.add("dropped_connections", "fragments")
            self.conn.send_close(TOO_BIG, "the message has too many small fragments")
            self.handle_parser_exception()

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not self.close_sent and not _is_utf8(b"".join(self.frames)):
            self.frames = []  # uvicorn would write a traceback into the log, as often as a client likes
            self.conn.send_close(NO_TEXT, "a text frame without a text")
            self.handle_parser_exception()
            return
        super().send_receive_event_to_app()

    def handle_ping(self) -> None:
        pong = b"".join(self.conn.data_to_send())
        if self.writable.is_set():  # else it would wait in memory; whoever does not read needs no answer
            self._write(pong)

    def handle_close(self, event: Frame) -> None:
        super().handle_close(event)
        self._abort_soon()

    def handle_parser_exception(self) -> None:
        super().handle_parser_exception()
        self._abort_soon()

    def handle_pong(self, event: Frame) -> None:
        self.pending_ping_payload = None  # whichever it answers, it is a sign of life

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taken_at = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.on_room is not None:
            self.on_room()

    def shutdown(self) -> None:
        self._abort_soon()
        if not self.transport.is_closing() and self.conn.state in (State.CONNECTING, State.OPEN):
            super().shutdown()

    def _abort_soon(self) -> None:
        """uvicorn closes the transport, which waits for as long as the client does not read."""
        self.loop.call_later(CLOSE_TIMEOUT_S, self.transport.abort)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _unacknowledged(transport: asyncio.Transport) -> int:
    """Bytes in the kernel that the client's machine has not taken; 0 where the system does not tell."""
    answer = bytearray(4)
    try:
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, answer)
    except OSError:
        return 0
    count: int = struct.unpack("i", answer)[0]
    return count
