"""Nodes for what a sampler is to make: prompts, and ControlNets that lead it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from latentwire import Host, NodeContext, NodeInput, NodeOutput, NodeType

from .refusals import refused
from .values import Clip, Conditioning, Control, ControlNet, Pixels, Prompt

MOST_LETTERS = 10_000
MOST_PROMPTS = 32  # that are combined
MOST_CONTROLS = 8

CONDITIONING = NodeOutput("CONDITIONING", "CONDITIONING")


async def encode_text(context: NodeContext, given: Mapping[str, Any]) -> tuple[Any, ...]:
    return ((Prompt(given["clip"], given["text"]),),)


def check_text(host: Host, values: Mapping[str, Any]) -> Mapping[str, str]:
    letters = len(values.get("text") or "")
    return {"text": f"it has {letters} letters; at most {MOST_LETTERS}"} if letters > MOST_LETTERS else {}


async def set_last_layer(context: NodeContext, given: Mapping[str, Any]) -> tuple[Any, ...]:
    clip: Clip = given["clip"]
    # models of two encoders take the last but one layer of their own accord
    last = 2 if context.host.store.card(clip.name).family == "StableDiffusionXLPipeline" else 1
    return (replace(clip, skip=max(0, -given["stop_at_clip_layer"] - last)),)


async def combine(context: NodeContext, given: Mapping[str, Any]) -> tuple[Any, ...]:
    both: Conditioning = (*given["conditioning_1"], *given["conditioning_2"])
    if len(both) > MOST_PROMPTS:
        raise refused("conditioning_2", f"that is {len(both)} prompts in all; at most {MOST_PROMPTS} can be combined")
    return (both,)


async def zero_out(context: NodeContext, given: Mapping[str, Any]) -> tuple[Any, ...]:
    return (tuple(replace(prompt, zeroed=True) for prompt in given["conditioning"]),)


async def apply_controlnet(context: NodeContext, given: Mapping[str, Any]) -> tuple[Any, ...]:
    return (_with(given["conditioning"], given),)


async def apply_controlnet_advanced(context: NodeContext, given: Mapping[str, Any]) -> tuple[Any, ...]:
    if given["start_percent"] >= given["end_percent"]:
        return given["positive"], given["negative"]  # it never has a turn
    return _with(given["positive"], given), _with(given["negative"], given)


def _with(conditioning: Conditioning, given: Mapping[str, Any]) -> Conditioning:
    """Prompts with one ControlNet more."""
    strength: float = given["strength"]
    if not strength:
        return conditioning
    net: ControlNet = given["control_net"]
    image: Pixels = given["image"]
    control = Control(net, image, strength, given.get("start_percent", 0.0), given.get("end_percent", 1.0))
    if any(len(prompt.controls) >= MOST_CONTROLS for prompt in conditioning):
        raise refused("control_net", f"there are {MOST_CONTROLS} ControlNets already, as many as there can be")
    return tuple(replace(prompt, controls=(*prompt.controls, control)) for prompt in conditioning)


CONTROL = (NodeInput("control_net", "CONTROL_NET"), NodeInput("image", "IMAGE"))
CONTROL_STRENGTH = NodeInput("strength", "FLOAT", default=1.0, minimum=0.0, maximum=10.0, step=0.01)

NODES = (
    NodeType(
        "CLIPTextEncode",
        "CLIP Text Encode (Prompt)",
        "conditioning",
        (NodeInput("text", "STRING", multiline=True), NodeInput("clip", "CLIP")),
        (CONDITIONING,),
        encode_text,
        description="A prompt.",
        check=check_text,
    ),
    NodeType(
        "CLIPSetLastLayer",
        "CLIP Set Last Layer",
        "conditioning",
        (
            NodeInput("clip", "CLIP"),
            NodeInput("stop_at_clip_layer", "INT", default=-1, minimum=-24, maximum=-1, step=1),
        ),
        (NodeOutput("CLIP", "CLIP"),),
        set_last_layer,
        description="Takes prompts' embeddings from an earlier layer: -2 is the last but one.",
    ),
    NodeType(
        "ConditioningCombine",
        "Conditioning (Combine)",
        "conditioning",
        (NodeInput("conditioning_1", "CONDITIONING"), NodeInput("conditioning_2", "CONDITIONING")),
        (CONDITIONING,),
        combine,
        description="Several prompts at once: the mean of what the model predicts for each.",
    ),
    NodeType(
        "ConditioningZeroOut",
        "Conditioning (Zero Out)",
        "conditioning",
        (NodeInput("conditioning", "CONDITIONING"),),
        (CONDITIONING,),
        zero_out,
        description="Zeros in place of the prompts' embeddings.",
    ),
    NodeType(
        "ControlNetApply",
        "Apply ControlNet",
        "conditioning/controlnet",
        (NodeInput("conditioning", "CONDITIONING"), *CONTROL, CONTROL_STRENGTH),
        (CONDITIONING,),
        apply_controlnet,
        description="Leads a prompt by a picture; a negative prompt without one is led by the same.",
    ),
    NodeType(
        "ControlNetApplyAdvanced",
        "Apply ControlNet (Advanced)",
        "conditioning/controlnet",
        (
            NodeInput("positive", "CONDITIONING"),
            NodeInput("negative", "CONDITIONING"),
            *CONTROL,
            CONTROL_STRENGTH,
            NodeInput("start_percent", "FLOAT", default=0.0, minimum=0.0, maximum=1.0, step=0.001),
            NodeInput("end_percent", "FLOAT", default=1.0, minimum=0.0, maximum=1.0, step=0.001),
            NodeInput("vae", "VAE", required=False, description="not used: no ControlNet of this host needs one"),
        ),
        (NodeOutput("positive", "CONDITIONING"), NodeOutput("negative", "CONDITIONING")),
        apply_controlnet_advanced,
        description="Leads both prompts by a picture, for a part of the steps.",
    ),
)
