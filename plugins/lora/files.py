"""LoRA files: which one of a folder, and what it adds to which layer."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft, convert_unet_state_dict_to_peft

from latentwire import Adapter, LowRank, read_weights

# peft's own files say nothing of the component
BARE = "base_model.model."
FOREIGN = {"dora_scale": "DoRA", "hada_": "LoHa", "lokr_": "LoKr", "lora_mid": "LoCon with a middle matrix"}


def choose(path: Path) -> tuple[Path, str]:
    """The file that a path means, and why that one.

    In a folder it is the one with the highest training step: the last number in its name, or in that of its folder
    where trainers write `checkpoint-500/pytorch_lora_weights.safetensors`.

    Raises:
        ValueError: there is none, or no telling which.
    """
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ValueError(f"{path.name} is no .safetensors file; weights in other formats are not read")
        return path, "it was named"
    files = sorted([*path.glob("*.safetensors"), *path.glob("checkpoint-*/*.safetensors")])
    if not files:
        raise ValueError(f"{path.name} holds no .safetensors file")
    if len(files) == 1:
        return files[0], "it is the only one there"
    steps = {file: step for file in files if (step := _step(file, path)) is not None}
    if not steps:
        names = ", ".join(file.name for file in files[:10])
        raise ValueError(f"none of the files in {path.name} has a training step in its name; name one of {names}")
    best = max(steps, key=lambda file: steps[file])
    return best, f"{steps[best]} is the highest training step of {len(files)} files"


def read_adapter(file: Path, components: Mapping[str, Any]) -> Adapter:
    """A LoRA file in the keys of kohya's scripts, of diffusers or of peft, for a model's components.

    Raises:
        ValueError: it is no LoRA, one of another kind, or one for another model.
    """
    tensors, metadata = read_weights(file)
    for mark, kind in FOREIGN.items():
        if any(mark in key for key in tensors):
            raise ValueError(f"{file.name} is a {kind}; this host reads plain LoRA")
    if not any("lora" in key for key in tensors):
        raise ValueError(f"{file.name} holds no LoRA, its first tensor is {next(iter(tensors), 'missing')}")
    settings = _settings(file, metadata)
    if all(key.startswith(BARE) for key in tensors):
        tensors = _with_component(tensors, components)
    unet = components.get("unet")
    state, alphas = StableDiffusionXLPipeline.lora_state_dict(tensors, unet_config=unet and unet.config)
    found: dict[str, dict[str, LowRank]] = {}
    for component in dict.fromkeys(key.split(".")[0] for key in state):
        module = components.get(component)
        if not isinstance(module, torch.nn.Module):
            raise ValueError(f"{file.name} is for another kind of model: it changes {component}, which this one lacks")
        pairs = _pairs(component, state)
        layers = dict(module.named_modules())
        scales = _scales(component, pairs, alphas or {}, settings)
        found[component] = {}
        for key, (down, up) in pairs.items():
            name = _layer(key, layers)
            part = LowRank(down, up, scales[key])
            if name is None or not part.fits(layers[name]):
                what = f"no {key}" if name is None else f"another {key} ({list(up.shape)} after {list(down.shape)})"
                raise ValueError(f"{file.name} is for another kind of model: this one's {component} has {what}")
            found[component][name] = part
    return Adapter(found)


def _step(file: Path, folder: Path) -> int | None:
    numbers = re.findall(r"\d+", file.stem) or (re.findall(r"\d+", file.parent.name) if file.parent != folder else [])
    return int(numbers[-1]) if numbers else None


def _settings(file: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """What the file's own metadata, or peft's file beside it, says of rank and alpha."""
    if "lora_adapter_metadata" in metadata:
        settings = json.loads(metadata["lora_adapter_metadata"])
    elif (beside := file.with_name("adapter_config.json")).is_file():
        settings = json.loads(beside.read_text(encoding="utf-8"))
    else:
        settings = {}
    if not isinstance(settings, dict):
        raise ValueError(f"{file.name}: its adapter configuration is no map")
    if any(settings.get(key) for key in settings if key.endswith("use_dora")):
        raise ValueError(f"{file.name} is a DoRA; this host reads plain LoRA")
    return settings


def _with_component(tensors: Mapping[str, torch.Tensor], components: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """peft's keys with the name of the component that has such layers."""
    stripped = {key.removeprefix(BARE): value for key, value in tensors.items()}
    first = next(iter(stripped)).rpartition(".lora_")[0]
    for name, module in components.items():
        if isinstance(module, torch.nn.Module) and _layer(first, dict(module.named_modules())) is not None:
            return {f"{name}.{key}": value for key, value in stripped.items()}
    raise ValueError(f"it is for another kind of model: this one has no {first}")


def _pairs(component: str, state: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Layer -> (down, up) of one component, whatever keys the file had."""
    mine = {key.removeprefix(f"{component}."): value for key, value in state.items() if key.startswith(f"{component}.")}
    if not any(".lora_A." in key for key in mine):
        if component.startswith("text_encoder"):
            mine = convert_state_dict_to_peft(convert_state_dict_to_diffusers(mine))
        else:
            mine = convert_unet_state_dict_to_peft(mine)
    odd = [key for key in mine if not key.endswith((".lora_A.weight", ".lora_B.weight"))]
    if odd:
        raise ValueError(f"its tensor {component}.{odd[0]} is not understood")
    names = dict.fromkeys(key.rpartition(".lora_")[0] for key in mine)
    try:
        return {name: (mine[f"{name}.lora_A.weight"], mine[f"{name}.lora_B.weight"]) for name in names}
    except KeyError as error:
        raise ValueError(f"it lacks the tensor {component}.{error.args[0]}") from error


def _scales(
    component: str, pairs: Mapping[str, Any], alphas: Mapping[str, float], settings: Mapping[str, Any]
) -> dict[str, float]:
    """alpha / rank of each layer; 1 where the file does not say."""
    known = {_plain(key.removeprefix(f"{component}.").removesuffix(".alpha")): alpha for key, alpha in alphas.items()}

    def setting(name: str, default: Any) -> Any:
        return settings.get(f"{component}.{name}", settings.get(name, default))

    scales = {}
    for name, (down, _) in pairs.items():
        rank = down.shape[0]
        patterns = setting("alpha_pattern", {})
        near = [value for pattern, value in patterns.items() if name == pattern or name.endswith(f".{pattern}")]
        alpha = known.get(_plain(name), near[0] if near else setting("lora_alpha", rank))
        scales[name] = float(alpha) / (rank**0.5 if setting("use_rslora", False) else rank)
    return scales


def _plain(name: str) -> str:
    """A layer's name without what the formats put between its parts."""
    for mark in (".processor", ".lora", "_lora", ".to_out.0"):
        name = name.replace(mark, ".to_out" if mark == ".to_out.0" else "")
    return name


def _layer(name: str, layers: Mapping[str, Any]) -> str | None:
    """The layer that is called so; text encoders have, or have not, a level `text_model`."""
    names = (name, name.removeprefix("text_model."), f"text_model.{name}")
    return next((candidate for candidate in names if candidate in layers), None)
