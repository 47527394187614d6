"""What the host costs one client: a picture through the host, over a real socket, and by a plain pipeline call.

Host, plain pipeline and client are three processes. Each round asks the host in several ways, and before each of them
the plain pipeline, with the same new prompt, seed and steps. Prints JSON with the median ratio of these pairs.

    python benchmarks/overhead.py [--rounds 15] [--steps 20] [--dtype float32]
"""

import argparse
import asyncio
from time import perf_counter
from typing import Any

from figures import middle, show
from plain import Plain
from processes import Worker
from prompts import new_prompts
from serving import served

from latentwire.client import Connection, connect
from latentwire.core.settings import EMBEDDED_MODEL

WAYS: dict[str, dict[str, Any]] = {
    "previews_off": {},
    "jpeg_preview_each_step": {"previews": True},
    "jpeg_preview_and_latents_each_step": {"previews": True, "latents": True},
}


async def through_host(connection: Connection, prompt: str, seed: int, steps: int, options: dict[str, Any]) -> float:
    """Seconds as the client sees them."""
    begin = perf_counter()
    async for _ in connection.generate(prompt, seed=seed, num_inference_steps=steps, mode="exact", **options):
        pass
    return perf_counter() - begin


async def measure(url: str, plain: Worker[Plain], rounds: int, steps: int) -> dict[str, Any]:
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    prompts = new_prompts()
    async with connect(url) as connection:
        for number in range(rounds + 1):
            for name, options in WAYS.items():
                prompt = next(prompts)
                by_plain = await asyncio.to_thread(plain.call, Plain.picture, prompt, number, steps)
                by_host = await through_host(connection, prompt, number, steps, options)
                if number:  # the first round warms up
                    pairs[name].append((by_plain, by_host))
    return {
        name: {
            "ratio_to_plain": middle([host / plain for plain, host in taken]),
            "plain_s": middle([plain for plain, _ in taken], 4),
            "host_s": middle([host for _, host in taken], 4),
        }
        for name, taken in pairs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    options = parser.parse_args()
    model = {"path": EMBEDDED_MODEL, "dtype": options.dtype}
    with Worker(Plain, EMBEDDED_MODEL, options.dtype) as plain, served({"models.emoji": model}) as host:
        show("overhead", options, ways=asyncio.run(measure(host.socket, plain, options.rounds, options.steps)))


if __name__ == "__main__":
    main()
