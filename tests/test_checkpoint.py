"""Models of one file: each tensor arrives, and a file that holds something else says so at once."""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from latentwire.core.checkpoint import LAYOUTS, Checkpoint, build_part, clip_tokenizer, describe_checkpoint, load_part

from . import small_models

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Small:
    """A small model twice: as a file and as a folder."""

    layout: str
    file: Path
    folder: Path
    description: Checkpoint

    def pipeline(self) -> Any:
        """The folder's, as diffusers loads it."""
        return diffusers.DiffusionPipeline.from_pretrained(self.folder, local_files_only=True)


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Small:
    file = tmp_path_factory.mktemp(request.param) / "model.safetensors"
    folder = getattr(small_models, f"{request.param}_checkpoint")(file)
    configs = small_models.configs_of(folder, file.with_name("configs"))
    return Small(request.param, file, folder, describe_checkpoint(file, configs))


def modules(description: Checkpoint) -> list[str]:
    return [name for name in description.parts if not name.startswith("tokenizer")]


def test_every_parameter_arrives(small: Small) -> None:
    pipeline = small.pipeline()
    for name in modules(small.description):
        theirs, ours = getattr(pipeline, name), load_part(small.description, name)
        assert type(ours) is type(theirs)
        assert not ours.training
        wanted, got = dict(theirs.named_parameters()), dict(ours.named_parameters())
        assert got.keys() == wanted.keys()
        assert all(torch.equal(got[key], wanted[key]) for key in wanted)
        wanted, got = dict(theirs.named_buffers()), dict(ours.named_buffers())
        assert got.keys() == wanted.keys()
        assert all(torch.equal(got[key], wanted[key]) for key in wanted)


def test_the_pictures_are_those_of_the_folder(small: Small) -> None:
    def picture(pipeline: Any) -> Any:
        pipeline.set_progress_bar_config(disable=True)
        arguments = {"num_inference_steps": 3, "height": 64, "width": 64, "output_type": "np"}
        return pipeline("a cat", generator=torch.Generator().manual_seed(0), **arguments).images[0]

    theirs = small.pipeline()
    parts = {name: load_part(small.description, name) for name in small.description.parts}
    if small.layout != "sdxl":
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    scheduler = type(theirs.scheduler).from_config(dict(small.description.scheduler_config))
    ours = type(theirs)(**parts, **small.description.options, scheduler=scheduler)
    assert type(ours).__name__ == small.description.family
    # where a weight lies in memory decides the last bit of a sum
    assert np.allclose(picture(ours), picture(theirs), rtol=0, atol=1e-5)
    assert picture(ours).shape == (64, 64, 3)


def test_a_description_is_what_the_folder_says(small: Small) -> None:
    index = json.loads((small.folder / "model_index.json").read_text())
    parts = {key: tuple(value) for key, value in index.items() if isinstance(value, list) and value[0] is not None}
    del parts["scheduler"]
    assert small.description.parts == parts
    assert small.description.family == index["_class_name"]
    assert small.description.layout == small.layout
    assert small.description.size == 64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_a_file_of_another_dtype_is_loaded_in_float32(small: Small, tmp_path: Path, dtype: torch.dtype) -> None:
    file = tmp_path / "model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(small.file).items()}, file)
    description = describe_checkpoint(file, small.description.config_folder)
    for name in modules(description):
        wanted = dict(load_part(small.description, name).named_parameters())
        for key, parameter in load_part(description, name).named_parameters():
            assert parameter.dtype == torch.float32
            assert torch.equal(parameter, wanted[key].to(dtype).float())


def test_a_component_may_be_loaded_in_another_dtype(small: Small) -> None:
    for name in modules(small.description):
        wanted = load_part(small.description, name).to(torch.bfloat16).state_dict()
        got = load_part(small.description, name, torch.bfloat16).state_dict()
        assert all(got[key].dtype == torch.bfloat16 and torch.equal(got[key], wanted[key]) for key in wanted)


# Damage that shows only when a component is loaded.


def missing(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]


def misshapen(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name][..., :-1].contiguous()


def quantised(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name].to(torch.int8)


