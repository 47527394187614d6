"""Nodes that name a model, its parts, LoRAs and ControlNets; a sampler loads what is not there yet."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from latentwire import Host, NodeContext, NodeInput, NodeOutput, NodeType

from .on_demand import controlnets, loras
from .values import Clip, ControlNet, Model, Vae, with_adapter

MODEL, CLIP, VAE = NodeOutput("MODEL", "MODEL"), NodeOutput("CLIP", "CLIP"), NodeOutput("VAE", "VAE")
STRENGTH: dict[str, Any] = {"default": 1.0, "minimum": -100.0, "maximum": 100.0, "step": 0.01}


def _models(host: Host) -> list[str]:
    return host.store.names()


def _loras(host: Host) -> list[str]:
    return sorted(loras(host))


def _controlnets(host: Host) -> list[str]:
    return sorted(controlnets(host))


async def load_checkpoint(context: NodeContext, given: Mapping[str, Any]) -> tuple[Any, ...]:
    name = given["ckpt_name"]
    context.host.store.card(name)  # or say what is wrong with it
    return Model(name), Clip(name), Vae(name)


async def load_vae(context: NodeContext, given: Mapping[str, Any]) -> tuple[Any, ...]:
    context.host.store.card(given["vae_name"])
    return (Vae(given["vae_name"]),)


async def load_lora(context: NodeContext, given: Mapping[str, Any]) -> tuple[Any, ...]:
    name = loras(context.host)[given["lora_name"]]
    model: Model = given["model"]
    patched = replace(model, adapters=with_adapter(model.adapters, name, given["strength_model"]))
    clip: Clip | None = given.get("clip")
    if clip is None:
        return (patched,)
    return patched, replace(clip, adapters=with_adapter(clip.adapters, name, given["strength_clip"]))


async def load_controlnet(context: NodeContext, given: Mapping[str, Any]) -> tuple[Any, ...]:
    return (ControlNet(controlnets(context.host)[given["control_net_name"]]),)


def _lora_state(host: Host, values: Mapping[str, Any]) -> Any:
    return _state(host, "adapter", loras(host), values.get("lora_name"))


def _controlnet_state(host: Host, values: Mapping[str, Any]) -> Any:
    return _state(host, "controlnet", controlnets(host), values.get("control_net_name"))


def _state(host: Host, kind: Literal["adapter", "controlnet"], known: Mapping[str, str], name: Any) -> Any:
    """Which load a name stands for; what samplers load when they need it stays the same."""
    found = known.get(name)
    return host.store.number_of(kind, found) if found == name else found


LORA = NodeInput("lora_name", "COMBO", choices=_loras, description="a loaded one, or one that can be")

NODES = (
    NodeType(
        "CheckpointLoaderSimple",
        "Load Checkpoint",
        "loaders",
        (NodeInput("ckpt_name", "COMBO", choices=_models, description="a model of the host"),),
        (MODEL, CLIP, VAE),
        load_checkpoint,
        description="A model of the host: its denoiser, text encoders and autoencoder.",
    ),
    NodeType(
        "VAELoader",
        "Load VAE",
        "loaders",
        (NodeInput("vae_name", "COMBO", choices=_models, description="the model that it belongs to"),),
        (VAE,),
        load_vae,
        description="The autoencoder of a model of the host.",
    ),
    NodeType(
        "LoraLoader",
        "Load LoRA",
        "loaders",
        (
            NodeInput("model", "MODEL"),
            NodeInput("clip", "CLIP"),
            LORA,
            NodeInput("strength_model", "FLOAT", **STRENGTH),
            NodeInput("strength_clip", "FLOAT", **STRENGTH),
        ),
        (MODEL, CLIP),
        load_lora,
        description="Adds a LoRA to a model and its text encoders.",
        state=_lora_state,
    ),
    NodeType(
        "LoraLoaderModelOnly",
        "Load LoRA (Model Only)",
        "loaders",
        (NodeInput("model", "MODEL"), LORA, NodeInput("strength_model", "FLOAT", **STRENGTH)),
        (MODEL,),
        load_lora,
        description="Adds a LoRA to a model, and leaves its text encoders as they are.",
        state=_lora_state,
    ),
    NodeType(
        "ControlNetLoader",
        "Load ControlNet Model",
        "loaders",
        (NodeInput("control_net_name", "COMBO", choices=_controlnets, description="a loaded one, or one that can be"),),
        (NodeOutput("CONTROL_NET", "CONTROL_NET"),),
        load_controlnet,
        description="A ControlNet, or a ControlLoRA.",
        state=_controlnet_state,
    ),
)
