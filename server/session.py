"""One client: its commands under way, and what it is told, by whichever connection it comes."""

import asyncio
import logging
import secrets
from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..core.caller import Caller
from ..core.errors import (
    BadMessage,
    DuplicateId,
    LatentwireError,
    MessageError,
    MessageTooLarge,
    TooManyJobs,
)
from ..core.events import Event, JobEvent
from ..core.host import Host
from . import codec
from .message import Body, Message, MessageId, error_body, result_body
from .outbox import AWAY, CONNECTED, Outbox
from .post import Post
from .websocket import HostWebSocket

log = logging.getLogger(__name__)

MAX_ID_LENGTH = 64
MAX_COMMANDS = 256  # under way at once in one session
ENDING_S = 1.0  # that a cancelled command may take
MAX_AT_ONCE = 100  # messages sent before others have their turn


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for: a command that has yet to be validated."""

    id: MessageId
    command: str
    params: dict[str, Any]


class Session:
    """A client's side of the host, from its first connection until it says goodbye or stays away.

    Attributes:
        caller: Who commands here; its `client` is the session's public id.
        admitted: Whether it has shown that it may use the host; until then it is told nothing.
        opened: Whether it has said by `session.open` who it is; nobody says so twice.
        token: Who has it may take the session up again.
        socket: Its connection's; None while it is away.
        received: How many messages of its client it has taken.
    """

    def __init__(self, host: Host, post: Post, caller: Caller, admitted: bool) -> None:
        self.caller = caller
        self.admitted = admitted
        self.opened = False
        self.token = f"{self.client}.{secrets.token_urlsafe(24)}"
        self.outbox = Outbox()
        self.socket: HostWebSocket | None = None
        self.received = 0
        self._host = host
        self._post = post
        self._commands: dict[MessageId, Command] = {}

    @property
    def client(self) -> str:
        """Its public id."""
        return self.caller.client

    def attach(self, websocket: HostWebSocket) -> None:
        """Go on over this connection; `pump` sends."""
        self.socket = websocket
        self.outbox.bound = CONNECTED
        websocket.on_room = self.pump

    def detach(self) -> None:
        """Go on without this connection; another one may follow at once."""
        if self.socket is not None:
            self.socket.on_room = None
            self.socket = None

    def rest(self) -> None:
        """Wait for its client with less than a connected one may keep."""
        self.outbox.bound = AWAY
        self.outbox.make_room()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._commands

    @property
    def is_behind(self) -> bool:
        """Whether something that it was told has not gone out yet."""
        return not self.outbox.is_empty or (self.socket is not None and not self.socket.writable.is_set())

    def pump(self) -> None:
        """Send what the client takes; the rest waits here, where a newer preview takes an older one's place."""
        for _ in range(MAX_AT_ONCE):
            if self.socket is None or not self.socket.has_room:
                return
            message = self.outbox.next()
            if message is None:
                return
            self.socket.write_message(message.frame())
        asyncio.get_running_loop().call_soon(self.pump)

    def read(self, frame: bytes | None) -> Request | None:
        """What a frame asks for; None where its error is the answer, with its id as soon as that is known."""
        try:
            message = self._decode(frame)
            message_id = self._id_of(message)
        except MessageError as error:
            self._host.counters.add("messages", "refused")
            self.fail(None, error)
            return None
        try:
            if len(self._commands) >= MAX_COMMANDS:
                raise TooManyJobs(f"this client has {MAX_COMMANDS} unfinished commands, the limit; wait for one")
            codec.check(message)
            request = Request(message_id, *_command_of(message))
            self._host.counters.add("messages", "taken")
            return request
        except (MessageError, TooManyJobs) as error:
            self._host.counters.add("messages", "refused")
            self.fail(message_id, error)
            return None

    def run(self, request: Request) -> None:
        """Begin a command."""
        command = Command(self, request.id, request.command)
        command.task = asyncio.create_task(self._run(command, request.params))
        self._commands[request.id] = command

    def answer(self, message_id: MessageId, result: dict[str, Any]) -> None:
        """Answer with a command's result."""
        self.tell(Message(message_id, result_body(result)))

    def fail(self, message_id: MessageId | None, error: LatentwireError) -> None:
        """Answer with an error."""
        self.tell(Message(message_id, error_body(error)))

    async def end(self) -> None:
        """Cancel what is under way, and let plugins forget the client."""
        self.detach()
        tasks = [command.task for command in self._commands.values() if command.task is not None]
        for task in tasks:
            task.cancel()
        done, lasting = await asyncio.wait(tasks, timeout=ENDING_S) if tasks else (set(), set())
        for end in (task.exception() for task in done if not task.cancelled()):
            if end is not None:
                log.error("client %s: %s", self.client, end, exc_info=end)
        for command in self._commands.values():
            if command.task in lasting:
                log.error("client %s: the command %s does not end when it is cancelled", self.client, command.name)
        self._host.client_left(self.client)

    async def _run(self, command: "Command", params: dict[str, Any]) -> None:
        """One command from its start to its one result or error."""
        try:
            result = await self._host.dispatch(command.name, params, self.caller, partial(self._post.send, command))
        except LatentwireError as error:  # `dispatch` raises nothing else
            self._post.deliver()  # what the command has told before
            if not command.over:
                if not getattr(error, "keeps_previews", False):
                    self.outbox.drop(command.id, command.keys)
                self.fail(command.id, error)
        else:
            self._post.deliver()
            if not command.over:
                self.answer(command.id, result)
        finally:
            command.over = True
            del self._commands[command.id]

    def tell(self, message: Message) -> None:
        """Put a message into the outbox, and send what the client takes."""
        self.outbox.put(message)
        self.pump()

    def _decode(self, frame: bytes | None) -> dict[Any, Any]:
        limit = self._host.settings.server.max_message_bytes
        if frame is None:
            raise BadMessage("got a text frame, wanted a binary one with a msgpack map")
        if len(frame) > limit:
            raise MessageTooLarge(f"the frame has {len(frame)} bytes, the limit is {limit}")
        return codec.decode(frame)

    def _id_of(self, message: dict[Any, Any]) -> MessageId:
        message_id = message.get("id")
        if isinstance(message_id, float) and message_id.is_integer():  # some msgpack libraries know floats only
            message_id = int(message_id)
        if isinstance(message_id, bool) or not isinstance(message_id, int | str) or _too_long(message_id):
            raise BadMessage(f"id must be a number or a text of 1 to {MAX_ID_LENGTH} letters, got {message_id!r:.80}")
        if message_id in self._commands:  # not answered under that id: the older command has its own end to come
            raise DuplicateId(f"id {message_id!r} is still in use by this client; choose another")
        return message_id


