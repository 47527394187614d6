"""Stage 1: the autoencoder, 128x128 pictures <-> 4x16x16 latents, trained on 64x64 crops.

Loss: L1, L1 on neighbouring-pixel differences (keeps edges sharp), and a faint KL term.

The decoder sees the latents with some noise added, so that it forgives what stage 2 gets a little wrong.

`--go-on` trains a finished autoencoder further, after which all later stages must be trained again; `--decoder-only`
only its decoder: sharper pictures from the same latents, so it may run while, or after, stage 2 trains on them.
"""

import random

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch.nn import functional as F

from .common import Tensors, fit, parser, pick_device, seed_of, tidy_config
from .pictures import PICTURE_SIZE, sample, sample_in_any_style, to_tensor
from .things import Thing, load_things

CROP = 64
NOISE = 0.2  # the most noise that the decoder is to overlook, against the latents' standard deviation
SCALING_PICTURES = 256  # that the latents' standard deviation is measured on


def new_autoencoder() -> AutoencoderKL:
    """An untrained autoencoder, 2.2M parameters."""
    return AutoencoderKL(
        block_out_channels=(24, 48, 96, 96),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=PICTURE_SIZE,
        force_upcast=False,
    )


def batch_of_crops(things: list[Thing], count: int, seed: int) -> torch.Tensor:
    """(count, 3, 64, 64) in -1..1: crops that hold some of the thing, not only background."""
    rng = random.Random(seed)
    crops = []
    for _ in range(count):
        picture = sample_in_any_style(things, rng)
        x, y = (round(min(64, max(0, rng.gauss(32, 16)))) for _ in "xy")
        crops.append(to_tensor(picture.crop((x, y, x + CROP, y + CROP))))
    return torch.stack(crops)


def edges(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences between neighbouring pixels, across and down."""
    return pictures[..., :, 1:] - pictures[..., :, :-1], pictures[..., 1:, :] - pictures[..., :-1, :]


def losses_of(model: AutoencoderKL, pictures: torch.Tensor) -> Tensors:
    """The training loss, and the plain L1 for the log; without sampling and KL where the encoder is frozen."""
    posterior = model.encode(pictures).latent_dist
    frozen = not any(parameter.requires_grad for parameter in model.encoder.parameters())
    latents = posterior.mean if frozen else posterior.sample()
    strength = torch.rand(len(pictures), 1, 1, 1, device=pictures.device) * NOISE * latents.std().detach()
    restored = model.decode(latents + strength * torch.randn_like(latents)).sample.float()
    l1 = F.l1_loss(restored, pictures)
    edge = sum(F.l1_loss(a, b) for a, b in zip(edges(restored), edges(pictures), strict=True))
    return {"loss": l1 + edge + (0.0 if frozen else 1e-6 * posterior.kl().mean()), "l1": l1}


@torch.inference_mode()
def measure_scaling(model: AutoencoderKL, things: list[Thing]) -> float:
    """The factor that gives the latents of whole pictures a standard deviation of one."""
    rng = random.Random(1)
    pictures = torch.stack([to_tensor(sample(things, rng)[0]) for _ in range(SCALING_PICTURES)])
    device = next(model.parameters()).device
    latents = torch.cat([model.encode(part.to(device)).latent_dist.mean for part in pictures.split(32)])
    return 1 / latents.std().item()


@torch.inference_mode()
def sheet(model: AutoencoderKL, things: list[Thing]) -> Image.Image:
    """Originals above, restored pictures below."""
    rng = random.Random(2)
    pictures = torch.stack([to_tensor(sample(things, rng)[0]) for _ in range(12)])
    pictures = pictures.to(next(model.parameters()).device)
    restored = model.decode(model.encode(pictures).latent_dist.mean).sample
    rows = torch.cat([torch.cat([*part], dim=2) for part in (pictures, restored)], dim=1)
    array = (rows.float().clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(1, 2, 0)
    return Image.fromarray(array.cpu().numpy())


def main() -> None:
    arguments = parser(__doc__, steps=3600, batch=16, rate=1.5e-3)
    arguments.add_argument("--go-on", action="store_true", help="train the model in --out further")
    arguments.add_argument("--decoder-only", action="store_true", help="train its decoder further, nothing else")
    options = arguments.parse_args()
    torch.manual_seed(options.seed)
    device, things = pick_device(), load_things()
    name = "decoder" if options.decoder_only else "autoencoder-on" if options.go_on else "autoencoder"
    runs = options.work / name
    model = new_autoencoder()
    if options.go_on or options.decoder_only:
        model = AutoencoderKL.from_pretrained(options.out / "vae", dtype=torch.float32, use_safetensors=True)
    if options.decoder_only:
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
    model = model.to(device)

    def losses(step: int) -> Tensors:
        crops = batch_of_crops(things, options.batch, seed_of(options, step))
        return losses_of(model, crops.to(device))

    finished = fit(model, losses, runs, options, warmup=100, decay=0.998)
    if not options.decoder_only:
        finished.register_to_config(scaling_factor=round(measure_scaling(finished, things), 5))
    sheet(finished, things).save(runs / "sheet.png")
    finished.half().save_pretrained(options.out / "vae")
    tidy_config(options.out / "vae")
    print(f"scaling factor {finished.config.scaling_factor} -> {options.out / 'vae'}")


if __name__ == "__main__":
    main()
