"""HTTP and WebSocket routes that plugins bring."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Match, Mount
from starlette.types import Receive, Scope, Send

from ..core.caller import SCOPE_KEY
from ..core.errors import PluginError
from ..core.host import Host
from ..core.plugin_guard import PluginGuard
from .access import MISSING
from .codec import SUBPROTOCOL

log = logging.getLogger(__name__)

ROUTES = "routes"
"""The kind of strike that a request answered well forgives."""


class PluginRoutes(BaseRoute):
    """The routes of all plugins of a host, as they are when a request comes: plugins come and go while it runs."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._made: dict[str, tuple[Callable[[Host], Sequence[BaseRoute]], list[GuardedRoute]]] = {}
        self._routes()  # now, so that the log tells at once of those that cannot be made

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        partial: tuple[Match, Scope] = (Match.NONE, {})  # a path that is right, with a method that is not
        for route in self._routes():
            match, child = route.matches(scope)
            if match is Match.FULL:
                return match, {**child, "latentwire.route": route}
            if match is Match.PARTIAL and partial[0] is Match.NONE:
                partial = (match, {**child, "latentwire.route": route})
        return partial

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await scope["latentwire.route"].handle(scope, receive, send)

    def _routes(self) -> "list[GuardedRoute]":
        """Those of all plugins; made once for each, and anew when it has been loaded anew."""
        for plugin, make in self._host.registry.routes.items():
            if plugin not in self._made or self._made[plugin][0] is not make:
                self._made[plugin] = (make, self._make(plugin, make))
        routes = [route for plugin in self._host.registry.routes for route in self._made[plugin][1]]
        return sorted(routes, key=lambda route: route.is_mount)  # a mount takes all that is below its path

    def _make(self, plugin: str, make: Callable[[Host], Sequence[BaseRoute]]) -> "list[GuardedRoute]":
        try:
            return [GuardedRoute(route, plugin, self._host.guard) for route in make(self._host)]
        except BaseException:
            log.exception("plugin %s: its routes cannot be made", plugin)
            return []


class PluginSockets(BaseRoute):
    """The plugins' WebSockets, asked before the host's own: a plugin may take those at `/ws` that have its parameter.

    Clients that name the host's subprotocol are never a plugin's.
    """

    def __init__(self, routes: PluginRoutes) -> None:
        self._routes = routes

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "websocket" or SUBPROTOCOL in scope.get("subprotocols", ()):
            return Match.NONE, {}
        return self._routes.matches(scope)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._routes.handle(scope, receive, send)


class GuardedRoute(BaseRoute):
    """A plugin's route; whatever it raises ends with its own request."""

    def __init__(self, route: BaseRoute, plugin: str, guard: PluginGuard) -> None:
        self._route = route
        self._plugin = plugin
        self._guard = guard

    @property
    def is_mount(self) -> bool:
        return isinstance(self._route, Mount)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return self._route.matches(scope)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self._disabled()
        if scope[SCOPE_KEY] is None:  # the host's own WebSocket would let it send the token as its first message
            refused = PlainTextResponse(f"{MISSING}\n", 401, {"WWW-Authenticate": "Bearer"})
        if refused is not None:
            await refused(scope, receive, send)
            return
        try:
            await self._route.handle(scope, receive, send)
        except (asyncio.CancelledError, ClientDisconnect, ConnectionError, HTTPException):
            raise
        except BaseException as error:  # a SystemExit would end the server
            raise self._guard.failed(self._plugin, "an HTTP route", error, kind=ROUTES) from error
        self._guard.strikes.forgive(ROUTES, self._plugin)

    def _disabled(self) -> Response | None:
        try:
            self._guard.strikes.check(self._plugin)
        except PluginError as error:
            return JSONResponse({"detail": error.message, "code": error.code, "details": error.details}, 503)
        return None
