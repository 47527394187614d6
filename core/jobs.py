"""Jobs: one for each accepted `generate`, from its request to its single end."""

import logging
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Literal

from .run import Run
from .errors import JobCancelled, JobFailed, LatentwireError, PluginError, TooManyJobs, UnknownJob
from .events import Event
from .requests import GenerateRequest
from .settings import LimitSettings

log = logging.getLogger(__name__)

Listener = Callable[[Event], None]
"""Is told of a job's events; from any thread, so it must not block."""

State = Literal["preparing", "running", "finished", "failed", "cancelled"]


@dataclass(eq=False)
class Job:
    """One request under way.

    Attributes:
        id: Given by the host.
        client: Who sent it; others can neither see nor cancel it.
        outcome: Becomes the command's result, or the error that ended the job.
    """

    client: str
    request: GenerateRequest
    seeds: list[int]
    listener: Listener
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    state: State = "preparing"
    outcome: Future[dict[str, Any]] = field(default_factory=Future)
    created: float = field(default_factory=monotonic)
    steps_done: int = 0
    _runs: list[Run] = field(default_factory=list)
    _over: bool = False
    _before_end: list[Callable[[], None]] = field(default_factory=list)
    _pictures_done: set[int] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def emit(self, event: Event) -> None:
        """Tell the listener, unless the job is over, or the event is a late preview of a finished picture."""
        with self._lock:
            late = event.latest_wins and getattr(event, "index", None) in self._pictures_done
            if not self._over and not late:
                self.listener(event)

    def picture_done(self, index: int, event: Event) -> bool:
        """Emit a finished picture; whether it was the last one."""
        with self._lock:
            self._pictures_done.add(index)
            if not self._over:
                self.listener(event)
            return len(self._pictures_done) == len(self.seeds)

    def add_run(self, run: Run) -> bool:
        """Take note of a run, to stop it with the job; False when the job is over and it must not start."""
        with self._lock:
            if not self._over:
                self.state = "running"
                self._runs.append(run)
            return not self._over

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
        if self._end("finished"):
            self.outcome.set_result(result)

    def fail(self, error: BaseException) -> bool:
        """End with an error and stop what still runs; False for a job that has ended."""
        if isinstance(error, PluginError) or not isinstance(error, LatentwireError):
            log.error("job %s failed", self.id, exc_info=error)
        if not isinstance(error, LatentwireError):
            error = JobFailed(f"the pipeline failed: {type(error).__name__}: {error}")
        if not self._end("cancelled" if isinstance(error, JobCancelled) else "failed"):
            return False
        # without causes and frames, which hold tensors for as long as anybody holds the error
        error.__cause__ = error.__context__ = None
        self.outcome.set_exception(error.with_traceback(None))
        return True

    def _end(self, state: State) -> bool:
        """The way to an end, once: no more events, runs stopped, and what must be done before anyone hears of it."""
        with self._lock:
            if self._over:
                return False
            self._over = True
            self.state = state
            runs, self._runs = self._runs, []
            calls, self._before_end = self._before_end, []
        if state != "finished":
            for run in runs:
                run.stop(JobCancelled(f"job {self.id} has ended"))
        for call in calls:
            try:
                call()
            except Exception:
                log.exception("job %s did not end cleanly", self.id)
        return True


class JobTable:
    """The unfinished jobs of a host."""

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}

    def add(self, job: Job) -> None:
        """Take a job on.

        Raises:
            TooManyJobs: the host, or the job's client, has as many as its limit.
        """
        with self._lock:
            mine = sum(other.client == job.client for other in self._jobs.values())
            if mine >= self._limits.jobs_per_client:
                raise TooManyJobs(f"this client has {mine} unfinished jobs, the limit; wait for one or cancel one")
            if len(self._jobs) >= self._limits.jobs:
                raise TooManyJobs(f"the host has {len(self._jobs)} unfinished jobs, its limit; try again later")
            self._jobs[job.id] = job
        job.outcome.add_done_callback(lambda _: self._remove(job))

    def get(self, job_id: str, client: str) -> Job:
        """A client's own unfinished job.

        Raises:
            UnknownJob: it has no such job, or no longer.
        """
        job = self._jobs.get(job_id)
        if job is None or job.client != client:
            raise UnknownJob(f"there is no unfinished job {job_id!r} of this client; `jobs` lists them")
        return job

    def all(self, client: str | None = None) -> list[Job]:
        """The unfinished jobs, oldest first; of one client, or of all."""
        with self._lock:
            return [job for job in self._jobs.values() if client in (None, job.client)]

    def _remove(self, job: Job) -> None:
        with self._lock:  # from the thread that ended the job, while others may be listing
            self._jobs.pop(job.id, None)
