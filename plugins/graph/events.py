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
class NodeEvent(Event):
    """What all events of a node share: the run's id, and the node's in its graph."""

    run: str
    node: str

    @property
    def subject(self) -> Hashable:
        return self.node


@dataclass(frozen=True, slots=True)
class NodeStarted(NodeEvent):
    """A node runs."""

    name: ClassVar[str] = "node_started"

    class_type: str


@dataclass(frozen=True, slots=True)
class NodeProgress(NodeEvent):
    """How far a node is, such as the steps of a sampler."""

    name: ClassVar[str] = "node_progress"
    latest_wins: ClassVar[bool] = True

    value: float
    maximum: float


@dataclass(frozen=True, slots=True)
class NodePreview(NodeEvent):
    """How what a node makes looks so far."""

    name: ClassVar[str] = "node_preview"
    latest_wins: ClassVar[bool] = True

    step: int
    image: Picture


@dataclass(frozen=True, slots=True)
class NodeFinished(NodeEvent):
    """A node is done. `images` are what an output node shows; an output node that was cached tells of them again."""

    name: ClassVar[str] = "node_finished"

    images: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class NodeFailed(NodeEvent):
    """A node failed, and so has the run."""

    name: ClassVar[str] = "node_failed"

    class_type: str
    code: str
    message: str


EVENTS = (GraphAccepted, NodeCached, NodeStarted, NodeProgress, NodePreview, NodeFinished, NodeFailed)
