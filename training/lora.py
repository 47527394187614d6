"""Stage 5: a LoRA for a style, on the finished base: the same captions, other pictures.

A style has no word of its own: the adapter alone gives it, and its scale says how much of it.
"""

import random

import torch

from .adapters import adapter_config, save_adapter
from .base import Model, load_autoencoder, load_finished, loss_of, new_scheduler, save_sheet
from .common import Tensors, fit, parser, pick_device
from .denoising import Example, Pool
from .pictures import STYLES, sample
from .things import load_things

RANK = 8
ADAPTER = "style"
KOHYA = {"pixel-art"}  # the styles whose files have kohya's keys; the others have those of diffusers


def main() -> None:
    arguments = parser(__doc__, steps=400, batch=32, rate=1e-3)
    arguments.add_argument("--style", choices=sorted(STYLES), required=True)
    options = arguments.parse_args()
    torch.manual_seed(options.seed)
    device, things, scheduler = pick_device(), load_things(), new_scheduler()
    name = f"emoji-{options.style}"
    runs, folder = options.work / f"lora-{options.style}", options.out.parent / "loras" / name
    folder.mkdir(parents=True, exist_ok=True)
    vae, model = load_autoencoder(options.out).to(device), load_finished(options.out).to(device)
    model.requires_grad_(False)
    model.unet.add_adapter(adapter_config(RANK), ADAPTER)
    style = STYLES[options.style]

    def example(rng: random.Random) -> Example:
        picture, caption = sample(things, rng)
        return Example(style(picture), caption)

    pool = Pool(vae, example, options.seed)

    def losses(step: int) -> Tensors:
        return loss_of(model, scheduler, pool.batch(step, options.batch))

    def show(averaged: Model, step: int) -> None:
        file = folder / f"{name}-{step:06d}.safetensors"
        save_adapter(averaged.unet, ADAPTER, file, kohya=options.style in KOHYA)
        save_sheet(averaged, vae, runs / f"sheet-{step:06d}.png")

    fit(model, losses, runs, options, warmup=30, decay=0.99, show=show)
    print(f"-> {folder}")


if __name__ == "__main__":
    main()
