"""Stage 2: text encoder and UNet, trained together on latents from stage 1 (v-prediction).

`--go-on` trains a finished UNet further, with the text encoder as it is: a step then costs a fifth less.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .common import Tensors, fit, parser, pick_device, tidy_config
from .denoising import Batch, Example, Pool, velocity_loss
from .pictures import PICTURE_SIZE, sample
from .sheets import contact_sheet, draw
from .things import load_things

SHEET_PROMPTS = (
    "red apple on a blue background", "tiger face on a purple background", "car on a yellow background",
    "sunflower on a white background", "robot on a green background", "hamburger on a pink background",
    "rocket on a black background", "a blue background", "penguin on an orange background",
    "crown on a gray background", "red heart", "ghost on a red background",
)  # fmt: skip


def new_unet() -> UNet2DConditionModel:
    """An untrained UNet, 8.6M parameters; like Stable Diffusion 1.x, with three levels instead of four."""
    return UNet2DConditionModel(
        sample_size=PICTURE_SIZE // 8,
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


class Model(nn.Module):
    """The two parts that this stage trains, as one module."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.text_encoder = new_text_encoder(tokenizer)
        self.unet = new_unet()
        self.unet.set_attn_processor(AttnProcessor())  # on these short sequences faster than the fused kernel

    def encode(self, captions: list[str]) -> torch.Tensor:
        """Captions -> `(n, 77, 128)` states for the UNet's cross attention."""
        ids = self.tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        states: torch.Tensor = self.text_encoder(ids.input_ids.to(self.unet.device))[0]
        return states


def load_finished(folder: Path) -> Model:
    """A saved model's tokenizer, text encoder and UNet."""
    model = Model(CLIPTokenizer.from_pretrained(folder / "tokenizer"))
    encoder = load_file(folder / "text_encoder" / "model.safetensors")
    model.text_encoder.load_state_dict({name.removeprefix("text_model."): value for name, value in encoder.items()})
    model.unet.load_state_dict(load_file(folder / "unet" / "diffusion_pytorch_model.safetensors"))
    return model


def load_autoencoder(folder: Path) -> AutoencoderKL:
    """A saved model's autoencoder, to encode and decode with."""
    vae = AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32, use_safetensors=True)
    frozen: AutoencoderKL = vae.eval().requires_grad_(False)
    return frozen


def pipeline_of(model: Model, vae: AutoencoderKL) -> StableDiffusionPipeline:
    """The parts as diffusers' pipeline."""
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


def loss_of(model: Model, scheduler: DDIMScheduler, batch: Batch) -> Tensors:
    """The loss of denoising a batch by its captions."""
    states = model.encode(batch.captions)
    return {"loss": velocity_loss(scheduler, batch.latents, lambda x, t: model.unet(x, t, states).sample)}


def save_sheet(model: Model, vae: AutoencoderKL, file: Path) -> None:
    """One picture for each of SHEET_PROMPTS, seed 0, six in a row."""
    pictures = draw(pipeline_of(model, vae), SHEET_PROMPTS, [0] * len(SHEET_PROMPTS))
    contact_sheet(pictures, columns=6).save(file)


def name_as_others_do(file: Path) -> None:
    """Give a text encoder's tensors the prefix that transformers 5 leaves out and all other tools expect."""
    tensors = load_file(file)
    save_file({f"text_model.{name}": tensor for name, tensor in tensors.items()}, file, metadata={"format": "pt"})


def main() -> None:
    arguments = parser(__doc__, steps=3450, batch=48, rate=7e-4)
    arguments.add_argument("--go-on", action="store_true", help="train the UNet in --out further")
    arguments.add_argument("--compile", action="store_true", help="torch.compile: minutes first, then faster steps")
    options = arguments.parse_args()
    torch.manual_seed(options.seed)
    device, things, scheduler = pick_device(), load_things(), new_scheduler()
    runs = options.work / ("base-on" if options.go_on else "base")
    vae = load_autoencoder(options.out).to(device)
    if options.go_on:
        model = load_finished(options.out)
        model.text_encoder.requires_grad_(False)
    else:
        model = Model(CLIPTokenizer.from_pretrained(options.out / "tokenizer"))
    model = model.to(device)
    pool = Pool(vae, lambda rng: Example(*sample(things, rng)), options.seed)
    if options.compile:
        model.unet.compile()

    def losses(step: int) -> Tensors:
        return loss_of(model, scheduler, pool.batch(step, options.batch))

    def show(averaged: Model, step: int) -> None:
        save_sheet(averaged, vae, runs / f"sheet-{step:06d}.png")

    finished = fit(model, losses, runs, options, warmup=200, decay=0.999, weight_decay=0.01, show=show)
    pipeline_of(finished, vae).to(torch.float16).save_pretrained(options.out)
    tidy_config(options.out / "vae")
    name_as_others_do(options.out / "text_encoder" / "model.safetensors")
    print(f"-> {options.out}")


if __name__ == "__main__":
    main()
