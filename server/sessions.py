"""All sessions of a host: those with a connection, and those whose client may come back.

A session outlives its connection by `server.resume_grace_s`, unless its client closed it in good order.
"""

import asyncio
import hmac
import logging
from typing import Any

from pydantic import Field

from ..core.commands import CommandContext
from ..core.errors import BadMessage, InvalidParams, UnknownSession
from ..core.host import Host
from ..core.registry import PluginRegistry
from ..core.requests import Strict, Whole
from .outbox import CONNECTED, Bound
from .post import Post
from .session import Session
from .watch import Watch
from .websocket import HostWebSocket

log = logging.getLogger(__name__)

RESUME = "session.resume"
MAX_AWAY = 1_000  # sessions
MAX_AWAY_SIZE = 512 << 20  # bytes that all of them together keep
MAX_WAITING_SIZE = 1 << 30  # bytes that wait to be sent in all sessions together
RESUMED_ELSEWHERE = 4001  # close code
PERIOD_S = 0.5


class ResumeParams(Strict):
    """Which session, and up to where its client has its messages."""

    token: str = Field(max_length=200, description="`resume` of the session's hello")
    seq: Whole = Field(ge=1, description="of the last message that was received in that session")


class Sessions:
    """Opens sessions, keeps them while their clients are away, and ends them."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._grace_s = host.settings.server.resume_grace_s
        self._sessions: dict[str, Session] = {}
        self._away: dict[Session, float] = {}  # when each ends, on the loop's clock; the longest away first
        self._ending: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        commands = PluginRegistry("latentwire")
        commands.add_command(RESUME, ResumeParams, self._resume)
        host.registry.merge(commands)

    def begin(self) -> None:
        """On the event loop, before the first connection."""
        self._post = Post()
        self.watch = Watch(self.shed)

    def open(self, websocket: HostWebSocket) -> Session:
        """A new session for a connection."""
        session = Session(self._host, self._post)
        self._sessions[session.client] = session
        session.attach(websocket)
        return session

    def get(self, client: str) -> Session:
        """The session of a client that has one."""
        return self._sessions[client]

    def left(self, session: Session, for_good: bool) -> None:
        """A session's connection has ended."""
        session.detach()
        nothing = not session.received  # there is nothing to come back to
        if for_good or nothing or not self._grace_s or self._host.closing:
            self._end(session)
            return
        session.rest()
        self._away[session] = asyncio.get_running_loop().time() + self._grace_s
        self._tend()

    async def close(self) -> None:
        """End all."""
        for session in list(self._sessions.values()):
            self._end(session)
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.gather(*self._ending)

    async def _resume(self, context: CommandContext, params: ResumeParams) -> dict[str, Any]:
        """Take up a session whose connection was lost; only as the first command of a connection."""
        fresh = self._sessions.get(context.client)
        if fresh is None or fresh.socket is None:
            raise BadMessage(f"{RESUME} is for WebSockets")
        if fresh.received:
            raise BadMessage(f"{RESUME} must be the first message of a connection; this one came after others")
        session = self._find(params.token)
        if session is fresh:
            raise BadMessage("the token is that of this connection's own new session; send that of the one before")
        if params.seq > session.outbox.seq:
            message = f"the session has sent {session.outbox.seq} messages so far"
            detail = {"path": ["seq"], "message": message, "got": str(params.seq)[:80]}
            raise InvalidParams(f"{RESUME}: seq: {message}, got {detail['got']}", [detail])
        websocket, old = fresh.socket, session.socket
        fresh.detach()
        del self._sessions[fresh.client]
        if old is not None:
            session.detach()
            old.end(RESUMED_ELSEWHERE, "resumed elsewhere")
        self._away.pop(session, None)
        session.outbox.rewind(params.seq)
        session.attach(websocket)
        return {"session": session.client, "received": session.received}

    def shed(self) -> None:
        """Keep what all sessions have waiting within a bound: those with the most give up half of it; once a second."""
        waiting = {session: session.outbox.waiting_size for session in self._sessions.values()}
        surplus = sum(waiting.values()) - MAX_WAITING_SIZE
        for session in sorted(waiting, key=lambda session: -waiting[session]) if surplus > 0 else ():
            if surplus > 0:
                surplus -= waiting[session] // 2
                session.outbox.make_room(Bound(CONNECTED.messages, waiting[session] // 2))

    def _find(self, token: str) -> Session:
        """The session with a token.

        Raises:
            UnknownSession: none has it, or no longer.
        """
        session = self._sessions.get(token.partition(".")[0])
        if session is None or not hmac.compare_digest(session.token.encode(), token.encode()):
            raise UnknownSession(
                f"no session has this token; one is kept for {self._grace_s:g} s after its connection was lost"
            )
        return session

    def _tend(self) -> None:
        """End whoever is away for too long, or is too much; and look again as long as there is one."""
        now = asyncio.get_running_loop().time()
        for session, until in list(self._away.items()):
            if now >= until:
                self._end(session)
        if len(self._away) > MAX_AWAY:  # those without anything under way go first, of each the longest away
            for session in sorted(self._away, key=lambda session: not session.is_idle)[: len(self._away) - MAX_AWAY]:
                self._end(session)
        size = sum(session.outbox.size for session in self._away)
        for session in sorted(self._away, key=lambda session: -session.outbox.size) if size > MAX_AWAY_SIZE else ():
            if size > MAX_AWAY_SIZE:
                size -= session.outbox.size
                self._end(session)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(PERIOD_S, self._tend) if self._away else None

    def _end(self, session: Session) -> None:
        del self._sessions[session.client]
        self._away.pop(session, None)
        ending = asyncio.create_task(session.end())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
