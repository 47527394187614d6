"""What plugins and the core have registered: commands, request fields, schedulers, each under one name."""

import difflib
import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from .clock import Clock
from .errors import PluginError
from .events import Event
from .plugin_guard import PluginGuard
from .schedulers import MakeScheduler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image as PILImage
    from starlette.routing import BaseRoute

    from .commands import CommandContext
    from .host import Host

    MakeRoutes = Callable[[Host], Sequence[BaseRoute]]

Entry = TypeVar("Entry")

CORE = "latentwire"
"""Owns what no plugin brought."""

PLUGIN_TIMEOUT_S = 30.0

MOST_NAMES = 12  # of those that an error lists


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


def nearest(name: str, table: Mapping[str, Any], plural: str) -> str:
    """A hint for a name that a table does not hold: the nearest one that it does, or all of them."""
    near = difflib.get_close_matches(name, table, n=1)
    names = sorted(table)
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"did you mean {near[0]!r}?" if near else f"{plural}: {', '.join(names[:MOST_NAMES])}{more}"


@dataclass
class Registry:
    """All entries of one host, by name."""

    commands: dict[str, CommandEntry] = field(default_factory=dict)
    fields: dict[str, type[BaseModel]] = field(default_factory=dict)
    updates: dict[str, type[BaseModel]] = field(default_factory=dict)
    schedulers: dict[str, MakeScheduler] = field(default_factory=dict)
    events: dict[str, type[Event]] = field(default_factory=dict)
    preprocessors: dict[str, Preprocessor] = field(default_factory=dict)
    routes: "dict[str, MakeRoutes]" = field(default_factory=dict)  # by plugin
    owners: dict[tuple[str, str], str] = field(default_factory=dict)
    guard: PluginGuard = field(default_factory=lambda: PluginGuard(PLUGIN_TIMEOUT_S))

    def merge(self, addition: "PluginRegistry") -> None:
        """Take over everything that one plugin registered, or nothing.

        Raises:
            PluginError: a name is taken; the error names both owners.
        """
        tables: list[tuple[str, dict[str, Any], Mapping[str, Any]]] = [
            ("command", self.commands, addition.commands),
            ("field", self.fields, addition.fields),
            ("update field", self.updates, addition.updates),
            ("scheduler", self.schedulers, addition.schedulers),
            ("event", self.events, addition.events),
            ("preprocessor", self.preprocessors, addition.preprocessors),
            ("routes", self.routes, addition.routes),
        ]
        for kind, table, entries in tables:
            for name in entries:
                if name in table:
                    owner = self.owners[kind, name]
                    raise PluginError(
                        f"{kind} {name!r} of plugin {addition.plugin!r} is taken by {owner!r}; rename one",
                        plugin=addition.plugin,
                    )
        for kind, table, entries in tables:
            table.update(entries)
            self.owners.update({(kind, name): addition.plugin for name in entries})

    def new_scheduler(self, name: str, config: Mapping[str, Any]) -> Any:
        """A fresh scheduler for one picture, from the model's scheduler config.

        Raises:
            PluginError: the plugin that brought the scheduler could not make one for this model.
        """
        owner, where = self.owners["scheduler", name], f"scheduler {name!r}"

        def make() -> Any:
            scheduler = self.schedulers[name](config)
            if not callable(getattr(scheduler, "step", None)):
                raise TypeError(f"got {scheduler!r:.80}, wanted a scheduler")
            return scheduler

        scheduler = self.guard.run(owner, where, make)
        if owner != CORE:
            scheduler.step = self._guarded(scheduler.step, owner, where)
        return scheduler

    def preprocess(self, name: str, picture: "PILImage", options: Any) -> "PILImage":
        """A picture as a registered preprocessor makes it, of the same size, in RGB.

        Raises:
            PluginError: it raised, or gave something else; names the plugin that brought it.
        """
        owner = self.owners["preprocessor", name]

        def apply() -> "PILImage":
            result = self.preprocessors[name].apply(picture, options)
            if getattr(result, "size", None) != picture.size:
                raise ValueError(f"of a picture of {picture.size} it made {getattr(result, 'size', repr(result)[:80])}")
            return result.convert("RGB")

        return self.guard.run(owner, f"preprocessor {name!r}", apply)

    def _guarded(self, step: Any, owner: str, where: str) -> Any:
        @functools.wraps(step)  # pipelines look for eta and generator in its signature
        def guarded(*args: Any, **kwargs: Any) -> Any:
            return self.guard.run(owner, where, functools.partial(step, *args, **kwargs))

        return guarded


@dataclass
class PluginRegistry:
    """What one plugin registers; it counts only when the plugin's `register` returns.

    `settings` are the plugin's own from plugins.toml, an instance of its `Settings` model (None without one). `clock`
    is the host's: it tells the time, and a test may move it.
    """

    plugin: str
    settings: Any = None
    clock: Clock = field(default_factory=Clock)
    commands: dict[str, CommandEntry] = field(default_factory=dict)
    fields: dict[str, type[BaseModel]] = field(default_factory=dict)
    updates: dict[str, type[BaseModel]] = field(default_factory=dict)
    schedulers: dict[str, MakeScheduler] = field(default_factory=dict)
    events: dict[str, type[Event]] = field(default_factory=dict)
    preprocessors: dict[str, Preprocessor] = field(default_factory=dict)
    routes: "dict[str, MakeRoutes]" = field(default_factory=dict)

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
        if name in table:
            raise PluginError(f"plugin {self.plugin!r} registers {name!r} twice", plugin=self.plugin)
        table[name] = entry
