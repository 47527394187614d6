"""One graph on its way: what the host's events mean to its client."""

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from latentwire import Caller, Event, Host, LatentwireError

from .asked import reason_of
from .clients import Clients, Preview, now_ms
from .history import Entry
from .pictures import Kind, Pictures, Stored

log = logging.getLogger(__name__)

OWNER = "comfyui"
PREVIEW_SIZE = 512
PROGRESS_S = 0.05  # between two messages of how all nodes stand
NO_PREVIEWS = "none"
NOTE = re.compile(r"[A-Za-z0-9_ .-]{1,79}")  # the name of a text in a PNG, as graph.run takes it
MAX_NOTE = 1 << 20  # letters
MOST_NOTES = 16
UNSAID = (None, "default")

STATUS = {"execution_success": "completed", "execution_interrupted": "cancelled", "execution_error": "failed"}
"""How a graph has ended, by the message that says so."""


@dataclass(eq=False)
class Prompt:
    """A graph that somebody wants to be run; times in milliseconds since 1970.

    `size` is of all that was sent, in bytes. `prefixes` has the output nodes and what their files are called: None for
    pictures that are only to be seen. `watched`: its client was connected when it sent the graph.
    """

    id: str
    number: float
    graph: dict[str, Any]
    extra: dict[str, Any]
    targets: list[str]
    client: str | None
    prefixes: dict[str, str | None]
    size: int
    watched: bool
    created: int = field(default_factory=now_ms)
    begun: int | None = None
    current: str | None = None
    progress: dict[str, dict[str, Any]] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    messages: list[Any] = field(default_factory=list)
    bytes: int = 0

    @property
    def row(self) -> list[Any]:
        """As `/queue` and `/history` have it."""
        return [self.number, self.id, self.graph, self.extra, self.targets]


