"""A client as plain as can be, for tests of the wire itself: a raw WebSocket and msgpack."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import msgpack
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

SUBPROTOCOL = Subprotocol("latentwire.v1.msgpack")

SMALL: dict[str, Any] = {"prompt": "red apple", "width": 64, "height": 64, "num_inference_steps": 3, "seed": 1}
"""The params of a picture that takes next to no time."""

LONG: dict[str, Any] = SMALL | {"num_inference_steps": 1000}
"""The params of a picture that a test stops long before it is finished."""


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Let a test be async."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


class Wire:
    """One connection; `hello` is what the host said first, `seen` every message since, in order."""

    def __init__(self, socket: ClientConnection, hello: dict[str, Any]) -> None:
        self.socket = socket
        self.hello = hello
        self.seen: list[dict[str, Any]] = []

    async def send(self, message_id: Any, command: str, **params: Any) -> None:
        await self.send_frame(msgpack.packb({"id": message_id, "command": command, "params": params}))

    async def send_frame(self, frame: bytes | str) -> None:
        await self.socket.send(frame)

    async def receive(self) -> dict[str, Any]:
        message: dict[str, Any] = msgpack.unpackb(await self.socket.recv(decode=False))
        self.seen.append(message)
        return message

    async def until(self, name: str, message_id: Any = None) -> dict[str, Any]:
        """The next message of that name (and id, if one is given); what comes before it is dropped."""
        while True:
            message = await self.receive()
            if message["event"] == name and message_id in (None, message["id"]):
                return message

    async def all_of(self, message_id: Any) -> list[dict[str, Any]]:
        """Every message of one command, up to its result or error."""
        messages: list[dict[str, Any]] = []
        while not messages or messages[-1]["event"] not in ("result", "error"):
            message = await self.receive()
            if message["id"] == message_id:
                messages.append(message)
        return messages

    async def ask(self, command: str, **params: Any) -> dict[str, Any]:
        """The result of a command."""
        await self.send("ask", command, **params)
        answer = (await self.all_of("ask"))[-1]
        assert answer["event"] == "result", answer
        result: dict[str, Any] = answer["result"]
        return result

    async def error(self, message_id: Any, command: str, **params: Any) -> dict[str, Any]:
        """The error of a command."""
        await self.send(message_id, command, **params)
        answer = (await self.all_of(message_id))[-1]
        assert answer["event"] == "error", answer
        return answer


@asynccontextmanager
async def wire(url: str, key: str | None = None) -> AsyncIterator[Wire]:
    """Connect; leaving closes the connection."""
    headers = {"Latentwire-Key": key} if key else {}
    async with connect(
        url, subprotocols=[SUBPROTOCOL], additional_headers=headers, max_size=None, compression=None, proxy=None
    ) as socket:
        hello: dict[str, Any] = msgpack.unpackb(await socket.recv(decode=False))
        try:
            yield Wire(socket, hello)
        finally:
            await socket.close()  # in good order even where a test has failed, or the session would be kept
