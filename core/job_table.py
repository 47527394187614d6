"""The jobs of a host: the unfinished ones, and what is worth keeping of the latest that ended."""

import threading
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from .errors import LatentwireError, TooManyJobs, UnknownJob, copied
from .events import Image, JobState
from .jobs import Job
from .settings import LimitSettings

ENDED_JOBS_KEPT = 256


@dataclass(frozen=True, slots=True)
class EndedJob:
    """What stays of a job: its last state, its pictures without their data, and its end.

    An error that has been raised holds its job and its client by its frames; this one is never raised itself.
    """

    state: JobState
    pictures: tuple[Image, ...]
    result: dict[str, Any] | None
    error: LatentwireError | None


class JobTable:
    """All jobs of a host, by id."""

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._ended: OrderedDict[str, EndedJob] = OrderedDict()

    def add(self, job: Job, leaving: Collection[Job] = ()) -> None:
        """Take a job on; `leaving` are those that it takes the place of.

        Raises:
            TooManyJobs: the host, or the job's client, has as many as its limit.
        """
        with self._lock:
            staying = [other for other in self._jobs.values() if other not in leaving]
            mine = sum(other.client == job.client for other in staying)
            if mine >= self._limits.jobs_per_client:
                raise TooManyJobs(f"this client has {mine} unfinished jobs, the limit; wait for one or cancel one")
            if len(staying) >= self._limits.jobs:
                raise TooManyJobs(f"the host has {len(staying)} unfinished jobs, its limit; try again later")
            self._jobs[job.id] = job
        job.outcome.add_done_callback(lambda _: self._remove(job))

    def get(self, job_id: str, client: str) -> Job:
        """A client's own unfinished job.

        Raises:
            UnknownJob: it has no such job, or no longer.
        """
        job = self._jobs.get(job_id)
        if job is None or job.client != client:
            raise UnknownJob(f"there is no unfinished job {job_id!r:.80} of this client; `jobs` lists them")
        return job

    def find(self, job_id: str) -> Job | EndedJob:
        """Anybody's job, also one of the latest that ended.

        Raises:
            UnknownJob: there is none, or no longer.
        """
        with self._lock:
            job = self._jobs.get(job_id) or self._ended.get(job_id)
        if job is None:
            raise UnknownJob(f"there is no job {job_id!r:.80}, or no longer")
        return job

    def all(self, client: str | None = None) -> list[Job]:
        """The unfinished jobs, oldest first; of one client, or of all."""
        with self._lock:
            return [job for job in self._jobs.values() if client in (None, job.client)]

    def _remove(self, job: Job) -> None:
        state, pictures = job.as_it_is(), job.pictures()
        with self._lock:  # from the thread that ended the job, while others may be listing
            self._jobs.pop(job.id, None)
            self._ended[job.id] = EndedJob(state, tuple(map(_without_data, pictures)), *_end_of(job))
            while len(self._ended) > ENDED_JOBS_KEPT:
                self._ended.popitem(last=False)


def _end_of(job: Job) -> tuple[dict[str, Any] | None, LatentwireError | None]:
    error = job.outcome.exception()
    if isinstance(error, LatentwireError):
        return None, copied(error)
    return job.outcome.result(), None


def _without_data(picture: Image) -> Image:
    return replace(picture, image=picture.image and replace(picture.image, data=b""), latents=None)
