"""The async client: one WebSocket, any number of commands at once."""

import asyncio
import io
import itertools
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from ..core.events import Event, JobEvent
from ..server.codec import encode
from .answers import Answers
from .events import Image, JobMessage, PluginEvent, Result, event_of
from .link import ConnectionLost, Link, open_link
from .live import Live
from .progress import with_progress

if TYPE_CHECKING:
    from PIL import Image as PILImage

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

    async def upload(self, picture: "bytes | PILImage.Image") -> str:
        """Send a picture's file, or a PIL image as a PNG, in parts if need be; its id, for requests to name.

        Raises:
            RemoteError: it is no picture that the host takes, or too large.
            ConnectionLost: as `call`.
        """
        data = picture if isinstance(picture, bytes) else _png(picture)
        part = int(self.hello["limits"]["message_bytes"]) - MESSAGE_HEAD
        if len(data) <= part:
            return str((await self.call("images.put", data=data))["image_id"])
        upload = (await self.call("uploads.begin", size=len(data)))["upload"]
        for begin in range(0, len(data), part):
            await self.call("uploads.append", upload=upload, data=data[begin : begin + part])
        return str((await self.call("images.put", upload=upload))["image_id"])

    async def picture(self, prompt: str, *, progress: bool = False, **fields: Any) -> "PILImage.Image":
        """Make one picture; arguments and errors as for `generate`. Needs Pillow."""
        [picture] = await self.pictures(prompt, progress=progress, **fields, num_images=1)
        return picture

    async def pictures(self, prompt: str, *, progress: bool = False, **fields: Any) -> "list[PILImage.Image]":
        """Make several pictures, as many as `num_images` or `seed` say; arguments and errors as for `generate`."""
        found: dict[int, PILImage.Image] = {}
        async with aclosing(self.generate(prompt, progress=progress, **{"steps": progress, **fields})) as events:
            async for event in events:
                if isinstance(event, Image) and event.image is not None:
                    found[event.index] = event.image.to_pil()
        return [found[index] for index in sorted(found)]

    @asynccontextmanager
    async def live(self, slot: str, **fields: Any) -> AsyncIterator[Live]:
        """A live picture: `async with host.live("canvas", seed=7) as live: ...`; see `Live`.

        Leaving the block cancels what is under way in the slot.

        Args:
            slot: Any name; one of this session's own.
            fields: As for `generate`, of all its requests.
        """
        live = Live(self.generate, slot, fields)
        try:
            yield live
        finally:
            await live.close()

    def generate(
        self,
        prompt: str,
        *,
        steps: bool = True,
        previews: bool | dict[str, Any] = False,
        latents: bool | dict[str, Any] = False,
        progress: bool = False,
        **fields: Any,
    ) -> AsyncGenerator[JobMessage]:
        """Make a picture or several; yields events as they come and a `Result` last.

        Leaving the loop early cancels the job.

        Args:
            steps: Whether `Step` events come.
            previews: Whether previews come, or their options (format, size, quality, every, max_rate).
            latents: Whether raw latents come, or their options (dtype, every).
            progress: Whether a bar shows the steps; it needs `steps`.
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
        events = self._generate({"prompt": prompt, "stream": stream, **fields})
        return with_progress(events) if progress else events

    async def _generate(self, params: dict[str, Any]) -> AsyncGenerator[JobMessage]:
        async with aclosing(self._until_left("generate", params)) as messages:
            async for message in messages:
                if message["event"] == "result":
                    yield Result.from_plain(message["result"])
                elif isinstance(event := event_of(message), JobEvent | PluginEvent):
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
                    yield event_of(message)

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


def _png(picture: "PILImage.Image") -> bytes:
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()


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
