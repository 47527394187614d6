"""Names that a plugin may have, and those of what a plugin finds in a host."""

import difflib
import re
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path

import pluggy

from ..core.hookspecs import PROJECT, HookSpecs

PACKAGE = Path(__file__).resolve().parents[1]
"""The folder of latentwire itself."""

MOST_NAMES = 12  # that a hint lists

PLUGIN_NAME = re.compile(r"[a-z][a-z0-9_]*")


def built_in() -> list[str]:
    """The built-in plugins: the folders of plugins/."""
    return sorted(file.parent.name for file in (PACKAGE / "plugins").glob("*/__init__.py"))


def installed() -> set[str]:
    """The plugins of installed packages."""
    return {point.name for point in entry_points(group=PROJECT)}


def hooks() -> dict[str, list[str]]:
    """Each hook, and the arguments that it is called with."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HookSpecs)
    callers = {name: getattr(manager.hook, name) for name in vars(HookSpecs) if not name.startswith("_")}
    return {name: list(caller.spec.argnames) for name, caller in callers.items()}


def nearest(name: str, names: Iterable[str], plural: str) -> str:
    """A hint for a name that is none: the nearest one that is, or some."""
    known = sorted(names)
    near = difflib.get_close_matches(name, known, n=1)
    more = f" and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
    return f"did you mean {near[0]!r}?" if near else f"{plural}: {', '.join(known[:MOST_NAMES])}{more}"
