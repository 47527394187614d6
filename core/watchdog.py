"""Notices code of a plugin that does not come back, and says whose it is.

A thread cannot be ended from outside. One that can be replaced says so with `can_be_given_up`; when it hangs it is told
to stop being who it was (`Abandoned`, as soon as it wakes up), and what it was doing goes on without it.
"""

import logging
import sys
import threading
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from time import monotonic
from types import TracebackType
from typing import Self

from greenlet import getcurrent

from .errors import LatentwireError, PluginError

log = logging.getLogger(__name__)

LOOKS = 4  # within the time limit
LONGEST_PAUSE_S = 1.0  # between two looks
HURRY_S = 0.5  # that code of a plugin may still take when the host ends


class Abandoned(BaseException):
    """Raised in a thread that has been given up, once it wakes up; its work is somebody else's now."""


class Worker:
    """A thread that can be given up: `give_up` is called by the watchdog's thread, with what its work failed with."""

    def __init__(self, give_up: Callable[[LatentwireError], None]) -> None:
        self.give_up = give_up
        self.given_up = False


class _Here(threading.local):
    worker: Worker | None = None


_here = _Here()
_innermost: ContextVar["Watch | None"] = ContextVar("innermost", default=None)  # each greenlet and task has its own


def can_be_given_up(give_up: Callable[[LatentwireError], None]) -> Worker:
    """Let the calling thread be given up when it hangs in a plugin."""
    _here.worker = Worker(give_up)
    return _here.worker


class Watch:
    """Some code of a plugin that is running, as a context manager.

    Raises:
        Abandoned: on leaving, where the thread has been given up meanwhile.
    """

    __slots__ = (
        "_dog",
        "_outer",
        "begin",
        "greenlet",
        "hook",
        "is_told",
        "plugin",
        "thread",
        "where",
        "worker",
    )

    def __init__(self, dog: "Watchdog", plugin: str, where: str, hook: str | None) -> None:
        self._dog = dog
        self._outer: Watch | None = None
        self.plugin = plugin
        self.where = where
        self.hook = hook
        self.begin = 0.0
        self.is_told = False
        self.worker = _here.worker
        self.thread = threading.get_ident()
        self.greenlet = getcurrent()

    def __enter__(self) -> Self:
        self._outer = _innermost.get()
        _innermost.set(self)
        self.begin = monotonic()
        with self._dog.lock:
            if self._outer is not None:  # whose fault it is if this hangs
                self._dog.watches.discard(self._outer)
            self._dog.watches.add(self)
        self._dog.wake()
        return self

    def turn(self, plugin: str) -> float:
        """It is another plugin's turn; from when on, on the monotonic clock.

        Raises:
            Abandoned: the one before took so long that the thread has been given up.
        """
        if self.worker is not None and self.worker.given_up:
            raise Abandoned
        self.begin = monotonic()
        self.is_told = False
        self.plugin = plugin
        return self.begin

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _innermost.set(self._outer)
        with self._dog.lock:
            self._dog.watches.discard(self)
            if self._outer is not None:
                self._outer.begin = monotonic()
                self._dog.watches.add(self._outer)
            given_up = self.worker is not None and self.worker.given_up
        if given_up:
            raise Abandoned

    @property
    def rests(self) -> bool:
        """Whether it waits for the engine, at a gate."""
        return self.greenlet.gr_frame is not None  # None while it runs


class Watchdog:
    """Looks after everything that plugins are doing in one host.

    Args:
        timeout_s: After so long, code of a plugin hangs.
        hung: Told which plugin hangs, and a sentence about it; from the watchdog's thread.
    """

    def __init__(self, timeout_s: float, hung: Callable[[str, str], None]) -> None:
        self.timeout_s = timeout_s
        self._hung = hung
        self.lock = threading.Lock()
        self.watches: set[Watch] = set()
        self._others: list[Callable[[float], None]] = []
        self._thread: threading.Thread | None = None
        self._closed = False
        self._news = threading.Event()

    def watch(self, plugin: str, where: str, hook: str | None) -> Watch:
        """Watch what runs within.

        Args:
            where: For people, such as a hook's name.
        """
        return Watch(self, plugin, where, hook)

    def also(self, look: Callable[[float], None]) -> None:
        """Have something else looked at as well; `look` is given the time."""
        self._others.append(look)
        self.wake()

    def wake(self) -> None:
        """Begin to look, once there is something to look at."""
        if self._thread is None:
            with self.lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
                    self._thread.start()

    def hurry(self) -> None:
        """Wait for nothing much longer: the host ends."""
        self.timeout_s = min(self.timeout_s, HURRY_S)
        self._news.set()

    def close(self) -> None:
        """Look no more."""
        self._closed = True
        self._news.set()

    def _run(self) -> None:
        while not self._closed:
            self._news.wait(min(LONGEST_PAUSE_S, self.timeout_s / LOOKS))
            self._news.clear()
            try:
                self._look()
                for look in self._others:
                    look(monotonic())
            except Exception:
                log.exception("the watchdog could not look")

    def _look(self) -> None:
        now = monotonic()
        hanging = []
        with self.lock:
            for watch in self.watches:
                if watch.rests:
                    watch.begin = now
                elif now - watch.begin > self.timeout_s and not watch.is_told:
                    watch.is_told = True
                    if watch.worker is not None:
                        watch.worker.given_up = True  # under the lock: it cannot come back any more
                    hanging.append(watch)
        for watch in hanging:
            self._tell(watch)

    def _tell(self, watch: Watch) -> None:
        frame = sys._current_frames().get(watch.thread)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
        message = f"plugin {watch.plugin!r} hangs in {watch.where}: it has not come back for {self.timeout_s:g} s"
        log.error("%s; it is at\n%s", message, stack)
        self._hung(watch.plugin, message)
        if watch.worker is not None:
            watch.worker.give_up(PluginError(message, plugin=watch.plugin, hook=watch.hook))
