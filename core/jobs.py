"""Jobs: one for each accepted `generate`, from its request to its single end."""

import logging
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any, Literal

from .errors import EngineRestarted, JobCancelled, LatentwireError, PluginError, copied, one_line
from .events import (
    Changed,
    Event,
    Image,
    JobEvent,
    JobState,
    Paused,
    PictureState,
    Preview,
    Queued,
    Resumed,
    Started,
    Step,
)
from .faults import typed
from .requests import GenerateRequest
from .run import Run
from .tuning import Tuning
from .watching import Listener, Watcher

log = logging.getLogger(__name__)

State = Literal["preparing", "queued", "running", "paused", "finished", "failed", "cancelled", "superseded"]


@dataclass(eq=False)
class Job:
    """One request under way, or over.

    Attributes:
        id: Given by the host.
        asked: The request as it came, before plugins filled in more.
        client: The session that sent it.
        owned_by: Whose it is; others can neither see nor change it, but for observers, who can see it.
        outcome: Becomes the command's result, or the error that ended the job.
        revision: Of its slot, from 1; None without a slot.
        tuning: What of it may be changed, as it is now; None until its pictures are ready to begin.
        first_tuning: The same as its pictures were made ready with.
        steps_shown: How many steps of a picture its client has been shown so far.
        when_shown: Called when there are more, or it rests: a newer request of its slot may begin then.
    """

    client: str
    owned_by: str
    request: GenerateRequest
    seeds: list[int]
    listener: Listener
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    outcome: Future[dict[str, Any]] = field(default_factory=Future)
    created: float = field(default_factory=monotonic)
    revision: int | None = None
    tuning: Tuning | None = None
    first_tuning: Tuning | None = None
    steps_done: int = 0
    steps_shown: int = 0
    when_shown: Callable[[], None] = lambda: None
    asked: GenerateRequest = field(init=False)
    owner: Watcher = field(init=False)
    watchers: tuple[Watcher, ...] = field(init=False)
    _state: State = "preparing"
    _begun: bool = False
    _paused: bool = False
    _place: Queued | None = None
    _steps: dict[int, Step] = field(default_factory=dict)  # the last one of each picture
    _previews: dict[int, Preview] = field(default_factory=dict)
    _pictures: dict[int, Image] = field(default_factory=dict)
    _runs: list[Run] = field(default_factory=list)
    _over: bool = False
    _before_end: list[Callable[[], None]] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.asked = self.request
        self.owner = Watcher(self.request.stream, self.listener)
        self.watchers = (self.owner,)

    @property
    def state(self) -> State:
        return "paused" if self._paused and not self._over else self._state

    @property
    def place(self) -> int | None:
        """Its place in the queue, from 1; None where it does not wait there."""
        return self._place.position if self._place is not None and self._state == "queued" else None

    @property
    def still_to_be_shown(self) -> bool:
        """Whether a newer request of its slot has to wait until its client has been shown more; not while it rests."""
        return not self._paused and self.steps_shown < self.request.min_steps_shown

    def take(self, request: GenerateRequest) -> None:
        """Go on with a request in which plugins have filled more in."""
        self.request = request
        self.owner.stream = request.stream

    def emit(self, event: Event, wanted: Callable[[Watcher], bool] = lambda _: True) -> None:
        """Tell those who watch and want it, unless the job is over, or it is a late event of a finished picture."""
        if self.revision is not None and isinstance(event, JobEvent):
            event = replace(event, **self._where())
        with self._lock:
            late = event.latest_wins and getattr(event, "index", None) in self._pictures
            if self._over or late:
                return
            self._remember(event)
            for watcher in self.watchers:
                if wanted(watcher):
                    watcher.listener(event)

    def _remember(self, event: Event) -> None:
        """For those who come later."""
        match event:
            case Step():
                self._steps[event.index] = event
            case Preview():
                self._previews[event.index] = event
            case Image():
                self._pictures[event.index] = event
                self._previews.pop(event.index, None)

    def watch(self, watcher: Watcher) -> bool:
        """Let somebody follow the job from its present state on: where it is, what is finished, then what comes.

        Returns:
            Whether anything will come: where it is over, its outcome is there in a moment, if not now.
        """
        with self._lock:
            watcher.listener(self.as_it_is())
            for picture in self._pictures.values():
                watcher.listener(picture)
            if watcher.stream.previews is not None:
                for preview in self._previews.values():
                    watcher.listener(preview)
            if not self._over:
                self.watchers = (*self.watchers, watcher)
            return not self._over

    def unwatch(self, watcher: Watcher) -> None:
        """Let somebody go."""
        with self._lock:
            self.watchers = tuple(other for other in self.watchers if other is not watcher)

    def as_it_is(self) -> JobState:
        """Where it is now."""
        with self._lock:
            pictures = []
            for index, seed in enumerate(self.seeds):
                step = self._steps.get(index)
                done = index in self._pictures
                pictures.append(PictureState(index, seed, step.step if step else 0, step.steps if step else None, done))
            seconds = round(monotonic() - self.created, 3)
            state = JobState(self.id, self.state, self.request.prompt, seconds, self.place, pictures)
        return state if self.revision is None else replace(state, **self._where())

    def pictures(self) -> list[Image]:
        """Those that are finished."""
        with self._lock:
            return list(self._pictures.values())

    def shown(self, step: int) -> None:
        """A step of a picture has been shown."""
        if step > self.steps_shown:
            self.steps_shown = step
            self.when_shown()

    def waits(self, position: int, starts_in: float | None, ends_in: float | None) -> None:
        """The engine has no room for its first picture yet."""
        with self._lock:
            if self._begun:
                return
            self._state = "queued"
            self._place = Queued(self.id, position, _rounded(starts_in), _rounded(ends_in))
            self.emit(self._place)

    def begins(self, started: Started) -> None:
        """A picture's turn has come; only the first one's is told."""
        with self._lock:
            if not self._begun:
                self._begun = True
                self._state = "running"
                self.emit(started)

    def picture_done(self, event: Image) -> bool:
        """Tell of a finished picture; whether it was the last one."""
        with self._lock:
            self.emit(event)
            return len(self._pictures) == len(self.seeds)

    def begin(self, runs: list[Run], submit: Callable[..., None]) -> None:
        """Hand its runs to the engine by `submit`, unless it is over; they are stopped and paused with the job."""
        with self._lock:
            if self._over:
                return
            self._runs = runs
            for run in runs:
                run.pause(self._paused)
            submit(*runs)
            self._state = "running"  # unless the engine says that they have to wait

    def begin_again(self, run: Run) -> bool:
        """Go back to where it was accepted, for a run of it that cannot begin any more.

        Returns:
            Whether that has been done, and it shall be prepared anew: once for all of its runs. A job that has begun
            fails.
        """
        with self._lock:
            if self._over or run not in self._runs:
                return False
            if not self._begun:
                self._runs = []
                self._state = "preparing"
                self._place = None
                self.request = self.asked
                calls, self._before_end = self._before_end, []
        if self._begun:
            self.fail(EngineRestarted("the engine was started anew; send the request again"))
            return False
        for call in calls:
            call()
        return True

    def pause(self, paused: bool) -> bool:
        """Let it wait before its next step, or go on; whether that changed anything."""
        with self._lock:
            if self._over or self._paused == paused:
                return False
            self._paused = paused
            for run in self._runs:
                run.pause(paused)
            self.emit(Paused(self.id) if paused else Resumed(self.id))
        self.when_shown()
        return True

    def change(self, tuning: Tuning) -> None:
        """Let its pictures go on with other values from their next step on."""
        with self._lock:
            self.tuning = tuning
            self.emit(Changed(self.id, **tuning.plain()))

    def before_end(self, call: Callable[[], None]) -> None:
        """Have something done before anyone hears of the end; at once where the job is over."""
        with self._lock:
            over = self._over
            if not over:
                self._before_end.append(call)
        if over:
            call()

    def finish(self, result: dict[str, Any]) -> None:
        """End well; without effect on a job that has ended."""
        watchers = self._end("finished")
        if watchers is not None:
            self.outcome.set_result(result | self._where())
            for watcher in watchers:
                watcher.ended()

    def fail(self, error: BaseException) -> bool:
        """End with an error and stop what still runs; False for a job that has ended."""
        raised = error
        error = typed(error)
        state: State = error.code if error.code in ("cancelled", "superseded") else "failed"  # type: ignore[assignment]
        watchers = self._end(state)
        if watchers is None:
            return False
        if isinstance(raised, PluginError) or not isinstance(raised, LatentwireError):
            about = {"client": self.client, "job": self.id}
            log.error("job %s failed: %s", self.id, one_line(raised), exc_info=raised, extra=about)
        # without causes and frames, which hold tensors for as long as anybody holds the error; and a copy, since all
        # who waited for the same load have the same one
        mine = copied(error)
        mine.about = {"job": self.id} | self._where()
        self.outcome.set_exception(mine)
        for watcher in watchers:
            watcher.ended()
        return True

    def _where(self) -> dict[str, Any]:
        return {} if self.revision is None else {"slot": self.request.slot, "revision": self.revision}

    def _end(self, state: State) -> tuple[Watcher, ...] | None:
        """The way to an end, once: no more events, runs stopped, and what must be done before anyone hears of it.

        Returns:
            Who was watching; None where it is over already.
        """
        with self._lock:
            if self._over:
                return None
            self._over = True
            self._state = state
            runs, self._runs = self._runs, []
            calls, self._before_end = self._before_end, []
            watchers, self.watchers = self.watchers, ()
            self._previews.clear()
        if state != "finished":
            for run in runs:
                run.stop(JobCancelled(f"job {self.id} has ended"))
        for call in calls:
            try:
                call()
            except Exception:
                log.exception("job %s did not end cleanly", self.id)
        return watchers


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 2)
