"""LoRA adapters for this model's UNet and the ControlNet made from it: which layers they change, how they are kept."""

from pathlib import Path

from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

# Convolutions too: the level that decides on textures, 16x16, has no attention.
LAYERS = (
    "conv1", "conv2", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "time_emb_proj", "to_k", "to_out.0", "to_q",
    "to_v",
)  # fmt: skip


def adapter_config(rank: int, trained_whole: list[str] | None = None) -> LoraConfig:
    """LoRA of a rank on all of LAYERS, with alpha = rank (scale 1); other modules may be trained whole beside it."""
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LAYERS), modules_to_save=trained_whole)


def save_adapter(unet: nn.Module, adapter: str, file: Path, *, kohya: bool) -> None:
    """Write a UNet's adapter in half precision.

    Args:
        kohya: in the keys of kohya's scripts (`lora_unet_..._conv1.lora_down.weight`, an alpha each), else in those
            of diffusers and peft (`unet....conv1.lora_A.weight`).
    """
    tensors = {
        f"unet.{name}": value.half().contiguous()
        for name, value in get_peft_model_state_dict(unet, adapter_name=adapter).items()
    }
    save_file(convert_state_dict_to_kohya(tensors) if kohya else tensors, file, metadata={"format": "pt"})
