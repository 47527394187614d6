"""Stage 3: a tiny decoder for previews, latents 4x16x16 -> pictures of 64x64, for a fraction of the work.

An AutoencoderTiny of diffusers, the class of TAESD (Ollin Boer Bohan); only its decoder is trained.
"""

import random

import torch
from diffusers import AutoencoderTiny
from torch.nn import functional as F

from .base import load_autoencoder
from .common import Tensors, fit, parser, pick_device, seed_of, tidy_config
from .pictures import sample_in_any_style, to_tensor
from .things import load_things

NOISE = 0.3  # the most noise on the latents: a preview shows a prediction, which is never quite right


def new_previewer() -> AutoencoderTiny:
    """An untrained decoder of 0.1M parameters."""
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        decoder_block_out_channels=(32, 32, 32),
        num_decoder_blocks=(2, 1, 1),
        latent_channels=4,
    )


def main() -> None:
    options = parser(__doc__, steps=2500, batch=16, rate=2e-3).parse_args()
    torch.manual_seed(options.seed)
    device, things = pick_device(), load_things()
    runs = options.work / "previewer"
    vae, model = load_autoencoder(options.out).to(device), new_previewer().to(device)
    model.encoder.requires_grad_(False)

    def losses(step: int) -> Tensors:
        rng = random.Random(seed_of(options, step))
        pictures = [sample_in_any_style(things, rng) for _ in range(options.batch)]
        wanted = torch.stack([to_tensor(one) for one in pictures]).to(device)
        with torch.no_grad():
            latents = vae.encode(wanted).latent_dist.mean * vae.config.scaling_factor
        latents = latents + NOISE * torch.rand(len(latents), 1, 1, 1, device=device) * torch.randn_like(latents)
        small = F.avg_pool2d(wanted, 2)
        return {"l1": F.l1_loss(model.decode(latents).sample.float(), small)}

    finished = fit(model, losses, runs, options, warmup=100, decay=0.99)
    finished.half().save_pretrained(options.out / "previewer")
    tidy_config(options.out / "previewer")
    print(f"-> {options.out / 'previewer'}")


if __name__ == "__main__":
    main()
