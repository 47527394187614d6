"""Node types: what graphs are made of. Plugins register them, `describe` lists them, and runs of graphs use them."""

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import LatentwireError
from .requests import Mode, PreviewOptions, Priority

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    from .caller import Caller
    from .events import Picture
    from .host import Host

PLAIN = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
"""Types of inputs that hold a value of the graph itself, or a link; all others are sockets, which take links alone."""

SHAPES = {"IMAGE": ("batch", "height", "width", "3"), "MASK": ("batch", "height", "width")}
"""Of arrays of float32, from 0 to 1."""

Choices = Sequence[str] | Callable[["Host"], Sequence[str]]
"""Those of a COMBO; a function is asked anew each time, for lists that change."""


@dataclass(frozen=True)
class NodeInput:
    """One input of a node type.

    Attributes:
        type: One of `PLAIN`, or a socket: MODEL, CLIP, VAE, CONDITIONING, LATENT, IMAGE, MASK, CONTROL_NET, or a
            plugin's own; it takes outputs of the same type.
        default: Of a plain input that a graph leaves out. None, and not required: the node is given None.
        minimum, maximum, step: Of an INT or FLOAT; a value below or above is refused.
        multiline: Of a STRING: editors show more than one line.
        upload: Of a STRING that names a picture: editors offer to upload one.
        random: Of an INT, a seed: editors offer to draw a new one for each run. A graph that leaves it out gives the
            node None, which then draws its own, and whose outputs are not remembered.
    """

    name: str
    type: str
    required: bool = True
    default: Any = None
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: Choices | None = None
    multiline: bool = False
    upload: bool = False
    random: bool = False
    description: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether it may hold a value of the graph itself."""
        return self.type in PLAIN

    def choices_on(self, host: "Host") -> list[str] | None:
        """What a COMBO offers just now; None for other inputs."""
        choices = self.choices(host) if callable(self.choices) else self.choices
        return None if choices is None else list(choices)


@dataclass(frozen=True)
class NodeOutput:
    """One output of a node type."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class NodeContext:
    """What a node may use while it runs.

    Attributes:
        caller: Who runs the graph.
        run: The run's id.
        node: The node's id in the graph.
        mode, priority, previews: As the graph was run with, for jobs that the node begins.
        progress: Tells how far it is: a value, and its maximum; from any thread.
        preview: Shows how it looks so far: a step's number, and a picture; from any thread.
        show: Gives a finished picture to the client, as all output nodes do; in a worker thread. `keep`: plugins
            store it for good.
    """

    host: "Host"
    caller: "Caller"
    run: str
    node: str
    mode: Mode | None
    priority: Priority | None
    previews: PreviewOptions | None
    progress: Callable[[float, float], None]
    preview: "Callable[[int, Picture], None]"
    show: "Callable[[PILImage, bool], None]"


RunNode = Callable[[NodeContext, Mapping[str, Any]], Awaitable[Sequence[Any]] | Sequence[Any]]


@dataclass(frozen=True, eq=False)
class NodeType:
    """A kind of node.

    Attributes:
        name: What graphs call it, as `class_type`.
        title: What people call it.
        inputs: Or a function that tells them, where they depend on what the host has.
        run: Takes the inputs by name, gives one value for each output. A plain function runs in a worker thread; an
            async one on the event loop, so it must not block.
        output: Graphs run for nodes like this one: it shows or stores something.
        check: Tells what is wrong with the values that a graph gives, by input, before anything runs; links are not
            among them.
        state: What the outputs depend on beside the inputs, such as which file a name stands for; a node whose state is
            another one than when its outputs were remembered runs anew.
    """

    name: str
    title: str
    category: str
    inputs: tuple[NodeInput, ...] | Callable[["Host"], tuple[NodeInput, ...]]
    outputs: tuple[NodeOutput, ...]
    run: RunNode
    output: bool = False
    description: str = ""
    check: Callable[["Host", Mapping[str, Any]], Mapping[str, str]] | None = None
    state: Callable[["Host", Mapping[str, Any]], Any] | None = None

    def inputs_on(self, host: "Host") -> tuple[NodeInput, ...]:
        """Its inputs just now."""
        return self.inputs(host) if callable(self.inputs) else self.inputs

    @property
    def is_async(self) -> bool:
        """Whether it runs on the event loop."""
        return inspect.iscoroutinefunction(self.run)


