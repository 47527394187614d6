"""The version of the plugin contract, and what of it is going away.

A plugin says for which version it was written: `LATENTWIRE_API = "1.0"` in its module. New names, hooks and context
fields raise the minor number. What is deprecated goes on working, and is told of, for at least six months and one minor
version; only a new major number takes it away.
"""

import re
import warnings
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

API_VERSION = "1.0"
"""Of this host: it loads plugins written for the same major version, and for the same minor one or an older one."""

ATTRIBUTE = "LATENTWIRE_API"
"""Of a plugin's module."""


@dataclass(frozen=True, slots=True)
class Deprecated:
    """Something of the contract that will go.

    Attributes:
        instead: What to use; where it is a public name, what the old name means until then.
        since: The API version that deprecated it.
        until: The API version that will be without it.
    """

    instead: str
    since: str
    until: str


NAMES: dict[str, Deprecated] = {}
"""Public names of `latentwire`."""

HOOKS: dict[str, Deprecated] = {}
"""Hooks."""

_loading: ContextVar[list[str] | None] = ContextVar("loading", default=None)


class Collected(list[str]):
    """What a plugin uses that is deprecated, as a context manager: while it is loaded, in this thread."""

    def __enter__(self) -> "Collected":
        self._before = _loading.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _loading.reset(self._before)


def warn(what: str, notice: Deprecated, stacklevel: int = 2) -> None:
    """Tell of something deprecated: as a DeprecationWarning, and to the list of the plugin that is being loaded."""
    message = f"{what} is deprecated since API {notice.since} and goes with {notice.until}; use {notice.instead}"
    collected = _loading.get()
    if collected is not None and message not in collected:
        collected.append(message)
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel + 1)


def why_unsuitable(declared: Any) -> str | None:
    """Why this host cannot load a plugin that declares this API version; None where it can, or none is declared."""
    if declared is None:
        return None
    match = re.fullmatch(r"(\d+)\.(\d+)", declared) if isinstance(declared, str) else None
    if match is None:
        return f'{ATTRIBUTE} is {declared!r:.80}, wanted a text such as "{API_VERSION}"'
    (major, minor), (ours, most) = map(int, match.groups()), map(int, API_VERSION.split("."))
    if major == ours and minor <= most:
        return None
    newer = (major, minor) > (ours, most)
    what = "update latentwire" if newer else "look for a newer version of the plugin"
    return f"it is written for plugin API {declared}, this host has {API_VERSION}; {what}"
