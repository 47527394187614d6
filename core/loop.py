"""The engine's loop: one thread that runs many ordinary pipeline calls at once, forward by forward.

Every call lives in a greenlet. Where it calls a shared module it comes to a gate and waits; since all
others wait at gates too, the loop sees every forward that is wanted, merges those that may be merged,
and hands each call its own rows. Who goes next is the policy's to say (policy.py).
"""

import logging
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from greenlet import greenlet

from .adapters import Weighted, added
from .batching import split
from .compiled import CompiledForward
from .errors import HostClosing, InternalError, LatentwireError, copied
from .faults import is_device, is_memory
from .finite import is_finite, not_finite
from .gates import Gate, RunGreenlet, Waiting
from .policy import Policy, times_to_begin
from .run import Run
from .watchdog import Abandoned, Worker, can_be_given_up

log = logging.getLogger(__name__)

PLACES_PERIOD_S = 0.5  # how often the queue is told where it stands
NEWS_PERIOD_S = 0.1  # the same, where something has changed
RECENT_FORWARDS = 20  # that the pace is a running mean of


@dataclass
class EngineFigures:
    """What the engine has done; written by its thread alone, read by anyone."""

    runs_finished: int = 0
    forwards: int = 0
    calls: int = 0
    rows: int = 0
    seconds: float = 0.0  # spent in forwards


