"""Whether weights are all there: a download that was interrupted, or is still under way, is no model."""

from pathlib import Path

from .weights import open_weights, read_json

UNFINISHED = (".incomplete", ".part", ".crdownload", ".aria2", ".tmp")
"""What downloaders put behind the name of a file that they have not finished."""


def whole_weights(folder: Path) -> list[Path]:
    """The safetensors files of one module's folder, each of them whole. Reads no more than their headers.

    Raises:
        ValueError: some are missing, or only partly there.
        OSError: the folder cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder.name}")
    files = sorted(folder.glob("*.safetensors"))
    wanted = {name for index in folder.glob("*.safetensors.index.json") for name in _shards(index)}
    missing = sorted(wanted - {file.name for file in files})
    if missing:
        raise ValueError(
            f"{folder.name} lacks {len(missing)} of {len(wanted)} files of its weights, {missing[0]} first"
        )
    if not files:
        begun = sorted(file.name for file in folder.iterdir() if file.name.endswith(UNFINISHED))
        hint = f"; {begun[0]} is a download that was not finished" if begun else ""
        raise ValueError(f"{folder.name} holds no .safetensors weights{hint}")
    for file in files:
        with open_weights(file):
            pass
    return files


def is_whole(path: Path) -> bool:
    """Whether a file of weights, or a module's folder, is all there."""
    try:
        if path.is_dir():
            whole_weights(path)
        else:
            with open_weights(path):
                pass
    except (ValueError, OSError):
        return False
    return True


def _shards(index: Path) -> list[str]:
    """The files that an index names."""
    try:
        return [str(name) for name in read_json(index)["weight_map"].values()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index.name} is damaged: {type(error).__name__}: {error}") from error
