"""How soon a new client sees something while a host is busy, against a host that runs one request after the other.

Each round runs 8 jobs of 8 clients at once and, after another number of their steps each time, sends a new client's
request: the time to its first preview, and how many steps of the others passed meanwhile. The same 8 requests one
after the other, and one alone up to its first preview, tell what the new client would have waited for in a queue: the
rest of the 8 from the same moment on, then its own first preview. Prints JSON.

    python benchmarks/first_preview.py [--rounds 8] [--steps 20] [--jobs 8] [--dtype float32]
"""

import argparse
import asyncio
import random
from collections.abc import Iterator
from contextlib import AsyncExitStack, aclosing
from time import perf_counter
from typing import Any

from clients import until_at_most
from figures import middle, show, summary
from prompts import new_prompts
from serving import served

from latentwire.client import Connection, Preview, Step, connect
from latentwire.core.settings import EMBEDDED_MODEL


class Busy:
    """Jobs that run at once, one a client; knows when each step came."""

    def __init__(self, connections: list[Connection], prompts: Iterator[str], steps: int) -> None:
        self._steps_at: list[list[float]] = [[] for _ in connections]
        self._late = asyncio.Event()
        self._late_step = steps
        self.begin = perf_counter()
        self._tasks = [
            asyncio.create_task(self._run(connection, next(prompts), steps, heard))
            for connection, heard in zip(connections, self._steps_at, strict=True)
        ]

    async def wait_for_step(self, step: int) -> None:
        """Until the first one of the jobs has made so many."""
        self._late_step = step
        await self._late.wait()

    async def wait(self) -> float:
        """Until all are done; when that was."""
        await asyncio.gather(*self._tasks)
        return perf_counter()

    def steps_between(self, begin: float, end: float) -> int:
        """How many steps that one of the jobs made which made the most."""
        return max(sum(begin < at <= end for at in heard) for heard in self._steps_at)

    async def _run(self, connection: Connection, prompt: str, steps: int, heard: list[float]) -> None:
        async for event in connection.generate(prompt, num_inference_steps=steps, mode="fast"):
            if isinstance(event, Step):
                heard.append(perf_counter())
                if event.step >= self._late_step:
                    self._late.set()


async def first_preview(connection: Connection, prompt: str, steps: int) -> float:
    """When the first preview of a new request came; the job is left then, which cancels it."""
    events = connection.generate(prompt, num_inference_steps=steps, mode="fast", previews=True)
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Preview):
                return perf_counter()
    raise RuntimeError("a job with previews ended without one")


async def one_round(
    connections: list[Connection], newcomer: Connection, prompts: Iterator[str], steps: int, after: int, part: float
) -> dict[str, float]:
    begin = perf_counter()
    for connection in connections:
        async for _ in connection.generate(next(prompts), num_inference_steps=steps, mode="fast"):
            pass
    queue = perf_counter() - begin
    begin = perf_counter()
    alone = await first_preview(newcomer, next(prompts), steps) - begin
    await until_at_most(newcomer, 0, 0.05)

    busy = Busy(connections, prompts, steps)
    await busy.wait_for_step(after)
    step = (perf_counter() - busy.begin) / after
    await asyncio.sleep(part * step)
    sent = perf_counter()
    seen = await first_preview(newcomer, next(prompts), steps)
    finished = await busy.wait()
    await until_at_most(newcomer, 0, 0.05)
    return {
        "seconds": seen - sent,
        "steps": busy.steps_between(sent, seen),
        "alone": alone,
        "in_a_queue": queue - (sent - busy.begin) + alone,
        "after_the_batch": finished - sent + alone,
    }


async def measure(url: str, rounds: int, steps: int, jobs: int) -> dict[str, Any]:
    prompts = new_prompts()
    moments = random.Random(1)
    rows = []
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(connect(url)) for _ in range(jobs)]
        newcomer = await stack.enter_async_context(connect(url))
        for number in range(rounds + 1):
            # spread over the first three quarters of the job; later there is not much of a queue left
            after = 1 + (number * max(1, 3 * steps // 4) // rounds) % max(1, 3 * steps // 4)
            row = await one_round(connections, newcomer, prompts, steps, after, moments.random())
            if number:  # the first one warms up
                rows.append(row)
    return {
        "first_preview_s": summary([row["seconds"] for row in rows], 3),
        "steps_of_the_others": summary([row["steps"] for row in rows]),
        "alone_s": middle([row["alone"] for row in rows]),
        "in_a_queue_s": summary([row["in_a_queue"] for row in rows], 3),
        "times_sooner_than_in_a_queue": middle([row["in_a_queue"] / row["seconds"] for row in rows], 1),
        "least_times_sooner": round(min(row["in_a_queue"] / row["seconds"] for row in rows), 1),
        "times_sooner_than_after_the_same_batch": middle([row["after_the_batch"] / row["seconds"] for row in rows], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    options = parser.parse_args()
    with served({"models.emoji": {"path": EMBEDDED_MODEL, "dtype": options.dtype}}) as host:
        show("first_preview", options, **asyncio.run(measure(host.socket, options.rounds, options.steps, options.jobs)))


if __name__ == "__main__":
    main()
