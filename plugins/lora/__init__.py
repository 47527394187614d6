"""LoRAs: loaded once, then any number of them, each with a weight, in any request.

A request's LoRAs change nothing for the others: what they add is added row by row, for the length of one forward.
"""

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, RootModel, field_validator

from latentwire import (
    BuildContext,
    ClientContext,
    CommandContext,
    Host,
    InvalidParams,
    Loaded,
    ModelLoadError,
    NoParams,
    NotLoaded,
    PluginRegistry,
    Strict,
    UpdateContext,
    hookimpl,
)

MOST = 32  # LoRAs in a request

Scope = Literal["session", "host"]


class Use(Strict):
    """One LoRA in a request."""

    name: str = Field(max_length=200, description="a name of lora.list")
    weight: float = Field(1.0, ge=-10, le=10, description="0: as without it")


class Uses(RootModel[list[Use]]):
    """The LoRAs of a picture; an empty list means none, whatever the default is."""

    root: list[Use] = Field(max_length=MOST)

    @field_validator("root")
    @classmethod
    def _no_name_twice(cls, uses: list[Use]) -> list[Use]:
        names = [use.name for use in uses]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice!r} is named twice; give it the sum of the weights")
        return uses


class LoadParams(Strict):
    """Which LoRA to load."""

    path: str = Field(max_length=1000, description="a file or folder below files.roots, or a hub id where allowed")
    name: str | None = Field(None, min_length=1, max_length=200, description="the file's or folder's own if left out")
    model: str | None = Field(None, max_length=100, description="for which model; the host's default model if left out")
    lora_scale: float = Field(1.0, ge=-10, le=10, description="its weight as a default")
    default: Scope | None = Field(None, description="apply it to requests without a field lora from now on")


class UnloadParams(Strict):
    """Which LoRA to unload."""

    name: str = Field(max_length=200)
    when_free: bool = Field(False, description="where jobs use it: unload it after them, in place of an error")


class DefaultParams(Strict):
    """What requests without a field lora get."""

    scope: Scope = Field(description="session: this connection's requests; host: those of all who set none")
    adapters: Uses | None = Field(None, description="an empty list means none; null takes the setting back")


