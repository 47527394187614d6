"""All that plugins and the core have registered with one host, and how what plugins bring is used."""

import asyncio
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from .errors import InvalidParams, LatentwireError, PluginError
from .faults import is_device, is_memory, typed
from .nearest import nearest
from .nodes import checked
from .plugin_guard import PluginGuard
from .plugin_registry import TABLES, Entries, PluginRegistry

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image as PILImage

    from .build import PipelineBuild
    from .nodes import NodeContext
    from .previews import Array
    from .requests import StreamOptions

CORE = "latentwire"
"""Owns what no plugin brought."""

PLUGIN_TIMEOUT_S = 30.0


@dataclass
class Registry(Entries):
    """All entries of one host, by name."""

    owners: dict[tuple[str, str], str] = field(default_factory=dict)
    guard: PluginGuard = field(default_factory=lambda: PluginGuard(PLUGIN_TIMEOUT_S))
    _pipelines: dict[tuple[str, str, bool], tuple[Any, type[Any]]] = field(default_factory=dict)

    def merge(self, addition: PluginRegistry) -> None:
        """Take over everything that a plugin registers, or nothing.

        Raises:
            PluginError: a name is taken; the error names both owners.
        """
        self._add(addition, {kind: getattr(self, table) for kind, table in TABLES.items()})

    def replace(self, addition: PluginRegistry) -> None:
        """As `merge`, in place of what the plugin has registered before; where that fails, that stays."""
        self._add(addition, {kind: self._without(addition.plugin, kind) for kind in TABLES})

    def remove(self, plugin: str) -> None:
        """Forget everything that a plugin has registered."""
        self._add(PluginRegistry(plugin), {kind: self._without(plugin, kind) for kind in TABLES})

    def _add(self, addition: PluginRegistry, kept: Mapping[str, dict[str, Any]]) -> None:
        """Put new tables in place of the old ones, whose readers are not disturbed."""
        plugin = addition.plugin
        for kind, table in TABLES.items():
            for name in getattr(addition, table):
                if name in kept[kind]:
                    message = (
                        f"{kind} {name!r} of plugin {plugin!r} is taken by {self.owners[kind, name]!r}; rename one"
                    )
                    raise PluginError(message, plugin=plugin)
        owners = {(kind, name): self.owners[kind, name] for kind in TABLES for name in kept[kind]}
        self.owners = owners | {
            (kind, name): plugin for kind, table in TABLES.items() for name in getattr(addition, table)
        }
        for kind, table in TABLES.items():
            setattr(self, table, kept[kind] | getattr(addition, table))

    def _without(self, plugin: str, kind: str) -> dict[str, Any]:
        entries: dict[str, Any] = getattr(self, TABLES[kind])
        return {name: entry for name, entry in entries.items() if self.owners[kind, name] != plugin}

    def _entry(self, kind: str, name: str) -> tuple[str, Any]:
        """Whose an entry is, and the entry.

        Raises:
            PluginError: there is none, or no more: its plugin was loaded anew and no longer has it.
        """
        try:
            return self.owners[kind, name], getattr(self, TABLES[kind])[name]
        except KeyError:
            raise PluginError(f"there is no {kind} {name!r} any more", plugin=CORE) from None

    def new_scheduler(self, name: str, config: Mapping[str, Any]) -> Any:
        """A fresh scheduler for one picture, from the model's scheduler config.

        Raises:
            PluginError: the plugin that brought the scheduler could not make one for this model.
        """
        owner, make_one = self._entry("scheduler", name)
        where = f"scheduler {name!r}"

        def make() -> Any:
            scheduler = make_one(config)
            if not callable(getattr(scheduler, "step", None)):
                raise TypeError(f"got {scheduler!r:.80}, wanted a scheduler")
            return scheduler

        scheduler = self.guard.run(owner, where, make)
        if owner != CORE:
            scheduler.step = self._guarded(scheduler.step, owner, where)
        return scheduler

    def pipeline_class(self, family: str, build: "PipelineBuild") -> type[Any]:
        """The pipeline for a build of a model of this family: one of diffusers', or a plugin's.

        Raises:
            InvalidParams: nobody has one.
            PluginError: the plugin that brought the task could not give its class.
        """
        from .build import pipeline_class

        task = build.task
        if task not in self.tasks:
            return pipeline_class(family, build)
        owner, entry = self._entry("task", task)
        pipelines = entry.controlnet_pipelines if build.controlnets else entry.pipelines
        if family not in pipelines:
            what = "with a ControlNet" if build.controlnets else f"with a {family}"
            message = f"{task} of plugin {owner!r} does not work {what}; it is for {', '.join(entry.pipelines)}"
            raise InvalidParams(message, [{"path": ["model"], "message": message, "got": build.model}])
        self.guard.strikes.check(owner)
        give = pipelines[family]
        key = (task, family, bool(build.controlnets))
        known = self._pipelines.get(key)
        if known is not None and known[0] is give:  # else its plugin was loaded anew
            return known[1]
        found = self.guard.run(owner, f"task {task!r}", partial(_pipeline_class, give))
        self._pipelines[key] = (give, found)
        return found

    def check_previews(self, stream: "StreamOptions", path: "Sequence[str]" = ("stream",)) -> None:
        """Refuse a stream whose previews nobody can paint.

        Raises:
            InvalidParams: no previewer has the name.
            PluginError: its plugin is disabled.
        """
        name = stream.previews and stream.previews.previewer
        if not name:
            return
        if name not in self.previewers:
            message = f"there is no previewer {name!r:.80}; {nearest(name, self.previewers, 'previewers')}"
            raise InvalidParams(
                message, [{"path": [*path, "previews", "previewer"], "message": message, "got": name[:80]}]
            )
        self.guard.strikes.check(self._entry("previewer", name)[0])

    def paint(self, name: str, latents: "Array") -> "NDArray[np.uint8]":
        """A preview as a registered previewer paints it.

        Raises:
            PluginError: it raised, or gave something else; names the plugin that brought it.
        """
        owner, paint_one = self._entry("previewer", name)

        def paint() -> "NDArray[np.uint8]":
            picture = paint_one(latents)
            dtype = getattr(picture, "dtype", None)
            shape: tuple[int, ...] = getattr(picture, "shape", ())
            if str(dtype) != "uint8" or len(shape) != 3 or shape[-1] != 3 or not all(shape):
                raise TypeError(f"it painted {shape or repr(picture)[:80]} of {dtype}, wanted (h, w, 3) of uint8")
            return picture  # type: ignore[no-any-return]

        return self.guard.run(owner, f"previewer {name!r}", paint)

    def preprocess(self, name: str, picture: "PILImage", options: Any) -> "PILImage":
        """A picture as a registered preprocessor makes it, of the same size, in RGB.

        Raises:
            PluginError: it raised, or gave something else; names the plugin that brought it.
        """
        owner, preprocessor = self._entry("preprocessor", name)

        def apply() -> "PILImage":
            result = preprocessor.apply(picture, options)
            if getattr(result, "size", None) != picture.size:
                raise ValueError(f"of a picture of {picture.size} it made {getattr(result, 'size', repr(result)[:80])}")
            made: PILImage = result.convert("RGB")
            return made

        return self.guard.run(owner, f"preprocessor {name!r}", apply)

    async def run_node(self, name: str, context: "NodeContext", inputs: Mapping[str, Any]) -> tuple[Any, ...]:
        """The outputs of a node; on the event loop, where only async nodes run.

        Raises:
            PluginError: it raised, or gave something else; names the plugin that brought it.
            LatentwireError: it refused on purpose.
        """
        owner, node = self._entry("node", name)
        where = f"node {name}"
        self.guard.strikes.check(owner)
        try:
            if node.is_async:
                outputs = await node.run(context, inputs)
            else:
                run = partial(self.guard.run, owner, where, partial(node.run, context, inputs), kind=where)
                outputs = await context.host.with_pixels(run)
            if not isinstance(outputs, list | tuple) or len(outputs) != len(node.outputs):
                raise TypeError(f"it gave {outputs!r:.80}, wanted {len(node.outputs)} outputs")
            outputs = [checked(output.type, value) for output, value in zip(node.outputs, outputs, strict=True)]
        except LatentwireError:
            raise
        except BaseException as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            if is_device(error) or is_memory(error):
                raise typed(error) from error
            raise self.guard.failed(owner, where, error, kind=where) from error
        self.guard.strikes.forgive(where, owner)
        return tuple(outputs)

    def _guarded(self, step: Any, owner: str, where: str) -> Any:
        @functools.wraps(step)  # pipelines look for eta and generator in its signature
        def guarded(*args: Any, **kwargs: Any) -> Any:
            return self.guard.run(owner, where, functools.partial(step, *args, **kwargs))

        return guarded


def _pipeline_class(give: Callable[[], type[Any]]) -> type[Any]:
    from diffusers import DiffusionPipeline

    found = give()
    if not isinstance(found, type) or not issubclass(found, DiffusionPipeline):
        raise TypeError(f"it gave {found!r:.80}, wanted the class of a diffusers pipeline")
    return found
