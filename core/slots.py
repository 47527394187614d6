"""Live slots: of all requests that name the same slot, only the newest matters.

A newer one supersedes the running one before its next step. Where that one asked for `min_steps_shown`, the newer one
waits until its client has been shown so much; meanwhile a newer one still takes the place of the one that waits.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from .errors import Superseded, TooManyJobs
from .jobs import Job

SLOTS_PER_CLIENT = 64


@dataclass
class _Slot:
    revision: int = 0
    running: Job | None = None
    waiting: tuple[Job, Callable[[], None]] | None = None


class Slots:
    """The slots of all clients of a host."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._slots: dict[str, dict[str, _Slot]] = {}  # client -> name -> slot

    def number(self, job: Job) -> None:
        """Give a job its slot's next revision; nothing for one without a slot.

        Raises:
            TooManyJobs: its client has too many slots.
        """
        name = job.request.slot
        if name is None:
            return
        with self._lock:
            mine = self._slots.setdefault(job.client, {})
            if name not in mine and len(mine) >= SLOTS_PER_CLIENT:
                raise TooManyJobs(f"this client has {SLOTS_PER_CLIENT} slots, the limit; use one of them again")
            slot = mine.setdefault(name, _Slot())
            slot.revision += 1
            job.revision = slot.revision

    def begin(self, job: Job, begin: Callable[[], None]) -> None:
        """Let a numbered job begin: now, or as soon as the older one of its slot makes room."""
        slot = self._slot_of(job)
        if slot is None:
            begin()
            return
        with self._lock:
            passed_over, slot.waiting = slot.waiting, (job, begin)
        if passed_over is not None:
            passed_over[0].fail(Superseded(_message(passed_over[0], job)))
        job.when_shown = lambda: self._advance(slot)
        job.outcome.add_done_callback(lambda _: self._advance(slot))
        self._advance(slot)

    def of(self, client: str, name: str | None) -> list[Job]:
        """The unfinished jobs of a client's slot, the waiting one first."""
        with self._lock:
            slot = self._slots.get(client, {}).get(name or "")
            if slot is None:
                return []
            jobs = [slot.waiting[0] if slot.waiting else None, slot.running]
            return [job for job in jobs if job is not None and not job.outcome.done()]

    def forget(self, client: str) -> None:
        """A client is gone for good."""
        with self._lock:
            self._slots.pop(client, None)

    def _slot_of(self, job: Job) -> _Slot | None:
        with self._lock:
            return None if job.request.slot is None else self._slots.get(job.client, {}).get(job.request.slot)

    def _advance(self, slot: _Slot) -> None:
        """Let the waiting job begin if the running one may go."""
        with self._lock:
            older = slot.running
            if older is not None and older.outcome.done():
                older = slot.running = None
            if slot.waiting is not None and slot.waiting[0].outcome.done():  # cancelled meanwhile
                slot.waiting = None
            if slot.waiting is None or (older is not None and older.still_to_be_shown):
                return
            job, begin = slot.waiting
            slot.running, slot.waiting = job, None
            if older is not None:  # its runs are stopped before those of the newer one exist, or of one newer still
                older.fail(Superseded(_message(older, job), keeps_previews=older.request.min_steps_shown > 0))
        begin()


def _message(older: Job, newer: Job) -> str:
    return f"revision {newer.revision} of slot {newer.request.slot!r} took the place of revision {older.revision}"
