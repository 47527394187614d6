"""A graph as clients send it, checked node by node against the node types of the host."""

import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from latentwire import Host, InvalidGraph, LatentwireError, NodeInput, NodeType

from .refusals import refused

MOST_NODES = 2000
MOST_DETAILS = 20  # of one error
MOST_TEXT = 100_000  # letters of a STRING
ANY = "*"  # a socket that takes everything


class Link(NamedTuple):
    """An output of another node, as the source of an input."""

    node: str
    output: int


@dataclass(frozen=True, slots=True)
class Node:
    """One node: `links` are the inputs that come from others, `values` all others."""

    id: str
    type: NodeType
    values: Mapping[str, Any]
    links: Mapping[str, Link]


@dataclass(slots=True)
class Problems:
    """What is wrong with a graph."""

    details: list[dict[str, Any]] = field(default_factory=list)

    def add(self, node: str | None, given: str | None, message: str, got: Any = None) -> None:
        self.details.append({"node": node, "input": given, "message": message, "got": reprlib.repr(got)})

    def check(self) -> None:
        """Raises:
        InvalidGraph: there is something."""
        if not self.details:
            return
        first = self.details[0]
        where = "".join(f"{what} {first[what]}: " for what in ("node", "input") if first[what] is not None)
        more = f" (and {len(self.details) - 1} more)" if len(self.details) > 1 else ""
        raise InvalidGraph(f"{where}{first['message']}{more}", self.details[:MOST_DETAILS])


def parse(host: Host, graph: Mapping[str, Any], outputs: Iterable[str] | None = None) -> dict[str, Node]:
    """The nodes that the wanted outputs need, each after those that it needs.

    Args:
        outputs: Ids of the nodes to run for; all output nodes if left out.

    Raises:
        InvalidGraph: `details` say what is wrong with which input of which node.
    """
    problems = Problems()
    if len(graph) > MOST_NODES:
        problems.add(None, None, f"it has {len(graph)} nodes; at most {MOST_NODES}", len(graph))
        problems.check()
    types = {name: _type_of(host, name, node, problems) for name, node in graph.items()}
    wanted = [name for name, kind in types.items() if kind is not None and kind.output] if outputs is None else outputs
    for name in wanted:
        if name not in types:
            problems.add(None, None, f"there is no node {name!r:.80} to run for", name)
    if not problems.details and not list(wanted):
        problems.add(None, None, "it has no output node, such as SaveImage or PreviewImage, so there is nothing to run")
    problems.check()
    known = {name: kind for name, kind in types.items() if kind is not None}
    order = _in_order(host, graph, known, wanted, problems)
    problems.check()
    nodes = {name: _node_of(host, name, known, graph[name].get("inputs", {}), problems) for name in order}
    problems.check()
    return nodes


def _type_of(host: Host, name: Any, node: Any, problems: Problems) -> NodeType | None:
    if not isinstance(name, str) or len(name) > 100:
        problems.add(None, None, "a node's id must be a text of at most 100 letters", name)
        return None
    if not isinstance(node, Mapping):
        problems.add(name, None, "a node must be a map with class_type and inputs", node)
        return None
    kind = node.get("class_type")
    if not isinstance(kind, str):
        problems.add(name, None, "class_type must be a text", kind)
        return None
    if kind not in host.registry.nodes:
        problems.add(name, None, f"there is no node type {kind!r:.80}; describe lists them", kind)
        return None
    if not isinstance(node.get("inputs", {}), Mapping):
        problems.add(name, None, "inputs must be a map", node["inputs"])
        return None
    return host.registry.nodes[kind]


