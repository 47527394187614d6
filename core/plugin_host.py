"""The plugins of one host: loaded one by one, called in the order of the settings, switched on and off while it runs.

One that fails to load is reported and left out whole; the host runs on without it.
"""

import logging
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from .api_version import Collected
from .clock import Clock
from .errors import InvalidParams, PluginError, one_line
from .hook_times import HookTime
from .hookspecs import PROJECT, UnloadContext, hook_names, new_manager
from .nearest import nearest
from .plugin_guard import Hook, PluginGuard
from .plugin_loading import (
    Candidate,
    Plugin,
    Source,
    candidates,
    forget_module,
    load,
    read_module,
)
from .registry import Registry
from .secret_settings import struck_out
from .settings import PluginSettings

SWITCHED_OFF = "disabled by an operator"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PluginReport:
    """What became of one plugin: `error` is one line, `trace` the whole traceback of a failed one.

    One may be disabled by the settings, or, with an error, by an operator, or because it kept failing.
    """

    name: str
    version: str | None
    source: Source
    state: Literal["loaded", "disabled", "failed"]
    hooks: list[str]
    api: str | None = None
    warnings: list[str] = field(default_factory=list)
    times: dict[str, dict[str, Any]] = field(default_factory=dict)
    error: str | None = None
    trace: str | None = None


@dataclass
class _Row:
    """A plugin that was found, and what became of it."""

    candidate: Candidate
    plugin: Plugin | None = None
    error: str | None = None
    trace: str | None = None
    times: dict[str, HookTime] = field(default_factory=dict)


