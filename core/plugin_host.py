"""Loads plugins one by one and calls their hooks.

A plugin is a module, or the instance that its class `Plugin` makes. It comes with latentwire (a folder of
plugins/), from an installed package (entry point group `latentwire`) or from a local file. One that fails
to load is unregistered whole and reported; the host runs on without it.
"""

import functools
import importlib
import importlib.util
import inspect
import logging
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

import pluggy
from pydantic import BaseModel

from .errors import LatentwireError, PluginError, SettingsError
from .hookspecs import PROJECT, HookSpecs
from .plugin_guard import PluginGuard
from .plugin_registry import PluginRegistry
from .registry import Registry
from .settings import PluginSettings, parse
from .settings import Settings as HostSettings  # `from latentwire import *` brings it into a plugin's module
from .strikes import JOB

BUILT_IN = ("img2img", "controlnet", "lora", "clip_skip", "stats", "http_api", "results")

OUTSIDE_OF_JOBS = ("update_job", "client_left")
"""Hooks whose failures a finished job says nothing about."""

Source = Literal["built-in", "installed", "file"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PluginReport:
    """What became of one plugin: `error` is one line, `trace` the whole traceback of a failed one.

    One may be disabled by the settings, or, with an error, because it kept failing.
    """

    name: str
    source: Source
    state: Literal["loaded", "disabled", "failed"]
    hooks: list[str]
    error: str | None = None
    trace: str | None = None


class PluginHost:
    """The plugins of one host, in the order that their hooks run."""

    def __init__(self, registry: Registry, guard: PluginGuard) -> None:
        self._registry = registry
        self._guard = guard
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(HookSpecs)
        self._reports: list[PluginReport] = []

    @property
    def reports(self) -> list[PluginReport]:
        """One for each plugin that was found, in running order."""
        reasons = {report.name: self._guard.strikes.reason(report.name) for report in self._reports}
        return [
            replace(report, state="disabled", error=reasons[report.name]) if reasons[report.name] else report
            for report in self._reports
        ]

    def load(self, wanted: Iterable[PluginSettings], discover: bool = True) -> None:
        """Load the plugins that the settings name, in that order, then all others that can be found."""
        listed = list(wanted)
        installed = {point.name: point for point in entry_points(group=PROJECT)}
        names = {plugin.name for plugin in listed}
        found = [*BUILT_IN, *(sorted(installed) if discover else ())]
        listed += [PluginSettings.model_construct(name=name) for name in dict.fromkeys(found) if name not in names]
        # pluggy runs the last registered first
        self._reports = [self._load_one(plugin, installed.get(plugin.name)) for plugin in reversed(listed)][::-1]

    def call(self, hook: str, context: Any) -> None:
        """Run one hook of every plugin.

        Raises:
            PluginError: a plugin raised; names it and the hook.
        """
        getattr(self._manager.hook, hook)(context=context)

    def tell(self, hook: str, context: Any) -> None:
        """Run one hook of every plugin, whatever the others raise; what they do goes to the log."""
        for implementation in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            try:
                implementation.function(context)
            except BaseException:
                log.exception("hook %s failed", hook)

    def listens(self, hook: str) -> bool:
        """Whether any plugin implements the hook; what nobody listens to need not be prepared."""
        return bool(getattr(self._manager.hook, hook).get_hookimpls())

    def check_usable(self, table: str, given: Any) -> None:
        """Refuse a request that asks something of a disabled plugin: without its hooks it would be ignored.

        Args:
            table: `field` or `update field`.
            given: The request.

        Raises:
            PluginError: it does.
        """
        for (kind, name), plugin in self._registry.owners.items():
            if kind == table and getattr(given, name, None) is not None:
                self._guard.strikes.check(plugin)

    def _load_one(self, plugin: PluginSettings, installed: EntryPoint | None) -> PluginReport:
        name = plugin.name
        source: Source = "file" if plugin.path else "built-in" if name in BUILT_IN else "installed"
        if not plugin.enabled:
            return PluginReport(name, source, "disabled", [])
        try:
            module = _import(plugin, installed)
            settings = _settings_of(module, plugin)
            subject = _subject_of(module, settings)
            self._register(name, subject, settings)
        except BaseException as error:  # a plugin's SystemExit must not end the host either
            if isinstance(error, KeyboardInterrupt):
                raise
            self._unregister(name)
            line = error.message if isinstance(error, LatentwireError) else f"{type(error).__name__}: {error}"
            log.error("plugin %s (%s) failed to load: %s", name, source, line)
            return PluginReport(name, source, "failed", [], line, traceback.format_exc())
        callers = self._manager.get_hookcallers(subject) or []
        return PluginReport(name, source, "loaded", sorted(caller.name for caller in callers))

    def _register(self, name: str, subject: Any, settings: Any) -> None:
        self._manager.register(subject, name=name)
        for caller in self._manager.get_hookcallers(subject) or []:
            for implementation in caller.get_hookimpls():
                if implementation.plugin is subject:
                    _check(name, caller, implementation)
                    self._watch_over(implementation, name, caller.name)
        entries = PluginRegistry(name, settings)
        only_others = [other for other in self._manager.get_plugins() if other is not subject]
        self._manager.subset_hook_caller("register", only_others)(registry=entries)
        self._registry.merge(entries)

    def _watch_over(self, implementation: Any, plugin: str, hook: str) -> None:
        """Let the hook's function run under guard, and no more once its plugin is disabled."""
        function, guard, where = implementation.function, self._guard, hook
        if hook == "register":  # while the host starts: nobody waits for it yet
            implementation.function = _naming(function, plugin, hook)
            return

        def checked(*args: Any) -> None:
            function(*args)
            for context in args:
                if hasattr(context, "check"):
                    context.check()

        @functools.wraps(function)
        def call(*args: Any) -> None:
            if guard.strikes.reason(plugin) is not None:
                return
            job = getattr(args[0], "job", None)
            if hook in OUTSIDE_OF_JOBS:
                guard.run(plugin, where, partial(checked, *args), hook, hook)
                guard.strikes.forgive(hook, plugin)
            else:
                guard.run(plugin, where, partial(checked, *args), hook, JOB, job)

        implementation.function = call

    def _unregister(self, name: str) -> None:
        if self._manager.has_plugin(name):
            self._manager.unregister(name=name)


def _import(plugin: PluginSettings, installed: EntryPoint | None) -> Any:
    if plugin.path is not None:
        if not plugin.path.is_file():
            raise SettingsError(f"plugin {plugin.name!r}: there is no file {plugin.path}")
        module_name = f"latentwire_plugin_{plugin.name}"
        spec = importlib.util.spec_from_file_location(module_name, plugin.path)
        if spec is None or spec.loader is None:
            raise SettingsError(f"plugin {plugin.name!r}: {plugin.path} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # dataclasses and pydantic look their module up there
        spec.loader.exec_module(module)
        return module
    if plugin.name in BUILT_IN:
        return importlib.import_module(f"{__package__.rpartition('.')[0]}.plugins.{plugin.name}")
    if installed is None:
        raise SettingsError(f"plugin {plugin.name!r} is neither built in nor installed; give its path, or install it")
    return installed.load()


def _settings_of(module: Any, plugin: PluginSettings) -> Any:
    model = getattr(module, "Settings", None)
    if isinstance(model, type) and issubclass(model, BaseModel) and model is not HostSettings:
        return parse(model, plugin.settings, origin=f"settings of plugin {plugin.name!r}")
    if plugin.settings:
        raise SettingsError(f"plugin {plugin.name!r} has no settings, got {', '.join(plugin.settings)}")
    return None


def _subject_of(module: Any, settings: Any) -> Any:
    plugin_class = getattr(module, "Plugin", None)
    if plugin_class is None:
        return module
    return plugin_class() if settings is None else plugin_class(settings)


def _check(name: str, caller: Any, implementation: Any) -> None:
    """Refuse what pluggy accepts and would later do wrong."""
    if caller.spec is None:
        raise PluginError(
            f"plugin {name!r} implements {caller.name!r}, which is no hook; hooks: {', '.join(hook_names())}",
            plugin=name,
            hook=caller.name,
        )
    if inspect.iscoroutinefunction(implementation.function) != inspect.iscoroutinefunction(caller.spec.function):
        raise PluginError(f"hook {caller.name!r} of plugin {name!r} must not be async", plugin=name, hook=caller.name)
    if implementation.hookwrapper or implementation.wrapper:
        raise PluginError(f"hook {caller.name!r} of plugin {name!r} must not be a wrapper", plugin=name)


def hook_names() -> list[str]:
    """The names of all hooks."""
    return [name for name in vars(HookSpecs) if not name.startswith("_")]


def _naming(function: Any, plugin: str, hook: str) -> Any:
    """Let whatever a function raises name its plugin and hook."""

    @functools.wraps(function)
    def call(*args: Any) -> None:
        try:
            function(*args)
        except LatentwireError:
            raise  # a plugin's own refusal, said in our terms
        except BaseException as error:
            message = f"plugin {plugin!r} failed in {hook}: {type(error).__name__}: {error}"
            raise PluginError(message, plugin=plugin, hook=hook) from error

    return call
