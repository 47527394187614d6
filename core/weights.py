"""Safetensors files from outside, opened with care."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 20_000


def open_weights(file: Path) -> Any:
    """Open a safetensors file, whatever its name says, whose header is not absurdly large; a context manager.

    Raises:
        ValueError: it is no such file, it is damaged, or it holds too much.
        OSError: it cannot be read.
    """
    with file.open("rb") as stream:
        start = stream.read(8)
    size = int.from_bytes(start, "little")
    if MAX_HEADER_BYTES < size < file.stat().st_size:
        limit = MAX_HEADER_BYTES >> 20
        raise ValueError(f"the header of {file.name} is {size >> 20} MiB long; at most {limit} MiB are read")
    if len(start) < 8 or size > MAX_HEADER_BYTES:
        pickled = start.startswith((b"PK\3\4", b"\x80"))
        hint = ": it is a pickle, which could run any code" if pickled else ""
        raise ValueError(f"{file.name} is no safetensors file{hint}")
    try:
        opened = safe_open(file, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{file.name} is damaged or no safetensors file: {error}") from error
    names: list[str] = opened.keys()  # type: ignore[no-untyped-call]
    if len(names) > MAX_TENSORS:
        raise ValueError(f"{file.name} holds {len(names)} tensors; at most {MAX_TENSORS} are looked at")
    return opened


def read_weights(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of a safetensors file, and its metadata; in a worker thread.

    Raises:
        ValueError, OSError: as `open_weights`.
    """
    with open_weights(file) as opened:
        names = opened.keys()
        return {name: opened.get_tensor(name) for name in names}, dict(opened.metadata() or {})
