"""One accepted WebSocket: frames in, commands begun; it serves a new session, or one that it takes up again."""

import asyncio
from typing import Any

from starlette.websockets import WebSocket

from .. import __version__
from ..core.caller import SCOPE_KEY, Caller
from ..core.errors import LatentwireError, Unauthorized
from ..core.events import Event
from ..core.host import Host
from . import codec
from .session import Request, Session
from .sessions import OPEN, RESUME, Sessions
from .websocket import EXTENSION, HARD_LIMIT, HostWebSocket

LOGIN_S = 10.0  # for the first message, where it must have the token
LOGIN_SIZE = 4 << 10  # bytes of it
UNAUTHORIZED = 4401  # close code
MOST_WAITING = 64 << 20  # bytes of answers that wait to be sent, until more is asked
WAITING_S = 0.05
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
        caller: Caller | None = self._websocket.scope[SCOPE_KEY]
        session = self._sessions.open(self._socket, caller)
        unread = MOST_UNREAD
        try:
            if not session.admitted and not await self._logged_in(session):
                return
            if caller is not None:
                self._greet(session)
            while (message := await self._websocket.receive())["type"] != "websocket.disconnect":
                if session.socket is not self._socket:
                    break
                if self._socket.transport.is_closing():
                    unread -= 1  # a client that comes back sends again what was not taken
                if unread < 0:
                    break
                while self._is_far_behind(session):  # noqa: ASYNC110 - who does not take the answers need not ask on
                    await asyncio.sleep(WAITING_S)
                if session.socket is not self._socket:  # another connection has it now, and sends this frame again
                    break
                session = await self._take(session, message.get("bytes"))
                await asyncio.sleep(0)  # a flood of small frames must not hold up the other clients
        finally:
            if session.socket is self._socket:
                self._sessions.left(session, for_good=self._socket.closed_by_client)

    def _is_far_behind(self, session: Session) -> bool:
        return session.outbox.waiting_size > MOST_WAITING and not self._socket.transport.is_closing()

    async def _logged_in(self, session: Session) -> bool:
        """Whether the first message is `session.open` with the token, and comes in time."""
        self._socket.limit_messages(LOGIN_SIZE)
        login = codec.pack({"event": "login", "seconds": LOGIN_S, "message": f"send {OPEN} with the host's token"})
        self._socket.write_message(codec.join(None, login, 0))
        try:
            async with asyncio.timeout(LOGIN_S):
                message = await self._websocket.receive()
        except TimeoutError:
            self._socket.end(UNAUTHORIZED, f"no token came within {LOGIN_S:g} s")
            return False
        if message["type"] == "websocket.disconnect":
            return False
        request = session.read(message.get("bytes"))
        if request is not None and request.command == OPEN:
            try:
                result = await self._dispatch(session, request)
            except LatentwireError as error:
                session.fail(request.id, error)
            else:
                self._socket.limit_messages(HARD_LIMIT)
                self._greet(session)
                session.answer(request.id, result)
                return True
        elif request is not None:
            session.fail(request.id, Unauthorized(f"this host asks for its token first: send {OPEN}"))
        self._turn_away("the first message did not have the token")
        return False

    def _turn_away(self, reason: str) -> None:
        self._host.counters.add("refused_connections", "token")
        self._socket.end(UNAUTHORIZED, reason)

    async def _take(self, session: Session, frame: bytes | None) -> Session:
        """Begin what a frame asks for; the session that goes on from there."""
        request = session.read(frame)
        if request is not None and request.command in (OPEN, RESUME):
            return await self._take_up(session, request)
        session.received += 1
        if request is not None:
            session.run(request)
        return session

    async def _take_up(self, fresh: Session, request: Request) -> Session:
        """Say whose session it is, or take up another one, which answers, and what it has to say follows."""
        try:
            result = await self._dispatch(fresh, request)
        except LatentwireError as error:
            fresh.fail(request.id, error)
            if isinstance(error, Unauthorized):
                self._turn_away("the token is wrong")
            return fresh
        if request.command == OPEN:
            fresh.answer(request.id, result)
            return fresh
        session = self._sessions.get(result["session"])
        answer = codec.pack({"event": "result", "result": result})
        self._socket.write_message(codec.join(request.id, answer, int(request.params["seq"])))
        session.pump()
        return session

    async def _dispatch(self, session: Session, request: Request) -> dict[str, Any]:
        def emit(_: Event) -> None: ...

        return await self._host.dispatch(request.command, request.params, session.caller, emit)

    def _greet(self, session: Session) -> None:
        self._socket.write_message(codec.join(None, self._hello(session), session.outbox.number()))

    def _hello(self, session: Session) -> codec.Packed:
        settings = self._host.settings
        return codec.pack(
            {
                "event": "hello",
                "protocol": codec.SUBPROTOCOL,
                "host": __version__,
                "session": session.client,
                "resume": session.token if settings.server.resume_grace_s else None,
                "observer": session.caller.observer,
                "operator": session.caller.operator,
                "limits": {
                    "message_bytes": settings.server.max_message_bytes,
                    "jobs": settings.limits.jobs_per_client,
                    "pixels": settings.limits.pixels,
                    "resume_seconds": settings.server.resume_grace_s,
                },
            }
        )
