"""The async client: one WebSocket, any number of commands at once."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.typing import Subprotocol

from ..core.events import EVENTS, Accepted, Event, from_plain
from ..server.codec import SUBPROTOCOL, decode_trusted, encode

MAX_FRAME = 256 << 20  # bytes; a picture or tensor comes in one frame


class RemoteError(Exception):
    """The host refused a command, or it failed there: see `code`, `message` and `details`."""

    def __init__(self, code: str, message: str, details: list[dict[str, Any]]) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.details = details


class ConnectionLost(Exception):
    """The host cannot be reached, or the connection broke."""


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


class Connection:
    """A connected host; made by `connect`."""

    def __init__(self, websocket: ClientConnection) -> None:
        self.hello: dict[str, Any] = {}
        self._websocket = websocket
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Queue[dict[str, Any]]] = {}
        self._lost: str | None = None

    async def call(self, command: str, **params: Any) -> dict[str, Any]:
        """Run a command that streams nothing, and wait for its result.

        Raises:
            RemoteError: the host answered with an error.
            ConnectionLost: the connection broke before the answer.
        """
        async for message in self._run(command, params):
            if message["event"] == "result":
                result: dict[str, Any] = message["result"]
                return result
        raise ConnectionLost("the answer ended without a result")

    async def generate(
        self,
        prompt: str,
        *,
        steps: bool = True,
        previews: bool | dict[str, Any] = False,
        latents: bool | dict[str, Any] = False,
        **fields: Any,
    ) -> AsyncIterator[Event | Result]:
        """Make a picture or several; yields events as they come and a `Result` last.

        Leaving the loop early cancels the job.

        Args:
            steps: Whether `Step` events come.
            previews: Whether previews come, or their options (format, size, quality, every, max_rate).
            latents: Whether raw latents come, or their options (dtype, every).
            fields: Further fields of the request, such as `seed=7` or `num_inference_steps=20`.

        Raises:
            RemoteError: the host refused the request, or the job failed or was cancelled.
            ConnectionLost: the connection broke.
        """
        stream: dict[str, Any] = {"steps": steps}
        for name, wanted in (("previews", previews), ("latents", latents)):
            if wanted is not False:
                stream[name] = {} if wanted is True else wanted
        job, ended = None, False
        try:
            async for message in self._run("generate", {"prompt": prompt, "stream": stream, **fields}):
                name = message["event"]
                if name == "result":
                    ended = True
                    yield Result(**message["result"])
                elif name in EVENTS:
                    event = from_plain(name, message)
                    job = event.job if isinstance(event, Accepted) else job
                    yield event
        except (RemoteError, ConnectionLost):
            ended = True
            raise
        finally:
            if job is not None and not ended:
                await self._send(next(self._ids), "cancel", {"job": job})

    async def _run(self, command: str, params: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Send a command and yield its messages up to its result."""
        message_id = next(self._ids)
        answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._answers[message_id] = answers
        try:
            await self._send(message_id, command, params)
            while True:
                message = await answers.get()
                if message["event"] == "error":
                    raise RemoteError(message["code"], message["message"], message["details"])
                if message["event"] == "lost":
                    raise ConnectionLost(message["reason"])
                yield message
                if message["event"] == "result":
                    return
        finally:
            del self._answers[message_id]

    async def _send(self, message_id: int, command: str, params: dict[str, Any]) -> None:
        if self._lost is not None:
            raise ConnectionLost(self._lost)
        with suppress(ConnectionClosed):  # `_listen` tells whoever waits
            await self._websocket.send(encode({"id": message_id, "command": command, "params": params}))

    async def _listen(self, greeted: asyncio.Event) -> None:
        """Hand each message to the command that it answers, until the connection ends."""
        try:
            async for frame in self._websocket:
                if isinstance(frame, str):
                    continue
                message = decode_trusted(frame)
                if message["event"] == "hello":
                    self.hello = message
                    greeted.set()
                elif message["id"] in self._answers:
                    self._answers[message["id"]].put_nowait(message)
                elif message["id"] is None:  # a frame of ours was refused before its id was known
                    for answers in self._answers.values():
                        answers.put_nowait(message)
        except ConnectionClosed:
            pass
        finally:
            reason = self._websocket.close_reason or "the host closed the connection"
            self._lost = f"the connection is lost: {reason}"
            for answers in self._answers.values():
                answers.put_nowait({"event": "lost", "reason": self._lost})
            greeted.set()


@asynccontextmanager
async def connect(url: str = "ws://127.0.0.1:8000/ws", *, token: str | None = None) -> AsyncIterator[Connection]:
    """Connect to a host: `async with latentwire.connect() as host: ...`.

    Raises:
        ConnectionLost: nobody answers there, or the token is wrong.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        websocket = await connect_websocket(
            url,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            additional_headers=headers,
            compression=None,
            max_size=MAX_FRAME,
        )
    except (OSError, InvalidHandshake, InvalidURI) as error:
        raise ConnectionLost(f"cannot connect to {url}: {error}; is `latentwire serve` running there?") from error
    greeted = asyncio.Event()
    connection = Connection(websocket)
    listener = asyncio.create_task(connection._listen(greeted))
    try:
        await greeted.wait()
        yield connection
    finally:
        await websocket.close()
        await listener
