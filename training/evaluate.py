"""Figures about a finished model, from noise that training and its sheets did not use: printed as JSON.

    python -m latentwire.training.evaluate > figures.json

`thing`: the emoji nearest to the picture is the one that the prompt named, or one of the five nearest is.
`colour`: the background is nearest to the prompt's colour, of the ten.
`outline`: overlap of the picture's silhouette with the one whose outline the ControlNet, or the ControlLoRA, got, and
without either. Things that hardly differ from their background have no silhouette to measure, and are passed over.
`pixel_art`, `pencil`: a measure of the style at scales 0, 0.5 and 1 of the LoRA, and whether all is as before when it
is gone.
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
from .finished import load_controlnets, load_pipeline, style_file
from .measures import (
    Pictures,
    Recogniser,
    Shape,
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
from .things import COLOURS, Thing, load_things, plain_prompt

SEED = 20_000  # the first of the pictures' seeds
SCALES = (0.0, 0.5, 1.0)


def things_and_colours(pipe: StableDiffusionPipeline, things: list[Thing], count: int) -> dict[str, Any]:
    """Whether `THING on a COLOUR background` gives the thing and the colour."""
    asked = new_prompts(things, count, seed=1)
    pictures = as_array(draw(pipe, [plain_prompt(*one) for one in asked], range(SEED, SEED + count)))
    recogniser = Recogniser(things)
    first, among_five, missed = 0, 0, []
    for colour in sorted({colour for _, colour in asked}):
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
    pipe: StableDiffusionPipeline, controlnets: dict[str, ControlNetModel], things: list[Thing], count: int
) -> dict[str, Any]:
    """Whether the silhouette is that of the outline: anywhere, any size, stretched and tilted."""
    rng = random.Random(2)
    layers: list[Image.Image] = []
    wanted: list[Shape] = []
    prompts: list[str] = []
    passed_over = 0
    while len(layers) < count:
        thing, colour = rng.choice(things), rng.choice(list(COLOURS))
        layer = place(thing, as_drawn(rng))
        painted = as_array([paint(layer, colour, rng)])[0]
        shape = np.asarray(silhouette(layer)) > 0
        if overlap(silhouette_of(painted), shape) > 0.95:
            layers.append(layer)
            wanted.append(shape)
            prompts.append(plain_prompt(thing, colour))
        else:
            passed_over += 1
    seeds = range(SEED, SEED + count)
    outlines = [outline(layer) for layer in layers]
    found = {
        f"with_{name}": as_array(draw(with_controlnet(pipe, controlnet), prompts, seeds, outlines))
        for name, controlnet in controlnets.items()
    }
    found["without"] = as_array(draw(pipe, prompts, seeds))
    means = {
        name: statistics.mean(overlap(silhouette_of(one), shape) for one, shape in zip(pictures, wanted, strict=True))
        for name, pictures in found.items()
    }
    return {"pairs": count, "passed_over": passed_over, **means}


def style_moves(
    pipe: StableDiffusionPipeline, file: Path, measure: Callable[[Pictures], float], things: list[Thing], count: int
) -> dict[str, Any]:
    """How the measure moves with the LoRA's scale, and whether all is as before when it is gone."""
    prompts = [plain_prompt(*one) for one in new_prompts(things, count, seed=3)]
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
    """Seconds for one picture, the median of five after one that is not counted."""

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
    options.add_argument("--few", type=int, default=40, help="prompts and seeds for outlines, and for a style")
    chosen = options.parse_args()
    device, things = pick_device(), load_things()
    beside: Path = chosen.model.parent
    pipe = load_pipeline(chosen.model).to(device)
    figures = things_and_colours(pipe, things, chosen.pairs)
    figures["outline"] = outlines_followed(pipe, load_controlnets(beside, pipe.unet), things, chosen.few)
    for style, measure in {"pixel-art": blockiness, "pencil": saturation}.items():
        moves = style_moves(pipe, style_file(beside, style), measure, things, chosen.few)
        figures[style.replace("-", "_")] = moves
    figures["seconds"] = seconds_of_one(pipe)
    figures["machine"] = {"device": str(device), "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
