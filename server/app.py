"""The Starlette app: `/ws`, tickets, health, and the page."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from .. import __version__
from ..core.caller import caller_of
from ..core.errors import LatentwireError
from ..core.host import Host
from ..core.threads import workers
from .access import Access
from .codec import SUBPROTOCOL
from .connection import Connection
from .cookie import PATH, set_cookie
from .door import SOCKET, Door
from .page import Page
from .plugin_routes import PluginRoutes, PluginSockets
from .sessions import Sessions
from .tickets import LIFE_S
from .web_files import WebFiles

log = logging.getLogger(__name__)

DOCS = Path(__file__).parents[1] / "docs"


def create_app(host: Host) -> Starlette:
    """The app of one host; it loads the default model when it starts and closes the host when it ends."""

    access = Access(host.settings.server)
    sessions = Sessions(host, access)
    web_files = WebFiles()
    page = Page(web_files)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
        asyncio.get_running_loop().set_default_executor(workers(32, "work"))  # not a team for each of its threads
        host.loop_watch.begin()
        sessions.begin()
        warming = asyncio.create_task(_warm_up(host))
        yield {"watch": sessions.watch, "limits": host.settings.limits, "counters": host.counters}
        warming.cancel()
        await sessions.close()
        await asyncio.to_thread(host.close)

    async def websocket(websocket: WebSocket) -> None:
        offered = websocket.scope.get("subprotocols") or []
        if offered and SUBPROTOCOL not in offered:
            text = f"this host speaks {SUBPROTOCOL}, got {', '.join(offered):.80}\n"
            await websocket.send_denial_response(PlainTextResponse(text, 400))
            return
        await websocket.accept(SUBPROTOCOL if offered else None)
        await Connection(host, sessions, websocket).serve()

    async def ticket(request: Request) -> Response:
        if caller_of(request.scope).by_ticket:  # or a ticket would be good for ever
            return PlainTextResponse("a ticket gives no other ticket; show the token\n", 403)
        return JSONResponse({"ticket": access.tickets.issue(caller_of(request.scope)), "seconds": LIFE_S})

    async def login(request: Request) -> Response:
        token, path = access.shown_token(request), request.query_params.get("path", "")
        if token is None or PATH.fullmatch(path) is None:
            return PlainTextResponse("wanted: the token in a header, and a path below '/' that ends in '/'\n", 400)
        answer = Response(status_code=204)
        set_cookie(answer, request, token, path)
        return answer

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok", "version": __version__})

    async def ready(_: Request) -> Response:
        return JSONResponse({"ready": host.is_ready}, 200 if host.is_ready else 503)

    async def home(request: Request) -> Response:
        names = sorted(str(file.relative_to(DOCS).with_suffix("")) for file in DOCS.rglob("*.md"))
        return HTMLResponse(page.html(names, host.plugins.reports), headers=page.headers(request.headers["host"]))

    async def doc(request: Request) -> Response:
        file = DOCS / f"{request.path_params['name']}.md"
        if file not in DOCS.rglob("*.md"):
            return PlainTextResponse("no such page", 404)
        return FileResponse(file, media_type="text/plain; charset=utf-8")

    of_plugins = PluginRoutes(host)
    routes: list[BaseRoute] = [
        PluginSockets(of_plugins),
        WebSocketRoute(SOCKET, websocket),
        Route("/ticket", ticket, methods=["POST"]),
        Route("/login", login, methods=["POST"]),
        Route("/healthz", health),
        Route("/readyz", ready),
        Route("/", home),
        Route("/web/{key}/{name:path}", web_files.answer),
        Route("/docs/{name:path}", doc),
    ]
    app = Starlette(lifespan=lifespan, routes=[*routes, of_plugins])
    origins = host.settings.server.allowed_origins
    app.state.sessions = sessions
    app.add_middleware(Door, access=access, counters=host.counters, web_files=web_files)
    if origins:  # around the door: a refused page may read why, and a browser asks first without a token
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    return app


async def _warm_up(host: Host) -> None:
    try:
        await asyncio.to_thread(host.warm_up)
    except LatentwireError as error:
        log.error("the default model cannot be used: %s", error.message)
    except Exception:
        log.exception("the default model cannot be used")