def doubled(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name.replace(".weight", ".scale_weight")] = torch.ones(1)


CLIP, OPEN_CLIP = "transformer.text_model.encoder.layers.1.mlp.fc1.weight", "transformer.resblocks.1.mlp.c_fc.weight"
ONE_TENSOR = {
    "unet": "model.diffusion_model.output_blocks.1.0.in_layers.2.weight",
    "vae": "first_stage_model.decoder.up.1.block.0.conv1.weight",
    "sd1 text_encoder": f"cond_stage_model.{CLIP}",
    "sd2 text_encoder": f"cond_stage_model.model.{OPEN_CLIP}",
    "sdxl text_encoder": f"conditioner.embedders.0.{CLIP}",
    "sdxl text_encoder_2": f"conditioner.embedders.1.model.{OPEN_CLIP}",
}


@pytest.mark.parametrize("damage", [missing, misshapen, quantised, doubled])
def test_a_tensor_that_is_not_as_it_should_be_is_an_error(
    small: Small, tmp_path: Path, damage: Callable[[dict[str, torch.Tensor], str], None]
) -> None:
    for part in modules(small.description):
        tensors = load_file(small.file)
        name = ONE_TENSOR[part] if part in ONE_TENSOR else ONE_TENSOR[f"{small.layout} {part}"]
        damage(tensors, name)
        file = tmp_path / "model.safetensors"
        save_file(tensors, file)
        description = describe_checkpoint(file, small.description.config_folder)
        with pytest.raises(ValueError, match=r"missing or misshapen|quantised|have no place"):
            load_part(description, part)
        for other in modules(description):  # they read their own tensors only
            if other != part:
                load_part(description, other)


def test_what_a_converter_looks_up_itself_may_be_missing_too(tmp_path: Path) -> None:
    folder = small_models.sdxl_checkpoint(tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.diffusion_model.label_emb.0.2.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"label_emb\.0\.2\.bias' is missing"):
        load_part(describe_checkpoint(tmp_path / "model.safetensors", folder), "unet")


