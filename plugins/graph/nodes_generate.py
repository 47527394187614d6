"""The node that makes pictures like one `generate`: its inputs are the request's fields, those of plugins too."""

import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from latentwire import GenerateRequest, Host, NodeContext, NodeInput, NodeOutput, NodeType

from .jobs import Jobs, Part
from .nodes_latent import MOST_PICTURES
from .nodes_sampling import MOST_SEED
from .sampling import Samples
from .values import SEEDS, Latent, Vae

NAME = "LatentwireGenerate"
NOT_OF_THE_PICTURE = {"mode", "output_type", "slot", "min_steps_shown", "priority", "stream", "graph_part"}
TYPES = {"string": "STRING", "integer": "INT", "number": "FLOAT", "boolean": "BOOLEAN"}
LISTS: dict[str, Callable[[Host], list[str]]] = {
    "model": lambda host: host.store.names(),
    "scheduler": lambda host: sorted(host.registry.schedulers),
}


@dataclass(frozen=True, slots=True)
class GenerateNode:
    jobs: Jobs
    samples: Samples

    async def run(self, context: NodeContext, given: Mapping[str, Any]) -> tuple[Any, ...]:
        # what applies by default does so here, too
        request: dict[str, Any] = {"lora": None} if "lora" in context.host.registry.fields else {}
        for name, value in given.items():
            field, _, part = name.partition(".")
            if value is None:
                continue
            if part:
                request.setdefault(field, {})[part] = value
            else:
                request[field] = value
        if "seed" in request:
            request["seed"] %= SEEDS
        model = request.get("model") or context.host.settings.defaults.model
        steps = request.get("num_inference_steps", 1) * request.get("num_images", 1)
        made = await self.jobs.run(context, Part("text2img", lambda index: {}), request, steps)
        latent = Latent.of(made)
        return (await self.samples.decoded(context, Vae(model), latent),)

    def type(self) -> NodeType:
        return NodeType(
            NAME,
            "Generate",
            "sampling",
            lambda host: inputs_of(host.request_model),
            (NodeOutput("IMAGE", "IMAGE"),),
            self.run,
            description="Pictures of a prompt in one node, as the command generate makes them.",
            state=_state,
        )


def _state(host: Host, values: Mapping[str, Any]) -> Any:
    """Another one each time where there are LoRAs: what applies by default may have changed, and only `lora` knows."""
    return secrets.token_hex(8) if host.store.brought("adapter") else None


@lru_cache(4)
def inputs_of(request_model: type[GenerateRequest]) -> tuple[NodeInput, ...]:
    """The plain fields of the request, and those of plugins' fields that hold nothing else, as `field.name`."""
    schema = request_model.model_json_schema()
    required, models = schema.get("required", ()), schema.get("$defs", {})
    found: list[NodeInput] = []
    for name, field in schema["properties"].items():
        if name == "seed":
            found.append(NodeInput(name, "INT", default=0, minimum=0, maximum=MOST_SEED, random=True))
        elif name == "num_images":
            found.append(NodeInput(name, "INT", False, default=1, minimum=1, maximum=MOST_PICTURES))
        elif name in LISTS:
            found.append(NodeInput(name, "COMBO", False, choices=LISTS[name], description=field.get("description", "")))
        elif name not in NOT_OF_THE_PICTURE:
            found += _inputs_of(name, field, name in required, models)
    return tuple(found)


def _inputs_of(name: str, field: Mapping[str, Any], required: bool, models: Mapping[str, Any]) -> Iterator[NodeInput]:
    kind = _without_null(field)
    if kind.get("type") in TYPES:
        yield _plain(name, field, kind, required)
    elif "$ref" in kind:
        parts = models[kind["$ref"].rpartition("/")[2]].get("properties", {})
        kinds = {part: _without_null(of_part) for part, of_part in parts.items()}
        if all(of_part.get("type") in TYPES for of_part in kinds.values()):
            for part, of_part in kinds.items():
                yield _plain(f"{name}.{part}", parts[part], of_part, required=False)


def _without_null(field: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a field is where it is not left out."""
    kinds = [kind for kind in field.get("anyOf", ()) if kind.get("type") != "null"]
    return kinds[0] if len(kinds) == 1 else field


def _plain(name: str, field: Mapping[str, Any], kind: Mapping[str, Any], required: bool) -> NodeInput:
    choices = kind.get("enum")
    return NodeInput(
        name,
        "COMBO" if choices else TYPES[kind["type"]],
        required=required,
        default=field.get("default"),
        minimum=kind.get("minimum", kind.get("exclusiveMinimum")),
        maximum=kind.get("maximum", kind.get("exclusiveMaximum")),
        step=kind.get("multipleOf"),
        choices=tuple(choices) if choices else None,
        multiline="prompt" in name,
        description=field.get("description", ""),
    )
