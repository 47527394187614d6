"""Routes of what the front end keeps at the host: settings, and files such as workflows."""

from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .asked import Refused, Row, constant, read_body, read_json, read_map, said
from .service import Service

SERVED_AS = {"json": "application/json", "css": "text/css"}
"""Files by how they end; others are only bytes, so that no browser runs them."""


class UserRoutes:
    """The handlers of one host."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def handlers(self) -> list[Row]:
        """The rows of the table."""
        return [
            ("/users", "GET", constant({"storage": "server", "migrated": True})),
            ("/settings", "GET", self.settings),
            ("/settings", "POST", self.set_settings),
            ("/settings/{id}", "GET", self.setting),
            ("/settings/{id}", "POST", self.set_setting),
            ("/userdata", "GET", self.files),
            ("/userdata/{file:path}", "GET", self.file),
            ("/userdata/{file:path}", "POST", self.write_file),
            ("/userdata/{file:path}", "DELETE", self.delete_file),
        ]

    async def settings(self, _: Request) -> Response:
        return JSONResponse(await self._service.ask(self._service.user_data.settings))

    async def set_settings(self, request: Request) -> Response:
        await self._service.ask(self._service.user_data.set, await read_map(request))
        return Response()

    async def setting(self, request: Request) -> Response:
        settings = await self._service.ask(self._service.user_data.settings)
        return JSONResponse(settings.get(request.path_params["id"]))

    async def set_setting(self, request: Request) -> Response:
        await self._service.ask(self._service.user_data.set, {request.path_params["id"]: await read_json(request)})
        return Response()

    async def files(self, request: Request) -> Response:
        asked = request.query_params
        if "dir" not in asked:
            raise Refused(400, "dir is missing")
        rows = await self._service.ask(self._service.user_data.list_all, asked["dir"], said(asked.get("recurse")))
        if said(asked.get("full_info")):
            return JSONResponse(rows)
        paths = [row["path"] for row in rows]
        return JSONResponse([[path, *path.split("/")] for path in paths] if said(asked.get("split")) else paths)

    async def file(self, request: Request) -> Response:
        name, _ = _paths(request)
        data = await self._service.ask(self._service.user_data.read, name)
        known = SERVED_AS.get(name.rpartition(".")[2].lower(), "application/octet-stream")
        return Response(data, headers={"Cache-Control": "no-cache"}, media_type=known)

    async def write_file(self, request: Request) -> Response:
        name, to = _paths(request)
        asked, user_data = request.query_params, self._service.user_data
        overwrite = said(asked.get("overwrite", "false" if to else "true"))
        if to is None:
            data = await read_body(request, self._service.max_upload)
            row = await self._service.ask(user_data.write, name, data, overwrite)
        else:
            row = await self._service.ask(user_data.move, name, to, overwrite)
        return JSONResponse(row if said(asked.get("full_info")) else row["path"])

    async def delete_file(self, request: Request) -> Response:
        await self._service.ask(self._service.user_data.delete, _paths(request)[0])
        return Response(status_code=204)


def _paths(request: Request) -> tuple[str, str | None]:
    """The file that a request is about, and where it is to be moved.

    A file's name has its slashes encoded, which is how `NAME/move/OTHER` can be told from a file that is called so.
    """
    raw: bytes = request.scope["raw_path"]
    parts = [unquote(part) for part in raw.decode("latin-1").partition("/userdata/")[2].split("/")]
    if request.method == "POST" and len(parts) == 3 and parts[1] == "move":
        return parts[0], parts[2]
    return "/".join(parts), None
