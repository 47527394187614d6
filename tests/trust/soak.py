"""Minutes of 32 clients that churn, against a real server: nothing is lost, nothing is left behind.

    python -m latentwire.tests.trust.soak --minutes 10 --seed 7

Prints one JSON object; the exit status is 1 when something does not hold.
"""

import argparse
import asyncio
import json
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from .churn import Churn, Totals
from .served import OBSERVER, TOKEN, Server, server
from .strict_client import StrictClient

CLIENTS = 32
GRACE_S = 3.0
MOST_GROWTH = 20 << 20  # bytes of memory after the warm-up
PLUGINS = Path(__file__).parent / "plugins"
WANTED = """
[engine]
max_batch_rows = 32
reproducible_rows = 2

[limits]
images_mib = 16

[server]
token = "{token}"
observer_token = "{observer}"
resume_grace_s = {grace}

[[plugins]]
name = "results"
settings = {{ folder = "results", max_count = 200 }}
"""
ALONE = {"OMP_NUM_THREADS": "1"}  # a busy machine, and the clients make it one, starves a team of two threads
OWN_FAULTS = ("failing", "breaking")  # plugins whose errors are meant


def toml() -> str:
    """The host's settings."""
    text = WANTED.format(token=TOKEN, observer=OBSERVER, grace=GRACE_S)
    for name in ("census", "failing", "breaking"):
        text += f'[[plugins]]\nname = "{name}"\npath = "{PLUGINS / name}.py"\n'
    return text


class Observer:
    """One quiet client beside the others: how long it waits, and what memory the host has."""

    def __init__(self, running: Server, totals: Totals) -> None:
        self._server = running
        self._client = StrictClient(running.url, totals.faults, totals.told, Authorization=f"Bearer {OBSERVER}")
        self.memory: list[tuple[float, int]] = []
        self.pings: list[float] = []

    async def __aenter__(self) -> "Observer":
        await self._client.connect()
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await self._client.close()

    async def ask(self, command: str) -> dict[str, Any]:
        """The result of a command."""
        answer = await self._client.answer(command)
        result: dict[str, Any] = answer["result"]
        return result

    async def at_rest(self, like: dict[str, int] | None = None) -> dict[str, Any]:
        """What the host has once nothing is under way; it has a while to come to what it was like before."""
        last: dict[str, Any] = {}
        for _ in range(60):
            before, last = last, await self.ask("census")
            same = before.get("counted") == last["counted"] if like is None else last["counted"] == like
            if same and not last["counted"]["jobs"]:
                break
            await asyncio.sleep(0.5)
        return last

    def memory_in(self, begin: float, end: float) -> float:
        """The median of the memory between two times."""
        return median([size for at, size in self.memory if begin <= at <= end] or [0])

    async def _look(self) -> None:
        while True:
            begin = time.monotonic()
            await self._client.answer("ping")
            self.pings.append(time.monotonic() - begin)
            self.memory.append((time.monotonic(), self._server.memory))
            await asyncio.sleep(0.25)


async def churn(running: Server, totals: Totals, seed: str, seconds: float) -> None:
    """Let the clients come, and leave again."""
    until = time.monotonic() + seconds
    clients = [Churn(running, totals, random.Random(f"{seed}/{number}"), GRACE_S) for number in range(CLIENTS)]
    await asyncio.gather(*(client.run(until) for client in clients))
    await asyncio.sleep(GRACE_S + 1.5)  # those who left without a word are waited for so long


