"""Small random models on disk, always the same ones: their pictures mean nothing, all else is as in a real model.

Those of one file are in the layouts that Stable Diffusion was published in; the same model in a diffusers folder
lies beside them.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors.torch import save_file

from latentwire.core.checkpoint import LAYOUTS
from latentwire.core.settings import EMBEDDED_MODEL

TOKENIZER = EMBEDDED_MODEL / "tokenizer"
VOCABULARY = 1073  # of that tokenizer
END = 1072
WIDTHS = {1: 32, 2: 48}  # of the text encoders, by their number
BOTH = sum(WIDTHS.values())
BLOCKS = (16, 32)  # channels of UNets and VAEs
SIZE = 64  # pixels of a side

Tensors = dict[str, torch.Tensor]


def sd1(folder: Path) -> Path:
    """A StableDiffusionPipeline as a diffusers folder."""
    torch.manual_seed(1)
    unet = _unet(cross_attention_dim=WIDTHS[1])
    return _save(diffusers.StableDiffusionPipeline, folder, _scheduler("epsilon"), unet=unet, vae=_vae(), **_text(1))


def sd2(folder: Path) -> Path:
    """The same with what Stable Diffusion 2 does otherwise: linear projections, v-prediction."""
    torch.manual_seed(2)
    unet = _unet(cross_attention_dim=WIDTHS[1], use_linear_projection=True, attention_head_dim=(2, 4))
    scheduler = _scheduler("v_prediction")
    return _save(diffusers.StableDiffusionPipeline, folder, scheduler, unet=unet, vae=_vae(), **_text(1, act="gelu"))


def sdxl(folder: Path) -> Path:
    """A StableDiffusionXLPipeline as a diffusers folder."""
    torch.manual_seed(3)
    unet = _unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=BOTH,
        use_linear_projection=True,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTHS[2] + 6 * 8,
    )
    texts = _text(1) | _text(2, "CLIPTextModelWithProjection", act="gelu")
    vae = _vae(scaling_factor=0.13025, force_upcast=True)
    scheduler = diffusers.EulerDiscreteScheduler.from_config(_scheduler("epsilon").config)
    return _save(diffusers.StableDiffusionXLPipeline, folder, scheduler, unet=unet, vae=vae, **texts)


def sd3(folder: Path, t5: bool = True) -> Path:
    """A StableDiffusion3Pipeline as a diffusers folder, with or without its third text encoder."""
    torch.manual_seed(4)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=SIZE // 8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=BOTH,
        pooled_projection_dim=BOTH,
        pos_embed_max_size=16,
    )
    parts = _text(1, "CLIPTextModelWithProjection") | _text(2, "CLIPTextModelWithProjection", act="gelu")
    tokenizer = _t5_tokenizer()
    encoder = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=len(tokenizer), d_model=BOTH, d_kv=16, d_ff=64, num_layers=2, num_heads=2, dropout_rate=0.0
        )
    )
    parts |= {"text_encoder_3": encoder, "tokenizer_3": tokenizer} if t5 else dict.fromkeys(THIRD)
    vae = _vae(
        latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return _save(diffusers.StableDiffusion3Pipeline, folder, scheduler, transformer=transformer, vae=vae, **parts)


THIRD = ("text_encoder_3", "tokenizer_3")


def sd1_checkpoint(file: Path) -> Path:
    """The model of `sd1` as one file; gives the folder of the same model."""
    return _as_checkpoint("sd1", sd1(file.with_suffix("")), file)


def sd2_checkpoint(file: Path) -> Path:
    """The model of `sd2` as one file; gives the folder of the same model."""
    return _as_checkpoint("sd2", sd2(file.with_suffix("")), file)


def sdxl_checkpoint(file: Path) -> Path:
    """The model of `sdxl` as one file; gives the folder of the same model."""
    return _as_checkpoint("sdxl", sdxl(file.with_suffix("")), file)


def configs_of(folder: Path, target: Path) -> Path:
    """A copy of a diffusers folder without its weights: what `config` may be set to."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
    return target


# The parts.


def _unet(**changes: Any) -> Any:
    common = {
        "sample_size": SIZE // 8,
        "block_out_channels": BLOCKS,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 2,
    }
    return diffusers.UNet2DConditionModel(**{**common, **changes})


def _vae(**changes: Any) -> Any:
    common = {
        "sample_size": SIZE,
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": 4,
        "force_upcast": False,
    }
    return diffusers.AutoencoderKL(**{**common, **changes})


def _text(number: int, kind: str = "CLIPTextModel", act: str = "quick_gelu") -> dict[str, Any]:
    config = transformers.CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTHS[number],
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=WIDTHS[number],
        hidden_act=act,
        bos_token_id=END - 1,
        eos_token_id=END,
        pad_token_id=END,
    )
    suffix = "" if number == 1 else f"_{number}"
    tokenizer = transformers.CLIPTokenizer.from_pretrained(TOKENIZER, local_files_only=True)
    return {f"text_encoder{suffix}": getattr(transformers, kind)(config), f"tokenizer{suffix}": tokenizer}


def _t5_tokenizer() -> Any:
    """T5's kind of tokenizer; its pieces are letters."""
    pieces: list[tuple[str, float]] = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"]
    return transformers.T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=64)


def _scheduler(prediction_type: str) -> Any:
    return diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def _save(kind: Any, folder: Path, scheduler: Any, **parts: Any) -> Path:
    if kind is diffusers.StableDiffusionPipeline:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            _unsettle(part)
    kind(**parts, scheduler=scheduler).save_pretrained(folder)
    return folder


