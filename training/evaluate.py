"""Figures about a finished model, on prompts and seeds that training did not see: printed as JSON.

    python -m latentwire.training.evaluate > figures.json

`thing`: the emoji nearest to the picture is the one that the prompt named, or one of the five nearest is.
`colour`: the background is nearest to the prompt's colour, of the ten.
`outline`: overlap of the picture's silhouette with the one whose outline the ControlNet got, and without ControlNet.
`pixel_art`, `pencil`: a measure of the style at scales 0, 0.5 and 1 of the LoRA, and without it again.
`seconds`: for one picture of 20 steps in the plain pipeline, the median of five.
"""

import argparse
import json
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline
from PIL import Image

from .common import MODEL_DIR, pick_device
from .controlnet import NAME as CONTROLNET
from .measures import (
    Pictures,
    Recogniser,
    as_array,
    blockiness,
    colour_of,
    new_prompts,
    overlap,
    saturation,
    silhouette_of,
)
from .pictures import as_drawn, outline, paint, place, silhouette
from .sheets import draw, with_controlnet
from .things import COLOURS, Thing, load_things

SEED = 20_000  # the first of the pictures' seeds
SCALES = (0.0, 0.5, 1.0)


def things_and_colours(pipe: StableDiffusionPipeline, things: list[Thing], count: int) -> dict[str, Any]:
    """Whether `THING on a COLOUR background` gives the thing and the colour."""
    asked = new_prompts(things, count, seed=1)
    pictures = as_array(
        draw(pipe, [f"{thing.name} on a {colour} background" for thing, colour in asked], range(SEED, SEED + count))
    )
    recogniser = Recogniser(things)
    first, among_five, missed = 0, 0, []
    for colour in COLOURS:
        rows = [index for index, (_, wanted) in enumerate(asked) if wanted == colour]
        for row, nearest in zip(rows, recogniser.nearest(pictures[rows], colour), strict=True):
            name = asked[row][0].name
            first += nearest[0] == name
            among_five += name in nearest[:5]
            if nearest[0] != name:
                missed.append(f"{name} -> {nearest[0]}")
    right = sum(colour_of(picture) == colour for picture, (_, colour) in zip(pictures, asked, strict=True))
    return {
        "thing": {"pairs": count, "top_1": first / count, "top_5": among_five / count, "missed": sorted(missed)},
        "colour": {"pairs": count, "right": right / count},
    }


def outlines_followed(
    pipe: StableDiffusionPipeline, controlnet: ControlNetModel, things: list[Thing], count: int
) -> dict[str, Any]:
    """Whether the silhouette is that of the outline: anywhere, any size, stretched and tilted.

    A thing that hardly differs from its background has no silhouette to be measured, and is passed over.
    """
    rng = random.Random(2)
    layers: list[Image.Image] = []
    prompts: list[str] = []
    while len(layers) < count:
        thing, colour = rng.choice(things), rng.choice(list(COLOURS))
        layer = place(thing, as_drawn(rng))
        painted = as_array([paint(layer, colour, rng)])[0]
        if overlap(silhouette_of(painted), np.asarray(silhouette(layer)) > 0) > 0.95:
            layers.append(layer)
            prompts.append(f"{thing.name} on a {colour} background")
    wanted = [np.asarray(silhouette(layer)) > 0 for layer in layers]
    seeds = range(SEED, SEED + count)
    steered = draw(with_controlnet(pipe, controlnet), prompts, seeds, [outline(layer) for layer in layers])
    found = {"with_controlnet": as_array(steered), "without": as_array(draw(pipe, prompts, seeds))}
    means = {
        name: statistics.mean(overlap(silhouette_of(one), shape) for one, shape in zip(pictures, wanted, strict=True))
        for name, pictures in found.items()
    }
    return {"pairs": count, **means}


def style_moves(
    pipe: StableDiffusionPipeline, file: Path, measure: Callable[[Pictures], float], things: list[Thing], count: int
) -> dict[str, Any]:
    """How the measure moves with the LoRA's scale, and whether all is as before when it is gone."""
    prompts = [f"{thing.name} on a {colour} background" for thing, colour in new_prompts(things, count, seed=3)]
    seeds = range(SEED, SEED + count)
    before = as_array(draw(pipe, prompts, seeds))
    pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name="style")
    figures = {}
    for scale in SCALES:
        pipe.set_adapters("style", scale)
        figures[str(scale)] = statistics.mean(map(measure, as_array(draw(pipe, prompts, seeds))))
    pipe.unload_lora_weights()
    after = as_array(draw(pipe, prompts, seeds))
    return {"measure": measure.__name__, "scales": figures, "same_when_gone": bool((before == after).all())}


def seconds_of_one(pipe: StableDiffusionPipeline) -> float:
    def once() -> float:
        begin = monotonic()
        draw(pipe, ["red apple on a blue background"], [0])
        return monotonic() - begin

    once()
    return statistics.median(once() for _ in range(5))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, default=MODEL_DIR)
    options.add_argument("--pairs", type=int, default=300, help="prompts and seeds for things and colours")
    options.add_argument("--few", type=int, default=60, help="prompts and seeds for outlines, and for a style")
    chosen = options.parse_args()
    device, things = pick_device(), load_things()
    beside: Path = chosen.model.parent
    pipe = StableDiffusionPipeline.from_pretrained(
        chosen.model, torch_dtype=torch.float32, use_safetensors=True, safety_checker=None
    ).to(device)
    controlnet = ControlNetModel.from_pretrained(
        beside / "controlnets" / CONTROLNET, torch_dtype=torch.float32, use_safetensors=True
    ).to(device)
    figures = things_and_colours(pipe, things, chosen.pairs)
    figures["outline"] = outlines_followed(pipe, controlnet, things, chosen.few)
    for style, measure in {"pixel-art": blockiness, "pencil": saturation}.items():
        file = max((beside / "loras" / f"emoji-{style}").glob("*.safetensors"))
        figures[style.replace("-", "_")] = style_moves(pipe, file, measure, things, chosen.few)
    figures["seconds"] = seconds_of_one(pipe)
    figures["machine"] = {"device": str(device), "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
