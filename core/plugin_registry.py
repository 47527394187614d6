"""What one plugin, or the core, registers: commands, request fields, schedulers, ..., each under one name."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from .clock import Clock
from .errors import PluginError
from .events import Event
from .nodes import NodeType, guarded, problem_of
from .schedulers import MakeScheduler

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image as PILImage
    from starlette.routing import BaseRoute

    from .command_context import CommandContext
    from .host import Host
    from .previews import Array

    MakeRoutes = Callable[[Host], Sequence[BaseRoute]]
    Paint = Callable[[Array], NDArray[np.uint8]]

Entry = TypeVar("Entry")

MakePipelines = Mapping[str, Callable[[], type[Any]]]
"""For each family of models a function that gives the class of a diffusers pipeline."""


@dataclass(frozen=True, slots=True)
class CommandEntry:
    """A command: its params model, and the handler whose return value is the command's result."""

    name: str
    params: type[BaseModel]
    handler: "Callable[[CommandContext, Any], Awaitable[dict[str, Any]]]"
    plugin: str

    @property
    def summary(self) -> str:
        """The first line of the handler's docstring."""
        return (self.handler.__doc__ or "").strip().partition("\n")[0]


@dataclass(frozen=True, slots=True)
class Preprocessor:
    """Makes a control image of a picture: its options' model, and the function itself."""

    options: type[BaseModel]
    apply: "Callable[[PILImage, Any], PILImage]"


@dataclass(frozen=True, slots=True)
class Task:
    """Another pipeline: its class by family, and the one that takes ControlNets, too."""

    pipelines: MakePipelines
    controlnet_pipelines: MakePipelines


@dataclass(kw_only=True)
class Entries:
    """All kinds of things that can be registered, by name."""

    commands: dict[str, CommandEntry] = field(default_factory=dict)
    fields: dict[str, type[BaseModel]] = field(default_factory=dict)
    updates: dict[str, type[BaseModel]] = field(default_factory=dict)
    schedulers: dict[str, MakeScheduler] = field(default_factory=dict)
    events: dict[str, type[Event]] = field(default_factory=dict)
    preprocessors: dict[str, Preprocessor] = field(default_factory=dict)
    previewers: "dict[str, Paint]" = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    nodes: dict[str, NodeType] = field(default_factory=dict)
    routes: "dict[str, MakeRoutes]" = field(default_factory=dict)  # by plugin


TABLES = {
    "command": "commands",
    "field": "fields",
    "update field": "updates",
    "scheduler": "schedulers",
    "event": "events",
    "preprocessor": "preprocessors",
    "previewer": "previewers",
    "task": "tasks",
    "node": "nodes",
    "routes": "routes",
}
"""What an entry of each table is called."""


