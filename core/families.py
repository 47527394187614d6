"""Families of models: which diffusers pipeline runs each task, and what their latents are like.

A family is named as the pipeline class in a model's own index. A new one is a row here; what its denoiser takes as
a batch is a row in batching.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from .previews import STABLE_DIFFUSION_1, STABLE_DIFFUSION_XL, LatentFactors


@dataclass(frozen=True)
class Family:
    """One row.

    Attributes:
        denoiser: The component that predicts noise.
        pipelines: Task (`text2img`, `img2img`, `inpaint`) -> pipeline class of diffusers.
        controlnet_pipelines: The same with ControlNets; empty where the family has none here.
        scaling_factor: Of the family's published autoencoder, which `factors` were made for.
        factors: Latents to RGB, for previews; None: fitted for each autoencoder.
        upcasts: Its autoencoder overflows in half precision, so it is kept in float32.
        flow: It was trained by flow matching, and needs a scheduler made for that.
        scheduler: Used where the host's default scheduler does not suit the family.
    """

    denoiser: str
    pipelines: Mapping[str, str]
    controlnet_pipelines: Mapping[str, str] = field(default_factory=dict)
    scaling_factor: float | None = None
    factors: LatentFactors | None = None
    upcasts: bool = False
    flow: bool = False
    scheduler: str = "ddim"


FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": Family(
        denoiser="unet",
        pipelines={
            "text2img": "StableDiffusionPipeline",
            "img2img": "StableDiffusionImg2ImgPipeline",
            "inpaint": "StableDiffusionInpaintPipeline",
        },
        controlnet_pipelines={
            "text2img": "StableDiffusionControlNetPipeline",
            "img2img": "StableDiffusionControlNetImg2ImgPipeline",
            "inpaint": "StableDiffusionControlNetInpaintPipeline",
        },
        scaling_factor=0.18215,
        factors=STABLE_DIFFUSION_1,
    ),
    "StableDiffusionXLPipeline": Family(
        denoiser="unet",
        pipelines={
            "text2img": "StableDiffusionXLPipeline",
            "img2img": "StableDiffusionXLImg2ImgPipeline",
            "inpaint": "StableDiffusionXLInpaintPipeline",
        },
        controlnet_pipelines={
            "text2img": "StableDiffusionXLControlNetPipeline",
            "img2img": "StableDiffusionXLControlNetImg2ImgPipeline",
            "inpaint": "StableDiffusionXLControlNetInpaintPipeline",
        },
        scaling_factor=0.13025,
        factors=STABLE_DIFFUSION_XL,
        upcasts=True,
    ),
    "StableDiffusion3Pipeline": Family(
        denoiser="transformer",
        pipelines={
            "text2img": "StableDiffusion3Pipeline",
            "img2img": "StableDiffusion3Img2ImgPipeline",
            "inpaint": "StableDiffusion3InpaintPipeline",
        },
        flow=True,
        scheduler="flow_euler",
    ),
}


def control_image_argument(task: str) -> str:
    """What diffusers' ControlNet pipelines call the control image."""
    return "image" if task == "text2img" else "control_image"
