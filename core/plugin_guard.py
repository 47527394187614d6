"""Runs plugins' code so that nothing it does, or does not do, harms more than its own job."""

import logging
from collections.abc import Callable, Hashable, Sequence
from time import monotonic
from typing import Any, NamedTuple, TypeVar

from greenlet import GreenletExit

from .errors import LatentwireError, PluginError, one_line
from .faults import is_device, is_memory
from .hook_times import HookTime
from .secret_settings import struck_out
from .strikes import HANG, JOB, Strikes
from .watchdog import Abandoned, Watchdog

log = logging.getLogger(__name__)

Value = TypeVar("Value")

OUTSIDE_OF_JOBS = ("update_job", "client_left", "unload")
"""Hooks whose failures a finished job says nothing about."""


class Hook(NamedTuple):
    """One hook of one plugin: a function of the arguments that it names, `context` or none."""

    plugin: str
    function: Callable[..., None]
    arguments: Sequence[str]
    times: HookTime


class PluginGuard:
    """What plugins raise is named and counted, what hangs is found, and what failed three times is disabled.

    Args:
        timeout_s: So long a plugin may take to come back.
    """

    def __init__(self, timeout_s: float) -> None:
        self.strikes = Strikes()
        self.watchdog = Watchdog(timeout_s, lambda plugin, message: self.strikes.count(plugin, HANG, object(), message))

    def run_hooks(self, name: str, hooks: Sequence[Hook], context: Any) -> None:
        """Run one hook of several plugins, one after the other; of those that are disabled, `unload` alone.

        This is on the way of every step: one watch serves them all.

        Raises:
            PluginError, LatentwireError: as `run`; those that follow are not run.
        """
        reasons, check = self.strikes.reasons, getattr(context, "check", None)
        with self.watchdog.watch(hooks[0].plugin, name, name) as watch:
            for plugin, function, arguments, times in hooks:
                if plugin in reasons and name != "unload":  # what it runs of its own has to end all the same
                    continue
                begin = watch.turn(plugin)
                try:
                    function(context) if arguments else function()
                    if check is not None:
                        check()
                except (LatentwireError, GreenletExit, Abandoned):
                    raise
                except BaseException as error:
                    if is_device(error):
                        raise
                    outside = name in OUTSIDE_OF_JOBS
                    kind, what = (name, name) if outside else (JOB, getattr(context, "job", None))
                    raise self.failed(plugin, name, error, name, kind, what) from error
                finally:
                    times.add(monotonic() - begin)
        if name in OUTSIDE_OF_JOBS:
            for hook in hooks:
                self.strikes.forgive(name, hook.plugin)

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
            with self.watchdog.watch(plugin, where, hook):
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
        message = struck_out(f"plugin {plugin!r} failed in {where}: {one_line(error)}")
        if not is_memory(error):
            self.strikes.count(plugin, kind, object() if what is None else what, message)
        return PluginError(message, plugin=plugin, hook=hook)
