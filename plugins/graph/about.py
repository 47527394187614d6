"""What a finished picture's entry says of its graph: the prompts, model and seed of the nearest sampler before it."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .graph import Node
from .values import SEEDS


def about(nodes: Mapping[str, Node], output: str) -> dict[str, Any]:
    """Of what an output node shows; what a graph does not tell is left empty."""
    said: dict[str, Any] = {"prompt": "", "negative_prompt": "", "model": "", "seed": 0}
    sampler = _first(nodes, output, lambda node: "positive" in node.links or _text_of(node, "prompt") is not None)
    if sampler is None:
        return said
    for field, link in (("prompt", "positive"), ("negative_prompt", "negative")):
        said[field] = _text_of(sampler, field) or ""
        if link in sampler.links:
            told = _first(nodes, sampler.links[link].node, lambda node: _text_of(node, "text") is not None)
            said[field] = told.values["text"] if told is not None else ""
    loader = _first(nodes, sampler.id, lambda node: _text_of(node, "ckpt_name") is not None)
    seed = sampler.values.get("seed", sampler.values.get("noise_seed")) or 0
    model = loader.values["ckpt_name"] if loader else _text_of(sampler, "model") or ""
    return said | {"model": model, "seed": seed % SEEDS}


def _text_of(node: Node, name: str) -> str | None:
    value = node.values.get(name)
    return value if isinstance(value, str) else None


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
