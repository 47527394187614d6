"""Worker threads that leave the cores to the engine.

torch's CPU kernels run on OpenMP, which gives every thread that calls one a team of its own. As soon as the teams
together have more threads than the machine has cores, all of them sleep between kernels in place of waiting awake, and
waking up costs more than a small kernel takes: on two cores, forwards of the embedded model ran three times slower. So
a thread beside the engine's computes alone.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic
from typing import Any

import torch

from .errors import LatentwireError
from .watchdog import Abandoned, can_be_given_up

log = logging.getLogger(__name__)

CLOSING_S = 3.0  # that work under way may take when it shall end


def workers(count: int, name: str) -> ThreadPoolExecutor:
    """A pool of threads that compute alone."""
    return ThreadPoolExecutor(count, name, initializer=compute_alone)


def compute_alone() -> None:
    """Let this thread's kernels run on one core, for as long as it lives; the other threads' are not touched."""
    cores = torch.get_num_threads()
    if cores == 1:
        return
    torch.set_num_threads(1)
    # what threads yet to come begin with was set as well; only a thread's own call puts that right
    thread = threading.Thread(target=torch.set_num_threads, args=(cores,))
    thread.start()
    thread.join()


@dataclass(frozen=True, slots=True)
class _Task:
    work: Callable[..., None]
    args: tuple[Any, ...]
    failed: Callable[[LatentwireError], Any]


class Crew:
    """Threads that compute alone and run what plugins bring: one that hangs is left to itself, another takes its place.

    Args:
        count: Most threads; they begin when there is work for them.
    """

    def __init__(self, count: int, name: str) -> None:
        self._most = count
        self._name = name
        self._news = threading.Condition()
        self._tasks: deque[_Task] = deque()
        self._members = 0  # that have not been given up
        self._idle = 0
        self._closing = False

    def submit(self, work: Callable[..., None], *args: Any, failed: Callable[[LatentwireError], Any]) -> None:
        """Have something done soon.

        Args:
            failed: Told in place of it when it hangs in a plugin.

        Raises:
            RuntimeError: the crew is closed.
        """
        with self._news:
            if self._closing:
                raise RuntimeError(f"the crew {self._name} is closed")
            self._tasks.append(_Task(work, args, failed))
            if self._idle < len(self._tasks) and self._members < self._most:
                self._members += 1
                threading.Thread(target=self._work, name=self._name, daemon=True).start()
            self._news.notify()

    def close(self, drop: bool = False) -> None:
        """Wait for what is under way and, unless it is dropped, for what waits; not for long for what hangs."""
        with self._news:
            self._closing = True
            if drop:
                self._tasks.clear()
            self._news.notify_all()
            end = monotonic() + CLOSING_S
            while self._members and monotonic() < end:
                self._news.wait(end - monotonic())

    def _work(self) -> None:
        compute_alone()
        task: _Task | None = None

        def give_up(error: LatentwireError) -> None:
            with self._news:
                self._members -= 1
                if self._tasks:
                    self._members += 1
                    threading.Thread(target=self._work, name=self._name, daemon=True).start()
                self._news.notify_all()
            if task is not None:
                task.failed(error)

        me = can_be_given_up(give_up)
        while True:
            task = self._next()
            if task is None:
                return
            try:
                task.work(*task.args)
            except Abandoned:
                return
            except BaseException:
                log.exception("work of %s failed", self._name)
            if me.given_up:
                return
            task = None  # whatever it held need not wait for the next one

    def _next(self) -> _Task | None:
        """What is to be done next, waiting for it; None when this thread shall end."""
        with self._news:
            self._idle += 1
            while not self._tasks and not self._closing:
                self._news.wait()
            self._idle -= 1
            if self._tasks:
                return self._tasks.popleft()
            self._members -= 1
            self._news.notify_all()
            return None