def link_of(value: Any) -> Link | None:
    """The link that a graph writes as `[id, index]`; None for everything else."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    node, output = value
    if isinstance(node, int) and not isinstance(node, bool):
        node = str(node)
    whole = isinstance(output, int | float) and not isinstance(output, bool) and output == output // 1
    return Link(node, int(output)) if isinstance(node, str) and whole else None


def _in_order(
    host: Host, graph: Mapping[str, Any], types: Mapping[str, NodeType], wanted: Iterable[str], problems: Problems
) -> list[str]:
    """What the wanted nodes need, sources first; without recursion, for chains may be long."""
    order: dict[str, None] = {}
    for first in wanted:
        under_way: dict[str, None] = {}
        stack = [first]
        while stack:
            name = stack[-1]
            if name in order:
                stack.pop()
                continue
            if name in under_way:  # all that it needs is there
                order[name] = None
                stack.pop()
                continue
            under_way[name] = None
            inputs = graph[name].get("inputs", {})
            for given in types[name].inputs_on(host):
                value = inputs.get(given.name)
                link = link_of(value)
                if link is None or link.node in order or link.node not in types:
                    continue
                if link.node in under_way:
                    problems.add(name, given.name, f"it is in a circle: node {link.node!r} needs what it gives", value)
                    return list(order)
                stack.append(link.node)
    return list(order)


def _node_of(
    host: Host, name: str, types: Mapping[str, NodeType], given: Mapping[Any, Any], problems: Problems
) -> Node:
    kind = types[name]
    values: dict[str, Any] = {}
    links: dict[str, Link] = {}
    before = len(problems.details)
    for wanted in kind.inputs_on(host):
        value = given.get(wanted.name)
        if value is None:
            if wanted.required and wanted.default is None and not wanted.random:
                problems.add(name, wanted.name, f"it is missing; wanted {_wanted(wanted)}", "nothing")
            values[wanted.name] = None if wanted.random else wanted.default
            continue
        link = link_of(value)
        if link is not None:
            problem = _problem_of_link(link, wanted, types)
            links[wanted.name] = link
        else:
            values[wanted.name], problem = _value_of(host, value, wanted)
        if problem is not None:
            problems.add(name, wanted.name, problem, value)
    if len(problems.details) == before:
        for wrong, message in _checked(kind, host, values).items():
            problems.add(name, wrong or None, message, values.get(wrong))
    return Node(name, kind, values, links)


def _checked(kind: NodeType, host: Host, values: Mapping[str, Any]) -> Mapping[str, str]:
    if kind.check is None:
        return {}
    try:
        return kind.check(host, values)
    except LatentwireError as error:
        return {"": error.message}


def _problem_of_link(link: Link, wanted: NodeInput, types: Mapping[str, NodeType]) -> str | None:
    source = types.get(link.node)
    if source is None:
        return f"it comes from node {link.node!r:.80}, which is not there"
    if not 0 <= link.output < len(source.outputs):
        return f"node {link.node!r:.80} ({source.name}) has {len(source.outputs)} outputs, and no number {link.output}"
    got = source.outputs[link.output].type
    if got == wanted.type or ANY in (got, wanted.type) or (got, wanted.type) in (("INT", "FLOAT"), ("STRING", "COMBO")):
        return None
    return f"it wants {wanted.type}, and output {link.output} of node {link.node!r:.80} ({source.name}) is {got}"


def _value_of(host: Host, value: Any, wanted: NodeInput) -> tuple[Any, str | None]:
    """A plain value, and what is wrong with it."""
    if not wanted.is_plain:
        return None, f"it wants {_wanted(wanted)}"
    if wanted.type in ("INT", "FLOAT"):
        return _number_of(value, wanted)
    if wanted.type == "BOOLEAN":
        return value, None if isinstance(value, bool) else "it wants true or false"
    if wanted.type == "COMBO":
        choices = wanted.choices_on(host) or []
        return value, None if value in choices else f"it is none of its choices: {_listed(choices)}"
    if not isinstance(value, str):
        return value, "it wants a text"
    return value, None if len(value) <= MOST_TEXT else f"it has {len(value)} letters; at most {MOST_TEXT}"


def _number_of(value: Any, wanted: NodeInput) -> tuple[Any, str | None]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value, f"it wants {_wanted(wanted)}"
    if isinstance(value, float) and (not math.isfinite(value) or (wanted.type == "INT" and value != value // 1)):
        return value, f"it wants {_wanted(wanted)}"
    for bound, below in ((wanted.minimum, True), (wanted.maximum, False)):
        if bound is not None and (value < bound if below else value > bound):
            return value, f"it must be {'at least' if below else 'at most'} {bound:g}"
    try:
        return (int if wanted.type == "INT" else float)(value), None
    except OverflowError:
        return value, "it is too large a number"


def plain_graph(nodes: Mapping[str, Node]) -> dict[str, Any]:
    """Nodes as a graph again, with all defaults filled in."""
    return {
        name: {
            "class_type": node.type.name,
            "inputs": {key: value for key, value in node.values.items() if value is not None}
            | {key: list(link) for key, link in node.links.items()},
        }
        for name, node in nodes.items()
    }


def check_given(host: Host, node: Node, given: Mapping[str, Any]) -> None:
    """Look at plain values that other nodes have given, as at those of the graph itself.

    Raises:
        InvalidParams: one does not fit.
    """
    plain = {wanted.name: wanted for wanted in node.type.inputs_on(host) if wanted.is_plain}
    linked = plain.keys() & node.links.keys()
    if not linked:
        return
    for name in linked:
        _, problem = _value_of(host, given[name], plain[name])
        if problem is not None:
            raise refused(name, f"{problem}; that is what node {node.links[name].node!r} gives", given[name])
    for name, problem in _checked(node.type, host, {name: given[name] for name in plain}).items():
        raise refused(name, problem, given.get(name))


def _wanted(wanted: NodeInput) -> str:
    if not wanted.is_plain:
        return f"a link to an output of type {wanted.type}"
    return {"INT": "a whole number", "FLOAT": "a number"}.get(wanted.type, f"a {wanted.type}")


def _listed(choices: list[str]) -> str:
    shown = ", ".join(choices[:40])
    return (f"{shown}, ..." if len(choices) > 40 else shown) or "it has none just now"
