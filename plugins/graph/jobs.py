"""Jobs of the host on behalf of a node: what samples, encodes and decodes goes through the engine like any request.

A node's job is a `generate` whose field `graph_part` names what the plugin's hooks know of it: pictures, embeddings and
steps, which no client could write down.
"""

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from latentwire import (
    BuildContext,
    CallContext,
    InvalidParams,
    NodeContext,
    PluginRegistry,
    Strict,
)

from .refusals import refused
from .values import Adapters, Pixels

FAMILIES = {
    "StableDiffusionPipeline": "StableDiffusion",
    "StableDiffusionXLPipeline": "StableDiffusionXL",
    "StableDiffusion3Pipeline": "StableDiffusion3",
}
SAMPLED = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")  # families that a pipeline of our own samples
KINDS = {"text2img": "", "img2img": "Img2Img", "inpaint": "Inpaint"}


class GraphPart(Strict):
    """A part of a graph; graph.run's own, of no use to clients."""

    key: str


@dataclass(frozen=True, slots=True)
class Part:
    """What a job does: the pipeline's parts, and further arguments of its call for each of its pictures."""

    task: str
    arguments: Callable[[int], dict[str, Any]]
    controlnets: tuple[str, ...] = ()
    adapters: Adapters = ()


@dataclass
class Parts:
    """Those that jobs of now are made of, by key."""

    known: dict[str, Part] = field(default_factory=dict)

    def register(self, registry: PluginRegistry) -> None:
        """Add the request's field, and the pipelines."""
        registry.add_field("graph_part", GraphPart)
        for task, mixin in (("graph_text", "Text"), ("graph_decode", "Decoding"), ("graph_encode", "Encoding")):
            registry.add_task(
                task, {family: partial(_pipeline, mixin, f"{name}Pipeline") for family, name in FAMILIES.items()}
            )
        for kind, suffix in KINDS.items():
            names = {family: f"{FAMILIES[family]}%s{suffix}Pipeline" for family in SAMPLED}
            registry.add_task(
                f"graph_{kind}",
                {family: partial(_pipeline, "Sampling", name % "") for family, name in names.items()},
                {family: partial(_pipeline, "Sampling", name % "ControlNet") for family, name in names.items()},
            )

    def modify_build(self, context: BuildContext) -> None:
        part = self._of(context.request)
        if part is not None:
            build = replace(context.build, task=part.task)
            context.build = build.with_controlnets(*part.controlnets).with_adapters(*part.adapters)

    def modify_call(self, context: CallContext) -> None:
        part = self._of(context.request)
        if part is None:
            return
        arguments = part.arguments(context.index)
        layers = context.components["text_encoder"].config.num_hidden_layers
        if (arguments.get("clip_skip") or 0) >= layers:
            model = context.build.model
            raise refused("clip", f"the text encoder of {model!r} has {layers} layers, so none is left", layers)
        context.call = context.call.with_extra(**arguments)

    def _of(self, request: Any) -> Part | None:
        section: GraphPart | None = getattr(request, "graph_part", None)
        if section is None:
            return None
        if section.key not in self.known:
            message = "graph_part is for graph.run, which makes such requests itself"
            raise InvalidParams(message, [{"path": ["graph_part"], "message": message, "got": section.key[:80]}])
        return self.known[section.key]


class Jobs:
    """Runs jobs for nodes; no more of one client at once than leave it room for others of its own."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._users: Counter[str] = Counter()

    async def run(self, context: NodeContext, part: Part, request: dict[str, Any], steps: int = 0) -> list[Pixels]:
        """What the job's pictures are, as arrays.

        Args:
            request: Of `generate`, beside what all such requests have.
            steps: Of all its pictures together, whose progress is told.
        """
        made: dict[int, Pixels] = {}
        done = Counter[int]()

        def hear(event: Any) -> None:
            if event.name == "image":
                made[event.index] = _array_of(event.latents)
            elif event.name == "step" and steps:
                done[event.index] = event.step
                context.progress(done.total(), max(steps, event.steps * request.get("num_images", 1)))
            elif event.name == "preview":
                context.preview(event.step, event.image)

        host, key = context.host, secrets.token_hex(8)
        previews = context.previews.model_dump() if context.previews and steps else None
        params = {"mode": context.mode} | request
        params |= {
            "output_type": "latent",
            "graph_part": {"key": key},
            "priority": context.priority,
            "stream": {"steps": bool(steps), "previews": previews},
        }
        loras = host.registry.owners.get(("field", "lora"))
        if loras is not None and host.guard.strikes.reason(loras) is None:
            params.setdefault("lora", [])  # a graph says itself which LoRAs it wants
        client = context.caller.client
        turns = self._turns.setdefault(client, asyncio.Semaphore(max(1, host.settings.limits.jobs_per_client // 2)))
        self._users[client] += 1
        self._parts.known[key] = part
        try:
            async with turns:
                await host.dispatch("generate", params, context.caller, hear)
        finally:
            del self._parts.known[key]
            self._users[client] -= 1
            if not self._users[client]:
                del self._users[client], self._turns[client]
        return [made[index] for index in sorted(made)]


def _pipeline(mixin: str, base: str) -> type[Any]:
    from .pipelines import with_mixin

    return with_mixin(mixin, base)


def _array_of(tensor: Any) -> Pixels:
    return np.frombuffer(tensor.data, "<f4").reshape(tensor.shape)
