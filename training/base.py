"""Stage 2: text encoder and UNet, trained together on latents from stage 1 (v-prediction).

A pool of encoded pictures is made once and refreshed a little with every step, so that encoding costs
next to nothing. One caption in ten is emptied: that trains the unconditional half of guidance.
"""

import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

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

POOL = 4096
EMPTY_CAPTION = 0.1
SHEET_PROMPTS = (
    "red apple on a blue background", "tiger face on a purple background", "car on a yellow background",
    "sunflower on a white background", "robot on a green background", "hamburger on a pink background",
    "rocket on a black background", "a blue background", "penguin on an orange background",
    "crown on a gray background", "red heart", "ghost on a red background",
)  # fmt: skip


def new_unet() -> UNet2DConditionModel:
    """An untrained UNet, 8.6M parameters; like Stable Diffusion 1.x, with three levels instead of four."""
    return UNet2DConditionModel(
        sample_size=data.PICTURE_SIZE // 8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(64, 128, 160),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=16,
        cross_attention_dim=128,
        attention_head_dim=4,
    )


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained CLIP text encoder, 0.7M parameters."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's betas with a larger end, so that the last step is noise indeed.

    With the usual 0.012 a twelfth of the picture still shows at the last step; in 16x16 latents that is
    enough to read the background's colour from, and pure noise at inference would decide the colour.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


class Pool:
    """Encoded pictures and their captions."""

    def __init__(self, vae: AutoencoderKL, things: list[data.Thing], device: torch.device) -> None:
        self._vae, self._things, self._device = vae, things, device
        self._latents = torch.zeros(POOL, 4, 16, 16)
        self._captions = [""] * POOL
        for begin in tqdm(range(0, POOL, 64), desc="encoding the pool", mininterval=5):
            self._fill(range(begin, begin + 64), seed=begin)

    @torch.inference_mode()
    def _fill(self, rows: range, seed: int) -> None:
        rng = random.Random(seed)
        pairs = [data.sample(self._things, rng) for _ in rows]
        pictures = torch.stack([data.to_tensor(picture) for picture, _ in pairs]).to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16):
            mean = self._vae.encode(pictures).latent_dist.mean * self._vae.config.scaling_factor
        self._latents[rows.start : rows.stop] = mean.float().cpu()
        self._captions[rows.start : rows.stop] = [text for _, text in pairs]

    def batch(self, step: int, count: int) -> tuple[torch.Tensor, list[str]]:
        """(count, 4, 16, 16) latents and captions; every fourth call replaces 8 of the pool's rows."""
        rng = random.Random(-step - 1)
        if step % 4 == 0:
            begin = rng.randrange(POOL // 8) * 8
            self._fill(range(begin, begin + 8), seed=POOL + step)
        rows = rng.sample(range(POOL), count)
        captions = ["" if rng.random() < EMPTY_CAPTION else self._captions[row] for row in rows]
        return self._latents[rows].to(self._device), captions


class Model(nn.Module):
    """The two parts that this stage trains, as one module."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.text_encoder = new_text_encoder(tokenizer)
        self.unet = new_unet()

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, captions: list[str]) -> torch.Tensor:
        ids = self.tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        states = self.text_encoder(ids.input_ids.to(noisy.device))[0]
        predicted: torch.Tensor = self.unet(noisy, timesteps, states).sample
        return predicted


def pipeline_of(model: Model, vae: AutoencoderKL) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=model.unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@torch.inference_mode()
def sheet(pipe: StableDiffusionPipeline, prompts: tuple[str, ...]) -> Image.Image:
    """One picture a prompt, seed 0, 20 steps, six in a row."""
    pipe.set_progress_bar_config(disable=True)
    pictures = [
        pipe(text, num_inference_steps=20, guidance_scale=4.0, generator=torch.Generator().manual_seed(0)).images[0]
        for text in prompts
    ]
    paper = Image.new("RGB", (6 * 128, (len(pictures) + 5) // 6 * 128))
    for index, picture in enumerate(pictures):
        paper.paste(picture, (index % 6 * 128, index // 6 * 128))
    return paper


def save_sheet(model: Model, average: MovingAverage, vae: AutoencoderKL, path: Path) -> None:
    """Paint the sheet with the averaged weights, and put the trained ones back."""
    trained = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(average.values)
    sheet(pipeline_of(model.eval(), vae), SHEET_PROMPTS).save(path)
    model.load_state_dict(trained)
    model.train()


def name_as_others_do(file: Path) -> None:
    """Give a text encoder's tensors the prefix that transformers 5 leaves out and all other tools expect."""
    tensors = load_file(file)
    save_file({f"text_model.{name}": tensor for name, tensor in tensors.items()}, file, metadata={"format": "pt"})


def main() -> None:
    arguments = parser(__doc__, steps=3450, batch=48)
    arguments.add_argument("--rate", type=float, default=7e-4, help="highest learning rate")
    options = arguments.parse_args()
    torch.manual_seed(options.seed)
    device = pick_device()
    runs = options.work / "base"
    vae = AutoencoderKL.from_pretrained(options.out / "vae", torch_dtype=torch.float32, use_safetensors=True)
    vae = vae.to(device).eval()
    tokenizer = CLIPTokenizer.from_pretrained(options.out / "tokenizer")
    model = Model(tokenizer).to(device)
    model.unet.to(memory_format=torch.channels_last)
    average = MovingAverage(model, 0.999)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, betas=(0.9, 0.99), weight_decay=0.01)
    start = load_checkpoint(runs / "checkpoint.safetensors", model, average, optimizer)
    scheduler = new_scheduler()
    pool = Pool(vae, data.load_things(), device)
    for step, log in track(start, options.steps, runs / "log.jsonl"):
        torch.manual_seed(options.seed * 1_000_003 + step)
        latents, captions = pool.batch(step, options.batch)
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (options.batch,), device=device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        target = scheduler.get_velocity(latents, noise, timesteps)
        for group in optimizer.param_groups:
            group["lr"] = options.rate * cosine_rate(step, options.steps, 200)
        with torch.autocast(device.type, torch.bfloat16):
            predicted = model(noisy, timesteps, captions)
        loss = F.mse_loss(predicted.float(), target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model, step)
        log.add(step, loss=loss.item())
        if (step + 1) % options.every == 0 or step + 1 == options.steps:
            save_checkpoint(runs / "checkpoint.safetensors", step + 1, model, average, optimizer)
            save_sheet(model, average, vae, runs / f"sheet-{step + 1:06d}.png")
    model.load_state_dict(average.values)
    pipeline_of(model.eval(), vae).to(torch.float16).save_pretrained(options.out)
    forget_origin(options.out / "vae")
    name_as_others_do(options.out / "text_encoder" / "model.safetensors")
    print(f"-> {options.out}")


if __name__ == "__main__":
    main()
