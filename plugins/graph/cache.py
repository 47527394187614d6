"""What nodes gave in earlier runs: what has not changed, with all that it is made of, need not be made again."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from latentwire import Host, Remembered

from .graph import Node
from .values import nbytes

Outputs = tuple[Any, ...]


class Cache:
    """The outputs of nodes by key, shared by all runs.

    Args:
        budget: Bytes of all of them; the longest unused are forgotten first.
    """

    def __init__(self, budget: int) -> None:
        self._outputs = Remembered(budget, nbytes)
        self._types: Any = None

    def check(self, host: Host) -> None:
        """Forget everything where a plugin has come or gone since: its nodes may do something else now."""
        if host.registry.nodes is not self._types:
            self._outputs.clear()
            self._types = host.registry.nodes

    def find(self, key: str | None) -> Outputs | None:
        """What is known; None where nothing is."""
        found: Outputs | None = None if key is None else self._outputs.find(key)
        return found

    def keep(self, key: str | None, outputs: Outputs) -> None:
        """Remember a node's outputs."""
        if key is not None:
            self._outputs.keep(key, outputs)


def keys_of(nodes: Iterable[Node], host: Host, mode: str, owner: str) -> dict[str, str | None]:
    """A key for each node, of itself and of all that it is made of; None for what is another one each time.

    What output nodes show is stored for its owner, so it counts for that one alone.

    Args:
        nodes: Sources first.
    """
    keys: dict[str, str | None] = {}
    for node in nodes:
        keys[node.id] = _key_of(node, keys, host, [mode, owner if node.type.output else None])
    return keys


def _key_of(node: Node, keys: Mapping[str, str | None], host: Host, about: list[Any]) -> str | None:
    sources = {name: (keys[link.node], link.output) for name, link in node.links.items()}
    if any(key is None for key, _ in sources.values()) or _is_random(node, host):
        return None
    state = None if node.type.state is None else repr(node.type.state(host, node.values))
    parts = [node.type.name, sorted(node.values.items()), sorted(sources.items()), state, about]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _is_random(node: Node, host: Host) -> bool:
    given = node.type.inputs_on(host)
    return any(wanted.random and wanted.name in node.values and node.values[wanted.name] is None for wanted in given)
