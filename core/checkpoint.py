"""Base models in one safetensors file, in the layouts that Stable Diffusion 1.x, 2.x and SDXL were published in.

`describe_checkpoint` reads the file's header, `load_part` one component's tensors, renamed by diffusers' own
converters. What such a file lacks (configs, and the merges that the tokenizers are made of) is in models/.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.loaders import single_file_utils

from .model_folders import check_folder
from .weights import open_weights, read_json

LAYOUTS = Path(__file__).parents[1] / "models" / "layouts"
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
MERGES = Path(__file__).parents[1] / "models" / "tokenizers" / "clip" / "merges.txt"

TITLES = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "SDXL"}
UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT_ENCODERS: dict[str, dict[str, str]] = {  # layout -> component -> what the names of its tensors start with
    "sd1": {"text_encoder": "cond_stage_model.transformer."},
    "sd2": {"text_encoder": "cond_stage_model.model."},
    "sdxl": {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
}
OPEN_CLIP = {"cond_stage_model.model.", "conditioner.embedders.1.model."}

# what the names of other files' tensors contain, the surest signs first -> what such a file is
FOREIGN = {
    "lora_": "a LoRA",
    ".lora.": "a LoRA",
    "controlnet_": "a ControlNet",
    "input_hint_block.": "a ControlNet",
    "joint_blocks.": "a Stable Diffusion 3 checkpoint",
    "double_blocks.": "a Flux checkpoint",
    "string_to_param": "a textual inversion",
    "emb_params": "a textual inversion",
    "decoder.conv_in.": "a VAE",
    "down_blocks.": "one component in diffusers' own layout",
    "transformer_blocks.": "one component in diffusers' own layout",
    "text_model.": "a text encoder",
}
# the same of files that hold a UNet of Stable Diffusion's layout, too: how a name begins -> what it is
RELATIVES = {
    "control_model.": "a ControlNet",
    "conditioner.embedders.0.model.": "an SDXL refiner",
    "edm_mean": "a Playground v2.5 checkpoint",
}
OTHER_INPUTS = {  # channels that the UNet takes -> what such a model is
    5: "a depth-to-image model",
    7: "an upscaler",
    8: "an InstructPix2Pix model",
    9: "an inpainting model",
}

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
BASE_512_STEP = 875_000  # `global_step` of Stable Diffusion 2.0 base; diffusers goes by it, too


@dataclass(frozen=True)
class Checkpoint:
    """What a one-file model is, as the folder of a diffusers pipeline would say it."""

    path: Path
    layout: str  # sd1, sd2 or sdxl
    family: str
    parts: Mapping[str, tuple[str, str]]  # component -> (library, class)
    configs: Mapping[str, Mapping[str, Any]]  # component -> its config; a tokenizer's are arguments
    scheduler_config: Mapping[str, Any]
    options: Mapping[str, Any]  # further arguments of the pipeline's constructor
    size: int  # pixels of a side, what the model was trained on
    config_folder: Path | None  # a diffusers folder; its configs are used instead of those in models/


def describe_checkpoint(path: Path, config: Path | None = None, prediction_type: str | None = None) -> Checkpoint:
    """Tell from a file's header which model it holds.

    Args:
        path: The file.
        config: A folder with configs as in a diffusers pipeline's, for a model of an uncommon size; each file that it
            lacks is that of the published model.
        prediction_type: What the UNet predicts, where the file does not say it rightly.

    Raises:
        ValueError: It is no such file, it is damaged, or it holds something else.
        OSError: It cannot be read.
    """
    with open_weights(path) as file:
        names = list(file.keys())
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        layout = _layout_of(path.name, shapes)
        said = _said_of_noise(file, shapes)
    if config is not None and not config.is_dir():
        raise ValueError(f"there is no folder {config} for its configs")
    published = LAYOUTS / layout
    folders = [published] if config is None else [config, published]

    index = _read_json("model_index.json", [published])
    parts = {
        key: (value[0], value[1]) for key, value in index.items() if isinstance(value, list) and key != "scheduler"
    }
    theirs = _read_json("model_index.json", folders)
    options = {key: theirs.get(key, index[key]) for key in index.keys() - parts.keys() - {"_class_name", "scheduler"}}
    configs = {
        name: _read_json(f"{name}/{'tokenizer_config' if 'Tokenizer' in kind else 'config'}.json", folders)
        for name, (_, kind) in parts.items()
    }
    _check_sizes(path.name, layout, shapes, configs)

    scheduler_config = _read_json(SCHEDULER_CONFIG, folders)
    if config is None or not (config / SCHEDULER_CONFIG).is_file():
        scheduler_config |= said
    if prediction_type is not None:
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type is {prediction_type!r}; it can be {', '.join(PREDICTION_TYPES)}")
        scheduler_config["prediction_type"] = prediction_type
    unet, vae = configs["unet"], configs["vae"]
    if layout == "sd2" and unet["sample_size"] == 96 and scheduler_config["prediction_type"] == "epsilon":
        unet["sample_size"] = 64  # of the two that were published, the smaller predicts noise
    return Checkpoint(
        path=path,
        layout=layout,
        family=index["_class_name"],
        parts=parts,
        configs=configs,
        scheduler_config=scheduler_config,
        options=options,
        size=unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1),
        config_folder=config,
    )


def load_part(checkpoint: Checkpoint, name: str, dtype: torch.dtype = torch.float32) -> Any:
    """Load one component: a module on the CPU, or a tokenizer.

    The module is the same whether it is loaded in `dtype` or moved to it later, which takes more memory. As with
    every load, no other may run meanwhile: accelerate swaps a method of nn.Module for the whole process.

    Raises:
        ValueError: A tensor is missing, misshapen, of a quantised type, or has no place in the component.
    """
    class_name = checkpoint.parts[name][1]
    if class_name == "CLIPTokenizer":
        config = checkpoint.configs[name]
        folder = None if checkpoint.config_folder is None else checkpoint.config_folder / name
        if folder is not None and any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json")):
            check_folder(folder)
            return transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        return clip_tokenizer(**{key: config[key] for key in ("pad_token", "model_max_length") if key in config})

    tensors = {}
    with open_weights(checkpoint.path) as file:
        for key in _names_of(checkpoint, name, file.keys()):
            tensor = file.get_tensor(key)
            if not tensor.is_floating_point():
                raise ValueError(f"{key} is of {tensor.dtype}; quantised checkpoints are not supported")
            tensors[key] = tensor.to(dtype)
    module = build_part(checkpoint, name, tensors)
    filled = [*module.named_parameters(), *module.named_buffers()]
    empty = [key for key, tensor in filled if tensor.is_meta]
    if empty:
        raise ValueError(f"{len(empty)} tensors of {class_name} stayed empty, the first is {empty[0]}")
    return module.eval()


def build_part(checkpoint: Checkpoint, name: str, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Make a module of a file's tensors by their names there; it keeps the tensors themselves.

    Raises:
        ValueError: A tensor is missing, misshapen, or has no place in the component.
    """
    library, class_name = checkpoint.parts[name]
    config = dict(checkpoint.configs[name])
    # this device is the thread's own; what the libraries would use, accelerate's `init_empty_weights`, is everybody's
    with torch.device("meta"):
        if library == "transformers":
            module = getattr(transformers, class_name)(transformers.CLIPTextConfig.from_dict(config))
        else:
            module = getattr(diffusers, class_name).from_config(config)
    own = {key: tensors[key] for key in _names_of(checkpoint, name, tensors)}
    try:
        if name == "unet":
            own = single_file_utils.convert_ldm_unet_checkpoint(own, config)
        elif name == "vae":
            own = single_file_utils.convert_ldm_vae_checkpoint(own, config)
        else:
            own = _text_encoder_tensors(module, own, _prefix(checkpoint, name))
    except KeyError as error:
        raise ValueError(f"tensor {error} is missing") from error
    wanted = module.state_dict()
    lacking = [key for key, empty in wanted.items() if key not in own or own[key].shape != empty.shape]
    if lacking:
        raise ValueError(f"{len(lacking)} tensors are missing or misshapen, the first is {lacking[0]}")
    extra = sorted(own.keys() - wanted.keys())
    if extra:
        raise ValueError(f"{len(extra)} tensors have no place in {class_name}, the first is {extra[0]}")
    module.load_state_dict({key: tensor.contiguous() for key, tensor in own.items()}, assign=True)
    for part in module.modules():
        if isinstance(getattr(part, "position_ids", None), torch.Tensor):  # no file holds them
            part.position_ids = torch.arange(part.position_ids.shape[-1]).expand(1, -1)
    return module