def test_a_text_encoder_may_lack_a_level_of_its_names_or_bring_a_projection(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    folder = small_models.sd1_checkpoint(file)
    wanted = load_part(describe_checkpoint(file, folder), "text_encoder").state_dict()
    tensors = {name.replace("text_model.", ""): tensor for name, tensor in load_file(file).items()}
    save_file(tensors | {"cond_stage_model.transformer.text_projection.weight": torch.eye(32)}, file)
    got = load_part(describe_checkpoint(file, folder), "text_encoder").state_dict()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


# Models of the published sizes, of which only the header is real.


def header_only(file: Path, shapes: Shapes, metadata: Mapping[str, str] | None = None) -> Path:
    """A file with one byte a number, and all of them a hole on the disk."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "F8_E4M3", "shape": list(shape), "data_offsets": [end, end + math.prod(shape)]}
        end += math.prod(shape)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    with file.open("r+b") as opened:
        opened.truncate(8 + len(text) + end)
    return file


@cache
def published(layout: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in small_models.published(layout).items()}


# as known of the published models; tensors without those of the noise schedule
TENSORS = {"sd1": 1131, "sd2": 1228, "sdxl": 2515}
KNOWN: dict[str, Shapes] = {
    "sd1": {
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
        "model.diffusion_model.input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
        "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
        "model.diffusion_model.output_blocks.11.0.skip_connection.weight": (320, 640, 1, 1),
        "model.diffusion_model.output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.output_blocks.8.2.conv.weight": (640, 640, 3, 3),
        "first_stage_model.encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        "first_stage_model.decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
    },
    "sd2": {
        "cond_stage_model.model.transformer.resblocks.23.attn.in_proj_weight": (3072, 1024),
        "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024),
        "model.diffusion_model.input_blocks.1.1.proj_in.weight": (320, 320),
    },
    "sdxl": {
        "conditioner.embedders.0.transformer.text_model.encoder.layers.11.mlp.fc1.bias": (3072,),
        "conditioner.embedders.1.model.text_projection": (1280, 1280),
        "conditioner.embedders.1.model.positional_embedding": (77, 1280),
        "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": (1280,),
        "model.diffusion_model.label_emb.0.0.weight": (1280, 2816),
        "model.diffusion_model.middle_block.1.transformer_blocks.9.attn1.to_q.weight": (1280, 1280),
        "model.diffusion_model.output_blocks.5.2.conv.weight": (640, 640, 3, 3),
    },
}
PARAMETERS = {
    "sd1": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
}


@pytest.mark.parametrize(("layout", "size"), [("sd1", 512), ("sd2", 768), ("sdxl", 1024)])
def test_a_published_model_is_known_by_its_header_and_fits_the_configs(tmp_path: Path, layout: str, size: int) -> None:
    tensors = small_models.published(layout)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert len(shapes) == TENSORS[layout]
    assert shapes.items() >= KNOWN[layout].items()
    file = header_only(tmp_path / "model.safetensors", shapes)
    started = time.monotonic()
    description = describe_checkpoint(file)
    assert time.monotonic() - started < 1
    file.unlink()  # not every tool that copies folders knows of holes
    assert (description.layout, description.size) == (layout, size)
    assert description.options == ({"force_zeros_for_empty_prompt": True} if layout == "sdxl" else {})
    for name in modules(description):
        module = build_part(description, name, tensors)
        assert sum(parameter.numel() for parameter in module.parameters()) == PARAMETERS[layout][name]


def test_the_layouts_schedulers_are_those_that_were_published() -> None:
    for layout, prediction in (("sd1", "epsilon"), ("sd2", "v_prediction"), ("sdxl", "epsilon")):
        config = json.loads((LAYOUTS / layout / "scheduler/scheduler_config.json").read_text())
        scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
        assert scheduler.config.prediction_type == prediction
        assert float(scheduler.alphas_cumprod[-1]) == pytest.approx(0.00466, abs=1e-5)


@pytest.mark.parametrize(
    ("more", "metadata", "argument", "wanted", "size"),
    [
        ({}, {}, None, "v_prediction", 768),
        ({}, {}, "epsilon", "epsilon", 512),
        ({}, {"modelspec.prediction_type": "epsilon"}, None, "epsilon", 512),
        ({}, {"modelspec.prediction_type": "v"}, None, "v_prediction", 768),
        ({}, {"modelspec.prediction_type": "epsilon"}, "v_prediction", "v_prediction", 768),
        ({"v_pred": (0,), "ztsnr": (0,)}, {}, None, "v_prediction", 768),
    ],
)
def test_what_the_unet_predicts_is_told_by_the_file_or_to_it(
    tmp_path: Path, more: Shapes, metadata: Mapping[str, str], argument: str | None, wanted: str, size: int
) -> None:
    file = header_only(tmp_path / "model.safetensors", {**published("sd2"), **more}, metadata)
    description = describe_checkpoint(file, prediction_type=argument)
    file.unlink()
    assert description.scheduler_config["prediction_type"] == wanted
    assert description.scheduler_config.get("rescale_betas_zero_snr", False) == ("ztsnr" in more)
    assert description.size == size


def test_the_small_one_of_stable_diffusion_2_is_known_by_its_steps(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    folder = small_models.sd2_checkpoint(file)
    (folder / "scheduler/scheduler_config.json").unlink()
    tensors = load_file(file)
    for step, wanted in ((875_000, "epsilon"), (110_000, "v_prediction")):
        save_file(tensors | {"global_step": torch.tensor(step)}, file)
        assert describe_checkpoint(file, folder).scheduler_config["prediction_type"] == wanted


def test_a_config_folder_is_believed_more_than_the_file(small: Small, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(load_file(small.file) | {"ztsnr": torch.zeros(1)}, file, {"modelspec.prediction_type": "v"})
    description = describe_checkpoint(file, small.description.config_folder)
    assert description.scheduler_config == small.description.scheduler_config
    with pytest.raises(ValueError, match="there is no folder"):
        describe_checkpoint(file, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="prediction_type is 'noise'"):
        describe_checkpoint(file, small.description.config_folder, prediction_type="noise")


def test_another_size_needs_its_configs(small: Small) -> None:
    with pytest.raises(ValueError, match=r"not its sizes.*folder with its configs"):
        describe_checkpoint(small.file)


# Files that are no such model.

CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"


def only(layout: str, *starts: str) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in published(layout).items() if name.startswith(starts)}


def changed(layout: str, name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {**published(layout), name: shape}


REFUSED: dict[str, tuple[Callable[[], Shapes], str]] = {
    "a LoRA": (
        lambda: {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 320)},
        "looks like a LoRA",
    ),
    "a LoRA of diffusers": (lambda: {"unet.down_blocks.0.attn1.to_q.lora.down.weight": (4, 320)}, "looks like a LoRA"),
    "a ControlNet": (lambda: changed("sd1", "control_model.input_blocks.0.0.weight", 320, 4, 3, 3), "a ControlNet"),
    "only a ControlNet": (lambda: {"control_model.input_hint_block.0.weight": (16, 3, 3, 3)}, "a ControlNet"),
    "a ControlNet of diffusers": (lambda: {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)}, "a ControlNet"),
    "Stable Diffusion 3": (
        lambda: {"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.bias": (4608,)},
        "Diffusion 3",
    ),
    "Flux": (lambda: {"double_blocks.0.img_attn.norm.key_norm.scale": (128,)}, "a Flux checkpoint"),
    "a VAE": (lambda: only("sd1", "first_stage_model."), "a VAE"),
    "a VAE by itself": (
        lambda: {"encoder.conv_in.weight": (128, 3, 3, 3), "decoder.conv_in.weight": (512, 4, 3, 3)},
        "a VAE",
    ),
    "a UNet": (lambda: only("sd1", "model."), "no text encoder and no VAE"),
    "a UNet by itself": (lambda: {"input_blocks.0.0.weight": (320, 4, 3, 3)}, "no text encoder and no UNet and no VAE"),
    "no VAE": (lambda: only("sd1", "model.", "cond_stage_model."), "a part of a model: it has no VAE"),
    "half the text": (
        lambda: only("sdxl", "model.", "first_stage_model.", "conditioner.embedders.0"),
        "it has no text encoder",
    ),
    "a diffusers UNet": (
        lambda: {"down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3)},
        "in diffusers' own layout",
    ),
    "a text encoder": (lambda: {"text_model.embeddings.token_embedding.weight": (49408, 768)}, "a text encoder"),
    "a textual inversion": (lambda: {"emb_params": (4, 768)}, "a textual inversion"),
    "an SDXL refiner": (lambda: changed("sdxl", "conditioner.embedders.0.model.ln_final.bias", 1280), "refiner"),
    "Playground": (lambda: changed("sdxl", "edm_mean", 4), "a Playground"),
    "inpainting": (lambda: changed("sd1", CONV_IN, 320, 9, 3, 3), "an inpainting model"),
    "depth": (lambda: changed("sd2", CONV_IN, 320, 5, 3, 3), "a depth-to-image model"),
    "other inputs": (lambda: changed("sd1", CONV_IN, 320, 6, 3, 3), "a UNet of other inputs"),
    "no inputs": (lambda: changed("sd1", CONV_IN), "a UNet of other inputs"),
    "another width": (
        lambda: changed("sd1", CONV_IN, 192, 4, 3, 3),
        r"first layer of the UNet: \(192, 4, 3, 3\), not \(320,",
    ),
    "a language model": (
        lambda: {"model.layers.0.mlp.up_proj.weight": (64, 64)},
        "something else, its first tensor is 'model",
    ),
    "nothing": (lambda: {}, "something else"),
    "too much": (lambda: {str(number): (0,) for number in range(20_001)}, "holds 20001 tensors; at most 20000"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_another_file_says_what_it_looks_like(tmp_path: Path, what: str) -> None:
    shapes, message = REFUSED[what]
    file = header_only(tmp_path / "model.safetensors", shapes())
    refused_at_once(file, message)
    file.unlink()


def a_pickle(file: Path) -> None:
    torch.save({"state_dict": {CONV_IN: torch.zeros(320, 4, 3, 3)}}, file)


def an_old_pickle(file: Path) -> None:
    torch.save({"a": torch.zeros(1)}, file, _use_new_zipfile_serialization=False)


def truncated(file: Path) -> None:
    header_only(file, {"a": (1000,)})
    file.write_bytes(file.read_bytes()[:-1])


def a_cut_header(file: Path) -> None:
    header_only(file, published("sd1"))
    with file.open("r+b") as opened:
        opened.truncate(1000)


def a_long_header(file: Path) -> None:
    file.write_bytes((17 << 20).to_bytes(8, "little") + b"{")
    with file.open("r+b") as opened:
        opened.truncate(18 << 20)


def overlapping(file: Path) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    text = json.dumps({"a": entry, "b": entry}).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))


def a_deep_header(file: Path) -> None:
    file.write_bytes((1 << 20).to_bytes(8, "little") + b"[" * (1 << 20))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (a_pickle, "it is a pickle"),
        (an_old_pickle, "it is a pickle"),
        (truncated, "damaged"),
        (a_cut_header, "damaged"),
        (a_long_header, "17 MiB long; at most 16 MiB"),
        (overlapping, "damaged"),
        (a_deep_header, "damaged"),
        (lambda file: file.write_bytes(b""), "no safetensors file"),
        (lambda file: file.write_bytes(bytes(8)), "damaged"),
        (lambda file: file.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)), "no safetensors file"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_at_once(
    tmp_path: Path, write: Callable[[Path], None], message: str
) -> None:
    write(tmp_path / "model.safetensors")
    refused_at_once(tmp_path / "model.safetensors", message)


def refused_at_once(file: Path, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match=message):
        describe_checkpoint(file)
    assert time.monotonic() - started < 1


# The tokenizers.


def test_the_tokenizer_is_clips() -> None:
    tokenizer = clip_tokenizer()
    assert len(tokenizer) == tokenizer.vocab_size == 49408
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (49406, 49407, 49407)
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert (
        tokenizer("Hello,  WORLD").input_ids == tokenizer("hello, world").input_ids == [49406, 3306, 267, 1002, 49407]
    )
    padded = tokenizer(["", "cat " * 100], padding="max_length", truncation=True).input_ids
    assert padded[0] == [49406] + [49407] * 76
    assert padded[1] == [49406] + [2368] * 75 + [49407]
    assert tokenizer.decode(padded[1], skip_special_tokens=True) == " ".join(["cat"] * 75)
    assert tokenizer("naïve 🎉 日本").input_ids == [
        *tokenizer("naïve 🎉").input_ids[:-1],
        *tokenizer("日本").input_ids[1:],
    ]


@pytest.mark.parametrize(
    ("layout", "name", "padding"),
    [("sd1", "tokenizer", 49407), ("sd2", "tokenizer", 0), ("sdxl", "tokenizer", 49407), ("sdxl", "tokenizer_2", 0)],
)
def test_each_layouts_tokenizer_pads_as_published(tmp_path: Path, layout: str, name: str, padding: int) -> None:
    file = header_only(tmp_path / "model.safetensors", published(layout))
    tokenizer = load_part(describe_checkpoint(file), name)
    file.unlink()
    assert tokenizer("cat", padding="max_length").input_ids == [49406, 2368, 49407] + [padding] * 74


# The small models that no file of this kind holds.


@pytest.mark.parametrize("t5", [True, False])
def test_a_small_sd3_makes_pictures(tmp_path: Path, t5: bool) -> None:
    folder = small_models.sd3(tmp_path / "sd3", t5=t5)
    absent = {} if t5 else dict.fromkeys(small_models.THIRD)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True, **absent)
    pipeline.set_progress_bar_config(disable=True)
    images = [
        pipeline(prompt, num_inference_steps=2, height=64, width=64, output_type="np", generator=torch.manual_seed(0))
        for prompt in ("a cat", "a dog")
    ]
    assert images[0].images[0].shape == (64, 64, 3)
    assert not np.array_equal(images[0].images[0], images[1].images[0])
