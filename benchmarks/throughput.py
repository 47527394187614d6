"""Many clients at once against the same requests one after the other, and against what batching can give at most.

The limit is the denoiser's own: how much faster one raw forward over all clients' rows is than one forward a client,
both measured in the same round in a process of its own. A share of 1.0 means that everything else (text encoder,
guidance, scheduler, decoding, PNG, the wire) costs no more a picture than it does alone. With --mix every third job
has a ControlNet and every third a LoRA, and the limit is that of the same mix. Prints JSON.

    python benchmarks/throughput.py [--clients 1,2,4,8,16] [--rounds 5] [--steps 20] [--dtype float32] [--mix]
"""

import argparse
import asyncio
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from time import perf_counter
from typing import Any

from figures import middle, show
from mix import Kind, Mixed, fields_of, kinds_of
from plain import Plain
from processes import Worker
from prompts import new_prompts
from serving import served

from latentwire.client import Connection, connect
from latentwire.core.settings import EMBEDDED_MODEL

Job = tuple[str, int, dict[str, Any]]
"""Prompt, seed, and the fields of the plugins."""


async def run(connection: Connection, job: Job, steps: int) -> None:
    """One request, from before it is sent to its result."""
    prompt, seed, fields = job
    async for _ in connection.generate(prompt, seed=seed, num_inference_steps=steps, mode="fast", **fields):
        pass


async def one_after_the_other(connection: Connection, jobs: list[Job], steps: int) -> float:
    """Seconds for all."""
    begin = perf_counter()
    for job in jobs:
        await run(connection, job, steps)
    return perf_counter() - begin


async def at_once(connections: list[Connection], jobs: list[Job], steps: int) -> float:
    """Seconds for all, each from a client of its own."""
    begin = perf_counter()
    await asyncio.gather(*(run(connection, job, steps) for connection, job in zip(connections, jobs, strict=False)))
    return perf_counter() - begin


def forwards(plain: Worker[Mixed], kinds: list[Kind]) -> tuple[float, float]:
    """Seconds of a step's raw forwards: one after the other, and all in one."""
    if set(kinds) == {"plain"}:
        return len(kinds) * plain.call(Plain.forward, 2, 9), plain.call(Plain.forward, 2 * len(kinds), 5)
    alone = {kind: plain.call(Mixed.alone, kind, 9) for kind in set(kinds)}
    return sum(alone[kind] for kind in kinds), plain.call(Mixed.together, kinds, 5)


async def measure(url: str, plain: Worker[Mixed], options: argparse.Namespace) -> list[dict[str, Any]]:
    results = []
    steps: int = options.steps
    prompts = new_prompts()
    counts = [int(count) for count in options.clients.split(",")]
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(connect(url)) for _ in range(max(counts))]
        fields: Mapping[Kind, dict[str, Any]] = await fields_of(connections[0]) if options.mix else {"plain": {}}

        def jobs_of(kinds: list[Kind]) -> Iterator[Job]:
            return ((next(prompts), seed, fields[kind]) for seed, kind in enumerate(kinds))

        for count in counts:
            kinds: list[Kind] = kinds_of(count) if options.mix else ["plain"] * count
            rows = []
            for number in range(options.rounds + 1):
                alone, merged = await asyncio.to_thread(forwards, plain, kinds)
                serial = await one_after_the_other(connections[0], list(jobs_of(kinds)), steps)
                together = await at_once(connections, list(jobs_of(kinds)), steps)
                if number:  # the first one warms up
                    rows.append((serial / together, alone / merged, steps * merged / together, together / count))
            speedups, limits, forward_shares, pictures = zip(*rows, strict=True)
            results.append(
                {
                    "clients": count,
                    "speedup_over_one_after_the_other": middle(speedups),
                    "limit_of_the_raw_batched_forward": middle(limits),
                    "share_of_the_limit": middle([mine / most for mine, most in zip(speedups, limits, strict=True)]),
                    "share_of_the_time_in_raw_forwards": middle(forward_shares),
                    "seconds_a_picture": middle(pictures, 4),
                }
            )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", default="1,2,4,8,16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--mix", action="store_true", help="plain, ControlNet and LoRA jobs in turn")
    options = parser.parse_args()
    model = {"path": EMBEDDED_MODEL, "dtype": options.dtype}
    with Worker(Mixed, options.dtype) as plain, served({"models.emoji": model}) as host:
        results = asyncio.run(measure(host.socket, plain, options))
        knee = int(host.logged(r"up to (\d+) rows") or 0) or None  # as the host has measured it, unless it was set
        show("throughput", options, most_rows_of_a_forward=knee, results=results)


if __name__ == "__main__":
    main()
