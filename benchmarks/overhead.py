"""What the host costs one client: the same picture through the host, over a real socket, and by a plain pipeline call.

Each round times, in turn and in one process: a plain diffusers call; the host without previews; the host with
a preview and latents at every step. Prints JSON with the median ratio of each round's pair.

    python benchmarks/overhead.py [--rounds 15] [--steps 20]
"""

import argparse
import asyncio
import io
import json
from statistics import median
from time import perf_counter
from typing import Any

import torch
from serving import PROMPT, plain_pipeline, served_host

from latentwire.client import Connection, Result, connect


async def through_host(connection: Connection, steps: int, streamed: bool) -> tuple[float, float]:
    """Seconds as the client sees them, and as the host counts them."""
    begin = perf_counter()
    inside = 0.0
    options: dict[str, Any] = {"previews": True, "latents": True} if streamed else {}
    async for event in connection.generate(PROMPT, num_inference_steps=steps, seed=1, mode="exact", **options):
        if isinstance(event, Result):
            inside = event.seconds
    return perf_counter() - begin, inside


async def measure(url: str, pipeline: Any, rounds: int, steps: int) -> dict[str, Any]:
    def plain() -> float:
        begin = perf_counter()
        with torch.inference_mode():
            image = pipeline(PROMPT, num_inference_steps=steps, generator=torch.Generator().manual_seed(1)).images[0]
        image.save(io.BytesIO(), "png", compress_level=1)  # the host's client gets a PNG as well
        return perf_counter() - begin

    rows = []
    async with connect(url) as connection:
        for number in range(rounds + 2):
            row = {"plain": await asyncio.to_thread(plain)}
            row["host"], row["host_inside"] = await through_host(connection, steps, streamed=False)
            row["host_streamed"], row["host_streamed_inside"] = await through_host(connection, steps, streamed=True)
            if number >= 2:  # the first ones warm up
                rows.append(row)
    ratios = {name: median(row[name] / row["plain"] for row in rows) for name in rows[0] if name != "plain"}
    seconds = {name: median(row[name] for row in rows) for name in rows[0]}
    return {
        "benchmark": "overhead",
        "steps": steps,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "median_seconds": {name: round(value, 4) for name, value in seconds.items()},
        "median_ratio_to_plain": {name: round(value, 3) for name, value in ratios.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    with served_host() as (url, host):
        pipeline = plain_pipeline(host)
        print(json.dumps(asyncio.run(measure(url, pipeline, options.rounds, options.steps)), indent=2))


if __name__ == "__main__":
    main()
