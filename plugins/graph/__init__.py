"""Graphs of nodes, as node-graph editors make them: checked, run on the host's engine, and only what has changed.

{"id": 1, "command": "graph.run", "params": {"graph": {"1": {"class_type": "CheckpointLoaderSimple", "inputs": ...}}}}
"""

from typing import Any

from pydantic import Field

from latentwire import (
    BuildContext,
    CallContext,
    ClientContext,
    CommandContext,
    JobCancelled,
    PluginRegistry,
    Strict,
    Superseded,
    TooManyJobs,
    UnknownJob,
    Whole,
    hookimpl,
)

from .budget import Budget
from .cache import Cache
from .events import EVENTS, GraphAccepted
from .graph import parse
from .jobs import Jobs, Parts
from .nodes_generate import GenerateNode
from .nodes_image import NODES as IMAGE_NODES
from .nodes_latent import NODES as LATENT_NODES
from .nodes_latent import LatentNodes
from .nodes_loaders import NODES as LOADERS
from .nodes_sampling import SamplingNodes
from .nodes_text import NODES as TEXT_NODES
from .params import CancelParams, CheckParams, RunParams
from .runs import Run
from .samplers import add_spacings
from .sampling import Samples


class Settings(Strict):
    """What graphs may take of the machine's memory."""

    cache_mib: Whole = Field(512, ge=0, le=1 << 20, description="of what nodes gave in earlier runs")
    run_mib: Whole = Field(2048, ge=16, le=1 << 20, description="of what nodes gave in the runs of now")


class Plugin:
    """The commands, and the runs of now."""

    def __init__(self, settings: Settings) -> None:
        self._cache = Cache(settings.cache_mib << 20)
        self._budget = Budget(settings.run_mib << 20)
        self._parts = Parts()
        self._jobs = Jobs(self._parts)
        self._samples = Samples(self._jobs)
        self._runs: dict[str, Run] = {}

    @hookimpl
    def register(self, registry: PluginRegistry) -> None:
        self._parts.register(registry)
        add_spacings(registry)
        for event in EVENTS:
            registry.add_event(event)
        generate = GenerateNode(self._jobs, self._samples)
        own = (LatentNodes(self._samples).types(), SamplingNodes(self._samples).types(), (generate.type(),))
        for types in (LOADERS, TEXT_NODES, LATENT_NODES, IMAGE_NODES, *own):
            for node in types:
                registry.add_node(node)
        registry.add_command("graph.run", RunParams, self.run)
        registry.add_command("graph.check", CheckParams, self.check)
        registry.add_command("graph.cancel", CancelParams, self.cancel)

    @hookimpl
    def modify_build(self, context: BuildContext) -> None:
        self._parts.modify_build(context)

    @hookimpl
    def modify_call(self, context: CallContext) -> None:
        self._parts.modify_call(context)

    @hookimpl
    def client_left(self, context: ClientContext) -> None:
        for run in self._of(context.client):
            run.end(JobCancelled("the client went away"))

    async def run(self, context: CommandContext, params: RunParams) -> dict[str, Any]:
        """Run a graph; events tell of its nodes until the result."""
        nodes = parse(context.host, params.graph, params.outputs)
        older = [run for run in self._of(context.client) if params.slot is not None and run.slot == params.slot]
        most = context.host.settings.limits.jobs_per_client
        if len(self._of(context.client)) - len(older) >= most:
            raise TooManyJobs(f"this client runs {most} graphs, the limit; wait for one or cancel one")
        for run in older:
            run.end(Superseded(f"a newer graph took the place of run {run.id} in slot {params.slot!r}"))
        run = Run(context, params, nodes, self._cache, self._budget)
        self._runs[run.id] = run
        run.tell(GraphAccepted(run.id))
        try:
            return await run.run()
        finally:
            del self._runs[run.id]

    async def check(self, context: CommandContext, params: CheckParams) -> dict[str, Any]:
        """Tell what is wrong with a graph, as an error; or which of its nodes would run."""
        return {"nodes": list(parse(context.host, params.graph, params.outputs))}

    async def cancel(self, context: CommandContext, params: CancelParams) -> dict[str, Any]:
        """End a run; its own command ends with the error code cancelled."""
        run = self._runs.get(params.run)
        if run is None or run.caller.owner != context.caller.owner:
            raise UnknownJob(f"you have no run {params.run!r:.80} under way")
        return {"run": run.id, "cancelled": run.end(JobCancelled(f"run {run.id} was cancelled"))}

    def _of(self, client: str) -> list[Run]:
        return [run for run in self._runs.values() if run.caller.client == client]
