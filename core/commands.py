"""The host's own commands: what each takes, does and gives back. Plugins add theirs beside them."""

import asyncio
import reprlib
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator

from . import plugin_commands
from .command_context import CommandContext, NoParams
from .errors import InvalidParams, JobCancelled, LatentwireError, TooManyJobs, copied
from .events import Accepted, Event, StateChanged, Subscribed
from .hookspecs import UpdateContext
from .image_store import image_id
from .job_table import EndedJob
from .jobs import Job
from .nodes import describe_nodes
from .plugin_registry import PluginRegistry
from .requests import GenerateRequest, StreamOptions, Strict, UpdateRequest, Whole
from .settings import nearest_key
from .watching import Watcher

if TYPE_CHECKING:
    from .host import Host

Params = TypeVar("Params", bound=BaseModel)

MAX_DETAILS = 20  # of one error; a message may have a wrong entry for each of its bytes


class CancelParams(Strict):
    """What to cancel: one job of yours, or of this session the jobs of a slot, or all."""

    slot: str | None = Field(None, description="of a generate request")
    all: bool = False
    job: str | None = Field(None, validate_default=True, description="from the accepted event")

    @field_validator("job")
    @classmethod
    def _one_thing(cls, job: str | None, info: ValidationInfo) -> str | None:
        if (job is not None) + (info.data.get("slot") is not None) + bool(info.data.get("all")) != 1:
            raise ValueError("wanted one of job, slot and all")
        return job


class JobParams(Strict):
    """Which job."""

    job: str = Field(description="from the accepted event")


class WatchParams(Strict):
    """Which job to follow, and what of it."""

    job: str = Field(description="from the accepted event; a job of your own, or anybody's if you are an observer")
    stream: StreamOptions = StreamOptions()


class UnsubscribeParams(Strict):
    """Which subscription to end."""

    subscription: str = Field(description="from the subscribed event")


class ImagesPutParams(Strict):
    """A picture to keep: a file's bytes, or an upload of them."""

    upload: str | None = Field(None, description="in place of data: from uploads.begin, with all parts appended")
    data: bytes | None = Field(None, validate_default=True, description="a PNG, JPEG or WebP file")

    @field_validator("data")
    @classmethod
    def _one_source(cls, data: bytes | None, info: ValidationInfo) -> bytes | None:
        if (data is None) == (info.data.get("upload") is None):
            raise ValueError("wanted either data or upload")
        return data


class UploadBeginParams(Strict):
    """A file that is to come in parts."""

    size: Whole = Field(ge=1, description="bytes of the whole file")


class UploadAppendParams(Strict):
    """The next part of a file."""

    upload: str = Field(description="from uploads.begin")
    data: bytes = Field(min_length=1)


async def generate(context: CommandContext, request: GenerateRequest) -> dict[str, Any]:
    """Make one picture or several from a prompt; events stream back until the result."""
    host = context.host
    host.plugins.check_usable("field", request)
    host.registry.check_previews(request.stream)
    host.runner.build_for(request)  # refuse now what cannot run
    job = Job(context.client, context.caller.owner, request, request.seeds(), context.emit)
    host.jobs.add(job, leaving=host.slots.of(job.client, request.slot))
    try:
        host.slots.number(job)
    except TooManyJobs as error:
        job.fail(error)
        raise
    job.emit(Accepted(job.id, job.seeds))
    host.slots.begin(job, partial(host.runner.start, job))
    outcome = asyncio.wrap_future(job.outcome)
    try:
        return await asyncio.shield(outcome)
    except asyncio.CancelledError:
        outcome.add_done_callback(asyncio.Future.exception)  # nobody else will look at it
        job.fail(JobCancelled("the client went away"))
        raise


async def cancel(context: CommandContext, params: CancelParams) -> dict[str, Any]:
    """Stop jobs before their next step; the generate command of each ends with error code cancelled."""
    host, client = context.host, context.client
    if params.job is not None:
        job = host.jobs.get(params.job, context.caller)
        return {"job": job.id, "cancelled": job.fail(_cancelled(job))}
    jobs = host.jobs.all(client) if params.slot is None else host.slots.of(client, params.slot)
    return {"jobs": [job.id for job in jobs if job.fail(_cancelled(job))]}


def _cancelled(job: Job) -> JobCancelled:
    return JobCancelled(f"job {job.id} was cancelled")


async def jobs(context: CommandContext, params: NoParams) -> dict[str, Any]:
    """List your own unfinished jobs, oldest first; an observer's list has everybody's."""
    return {
        "jobs": [
            {
                "job": job.id,
                "own": job.owned_by == context.caller.owner,
                "state": job.state,
                "prompt": job.request.prompt,
                "images": len(job.seeds),
                "steps_done": job.steps_done,
                "seconds": round(monotonic() - job.created, 3),
                "priority": job.request.rank,
                "position": job.place,
                "slot": job.request.slot,
                "revision": job.revision,
            }
            for job in context.host.jobs.seen_by(context.caller)
        ]
    }


