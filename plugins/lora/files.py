"""LoRA files: which one of a folder, and what it adds to which layer."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
from diffusers.utils.state_dict_utils import StateDictType

from latentwire import Adapter, LowRank, parse_json, read_json, read_weights

# peft's own files say nothing of the component
BARE = "base_model.model."
FOREIGN = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "LoCon with a middle matrix",
}
KEY = re.compile(r".+\.((lora_down|lora_up|lora_A|lora_B|down|up)\.weight|alpha)")
DOWN = re.compile(r"(.+)\.(lora_down|lora_A|lora\.down)\.weight")
BESIDE = "adapter_config.json"  # what peft writes beside its weights
LAYER_PATTERN = re.compile(r"\^?([\w.]+)\$?")


def choose(path: Path) -> tuple[Path, str]:
    """The file that a path means, and why that one.

    In a folder it is the one with the highest training step: the last number in its name, or in that of its own
    folder where trainers write `checkpoint-500/pytorch_lora_weights.safetensors`.

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
    highest = max(steps.values(), default=None)
    best = [file for file in files if highest is None or steps.get(file) == highest]
    if len(best) > 1:
        problem = "no training step in its name" if highest is None else f"the same training step, {highest}"
        names = ", ".join(str(file.relative_to(path)) for file in best[:10])
        raise ValueError(f"each of {len(best)} files in {path.name} has {problem}; name one of {names}")
    return best[0], f"{highest} is the highest training step of {len(files)} files"


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
        raise ValueError(f"{file.name} holds no LoRA, its first tensor is {next(iter(tensors), 'missing'):.80}")
    odd = next((key for key in tensors if not KEY.fullmatch(key)), None)
    if odd is not None:
        raise ValueError(f"{file.name} has a tensor {odd!r:.200}, which plain LoRA has not")
    settings = _settings(file, metadata)
    # of an autoencoder a pipeline calls the halves, not the whole
    modules = {name: part for name, part in components.items() if isinstance(part, torch.nn.Module) and name != "vae"}
    if all(key.startswith(BARE) for key in tensors):
        tensors = _with_component(tensors, modules)
    alphas = _take_alphas(tensors)
    state = _in_diffusers_keys(file, tensors, components)
    found: dict[str, dict[str, LowRank]] = {}
    for component in dict.fromkeys(key.split(".")[0] for key in state):
        if component not in modules:
            known = ", ".join(modules)
            raise ValueError(f"{file.name} is for another kind of model: it changes {component}, not {known}")
        pairs = _pairs(component, state)
        layers = dict(modules[component].named_modules())
        scales = _scales(component, pairs, alphas, settings)
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
    numbers = re.findall(r"\d+", file.stem if file.parent == folder else file.parent.name)
    return int(numbers[-1]) if numbers else None


def _settings(file: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """What the file's own metadata, or peft's file beside it, says of rank and alpha."""
    if "lora_adapter_metadata" in metadata:
        settings = parse_json(metadata["lora_adapter_metadata"], "its adapter configuration")
    elif (beside := file.with_name(BESIDE)).is_file():
        settings = read_json(beside)
    else:
        settings = {}
    if any(settings.get(key) for key in settings if key.endswith("use_dora")):
        raise ValueError(f"{file.name} is a DoRA; this host reads plain LoRA")
    return settings


def _with_component(tensors: Mapping[str, torch.Tensor], modules: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """peft's keys with the name of the component that has such layers."""
    stripped = {key.removeprefix(BARE): value for key, value in tensors.items()}
    first = next(iter(stripped)).rpartition(".lora_")[0]
    for name, module in modules.items():
        if _layer(first, dict(module.named_modules())) is not None:
            return {f"{name}.{key}": value for key, value in stripped.items()}
    raise ValueError(f"it is for another kind of model: this one has no {first}")


def _take_alphas(tensors: dict[str, torch.Tensor]) -> dict[int, float]:
    """Take the alphas out; each by the id of its layer's first tensor, since that outlives every change of keys."""
    downs = {match[1]: value for key, value in tensors.items() if (match := DOWN.fullmatch(key))}
    return {id(down): tensors.pop(f"{name}.alpha").item() for name, down in downs.items() if f"{name}.alpha" in tensors}


def _in_diffusers_keys(
    file: Path, tensors: dict[str, torch.Tensor], components: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    unet = components.get("unet")
    try:
        state, _ = StableDiffusionXLPipeline.lora_state_dict(tensors, unet_config=unet and unet.config)
    except (LookupError, ValueError) as error:  # which may go on for pages
        raise ValueError(
            f"{file.name} is no LoRA that diffusers understands: {' '.join(str(error).split()):.200}"
        ) from error
    converted: dict[str, torch.Tensor] = state
    return converted


def _pairs(component: str, state: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Layer -> (down, up) of one component, whatever keys the file had."""
    mine = {key.removeprefix(f"{component}."): value for key, value in state.items() if key.startswith(f"{component}.")}
    if not any(".lora_A." in key for key in mine):
        if component.startswith("text_encoder"):
            mine = convert_state_dict_to_peft(mine, StateDictType.DIFFUSERS_OLD)
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
    component: str,
    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    alphas: Mapping[int, float],
    settings: Mapping[str, Any],
) -> dict[str, float]:
    """alpha / rank of each layer; 1 where the file does not say."""

    def setting(name: str, default: Any) -> Any:
        found = settings.get(f"{component}.{name}", settings.get(name))
        return default if found is None else found

    patterns: dict[str, float] = {}
    for pattern, alpha in setting("alpha_pattern", {}).items():
        plain = LAYER_PATTERN.fullmatch(pattern)
        if plain is None:
            raise ValueError(f"its alpha_pattern {pattern!r:.200} is no layer's name")
        patterns[plain[1]] = alpha
    scales = {}
    for name, (down, _) in pairs.items():
        rank = down.shape[0]
        near = [alpha for layer, alpha in patterns.items() if f".{name}".endswith(f".{layer}")]
        alpha = alphas.get(id(down), near[0] if near else setting("lora_alpha", rank))
        scales[name] = float(alpha) / (rank**0.5 if setting("use_rslora", False) else rank)
    return scales


def _layer(name: str, layers: Mapping[str, Any]) -> str | None:
    """The layer that is called so; text encoders have, or have not, a level `text_model`."""
    names = (name, name.removeprefix("text_model."), f"text_model.{name}")
    return next((candidate for candidate in names if candidate in layers), None)
