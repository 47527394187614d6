"""What the plugin's commands take."""

from typing import Annotated, Any

from pydantic import Field, StringConstraints

from latentwire import Mode, PreviewOptions, Priority, Strict

Id = Annotated[str, StringConstraints(max_length=100)]
ChunkName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_ .-]{1,79}$")]
Chunk = Annotated[str, StringConstraints(max_length=1 << 20)]


class CheckParams(Strict):
    """A graph to check."""

    graph: dict[str, Any] = Field(description="nodes by id: class_type, and inputs by name; a link is [id, output]")
    outputs: list[Id] | None = Field(
        None, max_length=2000, description="ids of the nodes to run for; all output nodes if left out"
    )


class RunParams(CheckParams):
    """A graph to run."""

    slot: str | None = Field(
        None, min_length=1, max_length=64, description="a newer run of the same slot ends this one"
    )
    priority: Priority | None = Field(None, description="of its jobs; as generate")
    mode: Mode | None = Field(None, description="of its jobs; as generate")
    previews: PreviewOptions | None = Field(None, description="of what samplers make; as stream.previews of generate")
    metadata: dict[ChunkName, Chunk] = Field({}, max_length=16, description="further text chunks of its PNGs")


class CancelParams(Strict):
    """Which run to end."""

    run: str = Field(max_length=100, description="from the graph_accepted event")
