"""The way to a host: messages out and in, over one WebSocket after another when they break."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.typing import Subprotocol

from ..server.codec import SUBPROTOCOL, decode_trusted, encode

GREETING_TIMEOUT_S = 10.0
PING_TIMEOUT_S = 60.0  # the host's answer waits behind a picture, which takes its time on a slow line
FIRST_PAUSE_S = 0.1  # before connecting again; each is twice as long as the one before
LONGEST_PAUSE_S = 5.0
LOOPBACK = {"127.0.0.1", "::1", "localhost"}  # a proxy from the environment is not for these
MAX_FRAME = 256 << 20  # bytes; a picture or tensor comes in one frame
FINAL = {1012, 4001}  # close codes: the host shuts down, another connection has the session


class ConnectionLost(Exception):
    """The host cannot be reached, or the connection broke and the session could not be resumed."""


class Link:
    """A session with a host. Made by `open_link`; one task reads `messages`."""

    def __init__(self, url: str, headers: dict[str, str], resume: bool, websocket: ClientConnection) -> None:
        self.hello: dict[str, Any] = {}
        self._url = url
        self._headers = headers
        self._resume = resume
        self._websocket = websocket
        self._seq = 0  # of the last message
        self._count = 0  # of the frames that were sent in this session
        self._unconfirmed: dict[int, bytes] = {}  # those of them that the host may not have, by id, in order
        self._sending = asyncio.Lock()  # frames are numbered in the order in which they are sent
        self._leaving = False

    @property
    def is_up(self) -> bool:
        """Whether a frame could go out now."""
        return not self._sending.locked()

    async def send(self, message_id: int, frame: bytes) -> None:
        """Send a command; if the connection is broken, as soon as there is another one."""
        async with self._sending:
            self._count += 1
            self._unconfirmed[message_id] = frame
            with suppress(ConnectionClosed):  # it is sent again, or `messages` ends
                await self._websocket.send(frame)

    async def messages(self) -> AsyncGenerator[dict[str, Any]]:
        """What the host sends, each message once and in order, whichever connection it comes by.

        Raises:
            ConnectionLost: the connection broke, and the session could not be resumed.
        """
        while True:
            with suppress(ConnectionClosed):
                async for frame in self._websocket:
                    if isinstance(frame, bytes):
                        message = decode_trusted(frame)
                        self._seq = message.get("seq", self._seq)
                        self._confirm(message["id"])
                        yield message
            await self._come_back()

    async def close(self) -> None:
        """Say goodbye: the host ends the session; while the line is down it hears of it when the grace time is over."""
        self._leaving = True
        await self._websocket.close()

    async def greet(self, websocket: ClientConnection) -> dict[str, Any]:
        """What a host says first.

        Raises:
            ConnectionLost: it says something else, or nothing.
        """
        try:
            async with asyncio.timeout(GREETING_TIMEOUT_S):
                hello = decode_trusted(await websocket.recv(decode=False))
            if hello["event"] == "hello":
                return hello
            if hello["event"] == "login":
                raise ConnectionLost(f"{self._url} refuses the connection: the token is missing or wrong")
            cause: Exception | None = None
            reason = f"it begins with {hello['event']!r:.80}"
        except TimeoutError as error:
            cause, reason = error, "it is silent"
        except ConnectionClosed as error:
            cause, reason = error, websocket.close_reason or "it closed the connection"
        except ConnectionLost:
            raise
        except Exception as error:
            cause, reason = error, f"it sent what this client cannot read: {type(error).__name__}: {error}"
        raise ConnectionLost(f"{self._url} does not greet as a latentwire host; {reason}") from cause

    def _confirm(self, message_id: Any) -> None:
        """The host has the command with this id, and all that were sent before."""
        if message_id in self._unconfirmed:
            for sent in list(self._unconfirmed):
                del self._unconfirmed[sent]
                if sent == message_id:
                    break

    async def _come_back(self) -> None:
        """Take the session up on another connection.

        Raises:
            ConnectionLost: that is not wanted, or not possible within the host's grace time.
        """
        reason = f"the connection is lost: {self._websocket.close_reason or 'the host closed the connection'}"
        token = self.hello.get("resume")
        if self._leaving or not self._resume or token is None or self._websocket.close_code in FINAL:
            raise ConnectionLost(reason)
        clock = asyncio.get_running_loop().time
        until = clock() + self.hello["limits"]["resume_seconds"]
        pause = FIRST_PAUSE_S
        async with self._sending:
            while not await self._resumed(token, reason):
                if clock() + pause > until:
                    raise ConnectionLost(f"{reason}; it could not be resumed in time")
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE_S)

    async def _resumed(self, token: str, reason: str) -> bool:
        """Try once; False if it may be otherwise another time.

        Raises:
            ConnectionLost: it never will.
        """
        try:
            websocket = await open_websocket(self._url, self._headers)
        except ConnectionLost as error:
            cause = error.__cause__
            if isinstance(cause, InvalidStatus) and cause.response.status_code < 500:
                raise
            return False
        taken = False
        try:
            await self.greet(websocket)
            params = {"token": token, "seq": self._seq}
            await websocket.send(encode({"id": 0, "command": "session.resume", "params": params}))
            async with asyncio.timeout(GREETING_TIMEOUT_S):
                answer = decode_trusted(await websocket.recv(decode=False))
            if answer["event"] == "error":
                raise ConnectionLost(f"{reason}; the session cannot be resumed: {answer['message']}")
            self._websocket, taken = websocket, True
            lost = self._count - answer["result"]["received"]
            for frame in list(self._unconfirmed.values())[-lost:] if lost > 0 else ():
                await websocket.send(frame)
        except (ConnectionClosed, TimeoutError):
            return taken  # if it was, the next try begins from there
        except ConnectionLost as error:
            if isinstance(error.__cause__, ConnectionClosed | TimeoutError):  # the line broke before the greeting
                return False
            raise
        finally:
            if not taken:
                await websocket.close()
        return True


async def open_link(url: str, token: str | None, key: str | None, resume: bool) -> Link:
    """Connect and wait for the host's greeting.

    Raises:
        ConnectionLost: nobody answers there, it is no latentwire host, or the token is wrong.
    """
    shown = {"Authorization": token and f"Bearer {token}", "Latentwire-Key": key}
    headers = {name: value for name, value in shown.items() if value}
    websocket = await open_websocket(url, headers)
    link = Link(url, headers, resume, websocket)
    try:
        link.hello = await link.greet(websocket)
        link._seq = link.hello.get("seq", 1)
    except BaseException:
        await websocket.close()
        raise
    return link


async def open_websocket(url: str, headers: dict[str, str]) -> ClientConnection:
    """A connection to a host.

    Raises:
        ConnectionLost: nobody answers there, or the host refuses it.
    """
    try:
        return await connect_websocket(
            url,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            additional_headers=headers,
            compression=None,
            max_size=MAX_FRAME,
            ping_timeout=PING_TIMEOUT_S,
            proxy=None if urlsplit(url).hostname in LOOPBACK else True,
        )
    except InvalidStatus as error:
        reason = (error.response.body or b"").decode(errors="replace").strip()
        raise ConnectionLost(f"{url} refuses the connection: {reason or error}") from error
    except (OSError, InvalidHandshake, InvalidURI, ValueError) as error:
        raise ConnectionLost(f"cannot connect to {url}: {error}; is `latentwire serve` running there?") from error
