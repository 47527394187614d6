"""From the start of the process `latentwire serve` to its first picture, and where the time goes.

Each round starts a host: until it prints its address, until /readyz says that it is ready, until a client that connects
then has its first picture; and how long that picture and a second one take. The stages are timed within another
process: imports, the host with its plugins, reading the model, warming up. With an empty file cache the kernel is first
asked to forget the files of Python, its packages and the model; it keeps those that other programs use, so the MiB that
the host then read from the disk are told as well. Prints JSON.

    python benchmarks/startup.py [--rounds 3] [--steps 20] [--caches warm,empty]
"""

import argparse
import asyncio
import os
import site
import sys
import sysconfig
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

from figures import middle, show
from processes import Worker
from prompts import new_prompts
from serving import started

import latentwire
from latentwire.client import connect


def forget_files() -> None:
    """Ask the kernel to drop what it keeps of the files that a host reads."""
    folders = {*site.getsitepackages(), sysconfig.get_path("stdlib"), str(Path(latentwire.__file__).resolve().parent)}
    for file in {file for folder in folders for file in Path(folder).rglob("*") if file.is_file()}:
        try:
            number = os.open(file, os.O_RDONLY)
        except OSError:
            continue
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(number)


async def seconds_of_two_pictures(socket: str, prompts: Iterator[str], steps: int) -> tuple[float, float, float]:
    """When the first one was there, and how long each took."""
    ends, seconds = [], []
    for _ in range(2):
        begin = perf_counter()
        async with connect(socket) as host:
            async for _event in host.generate(next(prompts), num_inference_steps=steps):
                pass
        ends.append(perf_counter())
        seconds.append(ends[-1] - begin)
    return ends[0], seconds[0], seconds[1]


def one_round(prompts: Iterator[str], steps: int) -> dict[str, float]:
    with started() as host:
        host.wait_for_address()
        address = perf_counter()
        host.wait_until_ready()
        ready = perf_counter()
        read = host.read_from_disk
        there, first, second = asyncio.run(seconds_of_two_pictures(host.socket, prompts, steps))
        return {
            "address_s": address - host.started,
            "ready_s": ready - host.started,
            "first_picture_s": there - host.started,
            "first_picture_alone_s": first,
            "second_picture_alone_s": second,
            "first_to_second": first / second,
            "mib_from_disk": read / 2**20,
        }


class Stages:
    """A host's start, stage by stage; for the main thread of a process that has imported nothing of it yet."""

    def measure(self) -> dict[str, float]:
        """Seconds of each."""
        if "torch" in sys.modules:
            raise RuntimeError("torch is imported already, so its import cannot be timed")
        times = [perf_counter()]
        import torch

        times.append(perf_counter())
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        from latentwire import Host, Settings
        from latentwire.core.build import PipelineBuild
        from latentwire.server.app import create_app

        times.append(perf_counter())
        host = Host(Settings.model_validate({"discover": False}))
        create_app(host)
        times.append(perf_counter())
        defaults = host.settings.defaults
        with torch.inference_mode():
            build = PipelineBuild(defaults.model, defaults.scheduler, host.store.dtype_of(defaults.model))
            lease = host.store.lease(build)
        times.append(perf_counter())
        host.warm_up()
        times.append(perf_counter())
        host.store.release(lease)
        host.close()
        names = ("import_torch_s", "import_the_rest_s", "plugins_s", "read_model_s", "warm_up_s")
        return dict(zip(names, (end - begin for begin, end in pairwise(times)), strict=True))


def measure(cache: str, rounds: int, steps: int) -> dict[str, float]:
    """Medians of some rounds with an empty cache, or after one round that fills it."""
    prompts = new_prompts()
    rows = []
    for number in range(rounds + (cache == "warm")):
        if cache == "empty":
            forget_files()
        row = one_round(prompts, steps)
        if cache == "empty":
            forget_files()
        with Worker(Stages) as stages:
            row |= stages.call(Stages.measure)
        if number or cache == "empty":
            rows.append(row)
    return {name: middle([row[name] for row in rows]) for name in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--caches", default="warm,empty", help="warm, empty, or both")
    options = parser.parse_args()
    figures: dict[str, Any] = {
        cache: measure(cache, options.rounds, options.steps) for cache in options.caches.split(",")
    }
    show("startup", options, **figures)


if __name__ == "__main__":
    main()
