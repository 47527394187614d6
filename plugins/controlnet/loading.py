"""ControlNets from a folder, and ControlLoRAs from the base's own weights and a file."""

import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from diffusers.utils.state_dict_utils import convert_sai_sd_control_lora_state_dict_to_peft
from peft import LoraConfig

from latentwire import LOADING, Host, Loaded, parse_json, read_json, read_module, read_weights

# what must be equal between a ControlNet and the UNet that takes its residuals
MATCHING = ("block_out_channels", "layers_per_block", "cross_attention_dim", "addition_embed_type")

STABILITY = "lora_controlnet"  # an empty tensor that marks Stability AI's files
LOW_RANK = ".lora_B.weight"


def load_folder(host: Host, folder: Path, unet_config: Mapping[str, Any], dtype: str) -> Loaded:
    """A ControlNet in diffusers' format for a UNet of that configuration; `dtype` is the store's to apply.

    Raises:
        ValueError: the folder holds something else, or a ControlNet for another kind of model.
    """
    for file in folder.glob("*"):
        host.check_inside(file)
    try:
        config = read_json(folder / "config.json")
    except OSError as error:
        raise ValueError("it has no config.json; a ControlNet is a folder in diffusers' format") from error
    kind = config.get("_class_name")
    if kind != "ControlNetModel":
        raise ValueError(f"its config.json is of {kind or 'no model'}, wanted a ControlNetModel")
    for key in MATCHING:
        got, wanted = config.get(key), unet_config.get(key)
        if got not in (None, wanted) and [got] * len(unet_config["block_out_channels"]) != wanted:
            raise ValueError(f"it is for another kind of model: its {key} is {got}, the model's UNet has {wanted}")
    return Loaded(read_module(ControlNetModel, folder))


def load_control_lora(host: Host, model: str, file: Path, dtype: str) -> Loaded:
    """A ControlNet made of the model's own UNet and a LoRA file, in Stability AI's keys or diffusers'.

    Its unchanged weights are the UNet's own tensors, not copies, where both are of one dtype and the UNet stays on its
    device; the UNet stays loaded as long as it does.

    Raises:
        ValueError: the file is no ControlLoRA, or one for another kind of model.
    """
    if not file.is_file():
        raise ValueError("a ControlLoRA is a .safetensors file")
    tensors, metadata = read_weights(file)
    for what, marks in {
        "layers for a control image": ("control", "input_hint_block"),
        "low-rank layers": ("lora",),
    }.items():
        if not any(mark in name for name in tensors for mark in marks):
            raise ValueError(f"{file.name} is no ControlLoRA: it has no {what}")
    shares = dtype == host.store.dtype_of(model) and not host.settings.models[model].cpu_offload
    with ExitStack() as stack:
        unet = stack.enter_context(host.store.leased(model)).components["unet"]
        try:
            with LOADING:
                net = _control_lora(unet, tensors, metadata, shares)
        except (RuntimeError, ValueError, KeyError) as error:
            lines = str(error).strip().splitlines() or [""]
            reason = next((line.strip() for line in lines if "size mismatch" in line), lines[0])
            raise ValueError(f"{file.name} is for another kind of model: {reason:.300}") from error
        if not shares:
            return Loaded(net)
        keep = stack.pop_all()
    shared = {tensor.untyped_storage().data_ptr() for tensor in unet.parameters()}
    own = [tensor for tensor in net.parameters() if tensor.untyped_storage().data_ptr() not in shared]
    return Loaded(net, sum(tensor.nbytes for tensor in own), keep.close)


def _control_lora(
    unet: Any, tensors: dict[str, torch.Tensor], metadata: Mapping[str, str], shares: bool
) -> ControlNetModel:
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=_hint_channels(tensors))
    stability = STABILITY in tensors
    named = convert_sai_sd_control_lora_state_dict_to_peft(tensors) if stability else tensors
    layers = {name.partition(".lora_")[0] for name in named if ".lora_" in name}
    unknown = layers - dict(net.named_modules()).keys()
    if unknown:  # diffusers would only log it
        raise ValueError(f"the model has no layer {min(unknown)}")
    if stability:
        _add_stability_lora(net, named)
    else:
        said = metadata.get("lora_adapter_metadata")
        settings = None if said is None else parse_json(said, "its adapter configuration")
        net.load_lora_adapter(tensors, prefix=None, metadata=settings)
    if shares:
        _share(net, unet)
    return net


def _add_stability_lora(net: ControlNetModel, named: Mapping[str, torch.Tensor | None]) -> None:
    """Add a ControlLoRA of Stability AI's: low-rank changes to weights; biases, norms and new layers whole.

    diffusers 0.42 itself drops the biases of the changed layers.

    Args:
        named: Its tensors by diffusers' names; None: the file lacks it.
    """
    state: dict[str, torch.Tensor] = {}
    ranks = {
        name.removesuffix(LOW_RANK): value.shape[1]
        for name, value in named.items()
        if value is not None and name.endswith(LOW_RANK)
    }
    patterns = {f"^{re.escape(name)}$": rank for name, rank in ranks.items()}
    layers = "|".join(map(re.escape, ranks))
    net.add_adapter(LoraConfig(target_modules=layers, rank_pattern=patterns, alpha_pattern=patterns), "control")
    for name, value in named.items():
        layer, _, kind = name.rpartition(".")
        if value is None:
            raise ValueError(f"the file has no {name}")
        place = f"{layer}.base_layer.{kind}" if layer in ranks else name
        state[re.sub(r"\.(lora_[AB])\.", r".\1.control.", place)] = value
    left = net.load_state_dict(state, strict=False).unexpected_keys
    if left:
        raise ValueError(f"the model has no {left[0]}")


def _share(net: ControlNetModel, unet: Any) -> None:
    """Let a net made of the UNet use the UNet's own tensors wherever the file left them as they are."""
    theirs = dict(unet.named_parameters())
    for place, module in list(net.named_modules()):
        for name, own in list(module.named_parameters(recurse=False)):
            base = theirs.get(f"{place}.{name}".replace(".base_layer.", "."))
            if base is not None and base.shape == own.shape and torch.equal(base.to(own.device, own.dtype), own):
                setattr(module, name, base)


def _hint_channels(tensors: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
    """The channels of the layers that embed the control image, as the file has them."""
    names = ("conv_in", *(f"blocks.{number}" for number in range(1, 16, 2)))
    found = [tensors.get(f"controlnet_cond_embedding.{name}.weight") for name in names]
    channels = tuple(weight.shape[0] for weight in found if weight is not None)
    return channels or (16, 32, 96, 256)  # those of all published ones
