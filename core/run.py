"""One pipeline call on its way through the engine."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .adapters import Weighted
from .errors import EngineRestarted, InternalError, LatentwireError
from .gates import RunGreenlet, Waiting
from .requests import Mode

log = logging.getLogger(__name__)


def _nothing(*_: Any) -> None:
    """Nobody wants to know, or it is over."""


@dataclass(eq=False)
class Run:
    """One pipeline call.

    Attributes:
        mode: How its forwards may be shared.
        call: Makes the call; on the engine's thread, inside a greenlet.
        done: Is given the call's return value, or what it raised; on the engine's thread, so be quick.
        adapters: What its forwards add to the shared modules'; may be replaced while it runs, the next forward uses it.
        client: Whose it is; the clients take turns.
        job: What it is part of; runs of one job have one place in the queue.
        accepted: When its job was, by any clock: among equals the older goes first.
        rank: Which runs go before which: the lower ones; see `policy.RANKS`.
        rows: Of each of its forwards of the denoiser.
        work: All of these together, for estimates.
        began: Called once its turn has come, with the seconds that it may take; on the engine's thread.
        queued: Called while it waits for that, with its job's place (1: the next), and the seconds until it begins and
            until it ends, None where nothing is known yet; on the engine's thread.
        generation: The engine's, when what it uses was leased; None: it uses nothing of a model.
        displaced: Called in place of `done` where the device failed before it began: make it anew. None: it ends with
            an error.
    """

    mode: Mode
    call: Callable[[], Any]
    done: Callable[[Any, BaseException | None], None]
    adapters: Sequence[Weighted] = ()
    client: str = ""
    job: str = ""
    accepted: float = 0.0
    rank: int = 1
    rows: int = 2
    work: float = 0.0
    began: Callable[[float | None], None] = _nothing
    queued: Callable[[int, float | None, float | None], None] = _nothing
    generation: int | None = None
    displaced: Callable[[], None] | None = None

    controlnet_scales: dict[int, float] = field(default_factory=dict, init=False)  # see RunGreenlet
    rows_done: int = field(default=0, init=False)
    since: int = field(default=0, init=False)  # the forward after which it came to wait
    paused: bool = field(default=False, init=False)
    greenlet: RunGreenlet | None = field(default=None, init=False, repr=False)
    waiting: Waiting | None = field(default=None, init=False, repr=False)
    stopped: LatentwireError | None = field(default=None, init=False, repr=False)
    wake: Callable[[], None] = field(default=_nothing, init=False, repr=False)  # the engine's

    def stop(self, reason: LatentwireError) -> None:
        """End the run with `reason` before its next forward; from any thread, without effect on an ended run."""
        self.stopped = reason
        self.wake()

    def pause(self, paused: bool) -> None:
        """Let the run wait at its next forward, or go on; from any thread."""
        self.paused = paused
        self.wake()

    def finish(self, result: Any, error: BaseException | None) -> None:
        """Tell its end, once; from the thread that has it."""
        done = self.done
        self.forget()
        for outcome in ((result, error), (None, InternalError("the run's end could not be told; see the host's log"))):
            try:
                done(*outcome)
                return
            except BaseException:
                log.exception("a run's end could not be told")

    def displace(self) -> None:
        """It cannot begin: what it would use is gone."""
        displaced = self.displaced
        if displaced is None:
            self.finish(None, EngineRestarted("the engine was started anew; send the request again"))
            return
        self.forget()
        displaced()

    def forget(self) -> None:
        """Let go of all that the call used; whoever still holds the run must not hold a model."""
        self.waiting = self.greenlet = self.stopped = None  # the last one's traceback leads through the call
        self.call = self.done = self.began = self.queued = self.wake = _nothing
        self.displaced = None
        self.adapters = ()

    @property
    def work_left(self) -> float:
        """Rows of the denoiser that are still to be computed, as far as is known."""
        return max(0.0, self.work - self.rows_done)

    @property
    def prepares(self) -> bool:
        """Whether it waits for something that makes it ready for a denoising step."""
        return self.waiting is not None and self.waiting.spec.prepares
