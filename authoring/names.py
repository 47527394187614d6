"""Names that a plugin may have, and those of what a plugin finds in a host."""

import re
from importlib.metadata import entry_points
from pathlib import Path

from ..core.hookspecs import PROJECT, hook_names, new_manager
from ..core.settings import PLUGIN_NAME as PATTERN

PACKAGE = Path(__file__).resolve().parents[1]
"""The folder of latentwire itself."""

PLUGIN_NAME = re.compile(PATTERN)


def built_in() -> list[str]:
    """The built-in plugins: the folders of plugins/."""
    return sorted(file.parent.name for file in (PACKAGE / "plugins").glob("*/__init__.py"))


def installed() -> set[str]:
    """The plugins of installed packages."""
    return {point.name for point in entry_points(group=PROJECT)}


def hooks() -> dict[str, list[str]]:
    """Each hook, and the arguments that it is called with."""
    hook = new_manager().hook
    return {name: list(getattr(hook, name).spec.argnames) for name in hook_names()}
