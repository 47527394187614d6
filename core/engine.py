"""The step engine: one thread that runs many ordinary pipeline calls at once, forward by forward.

Every call lives in a greenlet. Where it calls a shared module it comes to a gate and waits; since all
others wait at gates too, the loop sees every forward that is wanted, merges those that may be merged,
and hands each call its own rows. All policy lives here, in `_choose`:

- what makes a run ready for its step (text encoder, ControlNet, autoencoder) goes before the denoiser,
  so that newcomers are level with the others when the next denoiser forward starts;
- otherwise whoever waits longest goes first, together with all who may share its forward.

How a forward is shared depends on the run's mode. exact: never, so the result is bit-identical to a plain
pipeline call. reproducible: padded to a fixed number of rows, where a row does not depend on its
neighbours. fast: with whoever is there.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .batching import split
from .errors import HostClosing, LatentwireError
from .gates import RunGreenlet, Waiting
from .requests import Mode

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Run:
    """One pipeline call.

    Attributes:
        mode: How its forwards may be shared.
        call: Makes the call; on the engine's thread, inside a greenlet.
        done: Is given the call's return value, or what it raised; on the engine's thread, so be quick.
    """

    mode: Mode
    call: Callable[[], Any]
    done: Callable[[Any, BaseException | None], None]
    _greenlet: RunGreenlet | None = field(default=None, repr=False)
    _waiting: Waiting | None = field(default=None, repr=False)
    _stop: LatentwireError | None = field(default=None, repr=False)

    def stop(self, reason: LatentwireError) -> None:
        """End the run with `reason` before its next forward; from any thread, without effect on an ended run."""
        self._stop = reason


@dataclass
class EngineFigures:
    """What the engine has done; written by its thread alone, read by anyone."""

    runs_finished: int = 0
    forwards: int = 0
    calls: int = 0
    rows: int = 0


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
        return len(self._runs)

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
            run._greenlet = RunGreenlet(run.call)
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
        first = next((run for run in self._runs if run._waiting and not run._waiting.spec.denoiser), self._runs[0])
        waiting = first._waiting
        if waiting is None or waiting.parts is None or first.mode == "exact":
            return [first]
        if first.mode == "reproducible" and not waiting.spec.bucketed:
            return [first]
        limit = self._bucket if first.mode == "reproducible" else min(self._max_rows, waiting.spec.most_rows)
        chosen, rows = [first], waiting.parts.rows
        for run in self._runs:
            parts = run._waiting.parts if run._waiting else None
            if (
                run is not first
                and parts is not None
                and run.mode == first.mode
                and run._waiting.gate is waiting.gate  # type: ignore[union-attr]
                and parts.key == waiting.parts.key
                and rows + parts.rows <= limit
            ):
                chosen.append(run)
                rows += parts.rows
        return chosen

    def _advance(self, runs: Sequence[Run]) -> None:
        """Run one forward for all of `runs`, and each on to its next gate."""
        calls = [run._waiting for run in runs if run._waiting is not None]
        self.figures.forwards += 1
        self.figures.calls += len(calls)
        try:
            outputs = self._forward(runs[0].mode, calls)
        except BaseException as error:
            if len(runs) > 1:  # find out whose fault it is
                for run in runs:
                    self._advance([run])
            else:
                self._resume(runs[0], error=error)
            return
        for run, output in zip(runs, outputs, strict=True):
            self._resume(run, output)

    def _forward(self, mode: Mode, calls: Sequence[Waiting]) -> list[Any]:
        parts = [call.parts for call in calls if call.parts is not None]
        rows = sum(part.rows for part in parts)
        self.figures.rows += rows
        batcher = calls[0].gate.batcher
        padded = mode == "reproducible" and calls[0].spec.bucketed and bool(parts)
        if batcher is None or (len(calls) == 1 and not padded):
            return [call.run() for call in calls]
        arguments = batcher.put_together(parts, max(rows, self._bucket) if padded else rows)
        return split(calls[0].gate.forward(**arguments), [part.rows for part in parts])

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
        run._waiting = run._greenlet = None
        try:
            run.done(result, error)
        except BaseException:
            log.exception("a run's done callback raised")
