"""From a plugin's name to its hooks and what it registers; nothing of it runs on the host before all of it is there.

A plugin is a module, or the instance that its class `Plugin` makes. It comes with latentwire (a folder of plugins/),
from an installed package (entry point group `latentwire`) or from a local file.
"""

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from . import api_version
from .clock import Clock
from .errors import LatentwireError, PluginError, SettingsError, one_line
from .hookspecs import UnloadContext, hook_names, new_manager
from .nearest import nearest
from .plugin_registry import PluginRegistry
from .secret_settings import hide, resolved
from .settings import PLUGIN_NAME, PluginSettings, parse
from .settings import Settings as HostSettings  # `from latentwire import *` brings it into a plugin's module

BUILT_IN = ("img2img", "controlnet", "lora", "clip_skip", "stats", "http_api", "results", "graph", "comfy_api")
OFF_BY_DEFAULT = ("comfy_api",)  # until plugins.toml lists them

PACKAGE = __package__.rpartition(".")[0]  # latentwire

Source = Literal["built-in", "installed", "file"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plugin that could be loaded. `wrong` says why it cannot be, where its name alone tells."""

    wanted: PluginSettings
    installed: EntryPoint | None
    wrong: str | None = None

    @property
    def name(self) -> str:
        return self.wanted.name

    @property
    def source(self) -> Source:
        return "file" if self.wanted.path else "installed" if self.installed else "built-in"

    @property
    def module_name(self) -> str:
        """What it is imported as."""
        if self.wanted.path is not None:
            return f"latentwire_plugin_{self.name}"
        if self.installed is not None:
            return self.installed.module
        return f"{PACKAGE}.plugins.{self.name}"

    @property
    def version(self) -> str | None:
        """Of its package, or what its file says in `__version__`."""
        if self.source == "built-in":
            return str(sys.modules[PACKAGE].__version__)
        if self.installed is not None and self.installed.dist is not None:
            return self.installed.dist.version
        version = getattr(sys.modules.get(self.module_name), "__version__", None)
        return None if version is None else str(version)

    @property
    def files(self) -> list[Path]:
        """Where its code is: a file, or the folder of its package; nothing, where that cannot be found."""
        if self.wanted.path is not None:
            return [self.wanted.path]
        file = None
        with suppress(Exception):  # a plugin's package may fail in any way
            spec = importlib.util.find_spec(self.module_name)
            file = spec.origin if spec else None
        if file is None:
            return []
        return [Path(file).parent if Path(file).name == "__init__.py" else Path(file)]


@dataclass(frozen=True, slots=True)
class Plugin:
    """A loaded plugin.

    Attributes:
        subject: What has its hooks.
        entries: What it registers.
        api: The API version that it was written for, as it says.
        warnings: What it uses that is deprecated.
    """

    subject: Any
    hooks: list[str]
    entries: PluginRegistry
    settings_model: type[BaseModel] | None
    api: str | None
    warnings: list[str]


def candidates(listed: Iterable[PluginSettings], points: Iterable[EntryPoint], discover: bool) -> list[Candidate]:
    """All plugins in running order: those that the settings list, then the built-in ones, then the installed ones."""
    listed = list(listed)
    names = {plugin.name for plugin in listed}
    installed: dict[str, EntryPoint] = {}
    clashing: list[Candidate] = []
    for point in sorted(points, key=lambda point: (point.name, _package(point))):
        taken = "is a built-in plugin's" if point.name in BUILT_IN else None
        if point.name in installed:
            taken = f"is taken by the package {_package(installed[point.name])!r}"
        elif not re.fullmatch(PLUGIN_NAME, point.name):
            taken = "is none: wanted small letters, digits and underscores"
        if taken is None:
            installed[point.name] = point
        elif discover:
            wrong = f"the name {point.name!r} of the package {_package(point)!r} {taken}; rename its entry point"
            clashing.append(Candidate(PluginSettings.model_construct(name=point.name), point, wrong))
    found = [*BUILT_IN, *(installed if discover else ())]
    listed += [PluginSettings(name=name, enabled=name not in OFF_BY_DEFAULT) for name in found if name not in names]
    return [Candidate(plugin, None if plugin.path else installed.get(plugin.name)) for plugin in listed] + clashing


def read_module(candidate: Candidate) -> Any:
    """Import a plugin's module.

    Raises:
        SettingsError: there is no such plugin.
        Whatever the module raises.
    """
    path, name = candidate.wanted.path, candidate.name
    if candidate.wrong is not None:
        raise SettingsError(candidate.wrong)
    if path is not None:
        if not path.is_file():
            raise SettingsError(f"there is no file {path}")
        spec = importlib.util.spec_from_file_location(candidate.module_name, path)
        if spec is None or spec.loader is None:
            raise SettingsError(f"{path} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[candidate.module_name] = module  # dataclasses and pydantic look their module up there
        spec.loader.exec_module(module)
        return module
    if candidate.installed is None and name not in BUILT_IN:
        raise SettingsError(f"{name!r} is neither built in nor installed; give its path, or install its package")
    if candidate.installed is not None:
        return candidate.installed.load()  # a module, or what its entry point names in it
    return importlib.import_module(candidate.module_name)


def forget_module(candidate: Candidate) -> None:
    """Let a plugin's code be read anew: drop what was imported of it, and its bytecode, which may be of this second."""
    roots = [root.resolve() for root in candidate.files]
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is None or not any(Path(file).resolve().is_relative_to(root) for root in roots):
            continue
        with suppress(OSError, NotImplementedError):
            Path(importlib.util.cache_from_source(file)).unlink(missing_ok=True)
        del sys.modules[name]
    importlib.invalidate_caches()


def load(
    candidate: Candidate,
    module: Any,
    clock: Clock,
    warnings: api_version.Collected,
    take: Callable[[PluginRegistry], None],
) -> Plugin:
    """Make a plugin of its module: check it, give it its settings, and let it register. In the event loop's thread.

    Args:
        warnings: What its import has been warned of; what follows is added.
        take: Is given what the plugin registers; may refuse it.

    Raises:
        SettingsError: its settings are wrong.
        PluginError: it does not keep to the contract.
        Whatever the plugin raises.
    """
    name, notes = candidate.name, getattr(module, api_version.ATTRIBUTE, None)
    unsuitable = api_version.why_unsuitable(notes)
    if unsuitable is not None:
        raise PluginError(unsuitable, plugin=name)
    model = _settings_model(module)
    settings = _settings(model, candidate.wanted)
    hide(settings)
    plugin_class = getattr(module, "Plugin", None)
    subject = module
    if plugin_class is not None:
        subject = plugin_class() if settings is None else plugin_class(settings)
    manager = new_manager()
    manager.register(subject, name)
    entries = PluginRegistry(name, settings, clock)
    try:
        with warnings:
            callers = manager.get_hookcallers(subject) or []
            for caller in callers:
                for implementation in caller.get_hookimpls():
                    _check(name, caller, implementation)
            for implementation in manager.hook.register.get_hookimpls():
                _register(name, implementation.function, entries)
        take(entries)
    except BaseException:
        with suppress(BaseException):  # what it has begun already
            manager.hook.unload(context=UnloadContext(final=False))
        raise
    return Plugin(subject, sorted(caller.name for caller in callers), entries, model, notes, list(warnings))


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _settings_model(module: Any) -> type[BaseModel] | None:
    model = getattr(module, "Settings", None)
    if not isinstance(model, type) or not issubclass(model, BaseModel) or model is HostSettings:
        return None
    try:
        model.model_json_schema()
    except Exception as error:  # later, it would break `describe` for everybody
        raise SettingsError(f"its Settings have no JSON Schema: {one_line(error)}") from error
    return model


def _settings(model: type[BaseModel] | None, wanted: PluginSettings) -> BaseModel | None:
    if model is not None:
        return parse(model, resolved(model, wanted.settings, "settings"), origin="settings")
    if wanted.settings:
        raise SettingsError(f"it has no settings, got {', '.join(wanted.settings)}")
    return None


def _check(name: str, caller: Any, implementation: Any) -> None:
    """Refuse what pluggy accepts and would later do wrong."""
    if caller.spec is None:
        if implementation.optionalhook:  # of a later API version
            return
        near = nearest(caller.name, hook_names(), "hooks")
        raise PluginError(f"it implements {caller.name!r}, which is no hook; {near}", plugin=name, hook=caller.name)
    if inspect.iscoroutinefunction(implementation.function) != inspect.iscoroutinefunction(caller.spec.function):
        raise PluginError(f"its hook {caller.name!r} must not be async", plugin=name, hook=caller.name)
    if implementation.hookwrapper or implementation.wrapper:
        raise PluginError(f"its hook {caller.name!r} must not be a wrapper", plugin=name, hook=caller.name)
    if caller.name in api_version.HOOKS:
        api_version.warn(f"hook {caller.name!r}", api_version.HOOKS[caller.name])


def _register(plugin: str, function: Callable[..., Any], entries: PluginRegistry) -> None:
    """Let a plugin register; whatever it raises names it and the hook."""
    try:
        function(entries)
    except LatentwireError:
        raise  # its own refusal, said in our terms
    except BaseException as error:
        message = f"plugin {plugin!r} failed in register: {one_line(error)}"
        raise PluginError(message, plugin=plugin, hook="register") from error
