"""Routes of what the host has and is."""

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .asked import Refused, Row, constant, read_json
from .object_info import FOLDERS, models, object_info
from .service import CALLER, Service
from .system import features, system_stats
from .templates import NAME, index, text_to_image, thumbnail


class HostRoutes:
    """The handlers of one host."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def handlers(self) -> list[Row]:
        """The rows of the table."""
        return [
            ("/object_info", "GET", self.object_info),
            ("/object_info/{name}", "GET", self.object_info_of),
            ("/models", "GET", self.model_folders),
            ("/models/{folder}", "GET", self.models),
            ("/experiment/models", "GET", self.model_folders_known),
            ("/experiment/models/{folder}", "GET", self.models_known),
            ("/embeddings", "GET", self.embeddings),
            ("/system_stats", "GET", self.system_stats),
            ("/features", "GET", self.features),
            ("/free", "POST", self.free),
            ("/extensions", "GET", constant([])),
            # the front end asks for these; there is nothing of the kind
            ("/workflow_templates", "GET", constant({})),
            ("/global_subgraphs", "GET", constant({})),
            ("/node_replacements", "GET", constant({})),
            ("/i18n", "GET", constant({})),
            ("/templates/{file}", "GET", self.template),
            ("/internal/folder_paths", "GET", constant({})),
            ("/internal/files/{kind}", "GET", self.files),
        ]

    async def object_info(self, _: Request) -> Response:
        names = await self._service.ask(self._service.pictures.names)
        return JSONResponse(object_info(await self._service.nodes(), names))

    async def object_info_of(self, request: Request) -> Response:
        name = request.path_params["name"]
        nodes = {known: node for known, node in (await self._service.nodes()).items() if known == name}
        return JSONResponse(object_info(nodes, await self._service.ask(self._service.pictures.names)))

    async def model_folders(self, _: Request) -> Response:
        return JSONResponse(list(FOLDERS))

    async def models(self, request: Request) -> Response:
        found = models(await self._service.nodes(), request.path_params["folder"])
        return JSONResponse(found or [], 200 if found is not None else 404)

    async def model_folders_known(self, _: Request) -> Response:
        return JSONResponse([{"name": name, "folders": []} for name in FOLDERS])

    async def models_known(self, request: Request) -> Response:
        found = models(await self._service.nodes(), request.path_params["folder"])
        return JSONResponse([{"name": name, "pathIndex": 0} for name in found or ()], 200 if found is not None else 404)

    async def embeddings(self, _: Request) -> Response:
        return JSONResponse(models(await self._service.nodes(), "embeddings"))

    async def files(self, request: Request) -> Response:
        return JSONResponse(await self._service.ask(self._service.pictures.names, request.path_params["kind"]))

    async def system_stats(self, _: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(system_stats, self._service.host))

    async def features(self, _: Request) -> Response:
        return JSONResponse(features(self._service.max_upload))

    async def free(self, request: Request) -> Response:
        await read_json(request)  # the host makes room by itself, and unloads nothing that others use
        return Response()

    async def template(self, request: Request) -> Response:
        file = request.path_params["file"]
        if file == f"{NAME}-1.png":
            return Response(thumbnail(), media_type="image/png")
        if file == "index_logo.json":
            return JSONResponse({})
        if file == "index.json":
            return JSONResponse(index(await self._service.nodes()))
        if file != f"{NAME}.json":
            raise Refused(404, f"there is no template {file!r:.80}")
        listed = await self._service.host.dispatch("models.list", {}, CALLER, lambda _: None)
        model = next(row for row in listed["models"] if row["default"])
        return JSONResponse(text_to_image(await self._service.nodes(), model))
