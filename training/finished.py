"""The finished model and what belongs to it, loaded as any program that uses diffusers would."""

from pathlib import Path

import torch
from diffusers import ControlNetModel, StableDiffusionPipeline, UNet2DConditionModel

from .controlnet import NAME as CONTROLNET


def load_pipeline(model: Path) -> StableDiffusionPipeline:
    """The model in its folder, in float32, on the CPU."""
    return StableDiffusionPipeline.from_pretrained(
        model, dtype=torch.float32, use_safetensors=True, safety_checker=None
    )


def load_controlnets(models: Path, unet: UNet2DConditionModel) -> dict[str, ControlNetModel]:
    """The ControlNet and the ControlLoRA among the models, by what they are."""
    whole = ControlNetModel.from_pretrained(
        models / "controlnets" / CONTROLNET, dtype=torch.float32, use_safetensors=True
    )
    lora = ControlNetModel.from_unet(unet)
    lora.load_lora_adapter(models / "control-loras", weight_name=f"{CONTROLNET}.safetensors", prefix=None)
    return {"controlnet": whole.to(unet.device).eval(), "control_lora": lora.to(unet.device).eval()}


def style_file(models: Path, style: str) -> Path:
    """The LoRA of a style after its last training step."""
    return max((models / "loras" / f"emoji-{style}").glob("*.safetensors"))
