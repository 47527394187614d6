"""The hooks of a plugin: each gets one context object, whose docstring says what may be changed.

A hook that raises fails the job that it ran for, with an error that names the plugin, and no other job.
Hooks run in the order of plugins.toml.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from PIL.Image import Image as PILImage

    from .build import PipelineBuild, PipelineCall
    from .events import Event, Picture
    from .host import Host
    from .plugin_registry import PluginRegistry
    from .requests import GenerateRequest
    from .tuning import Tuning

PROJECT = "latentwire"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(slots=True)
class BuildContext:
    """For `modify_build`. Change the pipeline's parts with `context.build = replace(context.build, ...)`.

    `client` is who asked, as in `CommandContext`. `request` may be replaced by one in which more is filled in: later
    hooks see it, and the picture's metadata holds it.
    """

    host: "Host"
    client: str
    job: str
    request: "GenerateRequest"
    build: "PipelineBuild"

    def check(self) -> None:
        """Run after each plugin: raises TypeError when it left something wrong behind."""
        from .build import PipelineBuild
        from .requests import GenerateRequest

        _check_type("build", self.build, PipelineBuild)
        _check_type("request", self.request, GenerateRequest)


@dataclass(slots=True)
class CallContext:
    """For `modify_call`. Change the call with `context.call = replace(context.call, ...)` or `.with_extra(...)`.

    `index` is the picture within the job, from 0. `components` are the shared modules by name (`unet`,
    `text_encoder`, ...): to look at, never to change. `emit` sends an event of the job to its client.
    """

    host: "Host"
    emit: "Callable[[Event], None]"
    job: str
    index: int
    request: "GenerateRequest"
    build: "PipelineBuild"
    call: "PipelineCall"
    components: "Mapping[str, Any]"

    def check(self) -> None:
        """Run after each plugin: raises TypeError when it left something wrong behind."""
        from .build import PipelineCall

        _check_type("call", self.call, PipelineCall)


@dataclass(slots=True)
class StepContext:
    """For `step_finished`. `latents` may be replaced by a tensor of the same shape, dtype and device.

    `latents` are the noisy ones after the step, `(1, channels, height / 8, width / 8)`; `original` the
    finished ones as the model predicts them (x0), read only. `step` counts from 1 to `steps`.
    """

    job: str
    index: int
    request: "GenerateRequest"
    step: int
    steps: int
    timestep: float
    sigma: float | None
    latents: "torch.Tensor"
    _predict: "Callable[[], torch.Tensor]" = field(repr=False)
    _given: "torch.Tensor" = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._given = self.latents

    def check(self) -> None:
        """Run after each plugin: raises TypeError when it left something wrong behind."""
        import torch

        _check_type("latents", self.latents, torch.Tensor)
        if self.latents is self._given:
            return
        got, wanted = _kind(self.latents), _kind(self._given)
        if got != wanted:
            raise TypeError(f"context.latents must stay of {wanted}, got {got}")

    @property
    def original(self) -> "torch.Tensor":
        """The predicted picture's latents, computed when first asked for."""
        return self._predict()


@dataclass(slots=True)
class ImageContext:
    """For `image_finished`. `image` (RGB) may be replaced; `metadata` becomes text chunks of the PNG."""

    job: str
    index: int
    request: "GenerateRequest"
    seed: int
    image: "PILImage"
    metadata: dict[str, str]

    def check(self) -> None:
        """Run after each plugin: raises TypeError when it left something wrong behind."""
        from PIL.Image import Image

        _check_type("image", self.image, Image)
        _check_type("metadata", self.metadata, dict)
        for key, value in self.metadata.items():
            _check_type("metadata's key", key, str)
            _check_type(f"metadata[{key!r}]", value, str)