def problem_of(node: Any) -> str | None:
    """Why this cannot be registered as a node type; None where it can."""
    if not isinstance(node, NodeType):
        return f"a node must be a NodeType, got {node!r:.80}"
    if not all(isinstance(output, NodeOutput) for output in node.outputs):
        return f"node {node.name!r}: outputs must be of NodeOutput"
    if callable(node.inputs):
        return None
    if not all(isinstance(given, NodeInput) for given in node.inputs):
        return f"node {node.name!r}: inputs must be of NodeInput"
    names = [given.name for given in node.inputs]
    if len(set(names)) < len(names):
        return f"node {node.name!r} has two inputs of one name"
    for given in node.inputs:
        if (given.type == "COMBO") != (given.choices is not None):
            return f"node {node.name!r}, input {given.name!r}: choices belong to a COMBO, and each COMBO has some"
    return None


def guarded(node: NodeType, plugin: str) -> NodeType:
    """The same node, whose functions beside `run` raise nothing but errors that name its plugin."""
    where = f"node {node.name}"

    def guard(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda host, *args: host.guard.run(plugin, where, partial(function, host, *args), kind=where)

    def guard_choices(given: NodeInput) -> NodeInput:
        ask = given.choices
        return replace(given, choices=guard(lambda host: list(ask(host)))) if callable(ask) else given

    def ask_inputs(host: "Host") -> tuple[NodeInput, ...]:
        found = node.inputs_on(host)
        problem = problem_of(replace(node, inputs=found))
        if problem is not None:
            raise TypeError(problem)
        return tuple(map(guard_choices, found))

    return replace(
        node,
        inputs=guard(ask_inputs) if callable(node.inputs) else tuple(map(guard_choices, node.inputs)),
        check=node.check and guard(node.check),
        state=node.state and guard(node.state),
    )


def checked(kind: str, value: Any) -> Any:
    """An output of a node, as the nodes after it may expect it by its type.

    Raises:
        TypeError: it is something else.
    """
    if kind not in SHAPES:
        return value
    array = np.asarray(value, np.float32)
    if array.ndim != len(SHAPES[kind]) or not array.size or (kind == "IMAGE" and array.shape[-1] != 3):
        raise TypeError(f"its {kind} has the shape {list(array.shape)}, wanted {', '.join(SHAPES[kind])}")
    return array


def describe_nodes(host: "Host") -> dict[str, Any]:
    """All node types that can be used in plain values, with what they offer just now."""
    described: dict[str, Any] = {}
    for name, node in host.registry.nodes.items():
        with suppress(LatentwireError):  # its plugin cannot say what it takes, so nobody can use it now
            described[name] = _described(host, node, host.registry.owners["node", name])
    return described


def _described(host: "Host", node: NodeType, plugin: str) -> dict[str, Any]:
    return {
        "title": node.title,
        "category": node.category,
        "description": node.description,
        "plugin": plugin,
        "output": node.output,
        "inputs": [_described_input(host, given) for given in node.inputs_on(host)],
        "outputs": [{"name": output.name, "type": output.type} for output in node.outputs],
    }


def _described_input(host: "Host", given: NodeInput) -> dict[str, Any]:
    """What says nothing is left out, as JSON Schema does."""
    plain: dict[str, Any] = {"name": given.name, "type": given.type, "required": given.required}
    for name in ("default", "minimum", "maximum", "step"):
        if getattr(given, name) is not None:
            plain[name] = getattr(given, name)
    choices = given.choices_on(host)
    if choices is not None:
        plain["choices"] = choices
    for name in ("multiline", "upload", "random", "description"):
        if getattr(given, name):
            plain[name] = getattr(given, name)
    return plain
