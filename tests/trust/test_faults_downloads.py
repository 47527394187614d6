"""Half a download is no model: not in a list, not for a request, and never half loaded."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latentwire import Host
from latentwire.core.errors import InvalidParams, LatentwireError
from latentwire.core.files import find, local_models
from latentwire.core.settings import EMBEDDED_MODEL, MODELS_FOLDER, FileSettings, ModelSettings
from latentwire.core.whole import is_whole

from ..conftest import running_host
from .injection import draw

UNET = "unet/diffusion_pytorch_model.safetensors"


def cut(file: Path, to: float = 0.5) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * to)])


def sharded_without_its_second(folder: Path) -> None:
    file = folder / UNET
    file.rename(file.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))
    weight_map = {
        "conv_in.weight": "diffusion_pytorch_model-00001-of-00002.safetensors",
        "conv_out.weight": "diffusion_pytorch_model-00002-of-00002.safetensors",
    }
    index = file.with_name("diffusion_pytorch_model.safetensors.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def hub_style(folder: Path) -> None:
    """As `hf download --local-dir` leaves it when it is interrupted."""
    file = folder / UNET
    unfinished = folder / ".cache" / "huggingface" / "download" / "unet" / "3f2a.incomplete"
    unfinished.parent.mkdir(parents=True)
    file.rename(unfinished)


def dangling(folder: Path) -> None:
    """As in the hub's cache, where the files are links."""
    (folder / UNET).unlink()
    (folder / UNET).symlink_to("../../blobs/3f2a")


HALVES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (lambda folder: cut(folder / UNET), "damaged"),
    "only a header's start": (
        lambda folder: (folder / UNET).write_bytes(b"\x10\x27\0\0\0\0\0\0{"),
        "no safetensors file",
    ),
    "empty": (lambda folder: (folder / UNET).write_bytes(b""), "no safetensors file"),
    "missing": (lambda folder: (folder / UNET).unlink(), "holds no .safetensors weights"),
    "still incomplete": (
        lambda folder: (folder / UNET).rename((folder / UNET).with_suffix(".safetensors.incomplete")),
        "a download that was not finished",
    ),
    "in the hub's own folder": (hub_style, "holds no .safetensors weights"),
    "a shard is missing": (sharded_without_its_second, "lacks 1 of 2 files"),
    "the text encoder is cut": (lambda folder: cut(folder / "text_encoder" / "model.safetensors"), "damaged"),
    "no tokenizer": (lambda folder: shutil.rmtree(folder / "tokenizer"), "no folder tokenizer"),
    "an index is cut": (lambda folder: cut(folder / "model_index.json"), "cannot be used"),
    "no index yet": (lambda folder: (folder / "model_index.json").unlink(), "model_index.json"),
    "a dangling link": (dangling, "No such file"),
}


def listed(host: Host) -> dict[str, Any]:
    rows = asyncio.run(host.dispatch("models.list", {}, "test", lambda _: None))["models"]
    return {row["name"]: row for row in rows}


@pytest.mark.parametrize("half", HALVES)
def test_half_a_model_is_listed_with_its_error_and_refused_at_once(tmp_path: Path, half: str) -> None:
    make, said = HALVES[half]
    folder = tmp_path / "half"
    shutil.copytree(EMBEDDED_MODEL, folder)
    make(folder)
    with running_host(models={"half": {"path": folder}}) as host:
        expected = draw(host, mode="exact").data
        row = listed(host)["half"]
        assert row.keys() == {"name", "error"}
        assert said in row["error"]
        failed = draw(host, model="half")
        assert failed.code == "model_load_failed"
        assert failed.events == []  # refused before it was accepted
        assert {entry["model"] for entry in host.store.loaded()} == {"emoji"}
        assert draw(host, mode="exact").data == expected
        # and once the download is finished, it is there
        shutil.rmtree(folder)
        shutil.copytree(EMBEDDED_MODEL, folder)
        assert "error" not in listed(host)["half"]
        pixels = draw(host, model="half", mode="exact")
        assert len(pixels.data) == 1


@pytest.mark.parametrize("to", [0.0, 0.001, 0.5, 0.999])
def test_half_a_lora_or_controlnet_is_an_error_and_never_suggested(tmp_path: Path, to: float) -> None:
    lora = MODELS_FOLDER / "loras" / "emoji-pencil"
    net = MODELS_FOLDER / "controlnets" / "emoji-outline"
    shutil.copytree(lora, tmp_path / "loras" / "half-a-pencil")
    shutil.copytree(net, tmp_path / "nets" / "half-an-outline")
    for file in [*tmp_path.rglob("*.safetensors")]:
        cut(file, to)
    with running_host(files={"roots": [tmp_path]}) as host:
        expected = draw(host, mode="exact").data
        for command, path in (("lora.load", "loras/half-a-pencil"), ("controlnet.load", "nets/half-an-outline")):
            with pytest.raises(LatentwireError) as caught:
                asyncio.run(host.dispatch(command, {"name": "half", "path": path}, "test", lambda _: None))
            assert caught.value.code == "model_load_failed", caught.value
            assert str(tmp_path) not in caught.value.message
        assert host.store.brought("adapter") == host.store.brought("controlnet") == []
        for wrong in ("loras/half-a-pensil", "nets/half-an-outlin", "?"):
            with pytest.raises(InvalidParams) as refused:
                find(FileSettings(roots=[tmp_path]), wrong)
            assert "half-a" not in refused.value.message.replace(wrong, "")
        assert draw(host, mode="exact").data == expected
    assert is_whole(lora / next(lora.glob("*.safetensors")).name)
    assert is_whole(net)


def cached(cache: Path, files: list[str]) -> Path:
    """A snapshot in the hub's cache, with some of its files."""
    repository = cache / "models--someone--emoji"
    commit = "a" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    for name in files:
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(EMBEDDED_MODEL / name, snapshot / name)
    blobs = repository / "blobs"
    blobs.mkdir()
    (blobs / "3f2a.incomplete").write_bytes(b"half")
    return snapshot


def test_half_a_download_of_the_hub_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line went down in the middle, and is still down when the host is started again."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    everything = [str(file.relative_to(EMBEDDED_MODEL)) for file in EMBEDDED_MODEL.rglob("*") if file.is_file()]
    cached(tmp_path, [name for name in everything if not name.endswith(".safetensors")])
    models = {"mine": ModelSettings(hub="someone/emoji")}
    path = local_models(models)["mine"].path  # the hub's library takes what is there
    with running_host(models={"mine": {"path": path}}, files={"hub": True}) as host:
        assert "holds no .safetensors weights" in listed(host)["mine"]["error"]
        assert draw(host, model="mine").code == "model_load_failed"
        for command in ("lora.load", "controlnet.load"):
            params = {"name": "mine", "path": "someone/emoji"}
            with pytest.raises(LatentwireError) as caught:
                asyncio.run(host.dispatch(command, params, "test", lambda _: None))
            assert caught.value.code == "model_load_failed"
        assert len(draw(host).data) == 1
