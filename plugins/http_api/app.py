"""The endpoints, as one FastAPI app."""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, File, Form, Query, Request, Response, UploadFile
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, Field
from starlette.routing import BaseRoute, Mount, Route

from latentwire import Caller, Event, Host, InvalidParams, Picture, __version__, caller_of

from .errors import BodyLimit, answer_errors

CLIENT = "http"  # all of them together, for limits: HTTP knows no connection that a job could belong to
CLIENT_CLOSED_REQUEST = 499  # nobody reads it
FILES = "/swagger-ui"  # what the page at /docs loads

Made = TypeVar("Made")
Params = TypeVar("Params", bound=BaseModel)


class ControlNetParams(BaseModel):
    """Which ControlNet to load."""

    controlnet_path: str | None = Field(None, description="a folder of the host, or a hub id")
    adapter_name: str | None = Field(None, description="what to call it; the folder's or file's own name if left out")
    lora_weights_path: str | None = Field(
        None, description="a ControlLoRA's file, of the host or in the folder of controlnet_path; may also stand alone"
    )
    torch_dtype: str | None = Field(None, description="float16, bfloat16 or float32; also as torch.float16")


class LoraParams(BaseModel):
    """Which LoRA to load."""

    lora_path: str | None = Field(None, description="required; a file or folder of the host, or a hub id")
    adapter_name: str | None = Field(None, description="what to call it; the file's or folder's own name if left out")
    lora_scale: float = Field(1.0, description="its weight")


def make_routes(host: Host, body_limit: int) -> list[BaseRoute]:
    """One route for each path of the app: a mount at the root would hide the mounts of other plugins."""
    app = make_app(host)
    app.add_middleware(BodyLimit, limit=body_limit)
    paths = [route.path for route in app.routes if isinstance(route, Route)]
    folders = [f"{mount.path}/{{file:path}}" for mount in app.routes if isinstance(mount, Mount)]
    return [Route(path, app) for path in (*paths, *folders)]


