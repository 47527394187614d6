"""Three strikes: a plugin that keeps failing is disabled until somebody enables it, or the host is started again.

A strike is an exception that no plugin raises on purpose (any but a `LatentwireError`), one a job at most, or a hang.
What works again is forgiven: a job that finishes forgives what was raised in jobs before it, a command that ends well
what the same command raised. A hang is never forgiven, for it costs others their pictures.

So input that makes a plugin fail disables it only where nothing of that kind works in between. That is meant: such a
plugin has a fault that its author has to mend, by raising InvalidParams, and a host without it is better than one that
fails with every job.
"""

import logging
import threading
from collections.abc import Callable, Hashable

from .errors import PluginError
from .hookspecs import PROJECT

log = logging.getLogger(__name__)

MOST = 3

JOB = "job"
"""The kind of strike that a finished job forgives."""

HANG = "hang"


class Strikes:
    """The strikes of all plugins of one host; from any thread."""

    def __init__(self) -> None:
        self._changed: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._strikes: dict[str, list[tuple[str, Hashable]]] = {}
        self.reasons: dict[str, str] = {}  # of those that are disabled, by name

    def count(self, plugin: str, kind: str, what: Hashable, message: str) -> None:
        """A plugin has failed.

        Args:
            kind: What forgives it: JOB, a command's name, ...; HANG: nothing.
            what: The job, or another object of its own: each counts once.
            message: What happened.
        """
        if plugin == PROJECT:  # the host's own
            return
        with self._lock:
            strikes = self._strikes.setdefault(plugin, [])
            if (kind, what) not in strikes:
                strikes.append((kind, what))
            if len(strikes) < MOST or plugin in self.reasons:
                return
            # no more than that: what it raised may quote one client's request, and this is told to all
            self.reasons[plugin] = "disabled after three failures; the host's log says more"
        log.error("plugin %s is disabled after three failures; the last one: %s", plugin, message)
        self._changed()

    def forgive(self, kind: str, plugin: str | None = None) -> None:
        """Something of that kind has gone well; of one plugin, or of all."""
        if not self._strikes:
            return
        with self._lock:
            for name in [plugin] if plugin is not None else list(self._strikes):
                left = [strike for strike in self._strikes.pop(name, ()) if strike[0] != kind]
                if left:
                    self._strikes[name] = left

    def on_change(self, changed: Callable[[], None]) -> None:
        """Have somebody told when a plugin has been disabled for its failures; from any thread."""
        self._changed = changed

    def disable(self, plugin: str, reason: str) -> None:
        """Disable a plugin that has done nothing wrong."""
        with self._lock:
            self.reasons[plugin] = reason

    def enable(self, plugin: str) -> None:
        """Let a plugin begin anew: all is forgiven."""
        with self._lock:
            self._strikes.pop(plugin, None)
            self.reasons.pop(plugin, None)

    def reason(self, plugin: str) -> str | None:
        """Why a plugin is disabled; None for one that is not."""
        return self.reasons.get(plugin)

    def check(self, plugin: str) -> None:
        """Refuse what only a disabled plugin could do.

        Raises:
            PluginError: it is disabled.
        """
        reason = self.reasons.get(plugin)
        if reason is not None:
            raise PluginError(f"plugin {plugin!r} is {reason}", plugin=plugin)
