"""How soon a cancelled job ends, alone and among others, and that it leaves no trace in the next one.

Each round makes a picture in mode exact, cancels another job in the middle of its way, and makes the picture again:
the two must be the same bytes. `end` is from the cancel command to the job's own end event, as its client sees them;
`engine` up to when the engine has let go of it, which it can only between two forwards. `beyond_a_step` is `engine`
less the median step of the same moment. Prints JSON.

    python benchmarks/cancel.py [--rounds 8] [--steps 20] [--others 7] [--dtype float32]
"""

import argparse
import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any

from clients import until_at_most
from figures import show, summary
from prompts import PROMPT, new_prompts
from serving import served

from latentwire.client import Accepted, Connection, Image, RemoteError, Step, connect
from latentwire.core.settings import EMBEDDED_MODEL


@dataclass
class Watched:
    """A job under way."""

    job: asyncio.Future[str]
    late: asyncio.Event = field(default_factory=asyncio.Event)
    steps_at: list[float] = field(default_factory=list)
    end: float = 0.0

    async def run(self, connection: Connection, prompt: str, steps: int, late_step: int) -> None:
        """To its end, whichever it is; `late` is set at a step."""
        try:
            async for event in connection.generate(prompt, num_inference_steps=steps, mode="fast"):
                if isinstance(event, Accepted):
                    self.job.set_result(event.job)
                elif isinstance(event, Step):
                    self.steps_at.append(perf_counter())
                    if event.step >= late_step:
                        self.late.set()
        except RemoteError as error:
            if error.code != "cancelled":
                raise
        self.end = perf_counter()


async def picture(connection: Connection) -> bytes:
    """Always the same one."""
    async for event in connection.generate(PROMPT, seed=7, num_inference_steps=4, mode="exact"):
        if isinstance(event, Image) and event.image is not None:
            return event.image.data
    raise RuntimeError("a job ended without its picture")


async def cancelled(
    connections: list[Connection], prompts: Iterator[str], steps: int, after: int
) -> tuple[dict[str, float], list[bytes]]:
    """Cancel the first client's job among those of the rest; the figures, and a picture from before and after."""
    first, *_, control = connections
    before = await picture(first)
    loop = asyncio.get_running_loop()
    jobs = [Watched(loop.create_future()) for _ in connections[:-1]]
    tasks = [
        asyncio.create_task(job.run(connection, next(prompts), steps, after))
        for job, connection in zip(jobs, connections, strict=False)
    ]
    job = jobs[0]
    await job.late.wait()
    name = await job.job
    sent = perf_counter()
    await first.call("cancel", job=name)
    await until_at_most(control, len(jobs) - 1, 0.001)
    let_go = perf_counter()
    await tasks[0]
    others = [other.steps_at for other in jobs[1:]]
    gaps = [end - begin for heard in [job.steps_at, *others] for begin, end in pairwise(heard)]
    for connection, other in zip(connections[1:], jobs[1:], strict=False):
        await connection.call("cancel", job=await other.job)
    await asyncio.gather(*tasks)
    figures = {
        "end": job.end - sent,
        "engine": let_go - sent,
        "beyond": let_go - sent - median(gaps),
        "step": median(gaps),
        "own_steps": sum(at > sent for at in job.steps_at),
        "others_steps": max((sum(sent < at <= let_go for at in heard) for heard in others), default=0),
    }
    return figures, [before, await picture(first)]


async def measure(url: str, rounds: int, steps: int, others: int) -> dict[str, Any]:
    prompts = new_prompts()
    results = {}
    same = True
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(connect(url)) for _ in range(others + 2)]
        for name, clients in (("alone", [connections[0], connections[-1]]), ("among_others", connections)):
            rows = []
            for number in range(rounds + 1):
                after = 2 + number % (steps // 2)
                row, pictures = await cancelled(clients, prompts, steps, after)
                same = same and pictures[0] == pictures[1]
                if number:  # the first one warms up
                    rows.append(row)
            results[name] = {
                "end_ms": summary([1000 * row["end"] for row in rows]),
                "engine_ms": summary([1000 * row["engine"] for row in rows]),
                "beyond_a_step_ms": summary([1000 * row["beyond"] for row in rows]),
                "step_ms": summary([1000 * row["step"] for row in rows]),
                "own_steps_after": max(row["own_steps"] for row in rows),
                "steps_of_the_others_meanwhile": max(row["others_steps"] for row in rows),
            }
    return {**results, "next_picture_is_bit_identical": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--others", type=int, default=7, help="other jobs under way")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    options = parser.parse_args()
    with served({"models.emoji": {"path": EMBEDDED_MODEL, "dtype": options.dtype}}) as host:
        show("cancel", options, **asyncio.run(measure(host.socket, options.rounds, options.steps, options.others)))


if __name__ == "__main__":
    main()