class PluginHost:
    """The plugins of one host, in the order that their hooks run.

    Args:
        changed: Told when plugins have come, gone or been switched; on the event loop.
    """

    def __init__(
        self, registry: Registry, guard: PluginGuard, clock: Clock, changed: Callable[[], None] = lambda: None
    ) -> None:
        self._registry = registry
        self._guard = guard
        self._clock = clock
        self._changed = changed
        self._rows: list[_Row] = []
        self._hooks: dict[str, tuple[Hook, ...]] = dict.fromkeys(hook_names(), ())
        self._leaving: set[str] = set()

    @property
    def reports(self) -> list[PluginReport]:
        """One for each plugin that was found, in running order."""
        return [self._report(row) for row in self._rows]

    def load(self, wanted: Iterable[PluginSettings], discover: bool = True) -> None:
        """Load the plugins that the settings name, in that order, then all others that can be found."""
        self._rows = [_Row(found) for found in candidates(wanted, entry_points(group=PROJECT), discover)]
        for row in self._rows:
            if row.candidate.wanted.enabled:
                warnings = Collected()
                self._put_in(row, self._read(row, warnings), warnings)
        self._arrange()

    def call(self, hook: str, context: Any) -> None:
        """Run one hook of every plugin.

        Raises:
            PluginError: a plugin raised; names it and the hook.
        """
        hooks = self._hooks[hook]
        if hooks:
            self._guard.run_hooks(hook, hooks, context)

    def tell(self, hook: str, context: Any) -> None:
        """Run one hook of every plugin, whatever the others raise; what they do goes to the log."""
        self._tell(hook, context, self._hooks[hook])

    def listens(self, hook: str) -> bool:
        """Whether any plugin implements the hook; what nobody listens to need not be prepared."""
        return bool(self._hooks[hook])

    def check_usable(self, table: str, given: Any) -> None:
        """Refuse a request that asks something of a plugin that is disabled or gone: it would be ignored.

        Args:
            table: `field` or `update field`.
            given: The request.

        Raises:
            PluginError: it does.
        """
        owners = self._registry.owners
        model = type(given)
        own = {name for base in model.__bases__ for name in getattr(base, "model_fields", ())}
        for name in model.model_fields.keys() - own:
            if getattr(given, name) is not None:
                plugin = owners.get((table, name))
                if plugin is None:  # it was loaded anew meanwhile, and has it no more
                    raise PluginError(f"there is no {table} {name!r} any more", plugin=PROJECT)
                self._guard.strikes.check(plugin)

    def disable(self, name: str) -> PluginReport:
        """Call a plugin no more, and answer for it with an error, until it is enabled again.

        Raises:
            InvalidParams: there is no such plugin, or it is not loaded.
        """
        row = self._find(name)
        if row.plugin is None:
            state = self._report(row).state
            message = f"plugin {name!r} is not loaded, it is {state}"
            raise InvalidParams(message, [{"path": ["name"], "message": message, "got": name}])
        self._guard.strikes.disable(name, SWITCHED_OFF)
        log.warning("plugin %s is disabled by an operator", name)
        self._changed()
        return self._report(row)

    def enable(self, name: str) -> PluginReport:
        """Let a plugin that is loaded work again, and forgive it what it was disabled for."""
        return self._works(self._find(name), "enabled")

    def put_in(self, name: str, read: Any) -> PluginReport:
        """Load a plugin as its code is now, in its place; jobs under way go on with it. One that fails is left out.

        Args:
            read: What `read` gave; where another one was loaded, `unload` comes between the two.

        Raises:
            PluginError: it failed to load, see its report.
        """
        row = self._find(name)
        self._put_in(row, *read)
        self._leaving.discard(name)
        self._arrange()
        if row.plugin is None:
            self._changed()
            raise PluginError(f"plugin {name!r} failed to load: {row.error}", plugin=name)
        return self._works(row, "loaded anew")

    def is_loaded(self, name: str) -> bool:
        """Whether a plugin is loaded, though it may be disabled.

        Raises:
            InvalidParams: there is no such plugin.
        """
        return self._find(name).plugin is not None

    def is_leaving(self, name: str) -> bool:
        """Whether a plugin's code has been told to end, and is not replaced yet: what it raises now is no fault."""
        return name in self._leaving

    def read(self, name: str) -> Any:
        """Import a plugin's code anew, for `put_in`; in a worker thread, for it may take its time.

        Raises:
            InvalidParams: there is no such plugin.
        """
        row = self._find(name)
        forget_module(row.candidate)
        warnings = Collected()
        return self._read(row, warnings), warnings

    def unload(self, name: str) -> None:
        """Let a plugin end what it runs of its own, before `put_in` replaces its code; in a worker thread."""
        self._leaving.add(name)
        own = [hook for hook in self._hooks["unload"] if hook.plugin == name]
        self._tell("unload", UnloadContext(final=False), own)

    def files(self) -> dict[str, list[Path]]:
        """Where the code of plugins is that did not come with latentwire, by name: files, and folders of packages."""
        rows = [row.candidate for row in self._rows if row.candidate.source != "built-in"]
        return {candidate.name: candidate.files for candidate in rows}

    def settings_models(self) -> dict[str, Any]:
        """The pydantic models of the settings of all loaded plugins, by name; None for those without any."""
        return {row.candidate.name: row.plugin.settings_model for row in self._rows if row.plugin is not None}

    def close(self) -> None:
        """Let every plugin end what it runs of its own."""
        self.tell("unload", UnloadContext(final=True))

    def _works(self, row: _Row, since: str) -> PluginReport:
        """A plugin begins to work, or begins again."""
        self._guard.strikes.enable(row.candidate.name)
        log.info("plugin %s is %s", row.candidate.name, since)
        self._changed()
        return self._report(row)

    def _tell(self, hook: str, context: Any, implementations: Iterable[Hook]) -> None:
        for implementation in implementations:
            try:
                self._guard.run_hooks(hook, (implementation,), context)
            except BaseException:
                log.exception("hook %s failed", hook)

    def _find(self, name: str) -> _Row:
        rows = {row.candidate.name: row for row in reversed(self._rows)}
        if name not in rows:
            message = f"there is no plugin {name!r:.80}; {nearest(name, rows, 'plugins')}"
            raise InvalidParams(message, [{"path": ["name"], "message": message, "got": name[:80]}])
        return rows[name]

    def _read(self, row: _Row, warnings: Collected) -> Any:
        """The plugin's module, or what its import raised."""
        try:
            with warnings:
                return read_module(row.candidate)
        except BaseException as error:  # a plugin's SystemExit must not end the host
            if isinstance(error, KeyboardInterrupt):
                raise
            return error

    def _put_in(self, row: _Row, module: Any, warnings: Collected) -> None:
        """Load one plugin, or note why that fails."""
        candidate = row.candidate
        try:
            if isinstance(module, BaseException):
                raise module
            plugin = load(candidate, module, self._clock, warnings, self._registry.replace)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            if row.plugin is not None:  # else what is registered under its name is of another plugin that has the name
                self._registry.remove(candidate.name)
            row.plugin, row.error = None, struck_out(one_line(error))
            row.trace = struck_out("".join(traceback.format_exception(error)))
            log.error("plugin %s (%s) failed to load: %s", candidate.name, candidate.source, row.error)
            log.debug("%s", row.trace)
            return
        row.plugin, row.error, row.trace = plugin, None, None
        for warning in warnings:
            log.warning("plugin %s: %s", candidate.name, warning)

    def _arrange(self) -> None:
        """Put all hooks in their order; in one go, for jobs go on calling them."""
        manager = new_manager()
        rows = {row.candidate.name: row for row in self._rows if row.plugin is not None}
        for name, row in reversed(rows.items()):  # pluggy runs the last registered first
            assert row.plugin is not None
            manager.register(row.plugin.subject, name)
        hooks: dict[str, tuple[Hook, ...]] = {}
        for name in hook_names():
            found = []
            for implementation in reversed(getattr(manager.hook, name).get_hookimpls()):
                times = rows[implementation.plugin_name].times.setdefault(name, HookTime())
                found.append(Hook(implementation.plugin_name, implementation.function, implementation.argnames, times))
            hooks[name] = tuple(found)
        self._hooks = hooks

    def _report(self, row: _Row) -> PluginReport:
        candidate, plugin = row.candidate, row.plugin
        about = (candidate.name, candidate.version, candidate.source)
        if plugin is None:
            state: Literal["failed", "disabled"] = "failed" if row.error else "disabled"
            return PluginReport(*about, state, [], error=row.error, trace=row.trace)
        reason = self._guard.strikes.reason(candidate.name)
        times = {hook: time.plain() for hook, time in row.times.items() if time.calls}
        state_now: Literal["loaded", "disabled"] = "disabled" if reason else "loaded"
        return PluginReport(*about, state_now, plugin.hooks, plugin.api, plugin.warnings, times, reason)