@dataclass
class PluginRegistry(Entries):
    """What one plugin registers; it counts only when the plugin's `register` returns.

    `settings` are the plugin's own from plugins.toml, an instance of its `Settings` model (None without one). `clock`
    is the host's: it tells the time, and a test may move it.
    """

    plugin: str
    settings: Any = None
    clock: Clock = field(default_factory=Clock)

    def add_command(
        self,
        name: str,
        params: type[BaseModel],
        handler: "Callable[[CommandContext, Any], Awaitable[dict[str, Any]]]",
    ) -> None:
        """Answer to a command.

        Args:
            name: What clients send; plugins use `theirname.verb`.
            params: Validates the client's params; its schema appears in `describe`.
            handler: Async, on the host's event loop; returns the result as a map of plain values. Anything
                slow belongs into a worker thread.
        """
        if not inspect.iscoroutinefunction(handler):
            raise PluginError(f"the handler of command {name!r} must be an async function", plugin=self.plugin)
        self._check_model(name, params)
        self._add(self.commands, name, CommandEntry(name, params, handler, self.plugin))

    def add_field(self, name: str, model: type[BaseModel]) -> None:
        """Add an optional field to `generate`'s request; hooks read it as `context.request.<name>`."""
        from .requests import GenerateRequest

        if name in GenerateRequest.model_fields or not name.isidentifier() or hasattr(GenerateRequest, name):
            raise PluginError(f"a request field cannot be called {name!r}; choose another name", plugin=self.plugin)
        self._check_model(name, model)
        self._add(self.fields, name, model)

    def add_update(self, name: str, model: type[BaseModel]) -> None:
        """Add an optional field to `jobs.update`; the hook `update_job` reads it as `context.update.<name>`."""
        from .requests import UpdateRequest

        if name in UpdateRequest.model_fields or not name.isidentifier() or hasattr(UpdateRequest, name):
            raise PluginError(f"an update field cannot be called {name!r}; choose another name", plugin=self.plugin)
        self._check_model(name, model)
        self._add(self.updates, name, model)

    def add_scheduler(self, name: str, make: MakeScheduler) -> None:
        """Offer a scheduler: `make` takes the model's scheduler config and gives a new object."""
        self._add(self.schedulers, name, make)

    def add_event(self, event: type[Event]) -> None:
        """Make an event of the plugin's own known, so that `describe` lists it; a dataclass derived from `Event`."""
        if not (isinstance(event, type) and issubclass(event, Event) and is_dataclass(event)):
            raise PluginError(f"an event must be a dataclass derived from Event, got {event!r:.80}", plugin=self.plugin)
        taken = {"id", "event", "seq"} & {part.name for part in fields(event)}
        if taken:
            message = f"event {event.name!r} has a field {taken.pop()!r}, which every message has; choose another name"
            raise PluginError(message, plugin=self.plugin)
        self._add(self.events, event.name, event)

    def add_preprocessor(
        self, name: str, options: type[BaseModel], apply: "Callable[[PILImage, Any], PILImage]"
    ) -> None:
        """Offer a way to make a control image.

        Args:
            name: What requests name.
            options: Validates a request's options for it.
            apply: Takes an RGB picture and the options, gives an RGB picture of the same size; in a worker thread.
        """
        self._check_model(name, options)
        self._add(self.preprocessors, name, Preprocessor(options, apply))

    def add_previewer(self, name: str, paint: "Paint") -> None:
        """Offer a way to paint previews.

        Args:
            name: What requests name, as `stream.previews.previewer`.
            paint: Takes the latents of the picture that a step predicts, float32 `(channels, height / 8, width / 8)` as
                the denoiser sees them; gives an RGB picture, uint8 `(h, w, 3)` of any size; in a painter's thread.
        """
        self._add(self.previewers, name, paint)

    def add_node(self, node: NodeType) -> None:
        """Offer a type of node to graphs; see `NodeType`."""
        problem = problem_of(node)
        if problem is not None:
            raise PluginError(problem, plugin=self.plugin)
        self._add(self.nodes, node.name, guarded(node, self.plugin))

    def add_task(self, name: str, pipelines: MakePipelines, controlnet_pipelines: MakePipelines = {}) -> None:
        """Offer another pipeline; a build takes it with `replace(context.build, task=name)`.

        Args:
            name: Of the task.
            pipelines: For each family of models (such as `StableDiffusionPipeline`) a function that gives the class of
                a diffusers pipeline; called when it is first needed, so that nothing heavy is imported before. Its
                constructor names its components, those of `build.modules` among them; its call takes
                `callback_on_step_end`, and `output_type` `pt` and `latent`, as diffusers' own do.
            controlnet_pipelines: The same for builds with ControlNets; a family that is not there has none.
        """
        if name in ("text2img", "img2img", "inpaint"):
            raise PluginError(f"task {name!r} is the host's own; choose another name", plugin=self.plugin)
        self._add(self.tasks, name, Task(dict(pipelines), dict(controlnet_pipelines)))

    def add_routes(self, make: "MakeRoutes") -> None:
        """Answer HTTP requests: `make` is called once with the host, when a server begins, and gives Starlette routes.

        The server lets only those through that may use the host's WebSocket too.
        """
        self._add(self.routes, self.plugin, make)

    def _check_model(self, name: str, model: Any) -> None:
        """Refuse at once what would later break requests, or `describe` for everybody."""
        if not isinstance(model, type) or not issubclass(model, BaseModel):
            raise PluginError(f"the model of {name!r} must be a pydantic model, got {model!r:.80}", plugin=self.plugin)
        try:
            model.model_json_schema()
        except Exception as error:
            message = f"the model of {name!r} has no JSON Schema: {type(error).__name__}: {error}"
            raise PluginError(message, plugin=self.plugin) from error

    def _add(self, table: dict[str, Entry], name: str, entry: Entry) -> None:
        if not isinstance(name, str) or not name:
            raise PluginError(f"a name must be a text, got {name!r:.80}", plugin=self.plugin)
        if name in table:
            raise PluginError(f"plugin {self.plugin!r} registers {name!r} twice", plugin=self.plugin)
        table[name] = entry