class Command:
    """A command under way.

    Attributes:
        keys: Of the latest-wins messages that it has told so far.
        over: Its end has been told.
    """

    __slots__ = ("id", "keys", "name", "over", "session", "task")

    def __init__(self, session: Session, message_id: MessageId, name: str) -> None:
        self.session = session
        self.id = message_id
        self.name = name
        self.keys: set[Hashable] = set()
        self.over = False
        self.task: asyncio.Task[None] | None = None

    def spoil(self, error: LatentwireError) -> None:
        """Something that it told cannot be sent: end it with an error, its only end."""
        if not self.over:
            self.over = True
            self.session.fail(self.id, error)
            if self.task is not None:
                self.task.cancel()

    def tell(self, event: Event, body: Body) -> None:
        """Put an event into the session's outbox, unless it comes too late."""
        if self.over:
            return
        key: Hashable = None
        revision: int | None = None
        if event.latest_wins:
            slot = event.slot if isinstance(event, JobEvent) else None
            if isinstance(event, JobEvent) and slot is not None:
                revision = event.revision
            # another revision of a slot is another command; but who watches others' jobs may meet two slots of a name
            scope = self.id if slot is None or self.name != "generate" else None
            key = (scope, slot, event.name, event.subject)
            self.keys.add(key)
        self.session.outbox.put(Message(self.id, body, key, revision))


def _too_long(message_id: MessageId) -> bool:
    return isinstance(message_id, str) and not 0 < len(message_id) <= MAX_ID_LENGTH


def _command_of(message: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    unknown = sorted(message.keys() - {"id", "command", "params"})
    if unknown:
        raise BadMessage(f"unknown key {unknown[0]!r:.80}; a message has id, command and params")
    command, params = message.get("command"), message.get("params", {})
    if not isinstance(command, str):
        raise BadMessage(f"command must be a text, got {command!r:.80}")
    if not isinstance(params, dict):
        raise BadMessage(f"params must be a map, got {type(params).__name__}")
    return command, params
