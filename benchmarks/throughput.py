"""Many clients at once against the same requests one after the other, and against what batching can give at most.

The limit is the denoiser's own: how much faster one raw forward over all clients' rows is than one forward
a client. A share of 1.0 would mean that everything else (text encoder, scheduler steps, decoding, PNG, the
wire) costs no more a picture than it does alone. Prints JSON.

    python benchmarks/throughput.py [--clients 1,2,4,8,16] [--rounds 5] [--steps 20] [--dtype float32]
"""

import argparse
import asyncio
import json
from contextlib import AsyncExitStack
from statistics import median
from time import perf_counter
from typing import Any

import torch
from serving import PROMPT, plain_pipeline, served_host

from latentwire.client import Connection, connect
from latentwire.core.settings import EMBEDDED_MODEL


async def one(connection: Connection, steps: int, seed: int) -> None:
    async for _ in connection.generate(PROMPT, num_inference_steps=steps, seed=seed, mode="fast"):
        pass


def forward_seconds(unet: Any, rows: int, times: int) -> float:
    """The median of some raw forwards over so many rows."""
    size = unet.config.sample_size
    sample = torch.randn(rows, unet.config.in_channels, size, size, dtype=unet.dtype)
    states = torch.randn(rows, 77, unet.config.cross_attention_dim, dtype=unet.dtype)
    at = torch.full((rows,), 500.0)
    seconds = []
    with torch.inference_mode():
        for _ in range(times):
            begin = perf_counter()
            unet(sample, at, encoder_hidden_states=states)
            seconds.append(perf_counter() - begin)
    return median(seconds)


async def measure(url: str, unet: Any, counts: list[int], rounds: int, steps: int) -> list[dict[str, Any]]:
    results = []
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(connect(url)) for _ in range(max(counts))]
        for count in counts:
            speedups, limits = [], []
            for number in range(rounds + 1):
                alone = await asyncio.to_thread(forward_seconds, unet, 2, 9)
                batched = await asyncio.to_thread(forward_seconds, unet, 2 * count, 5)
                begin = perf_counter()
                for seed in range(count):
                    await one(connections[0], steps, seed)
                serial = perf_counter() - begin
                begin = perf_counter()
                await asyncio.gather(*(one(each, steps, seed) for seed, each in enumerate(connections[:count])))
                together = perf_counter() - begin
                if number:  # the first one warms up
                    speedups.append(serial / together)
                    limits.append(alone * count / batched)
            results.append(
                {
                    "clients": count,
                    "speedup_over_one_after_the_other": round(median(speedups), 3),
                    "limit_of_the_raw_batched_forward": round(median(limits), 3),
                    "share_of_the_limit": round(
                        median(mine / most for mine, most in zip(speedups, limits, strict=True)), 3
                    ),
                }
            )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", default="1,2,4,8,16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    options = parser.parse_args()
    counts = [int(count) for count in options.clients.split(",")]
    with served_host(models={"emoji": {"path": EMBEDDED_MODEL, "dtype": options.dtype}}) as (url, host):
        unet = plain_pipeline(host).unet
        rows = asyncio.run(measure(url, unet, counts, options.rounds, options.steps))
    settings = {"steps": options.steps, "rounds": options.rounds, "dtype": options.dtype}
    print(
        json.dumps(
            {"benchmark": "throughput", **settings, "threads": torch.get_num_threads(), "results": rows}, indent=2
        )
    )


if __name__ == "__main__":
    main()
