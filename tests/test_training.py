"""The recipe runs: every stage for a few steps, stopped and resumed, and what it writes is a model that loads."""

import json
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from latentwire.core.build import PipelineBuild
from latentwire.core.model_store import ModelStore
from latentwire.core.settings import EMBEDDED_MODEL, ModelSettings
from latentwire.training import autoencoder, base, controlnet, denoising, lora, measures, previewer, tokenizer
from latentwire.training.pictures import (
    anywhere,
    as_drawn,
    near_the_middle,
    outline,
    paint,
    pencil,
    pixel_art,
    place,
    silhouette,
)
from latentwire.training.things import COLOURS, FONT, caption, load_things

needs_font = pytest.mark.skipif(not FONT.exists(), reason="needs Debian's fonts-noto-color-emoji")


@needs_font
@pytest.mark.slow
def test_the_stages_make_a_model_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoising, "POOL", 64)
    monkeypatch.setattr(base, "SHEET_PROMPTS", ("red apple",))
    monkeypatch.setattr(controlnet, "SHOWN", 1)
    monkeypatch.setattr(autoencoder, "SCALING_PICTURES", 8)
    models, work = tmp_path / "models", tmp_path / "work"

    def stage(module: object, steps: int, *options: str) -> None:
        common = ["--out", str(models / "emoji"), "--work", str(work), "--batch", "2", "--every", "1"]
        monkeypatch.setattr(sys, "argv", ["stage", *common, "--steps", str(steps), *options])
        module.main()  # type: ignore[attr-defined]

    monkeypatch.setattr(sys, "argv", ["stage", "--out", str(models / "emoji")])
    tokenizer.main()
    stage(autoencoder, 2)
    stage(autoencoder, 1, "--go-on")
    stage(autoencoder, 1, "--decoder-only")
    stage(base, 1)
    stage(base, 2)  # resumes at step 1
    assert {file.name for file in (work / "base").glob("sheet-*")} == {"sheet-000001.png", "sheet-000002.png"}
    encoder = load_file(models / "emoji/text_encoder/model.safetensors")
    stage(base, 1, "--go-on")
    kept = load_file(models / "emoji/text_encoder/model.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in encoder.items())
    stage(previewer, 1)
    store = ModelStore({"emoji": ModelSettings(path=models / "emoji")}, torch.device("cpu"))
    lease = store.lease(PipelineBuild("emoji", "ddim", "float32"))
    assert lease.card.size == 128
    assert lease.previewer.paint(torch.zeros(4, 16, 16).numpy()).shape == (64, 64, 3)

    stage(controlnet, 1)
    stage(controlnet, 1, "--lora")
    stage(lora, 2, "--style", "pixel-art")
    stage(lora, 1, "--style", "pencil")
    ControlNetModel.from_pretrained(models / "controlnets/emoji-outline", use_safetensors=True)
    pipe = StableDiffusionPipeline.from_pretrained(models / "emoji", safety_checker=None, use_safetensors=True)
    for file in ("pixel-art/emoji-pixel-art-000001", "pixel-art/emoji-pixel-art-000002", "pencil/emoji-pencil-000001"):
        path = models / "loras" / f"emoji-{file}.safetensors"
        pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name="style")
        in_file = [name for name in load_file(path) if "lora_down" in name or "lora_A" in name]
        assert len(in_file) == len([name for name in pipe.unet.state_dict() if "lora_A.style" in name]) > 50
        pipe.unload_lora_weights()
    unet = UNet2DConditionModel.from_pretrained(models / "emoji/unet", use_safetensors=True)
    control_lora = ControlNetModel.from_unet(unet)
    control_lora.load_lora_adapter(models / "control-loras", weight_name="emoji-outline.safetensors", prefix=None)


