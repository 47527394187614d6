"""The async client: one WebSocket, any number of commands at once."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, fields
from typing import Any, Self

from ..core.events import EVENTS, Event, JobEvent, from_plain
from ..server.codec import encode
from .answers import Answers
from .link import ConnectionLost, Link, open_link

MESSAGE_HEAD = 256  # bytes of a message for all but the data in it
DEFAULT_URL = "ws://127.0.0.1:8000/ws"


class RemoteError(Exception):
    """The host refused a command, or it failed there: see `code`, `message` and `details`."""

    def __init__(self, code: str, message: str, details: list[dict[str, Any]]) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.details = details


class MessagesLost(ConnectionLost):
    """The host had to give up messages that were for this client: it was away, or read too slowly, for too long.

    Everything under way raises it, since nobody knows whose they were. Jobs go on: `call("jobs")` lists them.
    """


@dataclass(frozen=True, slots=True)
class PluginEvent:
    """An event that a plugin of the host brought: its name and its values."""

    name: str
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """How a generate command ended well; `seconds` counts from the host's acceptance."""

    job: str
    images: int
    seeds: list[int]
    model: str
    scheduler: str
    mode: str
    seconds: float

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Self:
        """From a host's message; what this version does not know is left out."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})


class Connection:
    """A connected host; made by `connect`."""

    def __init__(self, link: Link) -> None:
        self.hello: dict[str, Any] = link.hello
        self._link = link
        self._ids = itertools.count(1)
        self._answers: dict[int, Answers] = {}
        self._stops: dict[int, tuple[str, dict[str, Any]]] = {}  # what ends a command under way, once the host has said
        self._abandoned: set[int] = set()  # left by their reader before it did
        self._stopping: set[asyncio.Task[None]] = set()  # asyncio itself holds its tasks weakly
        self._lost: str | None = None

    async def call(self, command: str, **params: Any) -> dict[str, Any]:
        """Run a command that streams nothing, and wait for its result.

        Raises:
            RemoteError: the host answered with an error.
            ConnectionLost: the connection broke before the answer, and could not be resumed.
        """
        result: dict[str, Any] = {}
        async for message in self._run(next(self._ids), command, params):
            if message["event"] == "result":
                result = message["result"]
        return result

    async def upload(self, data: bytes) -> str:
        """Send a picture's file, in parts if need be; its id, for requests to name.

        Raises:
            RemoteError: it is no picture that the host takes, or too large.
            ConnectionLost: as `call`.
        """
        part = int(self.hello["limits"]["message_bytes"]) - MESSAGE_HEAD
        if len(data) <= part:
            return str((await self.call("images.put", data=data))["image_id"])
        upload = (await self.call("uploads.begin", size=len(data)))["upload"]
        for begin in range(0, len(data), part):
            await self.call("uploads.append", upload=upload, data=data[begin : begin + part])
        return str((await self.call("images.put", upload=upload))["image_id"])

    async def generate(
        self,
        prompt: str,
        *,
        steps: bool = True,
        previews: bool | dict[str, Any] = False,
        latents: bool | dict[str, Any] = False,
        **fields: Any,
    ) -> AsyncGenerator[JobEvent | PluginEvent | Result]:
        """Make a picture or several; yields events as they come and a `Result` last.

        Leaving the loop early cancels the job.

        Args:
            steps: Whether `Step` events come.
            previews: Whether previews come, or their options (format, size, quality, every, max_rate).
            latents: Whether raw latents come, or their options (dtype, every).
            fields: Further fields of the request, such as `seed=7` or `num_inference_steps=20`.

        Raises:
            RemoteError: the host refused the request, or the job failed or was cancelled.
            ConnectionLost: the connection broke and could not be resumed.
            MessagesLost: events are missing; the job goes on.
        """
        stream: dict[str, Any] = {"steps": steps}
        for name, wanted in (("previews", previews), ("latents", latents)):
            if wanted is not False:
                stream[name] = {} if wanted is True else wanted
        params = {"prompt": prompt, "stream": stream, **fields}
        async with aclosing(self._until_left("generate", params)) as messages:
            async for message in messages:
                if message["event"] == "result":
                    yield Result.from_plain(message["result"])
                elif isinstance(event := _event_of(message), JobEvent | PluginEvent):
                    yield event

    async def subscribe(self, command: str, **params: Any) -> AsyncGenerator[PluginEvent | Event]:
        """Run a command that goes on until one has enough of it, such as `stats.subscribe`; yields its events.

        Leaving the loop ends the subscription.

        Raises:
            RemoteError: the host answered with an error.
            ConnectionLost: the connection broke and could not be resumed.
            MessagesLost: events may be missing.
        """
        async with aclosing(self._until_left(command, params)) as messages:
            async for message in messages:
                if message["event"] not in ("subscribed", "result"):
                    yield _event_of(message)

    async def _until_left(self, command: str, params: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """A command's messages up to its result; whoever leaves before it ends what the command has begun."""
        message_id = next(self._ids)
        ended = False
        try:
            async with aclosing(self._run(message_id, command, params)) as messages:
                async for message in messages:
                    ended = message["event"] == "result"
                    yield message
        except (RemoteError, ConnectionLost):
            ended = True
            raise
        finally:
            stop = self._stops.pop(message_id, None)
            if not ended and stop is not None:
                await self._stop_soon(stop)
            elif not ended:
                self._abandoned.add(message_id)

    async def _run(self, message_id: int, command: str, params: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """Send a command and yield its messages up to its result."""
        answers = Answers()
        self._answers[message_id] = answers
        try:
            await self._send(message_id, command, params)
            while True:
                message = await answers.get()
                if message["event"] == "error":
                    raise RemoteError(message["code"], message["message"], message["details"])
                if message["event"] == "lost":
                    raise ConnectionLost(message["reason"])
                if message["event"] == "gap":
                    first, last = message["from_seq"], message["to_seq"]
                    raise MessagesLost(f"the host gave up messages {first} to {last}; `jobs` lists what still runs")
                yield message
                if message["event"] == "result":
                    return
        finally:
            del self._answers[message_id]

    async def _send(self, message_id: int, command: str, params: dict[str, Any]) -> None:
        if self._lost is not None:
            raise ConnectionLost(self._lost)
        frame = encode({"id": message_id, "command": command, "params": params})
        limit = self.hello["limits"]["message_bytes"]
        if len(frame) > limit:  # the host could not even tell whose message it was
            raise RemoteError("message_too_large", f"{command} has {len(frame)} bytes, the host's limit is {limit}", [])
        await self._link.send(message_id, frame)

    async def _stop_soon(self, stop: tuple[str, dict[str, Any]]) -> None:
        """End what its reader has left; without waiting for a line that is down."""
        if self._link.is_up:
            await self._stop(stop)
        else:
            task = asyncio.create_task(self._stop(stop))
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)

    async def _stop(self, stop: tuple[str, dict[str, Any]]) -> None:
        """End what its reader has left."""
        with suppress(ConnectionLost):  # then the host has ended it already
            await self._send(next(self._ids), *stop)

    async def _listen(self) -> None:
        """Hand each message to the command that it answers, until the connection is lost for good."""
        lost = "this client has closed the connection"
        try:
            async with aclosing(self._link.messages()) as messages:
                async for message in messages:
                    await self._take(message)
        except ConnectionLost as error:
            lost = str(error)
        except Exception as error:
            lost = f"the host sent what this client cannot read: {type(error).__name__}: {error}"
        finally:
            self._lost = lost
            for answers in self._answers.values():
                answers.put({"event": "lost", "reason": lost})

    async def _take(self, message: dict[str, Any]) -> None:
        message_id, stop = message["id"], _stop_of(message)
        if message_id in self._answers:
            if stop is not None:
                self._stops[message_id] = stop
            self._answers[message_id].put(message)
        elif message_id in self._abandoned:
            if stop is not None or message["event"] in ("result", "error"):
                self._abandoned.discard(message_id)
            if stop is not None:
                await self._stop_soon(stop)
        elif message_id is None and message["event"] in ("gap", "error"):  # or a frame of ours had no id
            for answers in self._answers.values():
                answers.put(message)


