"""Drawing with what was trained: batches of pictures, and sheets of them for people to look at."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from PIL import Image
from tqdm import tqdm

STEPS = 20
GUIDANCE_SCALE = 4.0
BATCH = 20


def draw(
    pipe: StableDiffusionPipeline, prompts: Sequence[str], seeds: Sequence[int], outlines: Sequence[Image.Image] = ()
) -> list[Image.Image]:
    """One 128x128 picture a prompt, each from its own seed; with an outline each where the pipeline has a ControlNet.

    A seed's noise is made on the CPU, so that a picture depends on what else is drawn, and where, only by rounding.
    """
    pipe.set_progress_bar_config(disable=True)
    pictures: list[Image.Image] = []
    for begin in tqdm(range(0, len(prompts), BATCH), desc="drawing", unit="batch", mininterval=5, leave=False):
        part = slice(begin, begin + BATCH)
        extra: dict[str, Any] = {"image": list(outlines[part])} if outlines else {}
        with torch.inference_mode():
            pictures += pipe(
                list(prompts[part]),
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE_SCALE,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[part]],
                **extra,
            ).images
    return pictures


def with_controlnet(pipe: StableDiffusionPipeline, controlnet: ControlNetModel) -> StableDiffusionControlNetPipeline:
    """The same parts, and a ControlNet."""
    return StableDiffusionControlNetPipeline(**pipe.components, controlnet=controlnet, requires_safety_checker=False)


def contact_sheet(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size side by side, row by row."""
    width, height = pictures[0].size
    paper = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), "white")
    for index, picture in enumerate(pictures):
        paper.paste(picture, (index % columns * width, index // columns * height))
    return paper
