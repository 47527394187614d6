"""What a finished picture's entry says of its graph: the prompts, model and seed of the nearest sampler before it."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .graph import Node


def about(nodes: Mapping[str, Node], output: str) -> dict[str, Any]:
    """Of what an output node shows; what a graph does not tell is left empty."""
    sampler = _first(nodes, output, lambda node: "positive" in node.links)
    said = {"prompt": "", "negative_prompt": "", "model": "", "seed": 0}
    if sampler is None:
        return said
    for field, link in (("prompt", "positive"), ("negative_prompt", "negative")):
        if link in sampler.links:
            told = _first(nodes, sampler.links[link].node, lambda node: isinstance(node.values.get("text"), str))
            said[field] = told.values["text"] if told is not None else ""
    loader = _first(nodes, sampler.id, lambda node: isinstance(node.values.get("ckpt_name"), str))
    seed = sampler.values.get("seed", sampler.values.get("noise_seed"))
    return said | {"model": loader.values["ckpt_name"] if loader else "", "seed": seed or 0}


def _first(nodes: Mapping[str, Node], start: str, fits: Callable[[Node], bool]) -> Node | None:
    return next((node for node in _upstream(nodes, start) if fits(node)), None)


def _upstream(nodes: Mapping[str, Node], start: str) -> Iterator[Node]:
    """A node and all that it is made of, the nearest first."""
    seen, queue = {start}, deque([start])
    while queue:
        node = nodes[queue.popleft()]
        yield node
        for link in node.links.values():
            if link.node not in seen:
                seen.add(link.node)
                queue.append(link.node)
