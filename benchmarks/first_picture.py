"""How long a person waits for the first picture of a host that has just said it is ready.

Each round starts `latentwire serve` in a process of its own, waits for /readyz, connects and draws twice.
Prints JSON: the first picture's seconds, and its ratio to the second one's.

    python benchmarks/first_picture.py [--rounds 3] [--steps 20]
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from statistics import median

from serving import PROMPT

from latentwire.client import Image, connect


def wait_until_ready(page: str) -> None:
    while True:
        try:
            with urllib.request.urlopen(f"{page}readyz"):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.02)


async def seconds_of_two_pictures(socket: str, steps: int) -> list[float]:
    """From before connecting to the PNG's arrival."""
    seconds = []
    for _ in range(2):
        begin = end = time.perf_counter()
        async with connect(socket) as host:
            async for event in host.generate(PROMPT, num_inference_steps=steps, previews=True):
                if isinstance(event, Image):
                    end = time.perf_counter()
        seconds.append(end - begin)
    return seconds


def one_round(steps: int) -> tuple[float, float, float]:
    """Seconds from the process's start to readiness, of the first picture, and of the second."""
    command = [sys.executable, "-m", "latentwire", "serve", "--port", "0"]
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        lines = dict(line.split()[:2] for line in (server.stdout.readline() for _ in range(4)))
        wait_until_ready(lines["page"])
        ready = time.perf_counter() - begin
        first, second = asyncio.run(seconds_of_two_pictures(lines["socket"], steps))
        server.terminate()
    return ready, first, second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    rounds = [one_round(options.steps) for _ in range(options.rounds)]
    starts, firsts, seconds = zip(*rounds, strict=True)
    result = {
        "benchmark": "first_picture",
        "steps": options.steps,
        "rounds": options.rounds,
        "median_seconds_to_readiness": round(median(starts), 3),
        "median_seconds_of_the_first_picture": round(median(firsts), 3),
        "median_ratio_to_the_second_picture": round(median(a / b for a, b in zip(firsts, seconds, strict=True)), 3),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
