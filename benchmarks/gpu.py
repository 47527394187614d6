"""Many clients on a GPU, against plain diffusers one picture after the other.

The model is Stable Diffusion 1.5 in shape and size, with random weights that are made for the run, in float16 at
512x512. Each round asks a plain pipeline for as many pictures as there are clients, one after the other, then the host
for all at once; with --compile both once more with torch.compile. The limit is as in throughput.py. Prints JSON.
`--size small` runs on any machine, on the CPU, with a model whose figures mean nothing.

    python benchmarks/gpu.py [--clients 1,4,8] [--rounds 5] [--steps 20] [--compile] [--size full|small] [--keep FOLDER]
"""

import argparse
import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import torch
from figures import middle, show
from made_model import made_model
from plain import Plain
from processes import Worker
from prompts import new_prompts
from serving import Tables, served
from throughput import Job, at_once

from latentwire.client import connect
from latentwire.core.settings import ModelSettings

SIZES = {"full": ("cuda", "float16", 512), "small": ("cpu", "float32", 64)}  # device, dtype, pixels of a side


def pictures(plain: Worker[Plain], jobs: list[Job], steps: int, side: int) -> float:
    """Seconds of the plain pipeline for all, one after the other."""
    return sum(plain.call(Plain.picture, prompt, seed, steps, side) for prompt, seed, _ in jobs)


async def measure(url: str, plain: Worker[Plain], options: argparse.Namespace, side: int) -> list[dict[str, Any]]:
    results = []
    prompts = new_prompts()
    fields = {"width": side, "height": side, "guidance_scale": 4.0}
    counts = [int(count) for count in options.clients.split(",")]
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(connect(url)) for _ in range(max(counts))]
        for count in counts:
            rows = []
            for number in range(options.rounds + 1):
                jobs: list[Job] = [(next(prompts), seed, fields) for seed in range(count)]
                alone = await asyncio.to_thread(plain.call, Plain.forward, 2, 9, side)
                merged = await asyncio.to_thread(plain.call, Plain.forward, 2 * count, 5, side)
                one_by_one = await asyncio.to_thread(pictures, plain, jobs, options.steps, side)
                together = await at_once(connections, jobs, options.steps)
                if number:  # the first one warms up
                    rows.append((one_by_one / together, count * alone / merged, one_by_one / count, together / count))
            speedups, limits, by_plain, by_host = zip(*rows, strict=True)
            results.append(
                {
                    "clients": count,
                    "speedup_over_plain_one_after_the_other": middle(speedups),
                    "limit_of_the_raw_batched_forward": middle(limits),
                    "share_of_the_limit": middle([mine / most for mine, most in zip(speedups, limits, strict=True)]),
                    "plain_s_a_picture": middle(by_plain, 4),
                    "host_s_a_picture": middle(by_host, 4),
                }
            )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", default="1,4,8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument("--size", default="full", choices=tuple(SIZES))
    parser.add_argument("--keep", type=Path, help="make the model here, use it if it is here, and leave it here")
    options = parser.parse_args()
    device, dtype, side = SIZES[options.size]
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu.py: torch finds no GPU here; wanted an NVIDIA GPU with 8 GB, or --size small for a trial run")
    if options.compile and "compile" not in ModelSettings.model_fields:
        sys.exit("gpu.py: this host has no setting models.NAME.compile, which --compile would set")
    figures: dict[str, Any] = {"gpu": torch.cuda.get_device_name() if device == "cuda" else None}
    with made_model(options.size, options.keep and options.keep.resolve()) as folder:
        for compiled in (False, True) if options.compile else (False,):
            model = {"path": folder / "model", "dtype": dtype} | ({"compile": True} if compiled else {})
            tables: Tables = {"engine": {"device": device}, "models.made": model, "defaults": {"model": "made"}}
            with Worker(Plain, folder / "model", dtype, device, compiled) as plain, served(tables) as host:
                name = "compiled" if compiled else "eager"
                figures[name] = asyncio.run(measure(host.socket, plain, options, side))
    show("gpu", options, **figures)


if __name__ == "__main__":
    main()
