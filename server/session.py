"""One client's connection: frames in, commands dispatched, messages out."""

import asyncio
import logging
import secrets
from contextlib import suppress
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from .. import __version__
from ..core.errors import (
    BadMessage,
    DuplicateId,
    InternalError,
    LatentwireError,
    MessageError,
    MessageTooLarge,
    TooManyJobs,
)
from ..core.events import Event, to_plain
from ..core.host import Host
from . import codec
from .outbox import Outbox

log = logging.getLogger(__name__)

MAX_ID_LENGTH = 64
MAX_COMMANDS = 256  # under way at once on one connection
SEND_TIMEOUT_S = 60.0  # for one message; the client's machine may be gone without a word
CLOSE_TIMEOUT_S = 1.0
TRY_AGAIN_LATER = 1013  # WebSocket close code

MessageId = int | str


class Session:
    """Serves one accepted WebSocket."""

    def __init__(self, host: Host, websocket: WebSocket) -> None:
        self._host = host
        self._websocket = websocket
        self._outbox = Outbox()
        self._commands: dict[MessageId, asyncio.Task[None]] = {}
        self.client = secrets.token_hex(8)

    async def serve(self) -> None:
        """Until the client goes, or reads too slowly; then its jobs are cancelled."""
        self._outbox.put(self._hello())
        sender = asyncio.create_task(self._send())
        receiver = asyncio.create_task(self._receive())
        overflow = asyncio.create_task(self._outbox.overflow.wait())
        try:
            await asyncio.wait((sender, receiver, overflow), return_when=asyncio.FIRST_COMPLETED)
        finally:
            tasks = [sender, receiver, overflow, *self._commands.values()]
            for task in tasks:
                task.cancel()
            for end in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(end, Exception):
                    log.error("client %s: %s", self.client, end, exc_info=end)
        self._host.client_left(self.client)
        if self._outbox.overflow.is_set():
            log.warning("client %s reads too slowly; its connection is closed", self.client)
            with suppress(Exception):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):  # it may not even have room for the close frame
                    await self._websocket.close(TRY_AGAIN_LATER, "this client reads too slowly")

    def _hello(self) -> dict[str, Any]:
        limits = self._host.settings.limits
        return {
            "id": None,
            "event": "hello",
            "protocol": codec.SUBPROTOCOL,
            "host": __version__,
            "session": self.client,
            "limits": {
                "message_bytes": self._host.settings.server.max_message_bytes,
                "jobs": limits.jobs_per_client,
                "pixels": limits.pixels,
            },
        }

    async def _send(self) -> None:
        while True:
            frame = _encode(await self._outbox.take())
            try:
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await self._websocket.send_bytes(frame)
            except TimeoutError:
                log.warning("client %s took nothing for %g s; it is given up", self.client, SEND_TIMEOUT_S)
                return
            except (WebSocketDisconnect, RuntimeError):  # the latter: the server has sent the close frame itself
                return

    async def _receive(self) -> None:
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            try:
                self._take(message.get("bytes"))
            except MessageError as error:
                self._fail(None, error)
            await asyncio.sleep(0)  # a flood of small frames must not hold up the other clients

    def _take(self, frame: bytes | None) -> None:
        """Begin the command of one frame; its errors carry its id as soon as that is known."""
        limit = self._host.settings.server.max_message_bytes
        if frame is None:
            raise BadMessage("got a text frame, wanted a binary one with a msgpack map")
        if len(frame) > limit:
            raise MessageTooLarge(f"the frame has {len(frame)} bytes, the limit is {limit}")
        message = codec.decode(frame)
        message_id = message.get("id")
        if isinstance(message_id, bool) or not isinstance(message_id, int | str) or _too_long(message_id):
            raise BadMessage(f"id must be a number or a text of 1 to {MAX_ID_LENGTH} letters, got {message_id!r:.80}")
        if message_id in self._commands:  # not answered under that id: the older command has its own end to come
            raise DuplicateId(f"id {message_id!r} is still in use on this connection; choose another")
        try:
            if len(self._commands) >= MAX_COMMANDS:
                raise TooManyJobs(f"this connection has {MAX_COMMANDS} unfinished commands, the limit; wait for one")
            codec.check(message)
            command, params = _command_of(message)
        except (MessageError, TooManyJobs) as error:
            self._fail(message_id, error)
            return
        task = asyncio.create_task(self._run(message_id, command, params))
        self._commands[message_id] = task

    async def _run(self, message_id: MessageId, command: str, params: dict[str, Any]) -> None:
        """One command from its start to its one result or error."""

        def emit(event: Event) -> None:
            message = {"id": message_id, "event": event.name, **to_plain(event)}
            key = (message_id, event.name, getattr(event, "index", None)) if event.latest_wins else None
            self._outbox.put(message, latest_of=key)

        try:
            result = await self._host.dispatch(command, params, self.client, emit)
        except LatentwireError as error:  # `dispatch` raises nothing else
            self._fail(message_id, error)
        else:
            self._outbox.put({"id": message_id, "event": "result", "result": result})
        finally:
            del self._commands[message_id]

    def _fail(self, message_id: MessageId | None, error: LatentwireError) -> None:
        self._outbox.put(_error(message_id, error))


def _encode(message: dict[str, Any]) -> bytes:
    """A message as a frame; where a plugin put something into it that msgpack cannot hold, an error in its place."""
    try:
        return codec.encode(message)
    except Exception as error:
        log.exception("a message cannot be sent")
        text = f"the {message['event']} of this command cannot be sent: {type(error).__name__}: {error}"
        return codec.encode(_error(message["id"], InternalError(text)) | {"seq": message["seq"]})


def _error(message_id: MessageId | None, error: LatentwireError) -> dict[str, Any]:
    return {
        "id": message_id,
        "event": "error",
        "code": error.code,
        "message": error.message,
        "details": error.details,
        **error.about,
    }


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