async def jobs_watch(context: CommandContext, params: WatchParams) -> dict[str, Any]:
    """Follow a job from its present state to its end, which is this command's too, or until unsubscribed."""
    host = context.host
    host.registry.check_previews(params.stream)
    job = host.jobs.find(params.job, context.caller)
    if isinstance(job, EndedJob):
        context.emit(job.state)
        for picture in job.pictures:
            context.emit(host.with_data(picture))
        if job.error is not None:
            raise copied(job.error)
        return job.result or {}
    with host.subscriptions.open(context.client) as subscription:
        watcher = Watcher(params.stream, context.emit, subscription.end_soon)
        context.emit(Subscribed(subscription.id))
        try:
            if job.watch(watcher):
                await subscription.wait()
            else:  # it has just ended
                await asyncio.to_thread(job.outcome.exception)
        finally:
            job.unwatch(watcher)
    if not job.outcome.done():
        return {"subscription": subscription.id}
    error = job.outcome.exception()
    if isinstance(error, LatentwireError):
        raise copied(error)
    return job.outcome.result()


async def jobs_pause(context: CommandContext, params: JobParams) -> dict[str, Any]:
    """Let a job wait before its next step, until it is resumed."""
    job = context.host.jobs.get(params.job, context.caller)
    return {"job": job.id, "paused": job.pause(True)}


async def jobs_resume(context: CommandContext, params: JobParams) -> dict[str, Any]:
    """Let a paused job go on."""
    job = context.host.jobs.get(params.job, context.caller)
    return {"job": job.id, "resumed": job.pause(False)}


async def jobs_update(context: CommandContext, update: UpdateRequest) -> dict[str, Any]:
    """Change numbers of a job that runs; its pictures go on with them from their next step on."""
    host = context.host
    job = host.jobs.get(update.job, context.caller)
    tuning = job.tuning
    if tuning is None:
        message = f"job {job.id} is still being prepared; change it once it has started"
        raise InvalidParams(message, [{"path": ["job"], "message": message, "got": job.id}])
    if update.guidance_scale is not None:
        if tuning.guidance_scale is None or tuning.guidance_scale <= 1:
            message = "this job runs without guidance, or its model takes guidance_scale only at the start"
            raise InvalidParams(
                message, [{"path": ["guidance_scale"], "message": message, "got": repr(update.guidance_scale)}]
            )
        tuning = replace(tuning, guidance_scale=update.guidance_scale)
    host.plugins.check_usable("update field", update)
    hook = UpdateContext(host, context.client, job.id, job.request, update, tuning)
    host.plugins.call("update_job", hook)
    job.change(hook.tuning)
    return {"job": job.id, **hook.tuning.plain()}


async def pipeline_state(context: CommandContext, params: NoParams) -> dict[str, Any]:
    """Tell what is loaded and what the engine is doing."""
    return pipeline_state_of(context.host)


async def pipeline_subscribe(context: CommandContext, params: NoParams) -> dict[str, Any]:
    """Send the state of the pipeline now and whenever it changes, until unsubscribed."""
    host = context.host

    def look() -> tuple[Any, Event]:
        state = pipeline_state_of(host)
        # the engine's counters never rest
        return {name: value for name, value in state.items() if name != "engine"}, StateChanged(state)

    with host.subscriptions.open(context.client) as subscription:
        await host.state.follow(subscription, context.emit, look)
    return {"subscription": subscription.id}


async def unsubscribe(context: CommandContext, params: UnsubscribeParams) -> dict[str, Any]:
    """End a subscription of this client; its own command then ends with its result."""
    context.host.subscriptions.end(params.subscription, context.client)
    return {"subscription": params.subscription}


async def images_put(context: CommandContext, params: ImagesPutParams) -> dict[str, Any]:
    """Keep a picture for requests to name by its id."""
    data = params.data
    if data is None:
        data = context.host.uploads.take(str(params.upload), context.client)

    def put() -> dict[str, Any]:
        picture = context.host.picture(data, ["data" if params.upload is None else "upload"])
        return {"image_id": image_id(data), "width": picture.width, "height": picture.height}

    return await context.host.with_pixels(put)


async def uploads_begin(context: CommandContext, params: UploadBeginParams) -> dict[str, Any]:
    """Begin a file that is larger than a message may be."""
    return {"upload": context.host.uploads.begin(context.client, params.size)}


async def uploads_append(context: CommandContext, params: UploadAppendParams) -> dict[str, Any]:
    """Send the next part of an upload; the answer says how many bytes there are."""
    return {"received": context.host.uploads.append(params.upload, context.client, params.data)}


