"""Files of models from outside, opened with care: a file's header is looked at before any library parses it.

What is checked is the very file that is opened, whatever its name points to by then. Whoever may write into the host's
folders can still change its bytes meanwhile, or those of files that the libraries open by their names.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 20_000
MAX_TENSOR_NAME = 1_000  # letters
MAX_NOTES = 20_000  # entries of a file's metadata
MAX_NUMBERS_BYTES = 4 << 20  # of a header, outside of its texts: shapes and offsets
MAX_SHAPE_BYTES = 1_000  # of them, between two texts
MAX_ESCAPES = 2 << 20  # in the texts of a file's metadata; JSON within JSON has many
MAX_QUOTES = 8 * MAX_TENSORS + 4 * MAX_NOTES  # quotation marks around a header's texts
MAX_JSON_BYTES = 4 << 20


def open_regular(file: Path) -> BinaryIO:
    """Open a file for reading; what could block for ever or never end (a pipe, a device) is refused.

    Raises:
        ValueError: it is no regular file.
        OSError: it cannot be read.
    """
    stream = os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0)
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise ValueError(f"{file.name} is no file")
    return stream


def open_weights(file: Path) -> Any:
    """Open a safetensors file, whatever its name says, whose header is not absurdly large; a context manager.

    Raises:
        ValueError: it is no such file, it is damaged, or it holds too much.
        OSError: it cannot be read.
    """
    with open_regular(file) as stream:
        _check_header(file.name, stream)
        try:
            opened = safe_open(f"/proc/self/fd/{stream.fileno()}", framework="pt")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file.name} is damaged or no safetensors file: {error!s:.200}") from error
    names: list[str] = opened.keys()  # type: ignore[no-untyped-call]
    if len(names) > MAX_TENSORS:
        raise ValueError(f"{file.name} holds {len(names)} tensors; at most {MAX_TENSORS} are looked at")
    if any(len(name) > MAX_TENSOR_NAME for name in names):
        raise ValueError(f"{file.name} has a tensor whose name is longer than {MAX_TENSOR_NAME} letters")
    return opened


def read_weights(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of a safetensors file, and its metadata; in a worker thread.

    Raises:
        ValueError, OSError: as `open_weights`.
    """
    with open_weights(file) as opened:
        names = opened.keys()
        return {name: opened.get_tensor(name) for name in names}, dict(opened.metadata() or {})


def read_json(file: Path) -> dict[str, Any]:
    """The map that a JSON file holds.

    Raises:
        ValueError: it holds something else, or too much.
        OSError: it cannot be read.
    """
    with open_regular(file) as stream:
        text = stream.read(MAX_JSON_BYTES + 1)
    return parse_json(text, file.name)


def parse_json(text: bytes | str, name: str) -> dict[str, Any]:
    """The map that a JSON text from outside holds.

    Raises:
        ValueError: it holds something else, or too much.
    """
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"{name} is longer than {MAX_JSON_BYTES >> 20} MiB")
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deep") from error
    except ValueError as error:
        raise ValueError(f"{name} is no JSON: {error!s:.200}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{name} holds no map")
    return content


def _check_header(name: str, stream: BinaryIO) -> None:
    """Make sure that parsing a file's header takes neither long nor much memory, by counting what it is made of."""
    size = os.fstat(stream.fileno()).st_size
    start = stream.read(8)
    length = int.from_bytes(start, "little")
    if MAX_HEADER_BYTES < length < size:
        raise ValueError(
            f"the header of {name} is {length >> 20} MiB long; at most {MAX_HEADER_BYTES >> 20} MiB are read"
        )
    if len(start) < 8 or length > MAX_HEADER_BYTES or 8 + length > size:
        if start.startswith((b"PK\3\4", b"\x80")):
            raise ValueError(f"{name} is no safetensors file: it is a pickle, which could run any code")
        raise ValueError(f"{name} is damaged or no safetensors file")
    header, quotes, escapes = bytearray(), 0, 0
    while len(header) < length:
        piece = stream.read(min(1 << 20, length - len(header)))
        quotes += piece.count(b'"')
        escapes += piece.count(b"\\")
        if escapes > MAX_ESCAPES:
            raise ValueError(f"the header of {name} has more than {MAX_ESCAPES} backslashes")
        if quotes - escapes > MAX_QUOTES:
            raise ValueError(f"the header of {name} has more than {MAX_TENSORS} tensors or {MAX_NOTES} notes")
        header += piece or bytes(length - len(header))  # it has got shorter since
    if escapes:  # what is left of the quotation marks begins or ends a text
        header = header.replace(b"\\\\", b"").replace(b'\\"', b"")
        if header.count(b'"') > MAX_QUOTES:
            raise ValueError(f"the header of {name} has more than {MAX_TENSORS} tensors or {MAX_NOTES} notes")
    outside = header.split(b'"')[::2]
    del header
    if max(map(len, outside)) > MAX_SHAPE_BYTES:
        raise ValueError(f"{name} is damaged or no safetensors file: a shape takes more than {MAX_SHAPE_BYTES} bytes")
    if sum(map(len, outside)) > MAX_NUMBERS_BYTES:
        raise ValueError(f"the header of {name} has more than {MAX_NUMBERS_BYTES >> 20} MiB outside of its texts")
    if sum(part.count(b"{") for part in outside) > MAX_TENSORS + 2:
        raise ValueError(f"{name} holds more than {MAX_TENSORS} tensors, which is as many as are looked at")
