"""All routes: each at `/`, at `/api`, and below the front end's own path."""

from starlette.routing import BaseRoute, Route, WebSocketRoute

from .asked import answered
from .front_end import PATH, front_end_routes
from .graph_routes import GraphRoutes
from .host_routes import HostRoutes
from .picture_routes import PictureRoutes
from .service import Service
from .socket import RootSocket, Sockets
from .system import features
from .user_routes import UserRoutes


def make_routes(service: Service) -> list[BaseRoute]:
    """The routes of one host."""
    kinds = (GraphRoutes, PictureRoutes, HostRoutes, UserRoutes)
    prefixes = ("", "/api") if service.front_end is None else ("", "/api", PATH, f"{PATH}/api")
    routes: list[BaseRoute] = [
        Route(prefix + path, answered(handler), methods=[method])
        for prefix in prefixes
        for kind in kinds
        for path, method, handler in kind(service).handlers()
    ]
    sockets = Sockets(service.clients, service.welcome, features(service.max_upload))
    routes += [RootSocket("/ws", sockets.serve)]
    routes += [WebSocketRoute(f"{prefix}/ws", sockets.serve) for prefix in prefixes[1:]]
    return routes if service.front_end is None else [*routes, *front_end_routes(service.front_end)]