class Loop:
    """One thread, and the runs that it takes to their ends.

    Args:
        cores: How many its kernels use.
        make_room: Frees memory that nobody needs just now.
        failed: Told, on this thread, of a fault of the device; the loop ends then.
        hangs: Told, on the watchdog's thread, that a plugin does not come back: the error, and the run that it is in.
    """

    def __init__(
        self,
        policy: Policy,
        figures: EngineFigures,
        reproducible_rows: int,
        cores: int,
        make_room: Callable[[], None],
        failed: Callable[["Loop", BaseException], None],
        hangs: Callable[["Loop", LatentwireError, Run | None], None],
    ) -> None:
        self.policy = policy
        self.figures = figures
        self.gone = threading.Event()  # it has ended, or been given up
        self._bucket = reproducible_rows
        self._cores = cores
        self._make_room = make_room
        self._failed = failed
        self._hangs = hangs
        self._arrivals: deque[Run] = deque()
        self._news = threading.Condition()
        self._closing = False
        self._abandoned = False
        self._doom: BaseException | None = None  # a fault of the device that another thread has met
        self._queue: list[Run] = []  # those whose turn has not come yet, in order of arrival
        self._runs: list[Run] = []  # those that wait at a gate, the longest waiting first
        self._chosen: list[Run] = []  # those whose forward is being made
        self._begun: set[Run] = set()  # and not ended
        self._current: Run | None = None  # the one whose greenlet has been resumed
        self._left: list[greenlet] = []  # of runs that have been taken away
        self._seconds_per_row: float | None = None  # of the denoiser, all that happens between its forwards included
        self._last_forward = 0.0
        self._places_told = 0.0
        self._queue_is_news = False  # it, or the room for it, has changed
        self._places_are_news = False
        self._me: Worker
        self._thread = threading.Thread(target=self._live, name="engine", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """How many runs are under way."""
        return len(self._begun)

    @property
    def queued(self) -> int:
        """How many runs wait for their turn."""
        return len(self._queue)

    @property
    def alive(self) -> bool:
        """Whether its thread runs and has not been given up."""
        return self._thread.is_alive() and not self._abandoned

    def add(self, runs: Sequence[Run]) -> None:
        """Let runs take part as soon as the policy lets them; from any thread."""
        with self._news:
            for run in runs:
                run.wake = self._wake
            self._arrivals.extend(runs)
            self._news.notify()

    def end(self) -> None:
        """Stop all runs before their next forward; `gone` tells when that is done."""
        with self._news:
            self._closing = True
            self._news.notify()

    def doom(self, error: BaseException) -> None:
        """Another thread has met a fault of the device."""
        with self._news:
            self._doom = error
            self._news.notify()

    def abandon(self) -> tuple[list[Run], list[Run]]:
        """Take its runs away from it, for good: those that had begun, and those that had not.

        From its own thread, or from another one while this one is in a plugin's code or in a forward.
        """
        with self._news:
            self._abandoned = True
            begun, unbegun = list(self._begun), [*self._queue, *self._arrivals]
            self._left = [run.greenlet for run in begun if run.greenlet is not None]
            self._begun, self._queue, self._arrivals = set(), [], deque()
            self._news.notify()
        self.gone.set()
        return begun, unbegun

    def _wake(self) -> None:
        with self._news:
            self._queue_is_news = True
            self._news.notify()

    def _live(self) -> None:
        self._me = can_be_given_up(lambda error: self._hangs(self, error, self._current))
        torch.set_num_threads(self._cores)  # whatever another thread has just set for those yet to come
        # Over the whole thread: a no_grad block that one greenlet leaves must not switch gradients on for another.
        with torch.inference_mode():
            self._work()
            if self._me.given_up:
                self.gone.wait()  # its runs are about to be taken away
            with self._news:
                left, self._left = self._left, []
            for one in left:  # only this thread can end them
                with suppress(BaseException):
                    if not one.dead:
                        one.throw()
        self.gone.set()

    def _work(self) -> None:
        while not self._abandoned and self._admit():
            try:
                self._turn()
            except Abandoned:
                return
            except BaseException:  # a fault of ours, not of a run: the host lives, at the price of those that are here
                log.exception("a turn of the engine failed")
                error = InternalError("a turn of the engine failed; see the host's log")
                for run in [*self._queue, *self._runs]:
                    run.stop(copied(error))
                for run in self._chosen:
                    if run.greenlet is not None and run not in self._runs:  # between two gates
                        self._resume(run, error=copied(error))
            if self._doom is not None:
                self._failed(self, self._doom)
                return

    def _turn(self) -> None:
        """One forward, and all that is due before it."""
        self._drop_stopped()
        self._begin()
        ready = [run for run in self._runs if not run.paused]
        if ready:
            # those with equal adapters side by side: one sum for all of them
            self._chosen = sorted(self.policy.next_forward(ready), key=_adapters_key)
            self._runs = [run for run in self._runs if run not in self._chosen]
            self._advance(self._chosen)
            self._chosen = []
        self._tell_places()

    def _admit(self) -> bool:
        """Take in what has arrived, waiting while there is nothing to do; False when the engine shall end."""
        with self._news:
            while not (self._arrivals or self._closing or self._doom or self._has_work()):
                self._last_forward = 0.0  # a rest is no forward's time
                self._news.wait()
            if self._arrivals:
                self._queue_is_news = True
                self._queue.extend(self._arrivals)
                self._queue.sort(key=lambda run: run.accepted)  # one may have been prepared sooner than another
                self._arrivals.clear()
            closing = self._closing
        if closing:
            for run in [*self._queue, *self._runs]:
                run.stop(HostClosing("the host is shutting down"))
            self._drop_stopped()
        return not closing

    def _has_work(self) -> bool:
        return any(run.stopped or not run.paused for run in [*self._runs, *self._queue])

    def _drop_stopped(self) -> None:
        # each is looked at once: one that another thread stops just now must not be gone without its end
        unbegun = dict.fromkeys(run for run in self._queue if run.stopped)
        stopped = dict.fromkeys(run for run in self._runs if run.stopped)
        if unbegun:
            self._queue = [run for run in self._queue if run not in unbegun]
            for run in unbegun:
                self._finish(run, None, run.stopped)
        if stopped:
            self._runs = [run for run in self._runs if run not in stopped]
            for run in stopped:
                self._resume(run, error=run.stopped)

    def _begin(self) -> None:
        """Start the runs whose turn has come."""
        if not self._queue_is_news:
            return
        self._queue_is_news = False
        begin = self.policy.to_begin(self._queue, self._runs)
        for run in begin:
            if self._doom is not None:
                return
            self._queue.remove(run)
            self._begun.add(run)
            run.greenlet = RunGreenlet(run.call, run)
            _told(run.began, self._seconds_of(run))
            self._resume(run)
        self._places_are_news = True

    def _advance(self, runs: Sequence[Run]) -> None:
        """Run one forward for all of `runs`, and each on to its next gate."""
        calls = [run.waiting for run in runs if run.waiting is not None]
        begin = perf_counter()
        outputs, failure = _tried(self._forward, runs, calls)
        if self._abandoned:  # the host has ended meanwhile
            raise Abandoned
        if is_memory(failure):
            log.warning("memory ran out in a forward of %d call(s); it is tried again with less", len(runs))
            self._make_room()
            if len(runs) == 1:
                outputs, failure = _tried(self._with_less, runs, calls)
        if is_device(failure):
            self._doom = failure
        elif failure is None:
            self._count(runs, calls, perf_counter() - begin)
            for run, call, output in zip(runs, calls, outputs, strict=True):
                # one that was stopped meanwhile must not take this step any more
                error = run.stopped or (_fault_of(output) if call.spec.paints else None)
                self._resume(run, error=error) if error else self._resume(run, output)
        elif len(runs) > 1:  # find out whose fault it is
            for run in runs:
                if self._doom is None:
                    self._advance([run])
        else:
            self._resume(runs[0], error=runs[0].stopped or failure)

    def _with_less(self, runs: Sequence[Run], calls: Sequence[Waiting]) -> list[Any]:
        """One call's forward once more, with less memory where its mode allows for other bits."""
        output = calls[0].in_tiles() if runs[0].mode == "fast" else None
        return self._forward(runs, calls) if output is None else [output]

    def _count(self, runs: Sequence[Run], calls: Sequence[Waiting], seconds: float) -> None:
        rows = [call.parts.rows for call in calls if call.parts]
        self.figures.seconds += seconds
        self.figures.forwards += 1
        self.figures.calls += len(calls)
        self.figures.rows += sum(rows)
        if calls[0].spec.bucketed and not calls[0].spec.prepares and len(rows) == len(runs):
            for run, count in zip(runs, rows, strict=True):
                run.rows_done += count
            now = perf_counter()
            if self._last_forward and sum(rows):
                pace = (now - self._last_forward) / sum(rows)
                known = self._seconds_per_row
                self._seconds_per_row = pace if known is None else known + (pace - known) / RECENT_FORWARDS
            self._last_forward = now

    def _forward(self, runs: Sequence[Run], calls: Sequence[Waiting]) -> list[Any]:
        parts = [call.parts for call in calls if call.parts is not None]
        rows = [part.rows for part in parts]
        gate = calls[0].gate
        padded = runs[0].mode == "reproducible" and gate.spec.bucketed and bool(parts)
        total = max(sum(rows), self._bucket) if padded else sum(rows)
        compiled = _compiled(runs, calls, total)
        if gate.batcher is None or (len(calls) == 1 and not padded and compiled is None):
            with _adapters_of(gate, [(1, runs[0].adapters)]):
                return [call.run() for call in calls]
        arguments = gate.batcher.put_together(parts, total)
        if compiled is not None:
            return split(compiled(strict=padded, **arguments), rows)
        groups = [(count, run.adapters) for count, run in zip(rows, runs, strict=True)]
        if total > sum(rows):
            groups.append((total - sum(rows), ()))
        if runs[0].mode == "fast":  # neighbours with equal adapters are one group; the others stay for themselves
            groups = _joined(groups)
        with _adapters_of(gate, groups):
            return split(gate.forward(**arguments), rows)

    def _resume(self, run: Run, value: Any = None, error: BaseException | None = None) -> None:
        """Let a run go on to its next gate, or to its end."""
        greenlet = run.greenlet
        assert greenlet is not None
        result: Any = None
        raised: BaseException | None = None
        self._current = run
        try:
            if error is not None:
                result = greenlet.throw(error)
            elif run.waiting is None:
                result = greenlet.switch()
            else:
                result = greenlet.switch(value)
        except BaseException as problem:
            raised = problem
        self._current = None
        if self._abandoned or self._me.given_up:  # it came back from a plugin too late
            raise Abandoned
        if is_device(raised):
            self._doom = raised
        elif raised is not None or greenlet.dead:
            self._finish(run, result, raised)
        else:
            run.waiting = result
            self.policy.arrived(run)
            self._runs.append(run)
        room = is_memory(raised)
        error = raised = None  # their frames hold tensors, and this very frame, which holds them
        if room:
            self._make_room()

    def _finish(self, run: Run, result: Any, error: BaseException | None) -> None:
        self.figures.runs_finished += 1
        self._begun.discard(run)
        self._queue_is_news = True
        run.finish(result, error)

    def _seconds_of(self, run: Run) -> float | None:
        """How long a run will take from its start, if all that run are served alike."""
        if self._seconds_per_row is None or not run.work:
            return None
        others = sum(min(other.work_left, run.work) for other in self._runs if other is not run and not other.paused)
        return (run.work + others) * self._seconds_per_row

    def _tell_places(self) -> None:
        """Tell those in the queue where they stand."""
        now = perf_counter()
        period = NEWS_PERIOD_S if self._places_are_news else PLACES_PERIOD_S
        if not self._queue or now < self._places_told + period:
            return
        self._places_told = now
        self._places_are_news = False
        order = self.policy.in_queue(self._queue, self._runs)
        begins: Sequence[float | None] = [None] * len(order)
        if self._seconds_per_row:
            left = [run.work_left for run in self._runs if not run.paused]
            begins = times_to_begin(left, [run.work for run in order], 1 / self._seconds_per_row, len(left))
        places: dict[str, int] = {}
        for run, begin in zip(order, begins, strict=True):
            if run.job in places:
                continue
            places[run.job] = len(places) + 1
            takes = self._seconds_of(run)
            _told(run.queued, places[run.job], begin, None if begin is None or takes is None else begin + takes)


def _tried(
    forward: Callable[[Sequence[Run], Sequence[Waiting]], list[Any]], runs: Sequence[Run], calls: Sequence[Waiting]
) -> tuple[list[Any], BaseException | None]:
    """A forward's outputs, or what it raised, without the frames: they hold the failed forward's tensors."""
    try:
        return forward(runs, calls), None
    except BaseException as error:
        if len(runs) == 1 and runs[0].stopped is None:  # what a cancelled run used may have been unloaded meanwhile
            log.warning("a forward failed\n%s", traceback.format_exc())  # as text: a log may keep what it is given
        error.__cause__ = error.__context__ = None
        return [], error.with_traceback(None)


def _fault_of(picture: Any) -> LatentwireError | None:
    """What is wrong with a decoded picture, if it holds values that would become black or white."""
    if isinstance(picture, torch.Tensor) and not is_finite(picture):
        return not_finite("the decoded picture holds")
    return None


def _told(listener: Any, *facts: Any) -> None:
    """Tell, whatever the listener does."""
    try:
        listener(*facts)
    except BaseException:
        log.exception("a run's news could not be told")


def _adapters_key(run: Run) -> list[tuple[int, float]]:
    return [(id(adapter), weight) for adapter, weight in run.adapters]


def _compiled(runs: Sequence[Run], calls: Sequence[Waiting], rows: int) -> CompiledForward | None:
    """The compiled forward that may make all of these calls in one of so many rows."""
    if runs[0].mode == "exact":
        return None
    found = {call.compiled(run.adapters) for run, call in zip(runs, calls, strict=True)}
    compiled = found.pop()
    return compiled if compiled is not None and not found and compiled.fits(rows) else None


def _adapters_of(gate: Gate, groups: Sequence[tuple[int, Sequence[Weighted]]]) -> AbstractContextManager[None]:
    """The rows' adapters, added to a gate's layers for one forward."""
    return added(gate.component, gate.layers, groups) if any(adapters for _, adapters in groups) else nullcontext()


def _joined(groups: Sequence[tuple[int, Sequence[Weighted]]]) -> list[tuple[int, Sequence[Weighted]]]:
    """Neighbouring groups of equal adapters as one."""
    joined: list[tuple[int, Sequence[Weighted]]] = []
    for count, adapters in groups:
        if joined and joined[-1][1] == adapters:
            joined[-1] = (joined[-1][0] + count, adapters)
        else:
            joined.append((count, adapters))
    return joined
