"""Graphs at once against the same graphs one after the other, from one client and through the host.

Each is the graph that editors begin with (a checkpoint, two prompts, a sampler, a decoder, a saved picture), of a
prompt and a seed that the host has not seen, so nothing of it but the model is known. Prints JSON.

    python benchmarks/graphs.py [--graphs 4] [--rounds 9] [--steps 20] [--dtype float32]
"""

import argparse
import asyncio
from time import perf_counter
from typing import Any

from figures import middle, show
from prompts import new_prompts
from serving import served

from latentwire.client import Connection, connect
from latentwire.core.settings import EMBEDDED_MODEL

Graph = dict[str, Any]


def graph_of(prompt: str, seed: int, steps: int) -> Graph:
    def node(class_type: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": class_type, "inputs": inputs}

    sampler = {"seed": seed, "steps": steps, "cfg": 4.0, "sampler_name": "ddim", "scheduler": "normal", "denoise": 1.0}
    sources = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name="emoji"),
        "2": node("CLIPTextEncode", clip=["1", 1], text=prompt),
        "3": node("CLIPTextEncode", clip=["1", 1], text=""),
        "4": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "5": node("KSampler", **sampler, **sources),
        "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "7": node("SaveImage", images=["6", 0], filename_prefix="benchmark"),
    }


async def run(connection: Connection, graph: Graph) -> None:
    """From before it is sent to its result, which names its picture."""
    result = await connection.call("graph.run", graph=graph, mode="fast")
    assert result["outputs"]["7"]["images"]


async def one_after_the_other(connection: Connection, graphs: list[Graph]) -> float:
    """Seconds for all."""
    begin = perf_counter()
    for graph in graphs:
        await run(connection, graph)
    return perf_counter() - begin


async def at_once(connection: Connection, graphs: list[Graph]) -> float:
    """Seconds for all."""
    begin = perf_counter()
    await asyncio.gather(*(run(connection, graph) for graph in graphs))
    return perf_counter() - begin


async def measure(url: str, options: argparse.Namespace) -> dict[str, Any]:
    prompts = new_prompts()

    def graphs() -> list[Graph]:
        return [graph_of(next(prompts), seed, options.steps) for seed in range(options.graphs)]

    rows = []
    async with connect(url) as connection:
        for number in range(options.rounds + 1):
            serial = await one_after_the_other(connection, graphs())
            together = await at_once(connection, graphs())
            if number:  # the first one warms up
                rows.append((together / serial, serial, together))
    ratios, serials, togethers = zip(*rows, strict=True)
    return {
        "at_once_over_one_after_the_other": middle(ratios),
        "one_after_the_other_s": middle(serials),
        "at_once_s": middle(togethers),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    options = parser.parse_args()
    model = {"path": EMBEDDED_MODEL, "dtype": options.dtype}
    with served({"models.emoji": model}) as host:
        show("graphs", options, **asyncio.run(measure(host.socket, options)))


if __name__ == "__main__":
    main()
