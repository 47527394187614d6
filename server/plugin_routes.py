"""HTTP routes that plugins bring."""

import asyncio
import logging
from collections.abc import Sequence

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match, Mount
from starlette.types import Receive, Scope, Send

from ..core.errors import PluginError
from ..core.host import Host
from ..core.plugin_guard import PluginGuard

log = logging.getLogger(__name__)

ROUTES = "routes"
"""The kind of strike that a request answered well forgives."""


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
        disabled = self._disabled()
        if disabled is not None:
            await disabled(scope, receive, send)
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


def plugin_routes(host: Host) -> Sequence[BaseRoute]:
    """The routes of all plugins; a plugin whose routes cannot be made goes without them, and the log says why."""
    routes: list[GuardedRoute] = []
    for plugin, make in host.registry.routes.items():
        try:
            routes += [GuardedRoute(route, plugin, host.guard) for route in make(host)]
        except BaseException:
            log.exception("plugin %s: its routes cannot be made", plugin)
    return sorted(routes, key=lambda route: route.is_mount)  # a mount takes all that is below its path
