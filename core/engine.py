"""The step engine of one device: takes runs, and gives them to a loop (loop.py) that is replaced when it cannot go on.

Two things end a loop before its time. A plugin hangs in its thread: a thread cannot be ended, so it is left to itself.
Or the device is in a bad state: what was loaded is then loaded anew. Either way the runs under way end with
`engine_restarted`, for their calls live in greenlets, which no other thread can go on with. Those that had not begun
lose nothing.
"""

import logging
import threading
from collections.abc import Callable
from time import monotonic

import torch

from .errors import EngineRestarted, HostClosing, LatentwireError, copied
from .faults import restarted
from .loop import EngineFigures, Loop
from .policy import Policy
from .run import Run

log = logging.getLogger(__name__)

MOST_FAILURES = 3  # of the device, within PERIOD_S; then a new loop is no help
PERIOD_S = 60.0
CLOSING_S = 3.0  # that a forward, or a plugin, may take to come back when the host ends


def _nothing() -> None:
    pass


class Engine:
    """One device's engine.

    Args:
        max_batch_rows: Most rows of one forward in mode fast. A single call may have more.
        reproducible_rows: Rows of every denoiser forward in mode reproducible.
        max_running: How many pictures run at once, the others wait; None: as many as fill the largest batch.
        make_room: Frees memory that nobody needs just now; on the engine's thread.
        renew: Lets go of all that was loaded, after a fault of the device; called before the new loop begins.
        renewed: Called once it has begun.

    Attributes:
        generation: How often the device has failed. A run made before that is of no use afterwards.
        failed: Why no further loop is begun; None as long as all is well.
    """

    def __init__(
        self,
        max_batch_rows: int,
        reproducible_rows: int,
        max_running: int | None = None,
        make_room: Callable[[], None] = _nothing,
        renew: Callable[[], None] = _nothing,
        renewed: Callable[[], None] = _nothing,
    ) -> None:
        self.figures = EngineFigures()
        self.policy = Policy(max_batch_rows, reproducible_rows, max_running)
        self.generation = 0
        self.failed: str | None = None
        self._bucket = reproducible_rows
        self._make_room = make_room
        self._renew = renew
        self._renewed = renewed
        self._cores = torch.get_num_threads()
        self._lock = threading.RLock()
        self._closing = False
        self._failures: list[float] = []  # when, of those in the last minute
        self._loop = self._new_loop()

    def submit(self, *runs: Run) -> None:
        """Let runs take part as soon as the policy lets them; from any thread.

        Raises:
            HostClosing: the engine is closed.
            EngineRestarted: the device does not work any more.
        """
        with self._lock:
            if self._closing:
                raise HostClosing("the host is shutting down and takes no more jobs")
            if self.failed is not None:
                raise EngineRestarted(self.failed)
            stale = [run for run in runs if run.generation not in (None, self.generation)]
            if not stale:
                self._loop.add(runs)
        for run in stale:
            run.displace()

    def close(self) -> None:
        """Stop all runs before their next forward and wait for the thread to end; not for long, where it hangs."""
        with self._lock:
            self._closing = True
            loop = self._loop
            loop.end()
        if not loop.gone.wait(CLOSING_S):
            begun, unbegun = loop.abandon()
            for run in [*begun, *unbegun]:
                run.finish(None, HostClosing("the host is shutting down"))

    @property
    def running(self) -> int:
        """How many runs are under way."""
        return self._loop.running

    @property
    def queued(self) -> int:
        """How many runs wait for their turn."""
        return self._loop.queued

    @property
    def alive(self) -> bool:
        """Whether it takes runs to their ends."""
        return self._loop.alive

    def report(self, error: BaseException) -> None:
        """Another thread has met a fault of the device, in a load for example."""
        self._loop.doom(error)

    def _new_loop(self) -> Loop:
        return Loop(
            self.policy, self.figures, self._bucket, self._cores, self._make_room, self._device_failed, self._hangs
        )

    def _hangs(self, loop: Loop, error: LatentwireError, guilty: Run | None) -> None:
        """Go on without a thread that a plugin does not come back from; on the watchdog's thread."""
        with self._lock:
            if loop is not self._loop:
                return
            begun, unbegun = loop.abandon()
            log.error("the engine is started anew: %s", error.message)
            if not self._closing:
                self._loop = self._new_loop()
                self._loop.add(unbegun)
                unbegun = []
        others = EngineRestarted(f"{error.message}; the engine was started anew, so send the request again")
        self._end(begun, others, {guilty: error} if guilty is not None else {})
        self._end(unbegun, HostClosing("the host is shutting down"))

    def _device_failed(self, loop: Loop, error: BaseException) -> None:
        """Go on with a new loop and nothing that was loaded before; on the old one's thread."""
        with self._lock:
            if loop is not self._loop:
                return
            log.error("the device failed, and the engine is started anew: %s", error)
            self._renew()  # before the generation changes: who sees the new one must not lease what is old
            self.generation += 1
            begun, unbegun = loop.abandon()
            now = monotonic()
            self._failures = [*(time for time in self._failures if now - time < PERIOD_S), now]
            if len(self._failures) >= MOST_FAILURES:
                self.failed = f"the device failed {MOST_FAILURES} times within a minute; start the host anew"
                log.critical("%s; the last fault: %s", self.failed, error)
            elif not self._closing:
                self._loop = self._new_loop()
                self._renewed()
        self._end(begun, restarted(error))
        if self.failed is not None:
            self._end(unbegun, EngineRestarted(self.failed))
        elif self._closing:
            self._end(unbegun, HostClosing("the host is shutting down"))
        else:
            for run in unbegun:
                run.displace()

    def _end(self, runs: list[Run], error: LatentwireError, instead: dict[Run, LatentwireError] = {}) -> None:
        for run in runs:
            self.figures.runs_finished += 1
            run.finish(None, instead.get(run) or copied(error))
