"""HTTP routes that plugins bring."""

import logging

from starlette.routing import BaseRoute, Mount

from ..core.host import Host

log = logging.getLogger(__name__)


def plugin_routes(host: Host) -> list[BaseRoute]:
    """The routes of all plugins; a plugin whose routes cannot be made goes without them, and the log says why."""
    routes: list[BaseRoute] = []
    for plugin, make in host.registry.routes.items():
        try:
            routes += make(host)
        except Exception:
            log.exception("plugin %s: its routes cannot be made", plugin)
    return sorted(routes, key=lambda route: isinstance(route, Mount))  # a mount takes all that is below its path
