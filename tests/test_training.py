"""The recipe runs: every stage for a few steps, stopped and resumed, and what it writes is a model that loads."""

import json
import random
import sys
from pathlib import Path

import pytest
import torch

from latentwire.core.build import PipelineBuild
from latentwire.core.model_store import ModelStore
from latentwire.core.settings import EMBEDDED_MODEL, ModelSettings
from latentwire.training import autoencoder, base, data, tokenizer

needs_font = pytest.mark.skipif(not data.FONT.exists(), reason="needs Debian's fonts-noto-color-emoji")


def stage(monkeypatch: pytest.MonkeyPatch, module: object, folder: Path, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["stage", "--out", str(folder / "out"), "--work", str(folder / "work"), *options])
    module.main()  # type: ignore[attr-defined]


@needs_font
@pytest.mark.slow
def test_the_stages_make_a_model_that_the_store_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "POOL", 64)
    monkeypatch.setattr(base, "SHEET_PROMPTS", ("red apple",))
    monkeypatch.setattr(autoencoder, "SCALING_PICTURES", 8)
    stage(monkeypatch, tokenizer, tmp_path)
    stage(monkeypatch, autoencoder, tmp_path, "--steps", "2", "--batch", "2", "--every", "1")
    stage(monkeypatch, base, tmp_path, "--steps", "1", "--batch", "2", "--every", "1")
    stage(monkeypatch, base, tmp_path, "--steps", "2", "--batch", "2", "--every", "1")  # resumes at step 1
    assert sorted(file.name for file in (tmp_path / "work/base").glob("sheet-*")) == [
        "sheet-000001.png",
        "sheet-000002.png",
    ]
    store = ModelStore({"emoji": ModelSettings(path=tmp_path / "out")}, torch.device("cpu"))
    assert store.lease(PipelineBuild("emoji", "ddim", "float32")).card.size == 128


@needs_font
def test_captions_name_what_the_picture_shows() -> None:
    things = data.load_things()
    assert len({thing.name for thing in things}) == len(things) >= 100
    rng = random.Random(0)
    for _ in range(50):
        thing, colour = rng.choice(things), rng.choice(list(data.COLOURS))
        picture, text = data.compose(thing, colour, rng), data.caption(thing, colour, rng)
        assert any(name.lower() in text for name in (thing.name, *thing.synonyms))
        corner = picture.crop((0, 0, 1, 1)).tobytes()
        assert max(abs(a - b) for a, b in zip(corner, data.COLOURS[colour], strict=True)) <= 8


def test_the_tokenizer_encodes_any_text_and_knows_the_captions_words_whole() -> None:
    from transformers import CLIPTokenizer

    shipped = CLIPTokenizer.from_pretrained(EMBEDDED_MODEL / "tokenizer")
    assert shipped.tokenize("Red apple on a blue background") == [
        "red</w>", "apple</w>", "on</w>", "a</w>", "blue</w>", "background</w>",
    ]  # fmt: skip
    ids = shipped("żółw 🐢 zzz", padding="max_length", max_length=77).input_ids
    assert len(ids) == 77
    assert max(ids) < json.loads((EMBEDDED_MODEL / "text_encoder/config.json").read_text())["vocab_size"]
