"""Stage 1: the autoencoder, 128x128 pictures <-> 4x16x16 latents, trained on 64x64 crops.

Loss: L1, L1 on neighbouring-pixel differences (keeps edges sharp), and a faint KL term.

`--decoder-only` goes on with the decoder of a finished autoencoder: sharper pictures from the same latents,
so it may run while, or after, stage 2 trains on them.
"""

import random

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch.nn import functional as F

from . import data
from .common import (
    MovingAverage,
    cosine_rate,
    forget_origin,
    load_checkpoint,
    parser,
    pick_device,
    save_checkpoint,
    track,
)

CROP = 64
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
        sample_size=data.PICTURE_SIZE,
        force_upcast=False,
    )


def batch_of_crops(things: list[data.Thing], count: int, seed: int) -> torch.Tensor:
    """(count, 3, 64, 64) in -1..1: crops that hold some of the thing, not only background."""
    rng = random.Random(seed)
    crops = []
    for _ in range(count):
        picture, _ = data.sample(things, rng)
        x, y = (round(min(64, max(0, rng.gauss(32, 16)))) for _ in "xy")
        crops.append(data.to_tensor(picture.crop((x, y, x + CROP, y + CROP))))
    return torch.stack(crops)


def edges(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences between neighbouring pixels, across and down."""
    return pictures[..., :, 1:] - pictures[..., :, :-1], pictures[..., 1:, :] - pictures[..., :-1, :]


def loss_of(model: AutoencoderKL, pictures: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The training loss, and the plain L1 for the log; without noise and KL where the encoder is frozen."""
    posterior = model.encode(pictures).latent_dist
    frozen = not any(parameter.requires_grad for parameter in model.encoder.parameters())
    restored = model.decode(posterior.mean if frozen else posterior.sample()).sample.float()
    l1 = F.l1_loss(restored, pictures)
    edge = sum(F.l1_loss(a, b) for a, b in zip(edges(restored), edges(pictures), strict=True))
    return l1 + edge + (0.0 if frozen else 1e-6 * posterior.kl().mean()), l1.item()


@torch.inference_mode()
def measure_scaling(model: AutoencoderKL, things: list[data.Thing]) -> float:
    """The factor that gives the latents of whole pictures a standard deviation of one."""
    rng = random.Random(1)
    pictures = torch.stack([data.to_tensor(data.sample(things, rng)[0]) for _ in range(SCALING_PICTURES)])
    device = next(model.parameters()).device
    latents = torch.cat([model.encode(part.to(device)).latent_dist.mean for part in pictures.split(32)])
    return 1 / latents.std().item()


@torch.inference_mode()
def sheet(model: AutoencoderKL, things: list[data.Thing]) -> Image.Image:
    """Originals above, restored pictures below."""
    rng = random.Random(2)
    pictures = torch.stack([data.to_tensor(data.sample(things, rng)[0]) for _ in range(12)])
    pictures = pictures.to(next(model.parameters()).device)
    restored = model.decode(model.encode(pictures).latent_dist.mean).sample
    rows = torch.cat([torch.cat([*part], dim=2) for part in (pictures, restored)], dim=1)
    array = (rows.float().clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(1, 2, 0)
    return Image.fromarray(array.cpu().numpy())


def main() -> None:
    arguments = parser(__doc__, steps=3600, batch=16)
    arguments.add_argument("--decoder-only", action="store_true", help="go on with a finished model's decoder")
    options = arguments.parse_args()
    torch.manual_seed(options.seed)
    device, things = pick_device(), data.load_things()
    runs = options.work / ("decoder" if options.decoder_only else "autoencoder")
    if options.decoder_only:
        model = AutoencoderKL.from_pretrained(options.out / "vae", torch_dtype=torch.float32, use_safetensors=True)
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
    else:
        model = new_autoencoder()
    model = model.to(device)
    average = MovingAverage(model, 0.998)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1.5e-3, betas=(0.9, 0.99), weight_decay=0.0)
    checkpoint = runs / "checkpoint.safetensors"
    start = load_checkpoint(checkpoint, model, average, optimizer)
    for step, log in track(start, options.steps, runs / "log.jsonl"):
        torch.manual_seed(options.seed * 1_000_003 + step)
        pictures = batch_of_crops(things, options.batch, options.seed * 1_000_003 + step).to(device)
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * cosine_rate(step, options.steps, 100)
        with torch.autocast(device.type, torch.bfloat16):
            loss, l1 = loss_of(model, pictures)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        average.update(model, step)
        log.add(step, loss=loss.item(), l1=l1)
        if (step + 1) % options.every == 0 or step + 1 == options.steps:
            save_checkpoint(checkpoint, step + 1, model, average, optimizer)
    model.load_state_dict(average.values)
    model.eval()
    if not options.decoder_only:
        model.register_to_config(scaling_factor=round(measure_scaling(model, things), 5))
    sheet(model, things).save(runs / "sheet.png")
    model.half().save_pretrained(options.out / "vae")
    forget_origin(options.out / "vae")
    print(f"scaling factor {model.config.scaling_factor} -> {options.out / 'vae'}")


if __name__ == "__main__":
    main()