def _event_of(message: dict[str, Any]) -> Event | PluginEvent:
    """A message that is neither result nor error, as the event that it tells of."""
    name = message["event"]
    if name in EVENTS:
        return from_plain(name, message)
    return PluginEvent(name, {key: value for key, value in message.items() if key not in ("id", "event", "seq")})


def _stop_of(message: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The command, with its params, that ends what this message says has begun."""
    if message["event"] == "accepted":
        return "cancel", {"job": message["job"]}
    if message["event"] == "subscribed":
        return "unsubscribe", {"subscription": message["subscription"]}
    return None


@asynccontextmanager
async def connect(
    url: str = DEFAULT_URL, *, token: str | None = None, key: str | None = None, resume: bool = True
) -> AsyncIterator[Connection]:
    """Connect to a host: `async with latentwire.connect() as host: ...`.

    Args:
        token: If the host asks for one.
        key: A secret of your own, of 16 letters at least: what you make is yours in every session with that key, and
            nobody else's. Without one it is this session's alone.
        resume: Whether to connect again when the connection breaks, and go on with all that is under way. Nothing is
            lost then, and nothing comes twice. The host waits for `hello["limits"]["resume_seconds"]`.

    Raises:
        ConnectionLost: nobody answers there, it is no latentwire host, or the token is wrong.
    """
    connection = Connection(await open_link(url, token, key, resume))
    listener = asyncio.create_task(connection._listen())
    try:
        yield connection
    finally:
        await connection._link.close()
        listener.cancel()
        await asyncio.wait((listener,))
