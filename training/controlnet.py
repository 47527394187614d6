"""Stage 4: a ControlNet that follows outlines, on the finished base: which stays as it is.

It learns from things in any place and size, stretched and tilted; half of the outlines show the edges inside, too.

`--lora` trains a ControlLoRA instead: the base's own weights, low-rank changes to them, and new layers for the outline.
"""

import random

import torch
from diffusers import ControlNetModel
from diffusers.models.attention_processor import AttnProcessor

from .adapters import adapter_config
from .base import load_autoencoder, load_finished, new_scheduler, pipeline_of
from .common import Tensors, fit, parser, pick_device, tidy_config
from .denoising import Example, Pool, velocity_loss
from .pictures import as_drawn, near_the_middle, outline, paint, place
from .sheets import contact_sheet, draw, with_controlnet
from .things import COLOURS, Thing, caption, load_things

SHOWN = 12
RANK = 16
NAME = "emoji-outline"


def example(things: list[Thing], rng: random.Random) -> Example:
    """A thing, what a person might type for it, and a line drawing of it."""
    thing, colour = rng.choice(things), rng.choice(list(COLOURS))
    layer = place(thing, as_drawn(rng) if rng.random() < 0.8 else near_the_middle(rng))
    lines = outline(layer, width=rng.choice((3, 5)), inner=rng.random() < 0.5)
    return Example(paint(layer, colour, rng), caption(thing, colour, rng), lines)


def make_control_lora(controlnet: ControlNetModel) -> None:
    """Of a ControlNet made from the base, let only an adapter learn, and the layers that the base does not have."""
    new_layers = ["controlnet_cond_embedding", "controlnet_mid_block"]
    new_layers += [f"controlnet_down_blocks.{index}" for index in range(len(controlnet.controlnet_down_blocks))]
    controlnet.requires_grad_(False)
    controlnet.add_adapter(adapter_config(RANK, trained_whole=new_layers), NAME)


def main() -> None:
    arguments = parser(__doc__, steps=1500, batch=32, rate=4e-4)
    arguments.add_argument("--lora", action="store_true", help="train a ControlLoRA")
    options = arguments.parse_args()
    torch.manual_seed(options.seed)
    device, things, scheduler = pick_device(), load_things(), new_scheduler()
    runs = options.work / ("control-lora" if options.lora else "controlnet")
    vae, model = load_autoencoder(options.out).to(device), load_finished(options.out).to(device)
    model.requires_grad_(False)
    controlnet = ControlNetModel.from_unet(model.unet).to(device)
    controlnet.set_attn_processor(AttnProcessor())
    if options.lora:
        make_control_lora(controlnet)
    pool = Pool(vae, lambda rng: example(things, rng), options.seed)

    def losses(step: int) -> Tensors:
        batch = pool.batch(step, options.batch)
        states = model.encode(batch.captions)

        def predict(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            down, middle = controlnet(noisy, timesteps, states, batch.outlines, return_dict=False)
            predicted: torch.Tensor = model.unet(
                noisy,
                timesteps,
                states,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            ).sample
            return predicted

        return {"loss": velocity_loss(scheduler, batch.latents, predict)}

    shown = [example(things, random.Random(seed)) for seed in range(SHOWN)]

    def show(averaged: ControlNetModel, step: int) -> None:
        pipe = with_controlnet(pipeline_of(model, vae), averaged)
        outlines = [one.outline for one in shown if one.outline]
        pictures = draw(pipe, [one.caption for one in shown], list(range(len(shown))), outlines)
        contact_sheet([*outlines, *pictures], columns=len(shown)).save(runs / f"sheet-{step:06d}.png")

    finished = fit(controlnet, losses, runs, options, warmup=100, decay=0.998, show=show)
    folder = options.out.parent
    if options.lora:
        finished.half().save_lora_adapter(
            folder / "control-loras", adapter_name=NAME, weight_name=f"{NAME}.safetensors", safe_serialization=True
        )
    else:
        finished.half().save_pretrained(folder / "controlnets" / NAME)
        tidy_config(folder / "controlnets" / NAME)
    print(f"-> {folder}")


if __name__ == "__main__":
    main()