class Plugin:
    """The commands, and what is applied by default."""

    def __init__(self) -> None:
        self._host_default: list[Use] | None = None
        self._session_defaults: dict[str, list[Use]] = {}

    @hookimpl
    def register(self, registry: PluginRegistry) -> None:
        registry.add_field("lora", Uses)
        registry.add_update("lora", Uses)
        registry.add_command("lora.load", LoadParams, self.load)
        registry.add_command("lora.list", NoParams, self.list_all)
        registry.add_command("lora.unload", UnloadParams, self.unload)
        registry.add_command("lora.default", DefaultParams, self.default)

    @hookimpl
    def modify_build(self, context: BuildContext) -> None:
        section: Uses | None = getattr(context.request, "lora", None)
        uses = self._default_for(context) if section is None else section.root
        if section is not None:
            known = {row["name"] for row in context.host.store.brought("adapter")}
            for place, use in enumerate(uses):
                if use.name not in known:
                    message = f"no LoRA {use.name!r} is loaded; loaded: {', '.join(sorted(known)) or 'none'}"
                    raise NotLoaded(message, [{"path": ["lora", place, "name"], "message": message, "got": use.name}])
        else:  # the picture's metadata shall say what was used, also that nothing was: the default may change
            context.request = context.request.model_copy(update={"lora": Uses.model_construct(root=uses)})
        # weight 0 adds zeros, which is the same as nothing
        context.build = context.build.with_adapters(*((use.name, use.weight) for use in uses if use.weight))

    @hookimpl
    def update_job(self, context: UpdateContext) -> None:
        uses: Uses | None = getattr(context.update, "lora", None)
        if uses is None:
            return
        weights = dict(context.tuning.adapters)
        for place, use in enumerate(uses.root):
            if use.name not in weights:
                known = ", ".join(weights) or "none"
                message = f"the job runs without LoRA {use.name!r}, and none can be added; its LoRAs: {known}"
                raise InvalidParams(message, [{"path": ["lora", place, "name"], "message": message, "got": use.name}])
            weights[use.name] = use.weight
        context.tuning = replace(context.tuning, adapters=tuple(weights.items()))

    @hookimpl
    def client_left(self, context: ClientContext) -> None:
        self._session_defaults.pop(context.client, None)

    async def load(self, context: CommandContext, params: LoadParams) -> dict[str, Any]:
        """Load a LoRA file, or the one of a folder with the highest training step."""
        host = context.host
        model = params.model or host.settings.defaults.model
        if params.default is not None and len(self._defaults(params.default, context.client)) >= MOST:
            message = f"the default of this {params.default} has {MOST} LoRAs, as many as it can; set it anew"
            raise InvalidParams(message, [{"path": ["default"], "message": message, "got": params.default}])
        row = await asyncio.to_thread(_load, host, params, model)
        if params.default is not None:
            uses = [use for use in self._defaults(params.default, context.client) if use.name != row["name"]]
            self._set_default(params.default, context.client, [*uses, Use(name=row["name"], weight=params.lora_scale)])
        return row | {"default": params.default}

    async def list_all(self, context: CommandContext, params: NoParams) -> dict[str, Any]:
        """List the loaded LoRAs, and what applies by default."""
        session = self._session_defaults.get(context.client)
        return {
            "loras": context.host.store.brought("adapter"),
            "defaults": {"session": _plain(session), "host": _plain(self._host_default)},
        }

    async def unload(self, context: CommandContext, params: UnloadParams) -> dict[str, Any]:
        """Unload a LoRA and give its memory back."""
        done = await asyncio.to_thread(context.host.store.drop, "adapter", params.name, params.when_free)
        for client, uses in list(self._session_defaults.items()):
            self._session_defaults[client] = [use for use in uses if use.name != params.name]
        if self._host_default is not None:
            self._host_default = [use for use in self._host_default if use.name != params.name]
        return {"name": params.name, "unloaded": done}

    async def default(self, context: CommandContext, params: DefaultParams) -> dict[str, Any]:
        """Say which LoRAs apply to requests that name none."""
        uses = None if params.adapters is None else params.adapters.root
        known = [row["name"] for row in context.host.store.brought("adapter")]
        for use in uses or ():
            if use.name not in known:
                raise NotLoaded(f"no LoRA {use.name!r} is loaded; loaded: {', '.join(known) or 'none'}")
        self._set_default(params.scope, context.client, uses)
        return {"scope": params.scope, "adapters": _plain(uses)}

    def _defaults(self, scope: Scope, client: str) -> list[Use]:
        uses = self._host_default if scope == "host" else self._session_defaults.get(client)
        return uses or []

    def _set_default(self, scope: Scope, client: str, uses: list[Use] | None) -> None:
        if scope == "host":
            self._host_default = uses
        elif uses is None:
            self._session_defaults.pop(client, None)
        else:
            self._session_defaults[client] = uses

    def _default_for(self, context: BuildContext) -> list[Use]:
        """The session's default, else the host's; of those, what was loaded for this request's model."""
        uses = self._session_defaults.get(context.client, self._host_default) or []
        if not uses:
            return []
        model = context.build.model
        fitting = {row["name"] for row in context.host.store.brought("adapter") if row["model"] == model}
        return [use for use in uses if use.name in fitting]


def _load(host: Host, params: LoadParams, model: str) -> dict[str, Any]:
    """In a worker thread: find the file, read it, and keep it."""
    from .files import BESIDE, choose  # which imports what diffusers has for LoRAs

    path = host.find_file(params.path)
    try:
        file, reason = choose(path)
    except ValueError as error:
        raise ModelLoadError(f"cannot load LoRA {params.path!r}: {error}") from error
    within = file.name if file == path else file.relative_to(path).as_posix()
    for read in (file, file.with_name(BESIDE)):
        host.check_inside(read)
    name = params.name or (Path(params.path).name or path.name).removesuffix(".safetensors")[:200]
    notes = {"path": params.path, "file": within, "chosen": reason}
    return host.store.bring("adapter", name, model, partial(_read, host, model, file), notes=notes)


def _read(host: Host, model: str, file: Path, dtype: str) -> Loaded:
    """`dtype` is the store's to apply."""
    from .files import read_adapter

    with host.store.leased(model) as lease:
        return Loaded(read_adapter(file, lease.components))


def _plain(uses: list[Use] | None) -> list[dict[str, Any]] | None:
    return None if uses is None else [use.model_dump() for use in uses]