def clip_tokenizer(pad_token: str = "<|endoftext|>", model_max_length: int = 77) -> Any:
    """CLIP's tokenizer, which all of Stable Diffusion uses; OpenCLIP's differs in its padding, "!"."""
    lines = MERGES.read_text(encoding="utf-8").rstrip("\n").split("\n")[1:]  # the first names the format
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines)]
    # one visible character for each byte; those that are visible anyway come first
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(byte) for byte in visible] + [chr(256 + number) for number in range(256 - len(visible))]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(left + right for left, right in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=merges,
        pad_token=pad_token,
        model_max_length=model_max_length,
    )


def _layout_of(file: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    def holds(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in shapes)

    def refused(what: str) -> ValueError:
        return ValueError(f"{file} looks like {what}; a model of one file can be {', '.join(TITLES.values())}")

    first_layer = "input_blocks.0.0.weight"
    conv_in = shapes.get(UNET + first_layer, shapes.get(first_layer))
    if conv_in is None:
        for sign, what in FOREIGN.items():
            if any(sign in name for name in shapes):
                raise refused(what)
        raise refused(f"something else, its first tensor is {next(iter(shapes), 'missing')!r:.80}")
    for start, what in RELATIVES.items():
        if holds(start):
            raise refused(what)
    if conv_in[1:2] != (4,):
        raise refused(OTHER_INPUTS.get(conv_in[1] if len(conv_in) > 1 else 0, "a UNet of other inputs"))
    layouts = [layout for layout, prefixes in TEXT_ENCODERS.items() if all(map(holds, prefixes.values()))]
    parts = {"text encoder": bool(layouts), "UNet": holds(UNET), "VAE": holds(VAE)}
    if not all(parts.values()):
        lacking = " and no ".join(part for part, there in parts.items() if not there)
        raise refused(f"a part of a model: it has no {lacking}")
    return layouts[0]


def _said_of_noise(file: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What the file itself says for the scheduler: in its metadata, or by the mere presence of a tensor."""
    said: dict[str, Any] = {}
    metadata = (file.metadata() or {}).get("modelspec.prediction_type")
    if metadata in ("epsilon", "v"):
        said["prediction_type"] = "epsilon" if metadata == "epsilon" else "v_prediction"
    elif shapes.get("global_step") in ((), (1,)) and int(file.get_tensor("global_step")) == BASE_512_STEP:
        said["prediction_type"] = "epsilon"
    if "v_pred" in shapes:
        said["prediction_type"] = "v_prediction"
    if "ztsnr" in shapes:
        said["rescale_betas_zero_snr"] = True
    return said


def _read_json(name: str, folders: list[Path]) -> dict[str, Any]:
    """A file of the first folder that has it."""
    file = next((folder / name for folder in folders if (folder / name).is_file()), folders[-1] / name)
    return read_json(file)


def _check_sizes(
    file: str, layout: str, shapes: Mapping[str, tuple[int, ...]], configs: Mapping[str, Mapping[str, Any]]
) -> None:
    """Compare a few sizes, so that a model of another size is refused before anybody waits for its weights."""

    def shape_of(prefix: str, suffix: str) -> tuple[int, ...] | None:
        return next((shapes[name] for name in shapes if name.startswith(prefix) and name.endswith(suffix)), None)

    unet, vae = configs["unet"], configs["vae"]
    blocks = {name.removeprefix(UNET).split(".")[1] for name in shapes if name.startswith(f"{UNET}input_blocks.")}
    channels = unet["block_out_channels"]
    context = shape_of(UNET, "attn2.to_k.weight")
    sizes: list[tuple[str, Any, Any]] = [
        ("input blocks of the UNet", len(blocks), len(channels) * (unet["layers_per_block"] + 1)),
        (
            "first layer of the UNet",
            shape_of(UNET, "input_blocks.0.0.weight"),
            (channels[0], unet["in_channels"], 3, 3),
        ),
        ("width of the UNet's context", context and context[-1:], (unet["cross_attention_dim"],)),
        (
            "first layer of the VAE's decoder",
            shape_of(VAE, "decoder.conv_in.weight"),
            (vae["block_out_channels"][-1], vae["latent_channels"], 3, 3),
        ),
    ]
    for name, prefix in TEXT_ENCODERS[layout].items():
        wanted = (configs[name]["vocab_size"], configs[name]["hidden_size"])
        sizes.append((f"vocabulary of {name}", shape_of(prefix, "token_embedding.weight"), wanted))
    for what, there, wanted in sizes:
        if there != wanted:
            raise ValueError(
                f"{file} has the names of {TITLES[layout]}, but not its sizes ({what}: {there}, not {wanted}); "
                "a model of another size needs a folder with its configs"
            )


def _prefix(checkpoint: Checkpoint, name: str) -> str:
    """What the names of a component's tensors start with."""
    return {"unet": UNET, "vae": VAE, **TEXT_ENCODERS[checkpoint.layout]}[name]


def _names_of(checkpoint: Checkpoint, name: str, keys: Iterable[str]) -> list[str]:
    """The names of a component's tensors; positions are counted anew, as they have been damaged in many files."""
    prefix = _prefix(checkpoint, name)
    return [key for key in keys if key.startswith(prefix) and not key.endswith("position_ids")]


def _text_encoder_tensors(module: Any, tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    if prefix in OPEN_CLIP:
        tensors = single_file_utils.convert_open_clip_checkpoint(module, tensors, prefix=prefix)
    else:
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    # some files lack this level, and so has transformers since 5.6, but for the class with a projection
    level = "text_model." if hasattr(module, "text_model") else ""
    # Stable Diffusion 2 leaves out the last layer, which its files hold all the same
    unused = f"{level}encoder.layers.{module.config.num_hidden_layers}."
    found = {}
    for name, tensor in tensors.items():
        if name == "text_projection.weight":
            if hasattr(module, "text_projection"):  # else some programs have saved it for nothing
                found[name] = tensor
            continue
        name = level + name.removeprefix("text_model.")
        if not name.startswith(unused):
            found[name] = tensor
    return found
