"""HTTP routes that plugins bring, behind the same door as the WebSocket."""

import logging

from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute, Match, Mount
from starlette.types import Receive, Scope, Send

from ..core.host import Host
from ..core.settings import ServerSettings
from .auth import refusal

log = logging.getLogger(__name__)


class GuardedRoute(BaseRoute):
    """A route for those who may use the host."""

    def __init__(self, route: BaseRoute, settings: ServerSettings) -> None:
        self._route = route
        self._settings = settings

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return self._route.matches(scope)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = refusal(HTTPConnection(scope), self._settings) or self._route.handle
        await answer(scope, receive, send)


def plugin_routes(host: Host) -> list[BaseRoute]:
    """The routes of all plugins; a plugin whose routes cannot be made goes without them, and the log says why."""
    routes: list[BaseRoute] = []
    for plugin, make in host.registry.routes.items():
        try:
            routes += make(host)
        except Exception:
            log.exception("plugin %s: its routes cannot be made", plugin)
    routes.sort(key=lambda route: isinstance(route, Mount))  # a mount takes all that is below its path
    return [GuardedRoute(route, host.settings.server) for route in routes]
