"""The one door that every HTTP request and WebSocket comes through, but for those that ask for the host's health."""

from collections.abc import MutableMapping
from typing import Any

from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..core.caller import SCOPE_KEY, Caller
from ..core.counters import Counters
from ..core.errors import Unauthorized
from .access import MISSING, Access, Forbidden
from .login import LOGIN_HEADERS, login_page
from .web_files import WebFiles

HEALTH = {"/healthz", "/readyz"}
SOCKET = "/ws"  # where the token may come as the first message
HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",  # an address may have a ticket in it
    b"x-frame-options": b"DENY",
}


class Door:
    """An ASGI app around the host's own. Sets the scope's `latentwire.caller`; None on WebSockets yet to log in."""

    def __init__(self, app: ASGIApp, access: Access, counters: Counters, web_files: WebFiles) -> None:
        self._app = app
        self._web_files = web_files
        self._access = access
        self._counters = counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            send = _with_headers(send)
        if scope["type"] == "lifespan" or _asks_for_health(scope):
            await self._app(scope, receive, send)
            return
        answer = self._refusal(scope, HTTPConnection(scope)) or self._app
        await answer(scope, receive, send)

    def _refusal(self, scope: MutableMapping[str, Any], connection: HTTPConnection) -> Response | None:
        try:
            self._access.check_page(connection)
            scope[SCOPE_KEY] = self._caller(connection)
        except Forbidden as error:
            self._counters.add("refused_connections", "page")
            return PlainTextResponse(f"{error}\n", 403)
        except Unauthorized as error:
            self._counters.add("refused_connections", "token")
            return _unauthorized(connection, error.message)
        if scope[SCOPE_KEY] is None and not (scope["type"] == "websocket" and scope["path"] == SOCKET):
            self._counters.add("refused_connections", "token")
            return _unauthorized(connection, MISSING)
        return None

    def _caller(self, connection: HTTPConnection) -> Caller | None:
        if connection.scope["type"] == "http" and self._web_files.has_key(connection.scope["path"]):
            return Caller.nobody_known()  # the page told the key, and files are all there is below it
        return self._access.caller(connection)


def _asks_for_health(scope: Scope) -> bool:
    return scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and scope["path"] in HEALTH


def _unauthorized(connection: HTTPConnection, reason: str) -> Response:
    headers = {"WWW-Authenticate": "Bearer"}
    if connection.scope.get("method") == "GET" and "text/html" in connection.headers.get("accept", ""):
        return HTMLResponse(login_page(reason), 401, headers | LOGIN_HEADERS)
    return PlainTextResponse(f"{reason}\n", 401, headers)


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            there = {name.lower() for name, _ in message["headers"]}
            more = [(name, value) for name, value in HEADERS.items() if name not in there]
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return send_with_headers
