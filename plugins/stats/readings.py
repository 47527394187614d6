"""Readings of the machine, this process and the engine."""

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import psutil  # type: ignore[import-untyped]

from latentwire import Host

from .gpus import Gpu, Gpus

RECENT_S = 0.9  # a little less than a second, so that who reads once a second compares with the reading before
SHORTEST_S = 0.2  # the system counts the time of a CPU in steps of 10 ms
LONGEST_S = 60.0
SPACING_S = 0.1


@dataclass(frozen=True, slots=True)
class Sample:
    """Counters that tell something of now only when compared with older ones; all times in seconds."""

    time: float
    busy: float  # of all CPU cores together
    idle: float
    process: float  # of CPU that this process used
    forwards: int = 0
    rows: int = 0
    forward_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything at one moment."""

    cpu: dict[str, Any]
    gpus: list[Gpu]
    process: dict[str, Any]
    engine: dict[str, Any]
    process_cpu_seconds: float

    def plain(self) -> dict[str, Any]:
        """What the command `stats` gives."""
        gpus = [gpu.plain() for gpu in self.gpus]
        return {"cpu": self.cpu, "gpus": gpus, "process": self.process, "engine": self.engine}


class Reader:
    """Reads for one host. `read` is for one thread alone: it asks the driver, and may sleep a little."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._process = psutil.Process()
        self._gpus = Gpus()
        self._samples = deque([self._sample(None)])  # the one to compare with first; a new host's counters are at 0

    def read(self, host: Host) -> Reading:
        """Everything now. Loads and `recent` are over the time since an older sample, see `_older`."""
        old = self._older(host)
        new = self._sample(host)
        if new.time - self._samples[-1].time >= SPACING_S:
            self._samples.append(new)
        elapsed = new.time - old.time
        busy, idle = new.busy - old.busy, new.idle - old.idle
        memory = psutil.virtual_memory()
        with self._process.oneshot():
            process = {
                "memory": self._process.memory_info().rss,
                "cpu": round(max(0.0, 100 * (new.process - old.process) / elapsed), 1),
                "threads": self._process.num_threads(),
                "uptime": round(new.time - self._begin, 3),
            }
        return Reading(
            cpu={
                "load": None if busy + idle <= 0 else round(min(100.0, max(0.0, 100 * busy / (busy + idle))), 1),
                "cores": psutil.cpu_count(),
                "memory": {
                    "total": memory.total,
                    "available": memory.available,
                    "percent": memory.percent,
                    "used": memory.used,
                    "free": memory.free,
                },
            },
            gpus=self._gpus.read(),
            process=process,
            engine=_engine(host, old, new),
            process_cpu_seconds=new.process,
        )

    def _older(self, host: Host) -> Sample:
        """The sample to compare with: the last one that is about a second old, or the one before it.

        Where that is so old that it tells nothing of now, or younger than a measurement takes, this waits.
        """
        samples, now = self._samples, time.monotonic()
        while len(samples) > 1 and now - samples[1].time >= RECENT_S:
            samples.popleft()
        if now - samples[0].time > LONGEST_S:
            samples.clear()
            samples.append(self._sample(host))
        time.sleep(max(0.0, samples[0].time + SHORTEST_S - time.monotonic()))
        return samples[0]

    def _sample(self, host: Host | None) -> Sample:
        cpu, mine = psutil.cpu_times(), self._process.cpu_times()
        idle = cpu.idle + getattr(cpu, "iowait", 0.0)
        counted_twice = getattr(cpu, "guest", 0.0) + getattr(cpu, "guest_nice", 0.0)  # Linux: in user and nice, too
        sample = (time.monotonic(), sum(cpu) - counted_twice - idle, idle, mine.user + mine.system)
        if host is None:
            return Sample(*sample)
        figures = host.engine.figures
        return Sample(*sample, figures.forwards, figures.rows, figures.seconds)


def _engine(host: Host, old: Sample, new: Sample) -> dict[str, Any]:
    figures, shelf = host.engine.figures, host.store.shelf
    states = [job.state for job in host.jobs.all()]
    forwards = new.forwards - old.forwards
    return {
        "jobs": len(states),
        "preparing": states.count("preparing"),
        "running": states.count("running"),
        "runs": host.engine.running,
        "runs_finished": figures.runs_finished,
        "forwards": new.forwards,
        "calls": figures.calls,
        "rows": new.rows,
        "seconds": round(new.forward_seconds, 3),
        "rows_per_forward": _mean(new.rows, new.forwards),
        "ms_per_forward": _mean(1000 * new.forward_seconds, new.forwards),
        "recent": {
            "seconds": round(new.time - old.time, 3),
            "forwards": forwards,
            "rows_per_forward": _mean(new.rows - old.rows, forwards),
            "ms_per_forward": _mean(1000 * (new.forward_seconds - old.forward_seconds), forwards),
        },
        "loads": shelf.loads,
        "hits": shelf.hits,
    }


def _mean(total: float, count: int) -> float | None:
    return round(total / count, 3) if count else None
