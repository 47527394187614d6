"""`GET /latest.png` and `GET /latest.json`: the newest picture of your own, for a second screen or a script.

curl -H "Latentwire-Key: $KEY" http://127.0.0.1:8000/latest.png -o latest.png
"""

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from pydantic import Field

from latentwire import EncodedContext, Host, PluginRegistry, Strict, UnknownImage, caller_of, hookimpl

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

LATENTWIRE_API = "1.0"

FRESH = {"Cache-Control": "no-store"}
"""The next picture has the same address, and is nobody else's."""


class Settings(Strict):
    """What plugins.toml may set for this plugin."""

    owners: int = Field(1000, ge=1, description="so many clients' newest pictures are known; the latest ones stay")


class Plugin:
    def __init__(self, settings: Settings) -> None:
        self._most = settings.owners
        self._lock = threading.Lock()  # hooks run in several threads
        self._newest: OrderedDict[str, dict[str, Any]] = OrderedDict()  # by owner; the pictures are the host's to keep

    @hookimpl
    def register(self, registry: PluginRegistry) -> None:
        registry.add_routes(self.routes)

    @hookimpl
    def image_encoded(self, context: EncodedContext) -> None:
        about = {
            "image_id": context.image_id,
            "job": context.job,
            "index": context.index,
            "width": context.picture.width,
            "height": context.picture.height,
            "request": context.made,
        }
        with self._lock:
            self._newest[context.owner] = about
            self._newest.move_to_end(context.owner)
            if len(self._newest) > self._most:
                self._newest.popitem(last=False)

    def routes(self, host: Host) -> "list[BaseRoute]":
        """The two routes; a server asks once, when it begins."""
        from starlette.responses import JSONResponse, PlainTextResponse, Response
        from starlette.routing import Route

        def about(request: "Request") -> dict[str, Any] | None:
            with self._lock:
                return self._newest.get(caller_of(request.scope).owner)

        async def picture(request: "Request") -> "Response":
            newest = about(request)
            try:
                data = host.images.get(newest["image_id"]) if newest else None
            except UnknownImage:  # it had to make room
                data = None
            if data is None:
                return PlainTextResponse("you have no picture yet, or no longer\n", 404, FRESH)
            return Response(data, headers=FRESH, media_type="image/png")

        async def description(request: "Request") -> "Response":
            newest = about(request)
            if newest is None:
                return JSONResponse({"detail": "you have no picture yet, or no longer"}, 404, FRESH)
            return JSONResponse(newest, headers=FRESH)

        return [Route("/latest.png", picture), Route("/latest.json", description)]
