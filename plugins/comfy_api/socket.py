"""`/ws`: one WebSocket of a client."""

import asyncio
import json
import re
import secrets
from collections.abc import Callable
from typing import Any

from starlette.responses import PlainTextResponse
from starlette.routing import Match, WebSocketRoute
from starlette.types import Scope
from starlette.websockets import WebSocket, WebSocketDisconnect

from .clients import Clients, Outbox, text_of

CLIENT_ID = re.compile(r"[\x21-\x7e]{1,100}")
MAX_TEXT = 64 << 10  # of a message that says what a client can do
TRY_AGAIN = 1013  # close code


class RootSocket(WebSocketRoute):
    """`/ws` where it has the parameter that all clients of this protocol send; else it is the host's own."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if b"clientId=" not in scope.get("query_string", b""):
            return Match.NONE, {}
        return super().matches(scope)


class Sockets:
    """Serves WebSockets.

    Args:
        begin: Tells a client that has just come how things stand; with its id and its outbox.
        features: What this host can do.
    """

    def __init__(self, clients: Clients, begin: Callable[[str, Outbox], None], features: dict[str, Any]) -> None:
        self._clients = clients
        self._begin = begin
        self._features = features

    async def serve(self, websocket: WebSocket) -> None:
        """One WebSocket, to its end."""
        name = websocket.query_params.get("clientId") or secrets.token_hex(16)
        if not CLIENT_ID.fullmatch(name):
            answer = PlainTextResponse("a clientId has 1 to 100 letters of ASCII, and no spaces\n", 400)
            await websocket.send_denial_response(answer)
            return
        await websocket.accept()
        outbox = self._clients.connect(name)
        self._begin(name, outbox)
        sending = asyncio.create_task(_send(websocket, outbox))
        try:
            while True:
                self._hear(await websocket.receive(), outbox)
        except WebSocketDisconnect:
            pass
        finally:
            self._clients.disconnect(name, outbox)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    def _hear(self, message: Any, outbox: Outbox) -> None:
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        text = message.get("text")
        if text is None or len(text) > MAX_TEXT:
            return
        try:
            said = json.loads(text)
        except (ValueError, RecursionError):
            return
        if isinstance(said, dict) and said.get("type") == "feature_flags" and isinstance(said.get("data"), dict):
            outbox.features = said["data"]
            outbox.put(text_of("feature_flags", **self._features), "feature_flags")


async def _send(websocket: WebSocket, outbox: Outbox) -> None:
    while (message := await outbox.next()) is not None:
        if isinstance(message, str):
            await websocket.send_text(message)
        else:
            await websocket.send_bytes(message)
    await websocket.close(TRY_AGAIN)
