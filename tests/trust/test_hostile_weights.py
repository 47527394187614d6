"""Weights and configs that are made to do harm: each is refused, quickly, and nothing of it is ever run or followed."""

import asyncio
import json
import os
import pickle
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from time import thread_time
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from transformers import CLIPTextModel

from latentwire import Host, read_json, read_module, read_weights
from latentwire.core import weights
from latentwire.core.errors import LatentwireError
from latentwire.core.model_store import ModelStore
from latentwire.core.settings import MODELS_FOLDER, ModelSettings
from latentwire.core.weights import MAX_TENSORS, open_weights

from ..conftest import running_host
from . import audit
from .hostile_weights import Harmful, file_of, hostile_files, odd_paths, tensor

MIB = 1 << 20
FILES = hostile_files()
EMOJI = MODELS_FOLDER / "emoji"


@pytest.fixture(autouse=True)
def nothing_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `Harmful` would do, were it unpickled, has not been done."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_within_100_ms_and_64_mib(name: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.safetensors"
    file.write_bytes(FILES[name])
    times = []
    for _ in range(5):
        begin = thread_time()
        with pytest.raises(ValueError, match=r"bad\.safetensors") as caught:
            open_weights(file)
        times.append(thread_time() - begin)
        assert len(str(caught.value)) < 500
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"bad\.safetensors"):
        read_weights(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert min(times) <= 0.100
    assert peak <= 64 * MIB


def test_the_library_too_stays_within_64_mib(tmp_path: Path) -> None:
    """The process's peak, in one of its own: the library's memory is none of Python's."""
    for number, (name, data) in enumerate(FILES.items()):
        (tmp_path / f"{number:02} {name.replace('/', '')}.safetensors").write_bytes(data)
    script = """
import sys
from pathlib import Path
from latentwire.core.weights import open_weights
def resident(field):
    return 1024 * int(Path("/proc/self/status").read_text().partition(field + ":")[2].split()[0])
for file in sorted(Path(sys.argv[1]).iterdir()):
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    try:
        open_weights(file)
    except ValueError:
        print((resident("VmHWM") - before) >> 20, file.name)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == len(FILES)
    assert [line for line in lines if int(line.split()[0]) > 64] == []


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    for name, path in odd_paths(tmp_path).items():
        for read in (open_weights, read_weights, read_json):
            with pytest.raises((ValueError, OSError)) as caught:
                read(path)
            assert str(caught.value), name
    audit.violations.clear()  # it was this test that named files of elsewhere


def test_honest_files_are_read_however_much_their_notes_quote(tmp_path: Path) -> None:
    file = tmp_path / "good.safetensors"
    tags = json.dumps({f'"{n}", [{{' * 3: n for n in range(30_000)})
    save_file({f"t{n}": torch.full((1, 1, 1, 1), float(n)) for n in range(MAX_TENSORS)}, file, {"tags": tags})
    tensors, notes = read_weights(file)
    assert len(tensors) == MAX_TENSORS
    assert tensors["t7"].item() == 7
    assert notes == {"tags": tags}


def test_a_file_is_what_was_checked_even_where_its_name_is_given_to_another_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad, link = (tmp_path / f"{name}.safetensors" for name in ("good", "bad", "link"))
    save_file({"a": torch.ones(1)}, good)
    bad.write_bytes(FILES["20,001 tensors"])
    link.symlink_to(good)
    check = weights._check_header

    def swap(name: str, stream: Any) -> None:
        check(name, stream)
        link.unlink()
        link.symlink_to(bad)

    monkeypatch.setattr(weights, "_check_header", swap)
    tensors, _ = read_weights(link)
    assert list(tensors) == ["a"]


CONFIGS: dict[str, bytes] = {
    "nested too deep": b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "too long": b'{"a": "' + b"x" * (5 * MIB) + b'"}',
    "a list": b"[1, 2]",
    "a number of 10,000 digits": b'{"a": ' + b"9" * 10_000 + b"}",
    "bad UTF-8": b'{"a": "\xff"}',
    "cut off": b'{"a": ',
    "empty": b"",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hostile_config_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(CONFIGS[name])
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"config\.json"):
        read_json(tmp_path / "config.json")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 64 * MIB


def pickled_shards(folder: Path) -> None:
    """An index that leads to a pickle, as the libraries would load it."""
    weights = next(folder.glob("*.safetensors"))
    (folder / "evil.bin").write_bytes(FILES["a zip, as torch.save writes"])
    index = {"metadata": {}, "weight_map": {"a": "evil.bin"}}
    weights.with_suffix(".safetensors.index.json").write_text(json.dumps(index))
    weights.unlink()


def shards_elsewhere(folder: Path) -> None:
    weights = next(folder.glob("*.safetensors"))
    (folder.parent / "secret.safetensors").write_bytes(weights.read_bytes())
    index = {"metadata": {}, "weight_map": {"a": "../secret.safetensors"}}
    weights.with_suffix(".safetensors.index.json").write_text(json.dumps(index))
    weights.unlink()


def another_base(folder: Path) -> None:
    other = {"base_model_name_or_path": str(EMOJI / "vae"), "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(other))


def in_config(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def only_a_pickle(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.unlink()
    for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin", "model.ckpt"):
        (folder / name).write_bytes(FILES["a zip, as torch.save writes"])


def a_pickle_by_another_name(folder: Path) -> None:
    next(folder.glob("*.safetensors")).write_bytes(FILES["a zip, as torch.save writes"])


def a_pipe(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


HOSTILE_FOLDERS = [
    pickled_shards,
    shards_elsewhere,
    another_base,
    in_config(auto_map={"AutoModel": "evil.Model"}),
    in_config(quantization_config={"quant_method": "torchao"}),
    in_config(attn_implementation="someone/kernel"),
    only_a_pickle,
    a_pickle_by_another_name,
    a_pipe,
]


@pytest.mark.parametrize("kind", [AutoencoderKL, CLIPTextModel])
@pytest.mark.parametrize("change", HOSTILE_FOLDERS, ids=lambda change: change.__qualname__.split(".")[0])
def test_a_folder_that_leads_a_library_elsewhere_is_refused(
    kind: Any, change: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = tmp_path / "part"
    shutil.copytree(EMOJI / ("vae" if kind is AutoencoderKL else "text_encoder"), folder)
    read_module(kind, folder)
    change(folder)
    (folder / "evil.py").write_text("open('owned', 'w')\nclass Model: pass\n")
    with pytest.raises((ValueError, OSError)):
        read_module(kind, folder)


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("unet", ["evil", "Model"]),
        ("unet", ["os", "system"]),
        ("unet", ["diffusers", "DiffusionPipeline"]),
        ("unet", ["diffusers", "utils"]),
        ("unet", ["transformers", "AutoModel"]),
        ("unet", [["diffusers"], "UNet2DConditionModel"]),
        ("unet", ["diffusers", "__import__"]),
        ("tokenizer", ["transformers", "AutoTokenizer"]),
        ("tokenizer", ["builtins", "eval"]),
        ("text_encoder", ["diffusers_modules.local.evil", "Model"]),
    ],
)
def test_an_index_that_names_other_code_loads_none(part: str, named: list[Any], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EMOJI, folder)
    for place in (folder, folder / part, tmp_path):
        (place / "evil.py").write_text("open('owned', 'w')\nclass Model: pass\n")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {part: named}))
    store = ModelStore({"bad": ModelSettings(path=folder)}, torch.device("cpu"))
    with pytest.raises(LatentwireError), store.leased("bad"):
        pass
    assert "evil" not in sys.modules


def test_a_tokenizer_reads_no_tables_of_other_places(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EMOJI, folder)
    file = folder / "tokenizer" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_file": "/etc/passwd"}))
    store = ModelStore({"bad": ModelSettings(path=folder)}, torch.device("cpu"))
    with pytest.raises(LatentwireError, match="vocab_file"), store.leased("bad"):
        pass


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def host(root: Path) -> Iterator[Host]:
    with running_host(files={"roots": [root]}) as host:
        host.warm_up()
        yield host


def refused(host: Host, command: str, **params: Any) -> LatentwireError:
    with pytest.raises(LatentwireError) as caught:
        asyncio.run(host.dispatch(command, params, "me", lambda _: None))
    return caught.value


def test_no_hostile_file_comes_in_by_a_command_and_the_host_goes_on(host: Host, root: Path) -> None:
    for number, (name, data) in enumerate(FILES.items()):
        file = root / f"bad{number}.safetensors"
        file.write_bytes(data)
        for command, key in (("lora.load", "path"), ("controlnet.load", "lora_weights_path")):
            error = refused(host, command, **{key: file.name})
            assert error.code == "model_load_failed", (name, error)
            assert len(error.message) < 600
            assert str(root) not in error.message
        file.unlink()
    places = [("lora.load", "path"), ("controlnet.load", "lora_weights_path"), ("controlnet.load", "path")]
    for name, path in odd_paths(root).items():
        for command, key in places:
            error = refused(host, command, **{key: path.name})
            assert error.code in ("model_load_failed", "invalid_params"), (name, error)
    for name in ("evil.bin", "evil.ckpt", "evil.pt", "evil.pth", "evil.pkl"):
        (root / name).write_bytes(FILES["a zip, as torch.save writes"])
        assert refused(host, "lora.load", path=name).code == "model_load_failed"
        assert refused(host, "controlnet.load", lora_weights_path=name).code == "model_load_failed"
    assert asyncio.run(host.dispatch("lora.list", {}, "me", lambda _: None))["loras"] == []


def test_a_config_beside_a_lora_is_read_with_care(host: Host, root: Path, tmp_path: Path) -> None:
    folder = root / "beside"
    shutil.copytree(MODELS_FOLDER / "loras" / "emoji-pencil", folder)
    config = folder / "adapter_config.json"
    for data in CONFIGS.values():
        config.write_bytes(data)
        assert refused(host, "lora.load", path="beside").code == "model_load_failed"
    config.unlink()
    config.symlink_to("/etc/passwd")
    assert "leads out" in refused(host, "lora.load", path="beside").message
    config.unlink()
    os.mkfifo(config)
    asyncio.run(host.dispatch("lora.load", {"path": "beside", "name": "fine"}, "me", lambda _: None))  # not looked at
    asyncio.run(host.dispatch("lora.unload", {"name": "fine"}, "me", lambda _: None))


def test_harmful_would_do_harm(tmp_path: Path) -> None:
    """The tests above can fail."""
    pickle.loads(pickle.dumps(Harmful())).close()
    (tmp_path / "owned").unlink()
    (tmp_path / "good.safetensors").write_bytes(file_of({"a": tensor()}, b"\0\0\0\0"))
    assert list(read_weights(tmp_path / "good.safetensors")[0]) == ["a"]
