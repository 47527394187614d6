"""All sessions of a host: those with a connection, and those whose client may come back.

A session outlives its connection by `server.resume_grace_s`, unless its client closed it in good order.
"""

import asyncio
import hmac
import logging
from typing import Any

from pydantic import Field

from ..core.caller import Caller
from ..core.command_context import CommandContext, NoParams
from ..core.errors import BadMessage, InvalidParams, Unauthorized, UnknownSession
from ..core.events import Event
from ..core.host import Host
from ..core.plugin_registry import PluginRegistry
from ..core.requests import Strict, Whole
from ..core.settings import PRINTABLE
from .access import MAX_KEY, MIN_KEY, Access
from .message import Message, event_body
from .outbox import CONNECTED, Bound
from .post import Post
from .session import Session
from .tickets import LIFE_S
from .watch import Watch
from .websocket import HostWebSocket

log = logging.getLogger(__name__)

OPEN, RESUME, TICKET = "session.open", "session.resume", "session.ticket"
MAX_AWAY = 1_000  # sessions
MAX_AWAY_SIZE = 512 << 20  # bytes that all of them together keep
MAX_WAITING_SIZE = 1 << 30  # bytes that wait to be sent in all sessions together
RESUMED_ELSEWHERE = 4001  # close code
PERIOD_S = 0.5


class ResumeParams(Strict):
    """Which session, and up to where its client has its messages."""

    token: str = Field(max_length=200, description="`resume` of the session's hello")
    seq: Whole = Field(ge=1, description="of the last message that was received in that session")


class OpenParams(Strict):
    """Who comes."""

    token: str | None = Field(None, max_length=1000, description="the host's, where it was not sent as a header")
    key: str | None = Field(
        None,
        min_length=MIN_KEY,
        max_length=MAX_KEY,
        pattern=PRINTABLE,
        description="a secret of your own: jobs and results of all sessions that were opened with it are yours",
    )


class Sessions:
    """Opens sessions, keeps them while their clients are away, and ends them."""

    def __init__(self, host: Host, access: Access) -> None:
        self._host = host
        self._access = access
        self._grace_s = host.settings.server.resume_grace_s
        self._sessions: dict[str, Session] = {}
        self._away: dict[Session, float] = {}  # when each ends, on the loop's clock; the longest away first
        self._ending: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        commands = PluginRegistry("latentwire")
        commands.add_command(OPEN, OpenParams, self._open)
        commands.add_command(RESUME, ResumeParams, self._resume)
        commands.add_command(TICKET, NoParams, self._ticket)
        host.registry.merge(commands)
        host.counters.gauges |= {
            "sessions": ("Sessions, also those whose clients may come back.", lambda: len(self._sessions)),
            "sessions_away": ("Sessions whose clients may come back.", lambda: len(self._away)),
            "unsent_bytes": ("Messages that wait to be sent.", self._waiting_size),
        }

    def begin(self) -> None:
        """On the event loop, before the first connection."""
        self._post = Post()
        self.watch = Watch(self.shed)

    def open(self, websocket: HostWebSocket, caller: Caller | None) -> Session:
        """A new session for a connection; without a caller it has yet to be admitted."""
        session = Session(self._host, self._post, caller or Caller.nobody_known(), admitted=caller is not None)
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
        while self._ending:
            await asyncio.gather(*self._ending)

    async def _open(self, context: CommandContext, params: OpenParams) -> dict[str, Any]:
        """Show the host's token, and say whose jobs and results these are; only as the first command."""
        session, _ = self._fresh(context, OPEN)
        if session.opened:
            raise BadMessage(f"{OPEN} comes once; this connection has sent it before")
        if params.token is None and not session.admitted:
            raise Unauthorized(f"this host asks for its token: send it with {OPEN}")
        session.caller = self._access.log_in(session.caller, params.token, params.key)
        session.admitted = session.opened = True
        caller = session.caller
        return {"session": session.client, "observer": caller.observer, "operator": caller.operator}

    async def _ticket(self, context: CommandContext, params: NoParams) -> dict[str, Any]:
        """Give a ticket for one HTTP request or one WebSocket, in your name: `?ticket=...` in its address."""
        return {"ticket": self._access.tickets.issue(context.caller), "seconds": LIFE_S}

    def _fresh(self, context: CommandContext, command: str) -> tuple[Session, HostWebSocket]:
        """The session of a connection that has not commanded anything yet, and its socket.

        Raises:
            BadMessage: it has, or there is no connection.
        """
        session = self._sessions.get(context.client)
        if session is None or session.socket is None:
            raise BadMessage(f"{command} is for WebSockets")
        if session.received:
            raise BadMessage(f"{command} must be the first message of a connection; this one came after others")
        return session, session.socket

    async def _resume(self, context: CommandContext, params: ResumeParams) -> dict[str, Any]:
        """Take up a session whose connection was lost; only as the first command of a connection."""
        fresh, websocket = self._fresh(context, RESUME)
        session = self._find(params.token)
        if session is fresh:
            raise BadMessage("the token is that of this connection's own new session; send that of the one before")
        if params.seq > session.outbox.seq:
            message = f"the session has sent {session.outbox.seq} messages so far"
            detail = {"path": ["seq"], "message": message, "got": str(params.seq)[:80]}
            raise InvalidParams(f"{RESUME}: seq: {message}, got {detail['got']}", [detail])
        old = session.socket
        fresh.detach()
        del self._sessions[fresh.client]
        if old is not None:
            session.detach()
            old.end(RESUMED_ELSEWHERE, "resumed elsewhere")
        self._away.pop(session, None)
        session.outbox.rewind(params.seq)
        session.attach(websocket)
        return {"session": session.client, "received": session.received}

    def announce(self, event: Event) -> None:
        """Tell every client something that is the answer to no command."""
        body = event_body(event)
        for session in self._sessions.values():
            if session.admitted:
                session.tell(Message(None, body))

    async def flushed(self, patience_s: float) -> None:
        """Until all that is told has been sent to those who are connected, or the time is over."""
        clock = asyncio.get_running_loop().time
        until = clock() + patience_s
        while clock() < until and self._is_anybody_behind():  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.02)

    def _waiting_size(self) -> int:
        return sum(session.outbox.waiting_size for session in list(self._sessions.values()))

    def _is_anybody_behind(self) -> bool:
        return any(session.socket and session.is_behind for session in self._sessions.values())

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
        if self._sessions.pop(session.client, None) is None:
            return
        session.detach()  # at once: its connection may be about to end, too
        self._away.pop(session, None)
        ending = asyncio.create_task(session.end())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