def pipeline_state_of(host: "Host") -> dict[str, Any]:
    """What `pipeline.state` gives."""
    model = host.settings.defaults.model
    figures = host.engine.figures
    return {
        "model": model,
        "family": host.store.card(model).family,
        "scheduler": host.settings.defaults.scheduler,
        "mode": host.settings.defaults.mode,
        "device": str(host.device),
        "dtype": host.store.dtype_of(model),
        "components": host.store.loaded(),
        "controlnets": host.store.brought("controlnet"),
        "adapters": host.store.brought("adapter"),
        "engine": {
            "jobs": len(host.jobs.all()),
            "runs": host.engine.running,
            "queued": host.engine.queued,
            "runs_finished": figures.runs_finished,
            "forwards": figures.forwards,
            "calls": figures.calls,
            "rows": figures.rows,
            "loads": host.store.shelf.loads,
            "hits": host.store.shelf.hits,
        },
    }


async def models_list(context: CommandContext, params: NoParams) -> dict[str, Any]:
    """List the models that requests may name."""
    host = context.host
    loaded = {row["model"] for row in host.store.loaded()}
    models: list[dict[str, Any]] = []
    for name in host.store.names():
        try:
            card = host.store.card(name)
        except Exception as error:
            models.append({"name": name, "error": str(error)})
            continue
        models.append(
            {
                "name": name,
                "family": card.family,
                "description": card.description,
                "dtype": host.store.dtype_of(name),
                "size": card.size,
                "defaults": dict(card.defaults),
                "default": name == host.settings.defaults.model,
                "loaded": name in loaded,
            }
        )
    return {"models": models}


async def describe_host(context: CommandContext, params: NoParams) -> dict[str, Any]:
    """Give every command, request field and event as JSON Schema, and the names that requests may use."""
    return context.host.description | {"nodes": describe_nodes(context.host)}  # their choices change


async def ping(context: CommandContext, params: NoParams) -> dict[str, Any]:
    """Answer with the host's clock, in seconds since 1970."""
    return {"time": context.host.clock.time()}


def register_core(registry: PluginRegistry, request_model: type[GenerateRequest]) -> None:
    """Add the host's own commands."""
    registry.add_command("generate", request_model, generate)
    registry.add_command("cancel", CancelParams, cancel)
    registry.add_command("jobs", NoParams, jobs)
    registry.add_command("jobs.watch", WatchParams, jobs_watch)
    registry.add_command("jobs.pause", JobParams, jobs_pause)
    registry.add_command("jobs.resume", JobParams, jobs_resume)
    registry.add_command("jobs.update", UpdateRequest, jobs_update)
    registry.add_command("pipeline.state", NoParams, pipeline_state)
    registry.add_command("pipeline.subscribe", NoParams, pipeline_subscribe)
    registry.add_command("unsubscribe", UnsubscribeParams, unsubscribe)
    registry.add_command("images.put", ImagesPutParams, images_put)
    registry.add_command("uploads.begin", UploadBeginParams, uploads_begin)
    registry.add_command("uploads.append", UploadAppendParams, uploads_append)
    registry.add_command("plugins.list", NoParams, plugin_commands.list_all)
    registry.add_command("plugins.subscribe", NoParams, plugin_commands.subscribe)
    registry.add_command("plugins.enable", plugin_commands.PluginParams, plugin_commands.enable)
    registry.add_command("plugins.disable", plugin_commands.PluginParams, plugin_commands.disable)
    registry.add_command("plugins.reload", plugin_commands.PluginParams, plugin_commands.reload)
    registry.add_command("models.list", NoParams, models_list)
    registry.add_command("describe", NoParams, describe_host)
    registry.add_command("ping", NoParams, ping)


def validate(model: type[Params], params: Any, command: str) -> Params:
    """Params as their model.

    Raises:
        InvalidParams: `details` name each field, what is wrong with it and what was got.
    """
    try:
        return model.model_validate(params)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        details = [_detail(model, problem) for problem in problems[:MAX_DETAILS]]
        first = details[0]
        where = ".".join(str(part) for part in first["path"]) or "params"
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        message = f"{command}: {where}: {first['message']}, got {first['got']}{more}"
        raise InvalidParams(message, details) from error


def _detail(model: type[BaseModel], problem: Any) -> dict[str, Any]:
    path = [part[:80] if isinstance(part, str) else part for part in problem["loc"] if part not in _UNION_BRANCHES]
    message = problem["msg"].removeprefix("Value error, ")  # pydantic's own prefix says nothing to a client
    if problem["type"] == "extra_forbidden":
        message = f"unknown key, {nearest_key(model, problem['loc'])}"
    return {"path": path, "message": message, "got": reprlib.repr(problem["input"])}


# pydantic names the branch of a union in an error's path; no client knows those names
_UNION_BRANCHES = {"int", "constrained-int", "list[constrained-int]", "bytes", "str"}
