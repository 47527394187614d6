"""Many who watch one job, many who are idle, and some who read nothing.

Watching: a job with 100 clients that watch it, with and without previews. `step_delay_ms` is from the end of a step in
the host, which a plugin notes, to its event at each client; `spread_ms` is from the first client that has a life-cycle
event to each other. The clients run on the machine's same cores, in one process, and are part of the delay.

Idle: memory of the host for each of 1,000 connections that do nothing, after some others that are gone again.

Silent: the delay at 20 clients while one more gets large previews, then with 50 more that ask for the same and never
read, then without these again; the host's memory for each of the silent ones at its highest, and how long after it
could first send no more (the socket's queue no longer grew) the host let go of it. Prints JSON.

    python benchmarks/fanout.py [--watching 100] [--steps 200] [--idle 1000] [--silent 50] [--patience 30]
"""

import argparse
import resource
from pathlib import Path
from typing import Any

from audience import Audience, Told
from figures import show, summary
from processes import Worker
from serving import HostProcess, served
from silence import Sockets

READING = 20  # beside the silent ones
WARM_UP = 50
LONGEST = 1000  # steps of a job
SILENT_S = 10.0  # of a job beside the silent ones, all of whom are there so long


def delays(*told: Told) -> dict[str, Any]:
    """Of one job or several."""
    return {
        "step_delay_ms": summary([1000 * delay for one in told for delay in one.delays]),
        "spread_ms": summary([1000 * spread for one in told for spread in one.spreads]),
    }


def watching(crowd: Worker[Audience], count: int, steps: int) -> dict[str, Any]:
    """A job without previews, and one with."""
    crowd.call(Audience.open, count + 1)
    crowd.call(Audience.job, count, 0, 20, True, False)  # warms up
    results: dict[str, Any] = {}
    for name, previews in (("without_previews", False), ("with_previews", True)):
        told = crowd.call(Audience.job, count, 0, steps, previews, False)
        results[name] = {
            "messages_a_second": round(told.messages / told.seconds),
            "previews_a_client": round(told.previews / count, 1),
            **delays(told),
            "share_of_steps_within_50_ms": round(sum(delay <= 0.05 for delay in told.delays) / len(told.delays), 4),
        }
    crowd.call(Audience.leave)
    return results


def idle(host: HostProcess, crowd: Worker[Audience], count: int) -> dict[str, Any]:
    """Connections that do nothing."""
    crowd.call(Audience.open, WARM_UP)
    crowd.call(Audience.leave)
    sockets = Sockets(host)
    sockets.wait_until(0)
    before = host.memory
    crowd.call(Audience.open, count)
    grown = host.memory - before
    crowd.call(Audience.leave)
    sockets.wait_until(0)
    return {"connections": count, "kib_each": round(grown / count / 1024, 1)}


def silent(host: HostProcess, crowd: Worker[Audience], count: int, steps: int, patience_s: float) -> dict[str, Any]:
    """The others' delay without, with, and without those that read nothing; and what becomes of these."""
    crowd.call(Audience.open, READING + 1)
    crowd.call(Audience.job, READING, 0, 20, False, True)  # warms up
    long = min(LONGEST, 5 * steps)  # so that the silent ones are blocked for a good while
    first = crowd.call(Audience.job, READING, 0, long, False, True)
    ports = crowd.call(Audience.open, count)
    with Sockets(host).followed(ports) as followed:
        beside = min(long, round(SILENT_S * long / first.seconds))
        with_them = crowd.call(Audience.job, READING, count, beside, False, True)
        followed.wait_until_gone(patience_s)
    last = crowd.call(Audience.job, READING, 0, steps, False, True)
    crowd.call(Audience.leave)
    return {
        "silent": count,
        "without": delays(first, last),
        "with": delays(with_them),
        "memory_kib_each": round(followed.most_grown / count / 1024),
        **followed.figures(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--watching", type=int, default=100)
    parser.add_argument("--steps", type=int, default=200, help="of each job")
    parser.add_argument("--idle", type=int, default=1000)
    parser.add_argument("--silent", type=int, default=50)
    parser.add_argument("--patience", type=float, default=30.0, help="seconds to wait for the silent ones' end")
    options = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # open files, for this process, the host and the clients
    clock = Path(__file__).with_name("clock.py")
    tables = {"limits": {"connections_per_address": 2 * options.idle + 100}}
    with served(tables, plugins={"clock": clock}) as host, Worker(Audience, host.socket) as crowd:
        show(
            "fanout",
            options,
            watching=watching(crowd, options.watching, options.steps),
            idle=idle(host, crowd, options.idle),
            silent=silent(host, crowd, options.silent, options.steps, options.patience),
        )


if __name__ == "__main__":
    main()