class Run:
    """Runs a graph, and tells its client.

    Args:
        resolved: Gives the graph with the ids of its pictures in place of their names.
    """

    def __init__(
        self,
        host: Host,
        prompt: Prompt,
        clients: Clients,
        pictures: Pictures,
        resolved: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]],
    ) -> None:
        self._host = host
        self._prompt = prompt
        self._clients = clients
        self._pictures = pictures
        self._resolved = resolved
        self._asked = prompt.watched
        self._failed: dict[str, Any] = {}
        self._end: tuple[str, dict[str, Any]] | None = None
        self._cancelled = False
        self._told_cached = False
        self._working: asyncio.Task[Any] | None = None
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._telling: asyncio.TimerHandle | None = None

    def cancel(self) -> None:
        """Let it end at its next step."""
        self._cancelled = True
        if self._working is not None:
            self._working.cancel()

    async def to_its_end(self) -> Entry:
        """Run the graph; what is to be remembered of it. Never raises."""
        prompt = self._prompt
        prompt.begun = now_ms()
        self._tell("execution_start")
        following = asyncio.create_task(self._follow())
        problem: Exception | None = None
        try:
            if not self._cancelled:
                self._working = asyncio.create_task(self._work())
                await asyncio.wait([self._working])
                if not self._working.cancelled():
                    problem = self._working.exception()  # type: ignore[assignment]
        finally:
            self._events.put_nowait(None)
        trouble = await following
        if self._telling is not None:
            self._telling.cancel()
            self._tell_progress()
        return self._ended(problem or trouble)

    def tell_end(self) -> None:
        """Tell the client that it has ended, and how; once the history has it."""
        if self._end is not None:
            kind, data = self._end
            self._clients.tell(self._prompt.client, kind, **data)
        self._clients.tell(self._prompt.client, "executing", node=None, prompt_id=self._prompt.id)

    def state(self) -> list[tuple[str, dict[str, Any]]]:
        """What a client is told of it that comes back."""
        prompt = self._prompt
        if prompt.begun is None:
            return []
        now = [("progress_state", {"prompt_id": prompt.id, "nodes": prompt.progress})]
        if prompt.current is not None:
            now.append(("executing", self._about(prompt.current)))
        return now

    async def _work(self) -> None:
        prompt = self._prompt
        loop = asyncio.get_running_loop()
        graph = await self._resolved(prompt.graph)
        params: dict[str, Any] = {"graph": graph, "outputs": prompt.targets, "metadata": self._metadata()}
        method = prompt.extra.get("preview_method")
        self._asked |= method not in (NO_PREVIEWS, *UNSAID)
        if method != NO_PREVIEWS:
            params["previews"] = {"format": "jpeg", "size": PREVIEW_SIZE}
        caller = Caller(f"comfyui {prompt.id}", OWNER)

        def emit(event: Event) -> None:
            loop.call_soon_threadsafe(self._events.put_nowait, event)

        await self._host.dispatch("graph.run", params, caller, emit)

    def _metadata(self) -> dict[str, str]:
        """The texts of the pictures' PNGs that editors read a graph from; those that are too long are left out."""
        notes = self._prompt.extra.get("extra_pnginfo")
        values = {"prompt": self._prompt.graph, **(notes if isinstance(notes, dict) else {})}
        texts = {name: json.dumps(value) for name, value in values.items() if NOTE.fullmatch(name)}
        fitting = [(name, text) for name, text in texts.items() if len(text) <= MAX_NOTE]
        return dict(fitting[:MOST_NOTES])

    async def _follow(self) -> Exception | None:
        """Tell of the events; what went wrong with the pictures of some."""
        trouble: Exception | None = None
        while (event := await self._events.get()) is not None:
            try:
                await self._heard(event)
            except Exception as error:  # a disk that is full, say
                log.warning("the pictures of graph %s cannot be kept: %s", self._prompt.id, error)
                trouble = trouble or error
        return trouble

    def _tell_cached(self, nodes: Iterable[str]) -> None:
        self._told_cached = True
        self._tell("execution_cached", nodes=list(nodes))

    async def _heard(self, event: Any) -> None:
        prompt = self._prompt
        if event.name == "node_cached":
            for node in event.nodes:
                self._set_progress(node, "finished", 1, 1)
            self._tell_cached(event.nodes)
        elif event.name == "node_started":
            if not self._told_cached:  # clients wait for it, also where there is nothing
                self._tell_cached(())
            prompt.current = event.node
            self._set_progress(event.node, "running", 0, 1)
            self._clients.tell(prompt.client, "executing", **self._about(event.node))
            self._tell_progress_soon()
        elif event.name == "node_progress":
            self._set_progress(event.node, "running", event.value, event.maximum)
            values = {"value": event.value, "max": event.maximum, "prompt_id": prompt.id, "node": event.node}
            self._clients.tell_latest(prompt.client, (prompt.id, event.node), "progress", **values)
            self._tell_progress_soon()
        elif event.name == "node_preview":
            about = {"prompt_id": prompt.id, **_places(event.node)}
            preview = Preview(event.image.format, event.image.data, about)
            self._clients.show(prompt.client, (prompt.id, event.node), preview, self._asked)
        elif event.name == "node_finished":
            done = prompt.progress.get(event.node, {}).get("max", 1)
            self._set_progress(event.node, "finished", done, done)
            if event.node in prompt.prefixes:
                await self._keep(event.node, event.images)
            self._tell_progress_soon()
        elif event.name == "node_failed":
            self._set_progress(event.node, "error", 0, 1)
            self._failed = {
                "node_id": event.node,
                "node_type": event.class_type,
                "exception_type": event.code,
                "exception_message": event.message,
            }

    async def _keep(self, node: str, images: list[dict[str, Any]]) -> None:
        prompt = self._prompt
        prefix = prompt.prefixes[node]
        kind: Kind = "temp" if prefix is None else "output"
        stored = []
        for image in images:
            data = image.get("data") or self._host.images.get(image["image_id"])
            stored.append(await asyncio.to_thread(self._store, prefix, kind, data, image))
            prompt.bytes += len(data)
        prompt.outputs[node] = {"images": [picture.plain() for picture in stored]}
        self._clients.tell(prompt.client, "executed", **self._about(node), output=prompt.outputs[node])

    def _store(self, prefix: str | None, kind: Kind, data: bytes, image: dict[str, Any]) -> Stored:
        name = "preview" if prefix is None else self._pictures.fitting_prefix(prefix, image["width"], image["height"])
        return self._pictures.save(name, kind, data)

    def _ended(self, problem: Exception | None) -> Entry:
        prompt = self._prompt
        code = problem.code if isinstance(problem, LatentwireError) else type(problem).__name__
        about = {
            "node_id": prompt.current or "",
            "node_type": prompt.graph.get(prompt.current or "", {}).get("class_type", ""),
            **self._failed,
            "executed": [node for node, row in prompt.progress.items() if row["state"] == "finished"],
        }
        kind, told, error = "execution_success", {}, None
        if self._working is None or self._working.cancelled() or code == "cancelled":
            kind, told = "execution_interrupted", about
        elif problem is not None:
            if not isinstance(problem, LatentwireError | OSError):
                log.error("graph %s failed", prompt.id, exc_info=problem)
            message = problem.message if isinstance(problem, LatentwireError) else reason_of(problem)
            said = {"exception_message": message, "exception_type": code, "traceback": []}
            kind, told = "execution_error", {**said, **about, "current_inputs": {}, "current_outputs": []}
            error = told
        self._end = self._noted(kind, told)
        return Entry(
            id=prompt.id,
            status=STATUS[kind],
            number=prompt.number,
            created=prompt.created,
            begun=prompt.begun,
            ended=now_ms(),
            bytes=prompt.bytes,
            graph=prompt.graph,
            extra=prompt.extra,
            targets=prompt.targets,
            outputs=prompt.outputs,
            messages=prompt.messages,
            error=error,
        )

    def _set_progress(self, node: str, state: Literal["running", "finished", "error"], value: int, most: int) -> None:
        row = {"value": value, "max": most, "state": state, "prompt_id": self._prompt.id, **_places(node)}
        self._prompt.progress[node] = row

    def _tell_progress_soon(self) -> None:
        """It is about all nodes, so that one message for each change would be too much of large graphs."""
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(PROGRESS_S, self._tell_progress)

    def _tell_progress(self) -> None:
        self._telling = None
        prompt = self._prompt
        values = {"prompt_id": prompt.id, "nodes": prompt.progress}
        self._clients.tell_latest(prompt.client, prompt.id, "progress_state", **values)

    def _about(self, node: str) -> dict[str, Any]:
        return {"node": node, "display_node": node, "prompt_id": self._prompt.id}

    def _tell(self, kind: str, **data: Any) -> None:
        """Tell of the graph's life, and note it for the history."""
        self._clients.tell(self._prompt.client, kind, **self._noted(kind, data)[1])

    def _noted(self, kind: str, data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        data = {"prompt_id": self._prompt.id, "timestamp": now_ms(), **data}
        self._prompt.messages.append([kind, data])
        return kind, data


def _places(node: str) -> dict[str, str | None]:
    """A node as graphs within graphs have it; ours have none."""
    return {"node_id": node, "display_node_id": node, "parent_node_id": None, "real_node_id": node}
