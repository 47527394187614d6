"""Imports one plugin in a process of its own, and tells as lines of JSON what it saw: `python -m ... REQUEST`.

An audit hook, and `time.sleep` with a wrapper, see what blocks while it happens; `__import__` with another one sees who
brings torch, and what takes long.
Each line is written at once: whatever the plugin does to the process, what came before is known.
"""

import builtins
import importlib
import importlib.util
import inspect
import json
import os
import sys
import time
import traceback
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import pluggy

import latentwire

from ..core.api_version import ATTRIBUTE
from ..core.hookspecs import PROJECT

HEAVY = ("torch", "diffusers", "transformers")
OURS = Path(latentwire.__file__).resolve().parent

NETWORK = "socket.connect", "socket.getaddrinfo", "socket.gethostbyname"
PROCESS = "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"
BLOCKING = dict.fromkeys(NETWORK, "uses the network") | dict.fromkeys(PROCESS, "starts a process")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Watch:
    """Sees what happens while a plugin is imported.

    Args:
        folder: Holds all files of the plugin; or it is the only one.
        output: Where to write what is seen.
    """

    def __init__(self, folder: Path, output: int) -> None:
        self._folder = folder
        self._output = output
        self._import = builtins.__import__
        self._sleep = time.sleep
        self._depth = 0
        self.watching = False
        self.imports: dict[tuple[str, int, str], float] = {}
        """What each import statement of the plugin took, in seconds."""

    def tell(self, kind: str, **values: Any) -> None:
        """Write one line."""
        os.write(self._output, json.dumps({"kind": kind, **values}).encode() + b"\n")

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """For `sys.addaudithook`."""
        if not self.watching:
            return
        if event in BLOCKING:
            self._tell_place("blocks", BLOCKING[event])
        elif event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITES and not str(path).startswith("/dev/"):
                name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else "a file"
                self._tell_place("blocks", f"writes {name}")

    def sleep(self, seconds: float) -> None:
        """In place of `time.sleep`."""
        if self.watching:
            self._tell_place("blocks", "sleeps")
        self._sleep(seconds)

    def import_(self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        """In place of `__import__`."""
        if self.watching and level == 0 and name.partition(".")[0] in HEAVY:
            self._tell_place("heavy", name.partition(".")[0])
        caller = sys._getframe(1)
        if not self.watching or level or self._depth or not self._is_plugins(caller.f_code.co_filename):
            return self._import(name, globals, locals, fromlist, level)
        self._depth += 1
        began = time.process_time()
        try:
            return self._import(name, globals, locals, fromlist, level)
        finally:
            self._depth -= 1
            key = (caller.f_code.co_filename, caller.f_lineno, name)
            self.imports[key] = self.imports.get(key, 0.0) + time.process_time() - began

    def _tell_place(self, kind: str, what: str) -> None:
        """Write which line of the plugin does something; nothing, if latentwire, torch or its like did it alone."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            file = frame.f_code.co_filename
            if self._is_plugins(file):
                self.tell(kind, what=what, file=file, line=frame.f_lineno)
                return
            if frame.f_globals.get("__name__", "").partition(".")[0] in HEAVY or _is_ours(file):
                return
            frame = frame.f_back

    def _is_plugins(self, file: str) -> bool:
        return _inside(file, self._folder)


@cache
def _inside(file: str, folder: Path) -> bool:
    if file.startswith("<"):  # no file: the import system's own code
        return False
    path = Path(file).resolve()
    return path == folder or folder in path.parents


def _is_ours(file: str) -> bool:
    return _inside(file, OURS) and not _inside(file, Path(__file__).resolve())


def main(request: dict[str, Any]) -> None:
    """Import the plugin, and say what it is."""
    output = os.dup(1)
    os.dup2(2, 1)  # what the plugin prints
    watch = Watch(Path(request["folder"]), output)
    for name in request["names"]:  # what latentwire itself takes to load is not the plugin's
        getattr(latentwire, name, None)
    if request["root"]:
        sys.path.insert(0, request["root"])
    sys.addaudithook(watch.audit)
    builtins.__import__, time.sleep = watch.import_, watch.sleep  # type: ignore[assignment]
    began, watch.watching = time.process_time(), True
    try:
        module = _load(request)
    except BaseException as error:  # a plugin's SystemExit too
        watch.watching = False
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        own = [place for place in places if _inside(place[0], Path(request["folder"]))]
        file, line = own[-1] if own else (request["file"], 1)
        watch.tell("failed", what=text, file=file, line=line)
        return
    watch.watching = False
    slowest = max(watch.imports.items(), key=lambda item: item[1], default=None)
    watch.tell("imported", seconds=time.process_time() - began, slowest=slowest)
    _describe(watch, module, request)


def _load(request: dict[str, Any]) -> Any:
    if request["module"] is None:
        name = f"latentwire_plugin_{Path(request['file']).stem}"
        spec = importlib.util.spec_from_file_location(name, request["file"])
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    module = importlib.import_module(request["module"])
    found = Path(module.__file__ or "").resolve()
    if found != Path(request["file"]):
        raise ImportError(f"the name {request['module']!r} is taken by {found}")
    for name in (request["attribute"] or "").split("."):
        module = getattr(module, name) if name else module
    return module


def _describe(watch: Watch, module: Any, request: dict[str, Any]) -> None:
    subject = getattr(module, "Plugin", module)
    manager = pluggy.PluginManager(PROJECT)
    hooks = []
    for name in dir(subject):
        if manager.parse_hookimpl_opts(subject, name) is not None:
            code = getattr(inspect.unwrap(getattr(subject, name)), "__code__", None)
            hooks.append([name, code.co_filename, code.co_firstlineno] if code else [name, None, 0])
    settings = getattr(module, "Settings", None)
    if settings is not None and settings is not latentwire.Settings:
        fault = _settings_fault(settings)
        if fault:
            watch.tell("settings", what=fault)
    else:
        settings = None
    if subject is not module:
        try:
            inspect.signature(subject).bind(*([] if settings is None else [settings]))
        except TypeError as error:
            watch.tell("plugin", what=str(error), wanted="nothing" if settings is None else "its settings")
    watch.tell("done", hooks=hooks, has_class=subject is not module, api=_plain(getattr(module, ATTRIBUTE, None)))


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else repr(value)


def _settings_fault(settings: Any) -> str | None:
    from pydantic import BaseModel

    if not isinstance(settings, type) or not issubclass(settings, BaseModel):
        return "is no pydantic model, so settings in plugins.toml would be refused"
    try:
        settings.model_json_schema()
    except Exception as error:
        return f"has no JSON Schema: {' '.join(str(error).split('For further')[0].split())}"
    return None


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    os._exit(0)  # whatever threads the plugin has begun