def _unsettle(module: torch.nn.Module) -> None:
    """Move what starts as all zeros or ones, so that no two such tensors can be mistaken for each other."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.02)


# The layouts of one file: names of diffusers to those that the models were published with.


def _as_checkpoint(layout: str, folder: Path, file: Path) -> Path:
    tensors: Tensors = {}
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            tensors |= original_names(layout, name, part.state_dict(), part.config)
    tensors |= {name: torch.zeros(1000) for name in ("betas", "alphas_cumprod")}  # such files hold the schedule, too
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
    return folder


def original_names(layout: str, name: str, tensors: Mapping[str, torch.Tensor], config: Any) -> Tensors:
    """One component's tensors as its layout names and shapes them."""
    if name == "unet":
        return {f"model.diffusion_model.{key}": tensor for key, tensor in _original_unet(tensors, config).items()}
    if name == "vae":
        return {f"first_stage_model.{key}": tensor for key, tensor in _original_vae(tensors, config).items()}
    tensors = {key.removeprefix("text_model."): tensor for key, tensor in tensors.items()}
    if name == "text_encoder_2":
        return _open_clip(tensors, "conditioner.embedders.1.model.")
    if layout == "sd2":
        # its files hold one layer more than is used, and a projection that is not used either
        last = config.num_hidden_layers
        more = {key.replace(f".{last - 1}.", f".{last}."): tensor + 1 for key, tensor in tensors.items()}
        more = {key: tensor for key, tensor in more.items() if f".{last}." in key}
        width = config.hidden_size
        return _open_clip({**tensors, **more, "text_projection.weight": torch.eye(width)}, "cond_stage_model.model.")
    place = "cond_stage_model" if layout == "sd1" else "conditioner.embedders.0"
    named = {f"{place}.transformer.text_model.{key}": tensor for key, tensor in tensors.items()}
    return named | {f"{place}.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}


def _renamed(key: str, pairs: Mapping[str, str]) -> str:
    for theirs, original in pairs.items():
        key = key.replace(theirs, original)
    return key


UNET_EDGES = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _original_unet(tensors: Mapping[str, torch.Tensor], config: Any) -> Tensors:
    per_block = config["layers_per_block"] + 1
    found: Tensors = {}
    for key, tensor in tensors.items():
        words = key.split(".")
        if words[0] == "mid_block":
            place = 1 if words[1] == "attentions" else 2 * int(words[2])
            start, rest = f"middle_block.{place}", words[3:]
        elif words[0] in ("down_blocks", "up_blocks"):
            down = words[0] == "down_blocks"
            block, layer = int(words[1]), int(words[3])
            attends = "CrossAttn" in config["down_block_types" if down else "up_block_types"][block]
            place = block * per_block + layer + down
            slot = "1" if words[2] == "attentions" else "0"
            rest = words[4:]
            if words[2] == "downsamplers":
                place, slot, rest = (block + 1) * per_block, "0.op", rest[1:]
            elif words[2] == "upsamplers":
                place, slot = (block + 1) * per_block - 1, "2" if attends else "1"
            start = f"{'input' if down else 'output'}_blocks.{place}.{slot}"
        else:
            found[_renamed(key, UNET_EDGES)] = tensor
            continue
        if "resnets" in words:
            rest[0] = UNET_RESNET[rest[0]]
        found[".".join([start, *rest])] = tensor
    return found


VAE_NAMES = {
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "down_blocks": "down",
    "up_blocks": "up",
    "resnets": "block",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def _original_vae(tensors: Mapping[str, torch.Tensor], config: Any) -> Tensors:
    found: Tensors = {}
    for key, tensor in tensors.items():
        words = key.split(".")
        if words[1] == "up_blocks":  # counted from the other end
            words[2] = str(len(config["up_block_types"]) - 1 - int(words[2]))
        if "attentions" in words and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        found[_renamed(".".join(words), VAE_NAMES)] = tensor
    return found


OPEN_CLIP_NAMES = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn": "attn",
    "text_projection.weight": "text_projection",
}


def _open_clip(tensors: Mapping[str, torch.Tensor], prefix: str) -> Tensors:
    found: Tensors = {f"{prefix}logit_scale": torch.zeros(())}
    for key, tensor in tensors.items():
        if ".k_proj." in key or ".v_proj." in key:
            continue
        name = _renamed(key, OPEN_CLIP_NAMES)
        if ".q_proj." in key:  # the three are one
            name = name.replace(".q_proj.", ".in_proj_")
            tensor = torch.cat([tensors[key.replace("q_proj", letter)] for letter in ("q_proj", "k_proj", "v_proj")])
        elif key == "text_projection.weight":
            tensor = tensor.T
        found[prefix + name] = tensor
    return found


def published(layout: str) -> Tensors:
    """All tensors of a published model by name, without their values."""
    found: Tensors = {}
    for file in sorted((LAYOUTS / layout).glob("*/config.json")):
        name = file.parent.name
        with torch.device("meta"):
            if name.startswith("text_encoder"):
                config = transformers.CLIPTextConfig.from_json_file(file)
                part = getattr(transformers, config.architectures[0])(config)
            else:
                kind = diffusers.UNet2DConditionModel if name == "unet" else diffusers.AutoencoderKL
                part = kind.from_config(kind.load_config(file))
        found |= original_names(layout, name, part.state_dict(), part.config)
    return found