@dataclass(slots=True)
class EncodedContext:
    """For `image_encoded`. `result` may be set: the id under which the plugin has stored the picture for good. Where it
    could not be stored just now, `unstored` may be: why, in a few words for its client.

    `picture` is the PNG as the client gets it, `made` the request as JSON that makes this one picture again: every
    default filled in, its own seed. `owner` is whose it is, see `Caller`; `image_id` the picture's in the host's image
    store.
    """

    host: "Host"
    client: str
    owner: str
    job: str
    index: int
    seed: int
    request: "GenerateRequest"
    made: "dict[str, Any]"
    image_id: str
    picture: "Picture"
    result: str | None = None
    unstored: str | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("result", "unstored") and hasattr(self, name):
            raise AttributeError(f"context.{name} cannot be changed any more; context.result may be set")
        object.__setattr__(self, name, value)

    def check(self) -> None:
        """Run after each plugin: raises TypeError when it left something wrong behind."""
        for name in ("result", "unstored"):
            if getattr(self, name) is not None:
                _check_type(name, getattr(self, name), str)


@dataclass(slots=True)
class UpdateContext:
    """For `update_job`. Change what runs with `context.tuning = replace(context.tuning, ...)`.

    `update` are the validated params of `jobs.update`, with the plugins' own fields. `tuning` names the adapters and
    ControlNets of the job's build: their numbers may be changed, not their names or order.
    """

    host: "Host"
    client: str
    job: str
    request: "GenerateRequest"
    update: Any
    tuning: "Tuning"
    _given: "Tuning" = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._given = self.tuning

    def check(self) -> None:
        """Run after each plugin: raises TypeError when it left something wrong behind."""
        from .tuning import Tuning

        _check_type("tuning", self.tuning, Tuning)
        for name in ("adapters", "controlnet_scales"):
            got, wanted = ([key for key, _ in getattr(tuning, name)] for tuning in (self.tuning, self._given))
            if got != wanted:
                raise TypeError(f"context.tuning.{name} must keep the names {wanted}, got {got}")


@dataclass(frozen=True, slots=True)
class ClientContext:
    """For `client_left`: the client that is gone, by the id that `CommandContext.client` gave."""

    client: str


@dataclass(frozen=True, slots=True)
class UnloadContext:
    """For `unload`: `final` tells whether the host ends, else the plugin is loaded anew."""

    final: bool


def _check_type(name: str, value: Any, wanted: type) -> None:
    if not isinstance(value, wanted):
        raise TypeError(f"context.{name} must be a {wanted.__name__}, got {value!r:.80}")


def _kind(latents: "torch.Tensor") -> str:
    return f"shape {list(latents.shape)}, {latents.dtype}, on {latents.device}"


class HookSpecs:
    """Every hook that a host calls."""

    @hookspec
    def register(self, registry: "PluginRegistry") -> None:
        """Once, when the plugin is loaded (main thread): add commands, request fields and schedulers."""

    @hookspec
    def modify_build(self, context: BuildContext) -> None:
        """Once a job, before its model is leased (worker thread): change what the pipeline is made of."""

    @hookspec
    def modify_call(self, context: CallContext) -> None:
        """Once a picture, before it runs (worker thread): change how the pipeline is called."""

    @hookspec
    def step_finished(self, context: StepContext) -> None:
        """After every denoising step (engine thread: all jobs wait for it, so be quick)."""

    @hookspec
    def image_finished(self, context: ImageContext) -> None:
        """Once a finished picture, before it is encoded (worker thread); not for output_type latent."""

    @hookspec
    def image_encoded(self, context: EncodedContext) -> None:
        """Once a finished PNG, before its client hears of it (worker thread); not for output_type latent."""

    @hookspec
    def update_job(self, context: UpdateContext) -> None:
        """Once a `jobs.update` (main thread: do not block): change numbers of a job that runs."""

    @hookspec
    def client_left(self, context: ClientContext) -> None:
        """Once a session, after its end (main thread: do not block); forget what was kept for the client."""

    @hookspec
    def unload(self, context: UnloadContext) -> None:
        """Once, before the plugin is loaded anew and when the host closes (worker thread): end threads, close files."""


def new_manager() -> pluggy.PluginManager:
    """A manager that knows the hooks, and no plugin."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HookSpecs)
    return manager


def hook_names() -> list[str]:
    """The names of all hooks."""
    return [name for name in vars(HookSpecs) if not name.startswith("_")]
