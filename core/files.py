"""Where weights that clients name may come from: the configured folders, and the hub where the owner allowed it."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from .errors import InvalidParams
from .settings import MODELS_FOLDER, FileSettings

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
WEIGHTS = ["*.json", "*.txt", "*.safetensors"]


def find(files: FileSettings, name: str, field: str = "path") -> Path:
    """The file or folder that a client means; blocks while the hub is asked.

    Args:
        name: A path below one of the roots, relative to it or absolute; or a hub id.
        field: Of the client's params, for the error.

    Raises:
        InvalidParams: it leads out of the roots, or there is nothing.
    """
    roots = [root.resolve() for root in (MODELS_FOLDER, *files.roots)]
    if not name or "\0" in name:
        raise _refused(name, field, "a path must not be empty or hold NUL")
    try:
        candidates = [(root / name).resolve() for root in roots]  # an absolute name stays what it is
    except (OSError, RuntimeError) as error:
        raise _refused(name, field, f"{name!r:.200} is no path: {error}") from error
    inside = [path for path in candidates if any(path.is_relative_to(root) for root in roots)]
    for path in inside:
        if _exists(path):
            return path
    if files.hub and HUB_ID.fullmatch(name):
        return _from_hub(name, field)
    if not inside:
        raise _refused(name, field, f"{name!r:.200} leads out of the host's folders; name a path below files.roots")
    raise _refused(name, field, f"there is no {name!r:.200} in the host's folders; {_nearest(name, roots)}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long
        return False


def _nearest(name: str, roots: Iterable[Path]) -> str:
    """What a client could have meant: the weights two levels down, but for parts of whole models."""
    found = {str(file.relative_to(root)): file for root in roots for file in root.glob("*/*.safetensors")}
    found |= {
        str(file.parent.relative_to(root)): file.parent for root in roots for file in root.glob("*/*/*.safetensors")
    }
    names = [name for name, path in found.items() if not (path.parent / "model_index.json").exists()]
    near = difflib.get_close_matches(name[:200], names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(names)[:20]) or 'none'}"


def _from_hub(name: str, field: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=WEIGHTS))
    except Exception as error:
        raise _refused(name, field, f"the hub gives no {name!r}: {type(error).__name__}: {error!s:.300}") from error


def _refused(name: str, field: str, message: str) -> InvalidParams:
    return InvalidParams(message, [{"path": [field], "message": message, "got": name[:200]}])
