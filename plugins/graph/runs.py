"""Runs of graphs: each node as soon as what it needs is there, and none that need not run."""

import asyncio
import json
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from latentwire import CommandContext, Event, LatentwireError, NodeContext, Origin, Picture, publish

from .about import about
from .budget import Budget
from .cache import Cache, Outputs, keys_of
from .events import NodeCached, NodeFailed, NodeFinished, NodePreview, NodeProgress, NodeStarted
from .graph import Node, check_given, plain_graph
from .values import Shown, nbytes

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    from .params import RunParams

AT_ONCE = 16  # nodes of one run


class Run:
    """One graph on its way.

    Attributes:
        id: Given by the plugin.
        slot: As it was asked for.
        reason: Why it was ended before its time.
    """

    def __init__(
        self, context: CommandContext, params: "RunParams", nodes: Mapping[str, Node], cache: Cache, budget: Budget
    ) -> None:
        self.id = secrets.token_hex(8)
        self.caller = context.caller
        self.slot = params.slot
        self.reason: LatentwireError | None = None
        self._host = context.host
        self._emit = context.emit
        self._params = params
        self._nodes = nodes
        self._cache = cache
        self._budget = budget
        self._values: dict[str, Outputs] = {}  # of those that others still wait for
        self._waited_for: Counter[str] = Counter()
        self._ready = {name: asyncio.Event() for name in nodes}
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._images: dict[str, list[dict[str, Any]]] = {}  # of output nodes, without their data
        self._failure: LatentwireError | None = None
        self._task: asyncio.Task[dict[str, Any]] | None = None

    async def run(self) -> dict[str, Any]:
        """The command's result.

        Raises:
            LatentwireError: what the first node that failed raised, or why the run was ended.
        """
        self._task = asyncio.create_task(self._run())
        if self.reason is not None:  # by another thread, before there was anything to cancel
            self._task.cancel()
        try:
            return await self._task
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.reason is None or (task is not None and task.cancelling()):
                raise
            raise self.reason from None
        finally:
            self._emit = _to_nobody
            for outputs in self._values.values():
                self._budget.give_back(nbytes(outputs))
            self._values.clear()

    def end(self, reason: LatentwireError) -> bool:
        """End it before its time, from any thread; False where it is over or ending already."""
        if (self._task is not None and self._task.done()) or self.reason is not None:
            return False
        self.reason = reason
        self._emit = _to_nobody  # nothing of it comes after what takes its place
        if self._task is not None:
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)
        return True

    async def _run(self) -> dict[str, Any]:
        self._cache.check(self._host)
        wanted = self._wanted()
        keys = keys_of(self._nodes.values(), self._host, self._mode, self.caller.owner)
        to_run, known = self._plan(wanted, keys)
        unneeded = [name for name in self._nodes if name not in to_run]
        if unneeded:
            self.tell(NodeCached(self.id, unneeded))
        for name, outputs in known.items():
            self._budget.take(nbytes(outputs))
            self._values[name] = outputs
            self._ready[name].set()
            if self._nodes[name].type.output:
                self._images[name] = [_without_data(image) for image in outputs[-1].images]
                self.tell(NodeFinished(self.id, name, outputs[-1].images))
        try:
            async with asyncio.TaskGroup() as group:
                for name in self._nodes:
                    if name in to_run:
                        group.create_task(self._run_node(self._nodes[name], keys[name]))
        except BaseExceptionGroup as failures:
            raise self._failure or failures.exceptions[0] from None
        shown = {name: {"images": self._images[name]} for name in self._nodes if name in self._images}
        return {"run": self.id, "outputs": shown}

    def _wanted(self) -> Sequence[str]:
        if self._params.outputs is not None:
            return self._params.outputs
        return [name for name, node in self._nodes.items() if node.type.output]

    def _plan(self, wanted: Sequence[str], keys: Mapping[str, str | None]) -> tuple[set[str], dict[str, Outputs]]:
        """Which nodes run, and what is known of those that these need."""
        to_run: set[str] = set()
        known: dict[str, Outputs] = {}
        stack = list(wanted)
        while stack:
            name = stack.pop()
            if name in to_run or name in known:
                continue
            outputs = self._cache.find(keys[name])
            if outputs is not None:
                known[name] = outputs
                continue
            to_run.add(name)
            sources = {link.node for link in self._nodes[name].links.values()}
            self._waited_for.update(sources)
            stack.extend(sources)
        return to_run, known

    async def _run_node(self, node: Node, key: str | None) -> None:
        sources = {link.node for link in node.links.values()}
        for source in sources:
            await self._ready[source].wait()
        async with self._turns:
            linked = {name: self._values[link.node][link.output] for name, link in node.links.items()}
            inputs = {**node.values, **linked}
            del linked
            self.tell(NodeStarted(self.id, node.id, node.type.name))
            shown = Shown()
            context = self._context_for(node, shown)
            try:
                check_given(self._host, node, inputs)
                outputs = await self._host.registry.run_node(node.type.name, context, inputs)
                del inputs
                if node.type.output:
                    outputs = (*outputs, shown)
                    self._images[node.id] = [_without_data(image) for image in shown.images]
                self._budget.take(nbytes(outputs))
            except LatentwireError as error:
                self._fail(node, error)
                raise
            self._values[node.id] = outputs
            self._cache.keep(key, outputs)
            for source in sources:
                self._waited_for[source] -= 1
                self._let_go(source)
            self._let_go(node.id)
            self._ready[node.id].set()
            self.tell(NodeFinished(self.id, node.id, shown.images))

    def _let_go(self, name: str) -> None:
        """Forget what no other node of the run waits for."""
        if not self._waited_for[name] and name in self._values:
            self._budget.give_back(nbytes(self._values.pop(name)))

    def _fail(self, node: Node, error: LatentwireError) -> None:
        if self._failure is None:
            error.about = error.about | {"run": self.id, "node": node.id}
            self._failure = error
            self.tell(NodeFailed(self.id, node.id, node.type.name, error.code, error.message))

    def tell(self, event: Event) -> None:
        """Tell the one who runs it, unless it is over; from any thread."""
        self._emit(event)

    def _context_for(self, node: Node, shown: Shown) -> NodeContext:
        params = self._params

        def progress(value: float, maximum: float) -> None:
            self.tell(NodeProgress(self.id, node.id, value, maximum))

        def preview(step: int, image: Picture) -> None:
            self.tell(NodePreview(self.id, node.id, step, image))

        return NodeContext(
            self._host,
            self.caller,
            self.id,
            node.id,
            params.mode,
            params.priority or ("interactive" if params.slot is not None else None),
            params.previews,
            progress,
            preview,
            partial(self._show, node, shown),
        )

    def _show(self, node: Node, shown: Shown, picture: "PILImage", keep: bool) -> None:
        """A picture of an output node; in a worker thread."""
        host, made = self._host, about(self._nodes, node.id)
        request = host.request_model.model_construct(**made)
        made["graph"] = self._graph
        index = len(shown.images)
        origin = Origin(self.caller.client, self.caller.owner, self.id, index, made["seed"], request, made)
        event = publish(host, origin, picture, dict(self._chunks), keep)
        assert event.image is not None
        shown.images.append(
            {
                "image_id": event.image_id,
                "format": event.image.format,
                "width": event.image.width,
                "height": event.image.height,
                "data": event.image.data,
                "result": event.result,
                "unstored": event.unstored,
            }
        )

    @property
    def _mode(self) -> str:
        return self._params.mode or self._host.settings.defaults.mode

    @cached_property
    def _chunks(self) -> dict[str, str]:
        """Text chunks of its PNGs."""
        return {"latentwire_graph": json.dumps(self._graph).replace("<", "\\u003c")} | self._params.metadata

    @cached_property
    def _graph(self) -> dict[str, Any]:
        return plain_graph(self._nodes)


def _to_nobody(event: Event) -> None:
    """It is over."""


def _without_data(image: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in image.items() if name != "data"}
