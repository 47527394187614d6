"""Routes of pictures: shown, and sent."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .asked import Refused, Row, reading_form, said
from .pictures import Stored, shown
from .service import Service


class PictureRoutes:
    """The handlers of one host."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def handlers(self) -> list[Row]:
        """The rows of the table."""
        return [
            ("/view", "GET", self.view),
            ("/upload/image", "POST", self.upload),
            ("/upload/mask", "POST", self.upload_mask),
        ]

    async def view(self, request: Request) -> Response:
        asked = request.query_params
        name, subfolder, kind = asked.get("filename", ""), asked.get("subfolder", ""), asked.get("type", "output")
        pictures = self._service.pictures

        def read() -> tuple[bytes, str, str]:
            file = pictures.find(name, subfolder, kind)
            return *shown(file, asked.get("channel", ""), asked.get("preview", "")), file.name

        data, media_type, file = await self._service.host.with_pixels(read)
        quoted = file.encode("ascii", "replace").decode().replace('"', "'").replace("?", "_")
        return Response(data, headers={"Content-Disposition": f'filename="{quoted}"'}, media_type=media_type)

    async def upload(self, request: Request) -> Response:
        async with reading_form(request, self._service.max_upload) as form:
            sent = _Upload(form)
            return await self._keep(sent, partial(self._service.pictures.upload, await sent.data()))

    async def upload_mask(self, request: Request) -> Response:
        async with reading_form(request, self._service.max_upload) as form:
            sent = _Upload(form)
            original = sent.map("original_ref")
            name, subfolder, kind = (str(original.get(key) or "") for key in ("filename", "subfolder", "type"))
            of = self._service.pictures.find(name, subfolder, kind or "output")
            return await self._keep(sent, partial(self._service.pictures.upload_mask, await sent.data(), of))

    async def _keep(self, sent: "_Upload", keep: Callable[[str, str, bool], Stored]) -> Response:
        stored = await self._service.host.with_pixels(lambda: keep(sent.name, sent.text("subfolder"), sent.overwrite))
        return JSONResponse({"name": stored.filename, "subfolder": stored.subfolder, "type": stored.type})


class _Upload:
    """A form with a picture."""

    def __init__(self, form: FormData) -> None:
        image = form.get("image")
        if not isinstance(image, UploadFile):
            raise Refused(400, "the form has no file 'image'")
        self._form = form
        self._image = image
        self.name = image.filename or ""
        self.overwrite = said(self.text("overwrite"))
        if self.text("type") not in ("", "input", "temp", "output"):
            raise Refused(400, f"type is input, temp or output, got {self.text('type')!r:.40}")

    async def data(self) -> bytes:
        """The picture's file."""
        return await self._image.read()

    def text(self, name: str) -> str:
        """A field; nothing where there is none."""
        value = self._form.get(name, "")
        return value if isinstance(value, str) else ""

    def map(self, name: str) -> dict[str, Any]:
        """A field that holds a JSON map."""
        try:
            value = json.loads(self.text(name))
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"{name} is no JSON") from error
        if not isinstance(value, dict):
            raise Refused(400, f"{name} is no JSON map")
        return value
