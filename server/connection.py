"""One accepted WebSocket: frames in, commands begun; it serves a new session, or one that it takes up again."""

import asyncio

from starlette.websockets import WebSocket

from .. import __version__
from ..core.errors import LatentwireError
from ..core.events import Event
from ..core.host import Host
from . import codec
from .session import Request, Session
from .sessions import RESUME, Sessions
from .websocket import EXTENSION, HostWebSocket

MOST_UNREAD = 64  # frames of a connection that has ended, which are still taken


class Connection:
    """Serves one accepted WebSocket, which must be uvicorn's with our `HostWebSocket`."""

    def __init__(self, host: Host, sessions: Sessions, websocket: WebSocket) -> None:
        self._host = host
        self._sessions = sessions
        self._websocket = websocket
        self._socket: HostWebSocket = websocket.scope["extensions"][EXTENSION]

    async def serve(self) -> None:
        """Until the connection ends, or another one takes its session up."""
        session = self._sessions.open(self._socket)
        unread = MOST_UNREAD
        self._sessions.watch.add(self._socket)
        try:
            self._socket.write_message(codec.join(None, self._hello(session), session.outbox.number()))
            while (message := await self._websocket.receive())["type"] != "websocket.disconnect":
                if session.socket is not self._socket:
                    break
                if self._socket.transport.is_closing():
                    unread -= 1  # a client that comes back sends again what was not taken
                if unread < 0:
                    break
                session = await self._take(session, message.get("bytes"))
                await asyncio.sleep(0)  # a flood of small frames must not hold up the other clients
        finally:
            self._sessions.watch.discard(self._socket)
            if session.socket is self._socket:
                self._sessions.left(session, for_good=self._socket.closed_by_client)

    async def _take(self, session: Session, frame: bytes | None) -> Session:
        """Begin what a frame asks for; the session that goes on from there."""
        request = session.read(frame)
        if request is not None and request.command == RESUME:
            return await self._resume(session, request)
        session.received += 1
        if request is not None:
            session.run(request)
        return session

    async def _resume(self, fresh: Session, request: Request) -> Session:
        """Take up another session, which answers, and what it has to say follows."""

        def emit(_: Event) -> None: ...

        try:
            result = await self._host.dispatch(RESUME, request.params, fresh.client, emit)
        except LatentwireError as error:
            fresh.fail(request.id, error)
            return fresh
        session = self._sessions.get(result["session"])
        answer = codec.pack({"event": "result", "result": result})
        self._socket.write_message(codec.join(request.id, answer, int(request.params["seq"])))
        session.pump()
        return session

    def _hello(self, session: Session) -> codec.Packed:
        settings = self._host.settings
        return codec.pack(
            {
                "event": "hello",
                "protocol": codec.SUBPROTOCOL,
                "host": __version__,
                "session": session.client,
                "resume": session.token if settings.server.resume_grace_s else None,
                "limits": {
                    "message_bytes": settings.server.max_message_bytes,
                    "jobs": settings.limits.jobs_per_client,
                    "pixels": settings.limits.pixels,
                    "resume_seconds": settings.server.resume_grace_s,
                },
            }
        )
