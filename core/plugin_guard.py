"""Runs plugins' code so that nothing it does, or does not do, harms more than its own job."""

import logging
from collections.abc import Callable, Hashable
from functools import partial
from typing import TypeVar

from greenlet import GreenletExit

from .errors import LatentwireError, PluginError
from .faults import is_device, is_memory
from .strikes import HANG, JOB, Strikes
from .watchdog import Abandoned, Watchdog

log = logging.getLogger(__name__)

Value = TypeVar("Value")


class PluginGuard:
    """What plugins raise is named and counted, what hangs is found, and what failed three times is disabled.

    Args:
        timeout_s: So long a plugin may take to come back.
    """

    def __init__(self, timeout_s: float) -> None:
        self.strikes = Strikes()
        self.watchdog = Watchdog(timeout_s)

    def run(
        self,
        plugin: str,
        where: str,
        call: Callable[[], Value],
        hook: str | None = None,
        kind: str = JOB,
        what: Hashable = None,
    ) -> Value:
        """Run code of a plugin.

        Args:
            where: What it is, for people.
            kind, what: See `Strikes.count`; without `what` each failure counts.

        Raises:
            PluginError: it raised; names the plugin and the hook. Or it is disabled.
            LatentwireError: it refused on purpose, said in our terms.
        """
        self.strikes.check(plugin)
        try:
            with self.watchdog.watch(plugin, where, hook, partial(self.strikes.count, plugin, HANG, object())):
                return call()
        except (LatentwireError, GreenletExit, Abandoned):
            raise
        except BaseException as error:  # its SystemExit is no more than any other
            if is_device(error):
                raise  # the engine's to deal with
            raise self.failed(plugin, where, error, hook, kind, what) from error

    def failed(
        self,
        plugin: str,
        where: str,
        error: BaseException,
        hook: str | None = None,
        kind: str = JOB,
        what: Hashable = None,
    ) -> PluginError:
        """What is told of something that a plugin raised, and counted, unless it was memory that ran out."""
        message = f"plugin {plugin!r} failed in {where}: {type(error).__name__}: {error}"
        if not is_memory(error):
            self.strikes.count(plugin, kind, object() if what is None else what, message)
        return PluginError(message, plugin=plugin, hook=hook)
