"""The step engine: one thread that runs many ordinary pipeline calls at once, forward by forward.

Every call lives in a greenlet. Where it calls a shared module it comes to a gate and waits; since all
others wait at gates too, the loop sees every forward that is wanted, merges those that may be merged,
and hands each call its own rows. All policy lives here, in `_choose`:

- what makes a run ready for its step (text encoder, ControlNet) goes first, so that newcomers are level
  with the others when the next denoiser forward starts; but only so often in a row while others are ready;
- otherwise whoever waits longest goes first, together with all who may share its forward.

How a forward is shared depends on the run's mode. exact: never, so the result is bit-identical to a plain
pipeline call. reproducible: padded to a fixed number of rows, where a row does not depend on its
neighbours. fast: with whoever is there.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch

from .adapters import Weighted, added
from .batching import split
from .compiled import CompiledForward
from .errors import HostClosing, InternalError, LatentwireError
from .gates import Gate, RunGreenlet, Waiting
from .requests import Mode

log = logging.getLogger(__name__)

PREPARATIONS_IN_A_ROW = 8  # before the runs that are ready have their turn
MOST_POSITIONS = 32 * 64 * 64  # latent pixels of one shared forward, for its memory: 32 rows of 512x512


@dataclass(eq=False)
class Run:
    """One pipeline call.

    Attributes:
        mode: How its forwards may be shared.
        call: Makes the call; on the engine's thread, inside a greenlet.
        done: Is given the call's return value, or what it raised; on the engine's thread, so be quick.
        adapters: What its forwards add to the shared modules'.
    """

    mode: Mode
    call: Callable[[], Any]
    done: Callable[[Any, BaseException | None], None]
    adapters: Sequence[Weighted] = ()
    _greenlet: RunGreenlet | None = field(default=None, repr=False)
    _waiting: Waiting | None = field(default=None, repr=False)
    _stop: LatentwireError | None = field(default=None, repr=False)

    def forget(self) -> None:
        """Let go of all that the call used; whoever still holds the run must not hold a model."""
        self._waiting = self._greenlet = self._stop = None  # the last one's traceback leads through the call
        self.call = self.done = _over
        self.adapters = ()

    def stop(self, reason: LatentwireError) -> None:
        """End the run with `reason` before its next forward; from any thread, without effect on an ended run."""
        self._stop = reason


def _over(*_: Any) -> None:
    """In place of what a run has done."""


@dataclass
class EngineFigures:
    """What the engine has done; written by its thread alone, read by anyone."""

    runs_finished: int = 0
    forwards: int = 0
    calls: int = 0
    rows: int = 0
    seconds: float = 0.0  # spent in forwards


class Engine:
    """One device's loop.

    Args:
        max_batch_rows: Most rows of one forward in mode fast. A single call may have more.
        reproducible_rows: Rows of every denoiser forward in mode reproducible.
    """

    def __init__(self, max_batch_rows: int, reproducible_rows: int) -> None:
        self.figures = EngineFigures()
        self._max_rows = max_batch_rows
        self._bucket = reproducible_rows
        self._arrivals: deque[Run] = deque()
        self._news = threading.Condition()
        self._closing = False
        self._runs: list[Run] = []  # those that wait at a gate, the longest waiting first
        self._started = 0
        self._preparations = 0
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def submit(self, run: Run) -> None:
        """Let a run take part from the next forward on; from any thread.

        Raises:
            HostClosing: the engine is closed.
        """
        with self._news:
            if self._closing:
                raise HostClosing("the host is shutting down and takes no more jobs")
            self._arrivals.append(run)
            self._news.notify()

    def close(self) -> None:
        """Stop all runs before their next forward and wait for the thread to end."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join()

    @property
    def running(self) -> int:
        """How many runs are under way."""
        return self._started - self.figures.runs_finished

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._thread.is_alive()

    def _loop(self) -> None:
        # Over the whole thread: a no_grad block that one greenlet leaves must not switch gradients on for another.
        with torch.inference_mode():
            while self._admit():
                self._drop_stopped()
                if self._runs:
                    chosen = self._choose()
                    self._runs = [run for run in self._runs if run not in chosen]
                    self._advance(chosen)

    def _admit(self) -> bool:
        """Start what has arrived, waiting while there is nothing to do; False when the engine shall end."""
        with self._news:
            while not (self._arrivals or self._runs or self._closing):
                self._news.wait()
            arrived = list(self._arrivals)
            self._arrivals.clear()
            closing = self._closing
        for run in arrived:
            self._started += 1
            run._greenlet = RunGreenlet(run.call, run)
            self._resume(run)
        if closing:
            for run in self._runs:
                run.stop(HostClosing("the host is shutting down"))
            self._drop_stopped()
        return not closing

    def _drop_stopped(self) -> None:
        stopped = [run for run in self._runs if run._stop]
        self._runs = [run for run in self._runs if not run._stop]
        for run in stopped:
            self._resume(run, error=run._stop)

    def _choose(self) -> list[Run]:
        """The runs whose waiting calls are the next forward."""
        first = self._next_run()
        waiting = first._waiting
        if waiting is None or waiting.parts is None or first.mode == "exact":
            return [first]
        if first.mode == "reproducible":
            if not waiting.spec.bucketed:
                return [first]
            limit = self._bucket
        else:
            limit = min(
                self._max_rows,
                waiting.spec.most_rows,
                MOST_POSITIONS * waiting.spec.per_latent // waiting.parts.positions,
            )
        chosen, group, rows = [first], [waiting.parts], waiting.parts.rows
        for run in self._runs:
            other = run._waiting
            if run is first or other is None or other.gate is not waiting.gate or run.mode != first.mode:
                continue
            if first.mode == "reproducible" and other.compiled(run.adapters) is not waiting.compiled(first.adapters):
                continue  # a row's bits must not depend on whether its neighbours may be compiled
            if other.parts and rows + other.parts.rows <= limit and all(other.parts.fits(parts) for parts in group):
                chosen.append(run)
                group.append(other.parts)
                rows += other.parts.rows
        return sorted(chosen, key=lambda run: [(id(adapter), weight) for adapter, weight in run.adapters])

    def _next_run(self) -> Run:
        """Whose turn it is."""
        preparing = next((run for run in self._runs if run._waiting and run._waiting.spec.prepares), None)
        ready = next((run for run in self._runs if run._waiting and not run._waiting.spec.prepares), None)
        if preparing is not None and (ready is None or self._preparations < PREPARATIONS_IN_A_ROW):
            self._preparations += 1
            return preparing
        self._preparations = 0
        return ready or self._runs[0]

    def _advance(self, runs: Sequence[Run]) -> None:
        """Run one forward for all of `runs`, and each on to its next gate."""
        calls = [run._waiting for run in runs if run._waiting is not None]
        failure: BaseException | None = None
        begin = perf_counter()
        try:
            outputs = self._forward(runs, calls)
        except BaseException as error:
            if len(runs) == 1:
                log.warning("a forward failed", exc_info=True)
            # go on outside of this block and without the frames: they hold the failed forward's tensors
            failure = error.with_traceback(None)
        if failure is None:
            self.figures.seconds += perf_counter() - begin
            self.figures.forwards += 1
            self.figures.calls += len(calls)
            self.figures.rows += sum(call.parts.rows for call in calls if call.parts)
            for run, output in zip(runs, outputs, strict=True):
                self._resume(run, output)
        elif len(runs) > 1:  # find out whose fault it is
            for run in runs:
                self._advance([run])
        else:
            self._resume(runs[0], error=failure)

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
        greenlet = run._greenlet
        assert greenlet is not None
        try:
            if error is not None:
                result = greenlet.throw(error)
            elif run._waiting is None:
                result = greenlet.switch()
            else:
                result = greenlet.switch(value)
        except BaseException as raised:
            self._finish(run, None, raised)
            return
        if greenlet.dead:
            self._finish(run, result, None)
        else:
            run._waiting = result
            self._runs.append(run)

    def _finish(self, run: Run, result: Any, error: BaseException | None) -> None:
        self.figures.runs_finished += 1
        done = run.done
        run.forget()
        for outcome in ((result, error), (None, InternalError("the run's end could not be told; see the host's log"))):
            try:
                done(*outcome)
                return
            except BaseException:
                log.exception("a run's end could not be told")


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
