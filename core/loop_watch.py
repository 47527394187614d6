"""Notices a command that blocks the event loop, and says whose it is: nothing else can be done about it."""

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .strikes import HANG, Strikes
from .watchdog import Watchdog

log = logging.getLogger(__name__)


class LoopWatch:
    """Asks the event loop for a sign of life, on the watchdog's thread, and knows which task handles whose command."""

    def __init__(self, watchdog: Watchdog, strikes: Strikes) -> None:
        self._watchdog = watchdog
        self._strikes = strikes
        self._handling: dict[asyncio.Task[Any] | None, tuple[str, str]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._asked: float | None = None  # when, where there was no answer yet
        self._is_told = False

    def begin(self) -> None:
        """Watch the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._watchdog.also(self._look)

    @contextmanager
    def handling(self, plugin: str, command: str) -> Iterator[None]:
        """While this lasts, the current task runs a command's handler."""
        task = asyncio.current_task()
        before = self._handling.get(task)
        self._handling[task] = (plugin, command)
        try:
            yield
        finally:
            if before is None:
                del self._handling[task]
            else:
                self._handling[task] = before

    def _look(self, now: float) -> None:
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        if self._asked is None:
            self._asked = now
            loop.call_soon_threadsafe(self._answer)
        elif now - self._asked > self._watchdog.timeout_s and not self._is_told:
            self._is_told = True
            self._tell(loop)

    def _answer(self) -> None:
        self._asked = None
        self._is_told = False

    def _tell(self, loop: asyncio.AbstractEventLoop) -> None:
        plugin, command = self._handling.get(asyncio.current_task(loop), ("", ""))
        who = f"plugin {plugin!r} blocks the event loop in command {command}" if plugin else "the event loop is blocked"
        stack = "".join(traceback.format_stack(sys._current_frames().get(self._thread)))
        log.error("%s: nobody is served for %g s already; it is at\n%s", who, self._watchdog.timeout_s, stack)
        if plugin:
            self._strikes.count(plugin, HANG, object(), f"it blocked the event loop in command {command}")
