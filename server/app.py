"""The Starlette app: `/ws`, health, and a plain page."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from .. import __version__
from ..core.errors import LatentwireError
from ..core.host import Host
from ..core.threads import workers
from .auth import refusal
from .codec import SUBPROTOCOL
from .connection import Connection
from .page import page
from .plugin_routes import plugin_routes
from .sessions import Sessions

log = logging.getLogger(__name__)

DOCS = Path(__file__).parents[1] / "docs"


def create_app(host: Host) -> Starlette:
    """The app of one host; it loads the default model when it starts and closes the host when it ends."""

    sessions = Sessions(host)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_default_executor(workers(32, "work"))  # not a team for each of its threads
        host.loop_watch.begin()
        sessions.begin()
        warming = asyncio.create_task(_warm_up(host))
        yield
        warming.cancel()
        await sessions.close()
        await asyncio.to_thread(host.close)

    async def websocket(websocket: WebSocket) -> None:
        refused = refusal(websocket, host.settings.server)
        if refused is not None:
            await websocket.send_denial_response(refused)
            return
        await websocket.accept(SUBPROTOCOL if websocket.scope.get("subprotocols") else None)
        await Connection(host, sessions, websocket).serve()

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok", "version": __version__})

    async def ready(_: Request) -> Response:
        is_ready = host.ready and host.engine.alive and not host.closing
        return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)

    async def home(_: Request) -> Response:
        names = sorted(str(file.relative_to(DOCS).with_suffix("")) for file in DOCS.rglob("*.md"))
        return HTMLResponse(page(names))

    async def doc(request: Request) -> Response:
        file = DOCS / f"{request.path_params['name']}.md"
        if file not in DOCS.rglob("*.md"):
            return PlainTextResponse("no such page", 404)
        return FileResponse(file, media_type="text/plain; charset=utf-8")

    routes: list[BaseRoute] = [
        WebSocketRoute("/ws", websocket),
        Route("/healthz", health),
        Route("/readyz", ready),
        Route("/", home),
        Route("/docs/{name:path}", doc),
    ]
    app = Starlette(lifespan=lifespan, routes=[*routes, *plugin_routes(host)])
    origins = host.settings.server.allowed_origins
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    return app


async def _warm_up(host: Host) -> None:
    try:
        await asyncio.to_thread(host.warm_up)
    except LatentwireError as error:
        log.error("the default model cannot be used: %s", error.message)
    except Exception:
        log.exception("the default model cannot be used")
