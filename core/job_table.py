"""The jobs of a host: the unfinished ones, and what is worth keeping of the latest that ended."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

from .caller import Caller
from .counters import Counters
from .errors import HostClosing, LatentwireError, TooManyJobs, UnknownJob, copied
from .events import Image, JobState
from .jobs import Job
from .settings import LimitSettings

log = logging.getLogger(__name__)

ENDED_JOBS_KEPT = 256


@dataclass(frozen=True, slots=True)
class EndedJob:
    """What stays of a job: its last state, its pictures without their data, and its end.

    An error that has been raised holds its job and its client by its frames; this one is never raised itself.
    """

    owned_by: str
    state: JobState
    pictures: tuple[Image, ...]
    result: dict[str, Any] | None
    error: LatentwireError | None


class JobTable:
    """All jobs of a host, by id.

    Attributes:
        closed: Whether it takes no more jobs.
    """

    def __init__(self, limits: LimitSettings, counters: Counters) -> None:
        self.closed = False
        self._limits = limits
        self._counters = counters
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._ended: OrderedDict[str, EndedJob] = OrderedDict()

    def add(self, job: Job, leaving: Collection[Job] = ()) -> None:
        """Take a job on; `leaving` are those that it takes the place of.

        Raises:
            TooManyJobs: the host, or the job's client, has as many as its limit.
            HostClosing: it is closed.
        """
        if self.closed:
            raise HostClosing("the host is shutting down and takes no more jobs")
        with self._lock:
            staying = [other for other in self._jobs.values() if other not in leaving]
            mine = sum(other.client == job.client for other in staying)
            if mine >= self._limits.jobs_per_client:
                raise TooManyJobs(f"this client has {mine} unfinished jobs, the limit; wait for one or cancel one")
            if len(staying) >= self._limits.jobs:
                raise TooManyJobs(f"the host has {len(staying)} unfinished jobs, its limit; try again later")
            self._jobs[job.id] = job
        job.outcome.add_done_callback(lambda _: self._remove(job))

    def get(self, job_id: str, caller: Caller) -> Job:
        """A caller's own unfinished job.

        Raises:
            UnknownJob: it has no such job, or no longer.
        """
        job = self._jobs.get(job_id)
        if job is None or job.owned_by != caller.owner:
            raise UnknownJob(f"you have no unfinished job {job_id!r:.80}; `jobs` lists them")
        return job

    def find(self, job_id: str, caller: Caller) -> Job | EndedJob:
        """A job that the caller may see, also one of the latest that ended.

        Raises:
            UnknownJob: there is none, or no longer.
        """
        with self._lock:
            job = self._jobs.get(job_id) or self._ended.get(job_id)
        if job is None or not caller.may_see(job.owned_by):
            raise UnknownJob(f"you have no job {job_id!r:.80}, or no longer")
        return job

    def all(self, client: str | None = None) -> list[Job]:
        """The unfinished jobs, oldest first; of one client, or of all."""
        with self._lock:
            return [job for job in self._jobs.values() if client in (None, job.client)]

    def seen_by(self, caller: Caller) -> list[Job]:
        """The unfinished jobs that the caller may see, oldest first."""
        return [job for job in self.all() if caller.may_see(job.owned_by)]

    def _remove(self, job: Job) -> None:
        state, pictures = job.as_it_is(), job.pictures()
        outcome = _end_of(job)
        end = outcome[1].code if outcome[1] else "finished"
        self._counters.add("jobs_ended", end)
        ids = {"client": job.client, "job": job.id}
        log.info("job %s after %d steps and %.2f s", end, job.steps_done, monotonic() - job.created, extra=ids)
        with self._lock:  # from the thread that ended the job, while others may be listing
            self._jobs.pop(job.id, None)
            self._ended[job.id] = EndedJob(job.owned_by, state, tuple(map(_without_data, pictures)), *outcome)
            while len(self._ended) > ENDED_JOBS_KEPT:
                self._ended.popitem(last=False)


def _end_of(job: Job) -> tuple[dict[str, Any] | None, LatentwireError | None]:
    error = job.outcome.exception()
    if isinstance(error, LatentwireError):
        return None, copied(error)
    return job.outcome.result(), None


def _without_data(picture: Image) -> Image:
    return replace(picture, image=picture.image and replace(picture.image, data=b""), latents=None)
