"""Models made of noise, for benchmarks in which only sizes matter: Stable Diffusion 1.5 in shape, in full or small."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors.torch import save_file

from latentwire.core.checkpoint import LAYOUTS, clip_tokenizer

RANK = 16  # of the LoRAs

SMALL: dict[str, dict[str, Any]] = {
    "unet": {"block_out_channels": [32, 64, 64, 64], "cross_attention_dim": 32},
    "vae": {"block_out_channels": [32, 32, 32, 32]},
    "text_encoder": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
}


@contextmanager
def made_model(size: str, keep: Path | None = None) -> Iterator[Path]:
    """A folder with `model`, `controlnet`, `a.safetensors` and `b.safetensors` (LoRAs)."""
    if keep is not None:
        if not (keep / "b.safetensors").exists():  # it is written last
            make_model(keep, size)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="latentwire-") as folder:
        make_model(Path(folder), size)
        yield Path(folder)


def make_model(folder: Path, size: str) -> None:
    """Write the configs of Stable Diffusion 1.5, or smaller ones, and random weights for them."""
    torch.manual_seed(0)
    model = folder / "model"
    shutil.copytree(LAYOUTS / "sd1", model, dirs_exist_ok=True)
    clip_tokenizer().save_pretrained(model / "tokenizer")
    for name, kind in (("unet", diffusers.UNet2DConditionModel), ("vae", diffusers.AutoencoderKL)):
        config = kind.load_config(model / name) | (SMALL[name] if size == "small" else {})
        with torch.device("meta"):
            module = kind.from_config(config)
        _save(module, model / name, "diffusion_pytorch_model.safetensors")
        if name == "unet":
            unet = module
    changes = SMALL["text_encoder"] if size == "small" else {}
    config = transformers.CLIPTextConfig.from_json_file(model / "text_encoder" / "config.json").to_dict()
    with torch.device("meta"):
        encoder = transformers.CLIPTextModel(transformers.CLIPTextConfig.from_dict(config | changes))
        net = diffusers.ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    _save(encoder, model / "text_encoder", "model.safetensors")
    _save(net, folder / "controlnet", "diffusion_pytorch_model.safetensors")
    for name in ("a", "b"):
        save_file(_lora(unet), folder / f"{name}.safetensors", metadata={"format": "pt"})


def _save(module: Any, folder: Path, file: str) -> None:
    if isinstance(module, diffusers.ModelMixin):
        module.save_config(folder)
    else:
        module.config.save_pretrained(folder)
    tensors = {name: _noise(name, tensor.shape) for name, tensor in module.state_dict().items()}
    save_file(tensors, folder / file, metadata={"format": "pt"})


def _noise(name: str, shape: torch.Size) -> torch.Tensor:
    """Weights that keep the size of what goes through them, so that everything stays finite."""
    if len(shape) < 2:
        return torch.full(shape, float(name.endswith("weight")))  # of a norm; a bias is 0
    return torch.empty(shape).normal_(std=shape[1:].numel() ** -0.5)


def _lora(unet: torch.nn.Module) -> dict[str, torch.Tensor]:
    """For every attention layer, in the keys of diffusers."""
    tensors = {}
    for name, layer in unet.named_modules():
        if isinstance(layer, torch.nn.Linear) and (".attn1." in name or ".attn2." in name):
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn(RANK, layer.in_features) * layer.in_features**-0.5
            tensors[f"unet.{name}.lora_B.weight"] = torch.randn(layer.out_features, RANK) * 0.05
    return tensors