@needs_font
@pytest.mark.slow
def test_a_stage_that_was_stopped_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(denoising, "POOL", 16)
    monkeypatch.setattr(base, "SHEET_PROMPTS", ("red apple",))
    monkeypatch.setattr("latentwire.training.common.cosine_rate", lambda step, steps, warmup: 1.0)

    def train(work: Path, steps: int) -> dict[str, torch.Tensor]:
        options = ["--out", str(tmp_path / "models/emoji"), "--work", str(work), "--batch", "2", "--style", "pencil"]
        monkeypatch.setattr(sys, "argv", ["stage", *options, "--steps", str(steps)])
        lora.main()
        return load_file(work / "lora-pencil/checkpoint.safetensors")

    shutil.copytree(EMBEDDED_MODEL, tmp_path / "models/emoji")
    at_once = train(tmp_path / "at once", 6)
    train(tmp_path / "stopped", 5)
    resumed = train(tmp_path / "stopped", 6)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in at_once.items())
    assert any("average" in name and tensor.any() for name, tensor in at_once.items())


@needs_font
def test_captions_name_what_the_picture_shows() -> None:
    things = load_things()
    assert len({thing.name for thing in things}) == len(things) >= 100
    rng = random.Random(0)
    for _ in range(50):
        thing, colour = rng.choice(things), rng.choice(list(COLOURS))
        picture, text = paint(place(thing, near_the_middle(rng)), colour, rng), caption(thing, colour, rng)
        assert any(name.lower() in text for name in (thing.name, *thing.synonyms))
        assert measures.colour_of(measures.as_array([picture])[0]) == colour
        corner = picture.crop((0, 0, 1, 1)).tobytes()
        assert max(abs(a - b) for a, b in zip(corner, COLOURS[colour], strict=True)) <= 8


@needs_font
def test_things_lie_inside_the_picture_and_outlines_around_them() -> None:
    things, rng = load_things(), random.Random(0)
    for where in (near_the_middle, anywhere, as_drawn) * 10:
        layer = place(rng.choice(things), where(rng))
        shape, lines = np.asarray(silhouette(layer)) > 0, np.asarray(outline(layer)) > 0
        assert 0.02 < shape.mean() < 0.8
        assert 0 < lines.mean() < 0.4
        inner = np.asarray(outline(layer, width=5, inner=True)) > 0
        assert inner.sum() > lines.sum()
        rows, columns = np.nonzero(shape)
        assert lines[rows.min(), :].any()  # the outermost pixels of the thing are on the line
        assert lines[:, columns.max()].any()
        assert lines.sum() < shape.sum() + 400


@needs_font
def test_the_measures_tell_real_emoji_apart() -> None:
    things, rng = load_things(), random.Random(1)
    chosen = rng.sample(things, 20)
    layers = [place(thing, near_the_middle(rng)) for thing in chosen]
    pictures = [paint(layer, "blue", rng) for layer in layers]
    nearest = measures.Recogniser(things).nearest(measures.as_array(pictures), "blue")
    assert [names[0] for names in nearest] == [thing.name for thing in chosen]
    first = measures.as_array(pictures[:1])[0]
    shape, other = (np.asarray(silhouette(layer)) > 0 for layer in layers[:2])
    assert measures.overlap(measures.silhouette_of(first), shape) > 0.9
    assert measures.overlap(shape, other) < 0.9
    styled = measures.as_array([pixel_art(pictures[0]), pencil(pictures[0])])
    assert measures.blockiness(styled[0]) > 0.99
    assert measures.blockiness(first) < 0.2
    assert measures.saturation(styled[1]) == 0
    assert measures.saturation(first) > 0.5


def test_the_tokenizer_encodes_any_text_and_knows_the_captions_words_whole() -> None:
    from transformers import CLIPTokenizer

    shipped = CLIPTokenizer.from_pretrained(EMBEDDED_MODEL / "tokenizer")
    assert shipped.tokenize("Red apple on a blue background") == [
        "red</w>", "apple</w>", "on</w>", "a</w>", "blue</w>", "background</w>",
    ]  # fmt: skip
    ids = shipped("żółw 🐢 zzz", padding="max_length", max_length=77).input_ids
    assert len(ids) == 77
    assert max(ids) < json.loads((EMBEDDED_MODEL / "text_encoder/config.json").read_text())["vocab_size"]
