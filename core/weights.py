"""Safetensors files from outside, read with care: the header is checked before any library sees it."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

MAX_HEADER = 16 << 20  # bytes
MAX_TENSORS = 20_000


def read_header(file: Path) -> dict[str, Any]:
    """A safetensors file's header: name -> dtype, shape and place; `__metadata__` holds texts.

    Raises:
        ValueError: it is no whole safetensors file, whatever its name says, or its header is beyond all measure.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > max(size - 8, 0) or length > MAX_HEADER:
            raise ValueError(f"{file.name} is no safetensors file, or a truncated one ({size} bytes)")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise ValueError(f"{file.name} is no safetensors file: its header is no JSON") from error
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise ValueError(f"{file.name} is no safetensors file that this host reads: more than {MAX_TENSORS} tensors")
    ends = [entry.get("data_offsets", (0, 0))[1] for name, entry in header.items() if name != "__metadata__"]
    if size < 8 + length + max(ends, default=0):
        raise ValueError(f"{file.name} is truncated: {size} bytes of {8 + length + max(ends)}")
    return header


def read_weights(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of a safetensors file, and its metadata; in a worker thread.

    Raises:
        ValueError: as `read_header`.
    """
    read_header(file)
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, dict(opened.metadata() or {})  # noqa: SIM118
