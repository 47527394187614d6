"""The front end of comfyui-frontend-package: its files, at `/comfyui/`, below which it asks for all else."""

import importlib.util
from pathlib import Path
from typing import Any

from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

from latentwire import PluginError

PATH = "/comfyui"
PACKAGE = "comfyui_frontend_package"

# Looser than that of the host's own page, for files that are not ours: they have scripts and styles in them, and make
# others. But nothing comes from, or goes to, anywhere else.
POLICY = {
    "default-src": "'self'",
    "script-src": "'self' 'unsafe-inline' 'wasm-unsafe-eval' blob:",
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' blob: data:",
    "font-src": "'self' data:",
    "media-src": "'self' blob: data:",
    "worker-src": "'self' blob:",
    "connect-src": "'self' blob: data: ws://{host} wss://{host}",
    "form-action": "'self'",
    "base-uri": "'self'",
    "frame-ancestors": "'none'",
}


def folder_of(front_end: str) -> Path:
    """Where the files are.

    Args:
        front_end: The setting.

    Raises:
        PluginError: there are none.
    """
    folder = Path(front_end).expanduser()
    if front_end == "package":
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            message = "the front end is not installed; pip install comfyui-frontend-package, or leave out front_end"
            raise PluginError(message, plugin="comfy_api")
        folder = Path(spec.origin).parent / "static"
    if not (folder / "index.html").is_file():
        raise PluginError(f"there is no front end in {folder}: it has no index.html", plugin="comfy_api")
    return folder


def front_end_routes(folder: Path) -> list[BaseRoute]:
    """Its page and its files; what is asked for below them comes before."""

    async def redirect(request: Any) -> RedirectResponse:
        return RedirectResponse(f"{PATH}/")

    async def style(request: Any) -> Response:
        return Response(media_type="text/css")  # it has none, and asks for it

    assets = Mount("/assets", Files(folder / "assets"))  # for some it asks as if it lived at the root
    return [Route(PATH, redirect), Route(f"{PATH}/user.css", style), Mount(PATH, Files(folder)), assets]


class Files:
    """An ASGI app of the files, which says what a browser may do with them."""

    def __init__(self, folder: Path) -> None:
        self._files = StaticFiles(directory=folder, html=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        policy = "; ".join(f"{name} {value}" for name, value in POLICY.items()).format(host=host)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], (b"content-security-policy", policy.encode("latin-1"))]
                headers.append((b"cache-control", b"no-cache"))  # each is asked for anew, and told by its etag
                message = {**message, "headers": headers}
            await send(message)

        await self._files(scope, receive, send_with_headers)