def make_app(host: Host) -> FastAPI:
    """The endpoints of one host, its OpenAPI document, and a page that shows it and loads nothing from elsewhere."""
    app = FastAPIOffline(
        title="latentwire",
        version=__version__,
        summary="Pictures from a prompt over plain HTTP; each endpoint asks one of the host's WebSocket commands.",
        redoc_url=None,
        static_url=FILES,
        strict_content_type=False,  # scripts leave it out; pages of other sites are refused by their origin
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    answer_errors(app)

    async def ask(command: str, **params: Any) -> dict[str, Any]:
        given = {name: value for name, value in params.items() if value is not None}
        return await host.dispatch(command, given, CLIENT, lambda _: None)

    @app.post("/load-controlnet/")
    async def load_controlnet(
        query: Annotated[ControlNetParams, Query()], body: ControlNetParams | None = None
    ) -> dict[str, Any]:
        """Load a ControlNet or a ControlLoRA; parameters in the query, a JSON body, or both (the body wins)."""
        params = _merged(query, body, "controlnet_path", "lora_weights_path")
        loaded = await ask(
            "controlnet.load",
            path=params.controlnet_path or None,
            name=params.adapter_name or None,
            lora_weights_path=params.lora_weights_path or None,
            dtype=(params.torch_dtype or "").removeprefix("torch.") or None,
        )
        return {"message": f"ControlNet {loaded['name']!r} is loaded", "model_key": loaded["name"], **loaded}

    @app.post("/generate-image/", response_class=Response, responses={200: {"content": {"image/png": {}}}})
    async def generate_image(
        request: Request,
        prompt: Annotated[str, Form()],
        negative_prompt: Annotated[str | None, Form()] = None,
        height: Annotated[int | None, Form()] = None,
        width: Annotated[int | None, Form()] = None,
        num_inference_steps: Annotated[int | None, Form()] = None,
        guidance_scale: Annotated[float | None, Form()] = None,
        seed: Annotated[int | None, Form()] = None,
        control_image: Annotated[UploadFile | None, File(description="for the ControlNet that was loaded last")] = None,
    ) -> Response:
        """Make one picture; the answer is a PNG, its seed and job are in the headers X-Seed and X-Job."""
        params: dict[str, Any] = {
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "height": height,
            "width": width,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "seed": seed,
            "stream": {"steps": False},
        }
        if control_image is not None and (control_image.filename or control_image.size):  # else an empty form field
            control: dict[str, Any] = {"image": await control_image.read()}
            model = host.settings.defaults.model
            fitting = [row for row in (await ask("controlnet.list"))["controlnets"] if row["model"] == model]
            if fitting:  # else the command says what is missing
                control["name"] = fitting[-1]["name"]
            params["controlnet"] = [control]
        caller = replace(caller_of(request.scope), client=CLIENT)
        made = await _unless_gone(request, _generate(host, params, caller))
        if made is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        picture, result = made
        headers = {
            "X-Seed": str(result["seeds"][0]),
            "X-Job": result["job"],
            "Access-Control-Expose-Headers": "X-Seed, X-Job",
        }
        return Response(picture.data, headers=headers, media_type="image/png")

    @app.post("/load-lora/")
    async def load_lora(query: Annotated[LoraParams, Query()], body: LoraParams | None = None) -> dict[str, Any]:
        """Load a LoRA and apply it to every picture from now on; parameters as for /load-controlnet/."""
        params = _merged(query, body, "lora_path")
        loaded = await ask(
            "lora.load",
            path=params.lora_path,
            name=params.adapter_name or None,
            lora_scale=params.lora_scale,
            default="host",
        )
        return {"message": f"LoRA {loaded['name']!r} is loaded", "adapter_name": loaded["name"], **loaded}

    @app.get("/active-controlnets/")
    async def active_controlnets() -> dict[str, Any]:
        """List the loaded ControlNets in the order of loading."""
        loaded = (await ask("controlnet.list"))["controlnets"]
        return {"active_controlnets": [row["name"] for row in loaded], "details": loaded}

    @app.delete("/unload-controlnet/")
    async def unload_controlnet(
        model_key: Annotated[str, Query(description="a name of /active-controlnets/")],
    ) -> dict[str, Any]:
        """Unload a ControlNet and give its memory back."""
        unloaded = await ask("controlnet.unload", name=model_key)
        return {"message": f"ControlNet {model_key!r} is unloaded", "model_key": model_key, **unloaded}

    @app.get("/pipeline-state/")
    async def pipeline_state() -> dict[str, Any]:
        """Tell what is loaded and what the engine is doing."""
        return await ask("pipeline.state")

    @app.get("/stats")
    async def stats() -> dict[str, Any]:
        """Give figures of the host and its machine."""
        return await ask("stats")

    return app


async def _generate(host: Host, params: dict[str, Any], caller: Caller) -> tuple[Picture, dict[str, Any]]:
    """The picture of a `generate` command, and the command's result."""
    pictures: list[Picture] = []

    def emit(event: Event) -> None:
        if event.name == "image":
            pictures.append(getattr(event, "image"))  # noqa: B009 - Event has none, the event called image does

    given = {name: value for name, value in params.items() if value is not None}
    result = await host.dispatch("generate", given, caller, emit)
    return pictures[0], result


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Made]) -> Made | None:
    """The result of `work`; None, and an end to it, when the client has hung up before."""
    working = asyncio.create_task(work)
    gone = asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _merged(query: Params, body: Params | None, *required: str) -> Params:
    """Parameters of the query and the body as one; of the `required` ones there must be one.

    Raises:
        InvalidParams: there is none.
    """
    given = query.model_dump(exclude_unset=True) | (body.model_dump(exclude_unset=True) if body else {})
    if not any(given.get(name) for name in required):
        message = f"{' or '.join(required)} is missing; give it in the query or in a JSON body"
        raise InvalidParams(message, [{"path": [required[0]], "message": message, "got": "nothing"}])
    return query.model_copy(update=given)
