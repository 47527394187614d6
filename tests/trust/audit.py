"""Watches a process of the tests for what a host never does: unpickle, read files of elsewhere, call out.

Files: what is opened lies below Python and its packages, the project, the folder for temporary files, the working
directory, the user's ~/.cache, or the system's own folders; weights, configs and the like (by their suffix), links
followed, not in those last. Connections: to loopback, or a Unix socket. Pickles: none by torch, nor below any call of
the host's own code. An event costs some microseconds.
"""

import functools
import os
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

PROJECT = os.path.realpath(Path(__file__).parents[2])
OURS = tuple(os.path.join(PROJECT, room, "") for room in ("core", "server", "plugins", "client"))
UNPICKLERS = ("/torch/serialization.py", "/torch/_weights_only_unpickler.py", "/numpy/lib/", "/joblib/")
COMPILER = ("/torch/_inductor/", "/torch/_functorch/")  # torch.compile's cache of its own code; see docs/security.md
HOME = os.path.expanduser("~")
PREFIXES = (sys.prefix, sys.base_prefix, sys.exec_prefix, *filter(os.path.isabs, sys.path))
PYTHON = {os.path.realpath(place) for place in PREFIXES}
MODELS = (*PYTHON, PROJECT, os.path.realpath(tempfile.gettempdir()))
SYSTEM = (*MODELS, os.path.join(HOME, ".cache"), "/proc", "/sys", "/dev", "/etc", "/usr", "/lib", "/var/tmp", "/run")
SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".pkl", ".json", ".txt", ".png", ".toml")

LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0", "::ffff:127.")

violations: list[str] = []
"""What was caught so far."""


def install() -> None:
    """Watch this process from now on; there is no way back."""
    sys.addaudithook(_hook)


def watch_torch() -> None:
    """Catch every `torch.load`, also of weights alone, for which Python has no event; loads torch."""
    import torch

    load = torch.load

    @functools.wraps(load)
    def caught(*args: Any, **kwargs: Any) -> Any:
        _caught("called torch.load")
        return load(*args, **kwargs)

    torch.load = caught


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        if isinstance(arguments[0], str | bytes):
            _opened(os.fsdecode(arguments[0]))
    elif event == "socket.connect":
        _connected(arguments[1])
    elif event == "pickle.find_class":
        _unpickled(f"{arguments[0]}.{arguments[1]}")


def _opened(path: str) -> None:
    if not path.endswith(SUFFIXES):
        path = os.path.abspath(path)
        if not _below(path, SYSTEM) and not _below(path, (os.getcwd(),)):
            _caught(f"opened {path}")
    elif not path.startswith(("/proc/self/fd/", "/etc/", "/usr/")):
        real = os.path.realpath(path)
        if not _below(real, MODELS) and not _below(real, (os.path.join(HOME, ".cache"), os.getcwd())):
            _caught(f"opened {real}")


def _connected(address: Any) -> None:
    if isinstance(address, tuple) and not str(address[0]).startswith(
        ("127.", "::1", "localhost", "0.0.0.0", "::ffff:127.")
    ):
        _caught(f"connected to {address}")


def _unpickled(name: str) -> None:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if any(part in file for part in COMPILER):
            return
        if any(part in file for part in UNPICKLERS) or os.path.realpath(file).startswith(OURS):
            _caught(f"unpickled {name} in {file}")
            return
        frame = frame.f_back


def _below(path: str, places: tuple[str, ...]) -> bool:
    return any(path == place or path.startswith(f"{place}{os.sep}") for place in places)


def _caught(what: str) -> None:
    violations.append(what)
    print(f"AUDIT: {what}", file=sys.stderr, flush=True)
