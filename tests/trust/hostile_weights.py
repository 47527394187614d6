"""Files that pretend to be safetensors, and folders that pretend to be models."""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

MIB = 1 << 20


class Harmful:
    """Unpickled, it would leave a file `owned` in the working directory."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, ("owned", "w")


def file_of(header: bytes | str | dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with that header, whatever it holds."""
    text = json.dumps(header) if isinstance(header, dict) else header
    text = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(begin: int = 0, end: int = 4, dtype: Any = "F32", shape: Any = (1,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("archive/data.pkl", pickle.dumps(Harmful()))
    return file.getvalue()


def hostile_files() -> dict[str, bytes]:
    """By what is wrong with each; none may be read."""
    most = 16 * MIB
    many = {f"t{n}": tensor(4 * n, 4 * n + 4) for n in range(20_001)}
    one = json.dumps(tensor())
    whole = b"\0" * 4
    return {
        "empty": b"",
        "seven bytes": b"\0" * 7,
        "a pickle": pickle.dumps(Harmful()),
        "an old pickle": b"\x80\x02" + pickle.dumps(Harmful(), 2)[2:],
        "a zip, as torch.save writes": _zip(),
        "a page": b"<!DOCTYPE html><html></html>",
        "no header": struct.pack("<Q", 0),
        "a header longer than the file": file_of({"a": tensor()}, whole, length=10_000),
        "a header of 2^64-1 bytes": file_of({"a": tensor()}, whole, length=2**64 - 1),
        "a header of 2^63 bytes": file_of({"a": tensor()}, whole, length=2**63),
        "a header of 17 MiB": file_of("{" + " " * 17 * MIB + "}", b"\0" * MIB),
        "16 MiB of metadata keys": file_of(
            '{"__metadata__":{' + ",".join(f'"{n}":""' for n in range(1_300_000)) + "}}"
        ),
        "16 MiB of equal metadata keys": file_of('{"__metadata__":{' + '"":"",' * (most // 6 - 9) + '"":""}}'),
        "16 MiB of quotation marks": file_of('{"' + '"' * (most - 2)),
        "16 MiB of escaped quotation marks": file_of('{"a' + '\\"' * (most // 2 - 2)),
        "16 MiB of backslashes": file_of('{"a' + "\\" * (most - 8) + '"}'),
        "16 MiB of brackets": file_of('{"a":' + "[" * (most - 5)),
        "16 MiB of braces": file_of('{"a":' * (most // 5)),
        "16 MiB of blanks": file_of("{" + " " * (most - 2) + "]"),
        "16 MiB of commas": file_of("{" + "," * (most - 2) + "}"),
        "a shape of a million numbers": file_of({"a": tensor(shape=[1] * 1_000_000)}, whole),
        "a shape of eight million numbers": file_of('{"a":{"dtype":"F32","shape":[' + "1," * (most // 2 - 99) + "1]}}"),
        "a shape that multiplies beyond all bounds": file_of({"a": tensor(shape=[2**40] * 4)}, whole),
        "a negative shape": file_of({"a": tensor(shape=[-1])}, whole),
        "a shape of fractions": file_of({"a": tensor(shape=[0.5])}, whole),
        "lists in lists": file_of('{"a":' + "[" * 5_000 + "]" * 5_000 + "}"),
        "maps in maps": file_of('{"a":' * 5_000 + "1" + "}" * 5_000),
        "overlapping tensors": file_of({"a": tensor(0, 4), "b": tensor(2, 6)}, bytes(6)),
        "a hole between tensors": file_of({"a": tensor(0, 4), "b": tensor(8, 12)}, bytes(12)),
        "a name twice": file_of(f'{{"a":{one},"a":{one}}}', bytes(8)),
        "tensors behind the file's end": file_of({"a": tensor(0, 400, shape=[100])}, whole),
        "more bytes than tensors": file_of({"a": tensor()}, bytes(400)),
        "offsets beyond 2^64": file_of(f'{{"a":{{"dtype":"F32","shape":[1],"data_offsets":[0,{2**70}]}}}}', whole),
        "negative offsets": file_of({"a": tensor(-4, 0)}, whole),
        "offsets that run backwards": file_of({"a": tensor(4, 0)}, whole),
        "an unknown dtype": file_of({"a": tensor(dtype="PICKLE")}, whole),
        "a dtype that is a list": file_of({"a": tensor(dtype=["F32"])}, whole),
        "a tensor that is a number": file_of({"a": 5}, whole),
        "metadata that is a list": file_of({"__metadata__": [1, 2], "a": tensor()}, whole),
        "metadata of numbers": file_of({"__metadata__": {"a": 1}, "a": tensor()}, whole),
        "a header that is a list": file_of("[1,2,3]", whole),
        "a header that is no JSON": file_of("{'a': None}", whole),
        "a header of bad UTF-8": file_of(b'{"\xff\xfe":1}', whole),
        "20,001 tensors": file_of(many, bytes(4 * 20_001)),
        "200,000 tensors": file_of("{" + ",".join(f'"{n}":{one}' for n in range(200_000)) + "}", whole),
        "a name of 1 MiB": file_of({"a" * MIB: tensor()}, whole),
        "fifteen names of 1 MiB": file_of({chr(97 + n) * MIB: tensor(4 * n, 4 * n + 4) for n in range(15)}, bytes(60)),
    }


def odd_paths(folder: Path) -> dict[str, Path]:
    """Things that are no files at all, each with the right suffix; opening some the usual way would never end."""
    pipe, there = folder / "pipe.safetensors", folder / "folder.safetensors"
    os.mkfifo(pipe)
    there.mkdir()
    links = {"zero": "/dev/zero", "null": "/dev/null", "random": "/dev/urandom", "mem": "/proc/self/mem"}
    links |= {"status": "/proc/self/status", "maps": "/proc/self/maps", "tty": "/dev/tty", "loop": "loop.safetensors"}
    paths = {"a pipe": pipe, "a folder": there, "nothing": folder / "nothing.safetensors"}
    for name, target in links.items():
        link = folder / f"{name}.safetensors"
        link.symlink_to(target)
        paths[f"a link to {target}"] = link
    return paths
