"""What a run of a graph tells. All of it goes to the one who runs it, and to nobody else."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

from latentwire import Event, Picture


@dataclass(frozen=True, slots=True)
class GraphAccepted(Event):
    """The graph is valid, and its run begins; `graph.cancel` takes its id."""

    name: ClassVar[str] = "graph_accepted"

    run: str


@dataclass(frozen=True, slots=True)
class NodeCached(Event):
    """Nodes that need not run: what they gave earlier is still known, or not needed."""

    name: ClassVar[str] = "node_cached"

    run: str
    nodes: list[str]


@dataclass(frozen=True, slots=True)
class NodeStarted(Event):
    """A node runs."""

    name: ClassVar[str] = "node_started"

    run: str
    node: str
    class_type: str


@dataclass(frozen=True, slots=True)
class NodeProgress(Event):
    """How far a node is, such as the steps of a sampler."""

    name: ClassVar[str] = "node_progress"
    latest_wins: ClassVar[bool] = True

    run: str
    node: str
    value: float
    maximum: float

    @property
    def subject(self) -> Hashable:
        return self.node


@dataclass(frozen=True, slots=True)
class NodePreview(Event):
    """How what a node makes looks so far."""

    name: ClassVar[str] = "node_preview"
    latest_wins: ClassVar[bool] = True

    run: str
    node: str
    step: int
    image: Picture

    @property
    def subject(self) -> Hashable:
        return self.node


@dataclass(frozen=True, slots=True)
class NodeFinished(Event):
    """A node is done. `images` are what an output node shows; an output node that was cached tells of them again."""

    name: ClassVar[str] = "node_finished"

    run: str
    node: str
    images: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class NodeFailed(Event):
    """A node failed, and so has the run."""

    name: ClassVar[str] = "node_failed"

    run: str
    node: str
    class_type: str
    code: str
    message: str


EVENTS = (GraphAccepted, NodeCached, NodeStarted, NodeProgress, NodePreview, NodeFinished, NodeFailed)
