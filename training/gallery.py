"""Sheets of pictures for the README, from the finished model: prompts in one shuffled order, seeds 0 to n in order.

    python -m latentwire.training.gallery

`emoji.png`: 24 pictures. `outlines.png`: eight outlines, and below each what the ControlNet and the ControlLoRA make
of it. `styles.png`: eight prompts without a LoRA, and with each of the two at scale 1.
"""

import argparse
import random
from pathlib import Path

from .common import MODEL_DIR, pick_device
from .finished import load_controlnets, load_pipeline, style_file
from .measures import new_prompts
from .pictures import STYLES, as_drawn, outline, place
from .sheets import contact_sheet, draw, with_controlnet
from .things import load_things, plain_prompt

IMAGES = MODEL_DIR.parents[1] / "docs" / "images"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, default=MODEL_DIR)
    options.add_argument("--out", type=Path, default=IMAGES)
    chosen = options.parse_args()
    device, beside = pick_device(), chosen.model.parent
    pipe = load_pipeline(chosen.model).to(device)
    asked = new_prompts(load_things(), 24, seed=0)
    prompts = [plain_prompt(*one) for one in asked]
    contact_sheet(draw(pipe, prompts, range(24)), columns=8).save(chosen.out / "emoji.png")
    print("\n".join(prompts))

    rng = random.Random(0)
    outlines = [outline(place(thing, as_drawn(rng))) for thing, _ in asked[:8]]
    controlnets = load_controlnets(beside, pipe.unet).values()
    rows = [draw(with_controlnet(pipe, one), prompts[:8], range(8), outlines) for one in controlnets]
    contact_sheet([*outlines, *rows[0], *rows[1]], columns=8).save(chosen.out / "outlines.png")

    rows = [draw(pipe, prompts[:8], range(8))]
    for style in STYLES:
        file = style_file(beside, style)
        pipe.load_lora_weights(file.parent, weight_name=file.name)
        rows.append(draw(pipe, prompts[:8], range(8)))
        pipe.unload_lora_weights()
    contact_sheet([picture for row in rows for picture in row], columns=8).save(chosen.out / "styles.png")


if __name__ == "__main__":
    main()
