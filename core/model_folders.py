"""Folders with a model's component, looked through before a library opens what is in them by itself.

The libraries follow more than the weights: an index names the files that it is split into, in any format and anywhere;
a config may name another model in place of this one, code to fetch, or ways to unpack it.
"""

from pathlib import Path
from typing import Any

from .weights import open_regular, open_weights, read_json

MAX_TABLE_BYTES = 64 << 20  # of a tokenizer's tables, which its own library reads
TABLES = {"tokenizer.json", "vocab.json", "merges.txt"}
REDIRECTING = ("auto_map", "custom_pipelines", "quantization_config", "attn_implementation", "_attn_implementation")
TABLE_NAMES = ("vocab_file", "merges_file", "tokenizer_file", "spm_file")


def check_folder(folder: Path) -> None:
    """Make sure that a library that opens a component's folder reads nothing but safetensors and small configs in it.

    Raises:
        ValueError: it would read something else.
        OSError: a file cannot be read.
    """
    for file in folder.iterdir():
        if file.is_dir():
            continue
        if file.name == "adapter_config.json":
            raise ValueError("its adapter_config.json names another model in place of this one")
        if file.suffix == ".safetensors":
            with open_weights(file):  # says better what is wrong than the libraries do
                pass
        elif file.name in TABLES:
            with open_regular(file) as stream:
                if stream.seek(0, 2) > MAX_TABLE_BYTES:
                    raise ValueError(f"{file.name} is longer than {MAX_TABLE_BYTES >> 20} MiB")
        elif file.name.endswith(".index.json"):
            _check_index(file, read_json(file))
        elif file.suffix == ".json":
            _check_config(file.name, read_json(file))
        else:
            open_regular(file).close()


def _check_index(file: Path, index: dict[str, Any]) -> None:
    shards = index.get("weight_map")
    if not isinstance(shards, dict):
        raise ValueError(f"{file.name} has no weight_map")
    there = {other.name for other in file.parent.glob("*.safetensors")}
    for shard in shards.values():
        if not isinstance(shard, str) or shard not in there:
            raise ValueError(f"{file.name} names {shard!r:.80}, which is no .safetensors file beside it")


def _check_config(name: str, config: dict[str, Any]) -> None:
    for key in REDIRECTING:
        if config.get(key) not in (None, {}, [], "eager", "sdpa"):
            raise ValueError(f"{name} has {key}, which this host does not follow")
    for key in TABLE_NAMES:
        path = config.get(key)
        if path is not None and (not isinstance(path, str) or path.removeprefix("./") not in TABLES):
            raise ValueError(f"{name} has the {key} {path!r:.80}, which is none of {', '.join(sorted(TABLES))}")