async def soak(seconds: float, seed: int, most_growth: int) -> dict[str, Any]:
    """The figures; `faults` has all that does not hold."""
    totals = Totals()
    warming = min(120.0, seconds / 4)
    window = min(60.0, seconds / 5)
    with tempfile.TemporaryDirectory() as folder, server(Path(folder), toml=toml(), variables=ALONE) as running:
        async with Observer(running, totals) as observer:
            await churn(running, totals, f"{seed}/warm-up", warming)
            before = await observer.at_rest()
            begin = time.monotonic()
            await churn(running, totals, f"{seed}", seconds - warming)
            end = time.monotonic() - GRACE_S - 1.5
            after = await observer.at_rest(before["counted"])
            plugins = {plugin["name"]: plugin["state"] for plugin in (await observer.ask("plugins.list"))["plugins"]}
        ended = ended_jobs(running)
        status = running.stop()
    first, last = observer.memory_in(begin, begin + window), observer.memory_in(end - window, end)
    faults = totals.faults
    if after["counted"] != before["counted"]:
        faults.append(f"left behind: {after['counted']}, before: {before['counted']}")
    growth = after["memory"] - before["memory"]  # under load it is told, too, but depends on what is just under way
    if growth > most_growth:
        faults.append(f"memory grew by {growth / 2**20:.1f} MiB")
    if totals.accepted != totals.ended.total():
        faults.append(f"{totals.accepted} jobs were accepted, {totals.ended.total()} ended")
    if sum(ended.values()) < totals.accepted:
        faults.append(f"the host says that {ended} jobs ended, the clients saw {totals.accepted}")
    if status != 0:
        faults.append(f"the host's exit status was {status}")
    if plugins["failing"] != "loaded":
        faults.append(f"the plugin failing is {plugins['failing']}")
    faults += unexpected(running)
    return {
        "ok": not faults,
        "seed": seed,
        "seconds": seconds,
        "clients": CLIENTS,
        "jobs": {"accepted": totals.accepted, "ended": dict(totals.ended), "ended by the host's count": ended},
        "done": dict(totals.done.most_common()),
        "told": dict(totals.told.most_common()),
        "warm-up": f"{warming:g} s",
        "memory in MiB": {
            "under load, after the warm-up": round(first / 2**20, 1),
            "under load, at the end": round(last / 2**20, 1),
            "at rest, after the warm-up": round(before["memory"] / 2**20, 1),
            "at rest, at the end": round(after["memory"] / 2**20, 1),
            "each 30 s": [round(observer.memory_in(at, at + 5) / 2**20) for at in moments(observer)],
        },
        "at rest": {"before": before, "after": after},
        "ping in ms": {
            "median": round(1000 * median(observer.pings), 1),
            "slowest": round(1000 * max(observer.pings), 1),
        },
        "plugins": {name: plugins[name] for name in OWN_FAULTS},
        "faults": faults[:50],
        "number of faults": len(faults),
    }


def moments(observer: Observer) -> list[float]:
    """Each half a minute of a run."""
    begin, end = observer.memory[0][0], observer.memory[-1][0]
    return [begin + 30 * number for number in range(int((end - begin) / 30) + 1)]


def ended_jobs(running: Server) -> dict[str, int]:
    """How the host says that its jobs ended."""
    _, body = running.get("/metrics", Authorization=f"Bearer {TOKEN}")
    lines = [line for line in body.decode().splitlines() if line.startswith("latentwire_jobs_ended_total{")]
    return {line.partition('"')[2].partition('"')[0]: int(float(line.rpartition(" ")[2])) for line in lines}


def unexpected(running: Server) -> list[str]:
    """Errors in the host's log that no plugin was meant to cause: the line, and what of its traceback comes first."""
    found: Counter[str] = Counter()
    for number, line in enumerate(running.log):
        block = "\n".join(running.log[number : number + 60])
        if line.startswith(("ERROR", "CRITICAL", "Exception ignored")) and not any(
            name in block for name in OWN_FAULTS
        ):
            found["\n".join(running.log[number : number + 25])] += 1
    return [f"{times} times in the log: {text}" for text, times in found.items()]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None, help="of what the clients do; random")
    given = parser.parse_args(arguments)
    seed = secrets.randbits(32) if given.seed is None else given.seed
    print(f"seed {seed}", file=sys.stderr)
    figures = asyncio.run(soak(given.minutes * 60, seed, MOST_GROWTH))
    print(json.dumps(figures, indent=2))
    return 0 if figures["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
