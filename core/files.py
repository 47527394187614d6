"""Where weights that clients name may come from: the configured folders, and the hub where the owner allowed it."""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from .errors import InvalidParams, SettingsError
from .settings import MODELS_FOLDER, FileSettings, ModelSettings
from .whole import is_whole

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
WEIGHTS = ["*.json", "*.safetensors"]
MODEL = ["*.json", "*/*.txt", "*/*.safetensors"]  # not what lies beside the folders: the same as one large file
VARIANTS = ["*.fp16.*", "*.non_ema.*", "*onnx*", "*flax*", "*openvino*"]


def find(files: FileSettings, name: str, field: str = "path") -> Path:
    """The file or folder that a client means; blocks while the hub is asked.

    Args:
        name: A path below one of the roots, relative to it or absolute; or a hub id.
        field: Of the client's params, for the error.

    Raises:
        InvalidParams: it leads out of the roots, or there is nothing.
    """
    roots = _roots(files)
    if not name or "\0" in name:
        raise _refused(name, field, "a path must not be empty or hold NUL")
    try:
        candidates = [_resolved(root / name) for root in roots]  # an absolute name stays what it is
    except (OSError, RuntimeError) as error:
        raise _refused(name, field, f"{name!r:.200} is no path: {error}") from error
    for path in candidates:
        if _inside(path, roots) and _exists(path):
            return path
    linked = any(_exists(root / name) for root in roots)  # there, and yet not inside
    if files.hub and HUB_ID.fullmatch(name) and not linked:
        return _from_hub(name, field)
    if linked or not any(_inside(path, roots) for path in candidates):
        raise _refused(name, field, f"{name!r:.200} leads out of the host's folders; name a path below files.roots")
    raise _refused(name, field, f"there is no {name!r:.200} in the host's folders; {_nearest(name, roots)}")


def lying_in(files: FileSettings, folders: Collection[str]) -> dict[str, str]:
    """What a client may name without knowing where it is: the weights right below roots' folders of these names.

    Returns:
        What `find` takes, by the name of the file or folder; of two that have one name, the one in the earlier root.
    """
    roots = _roots(files)
    found: dict[str, str] = {}
    for root in roots:
        for folder in (root, *_listed(root)):
            if folder.name in folders and _stays_inside(folder, roots):
                within = "" if folder == root else f"{folder.name}/"
                for name in _weights_in(folder, folder.stat().st_mtime_ns, roots):
                    found.setdefault(name, within + name)
    return found


@lru_cache(maxsize=64)
def _weights_in(folder: Path, changed_ns: int, roots: Sequence[Path]) -> list[str]:
    """Weights in a folder, as it is since its last change: a list of thousands must not be made for each request."""
    inside = (path for path in _listed(folder) if _stays_inside(path, roots))
    return [path.name for path in inside if path.suffix == ".safetensors" or _holds_weights(path)]


def check_inside(files: FileSettings, file: Path) -> None:
    """Make sure that a file lies, links followed, in a root, or in the hub's cache where that is allowed.

    Raises:
        InvalidParams: it does not.
    """
    roots = _roots(files)
    if files.hub:
        from huggingface_hub.constants import HF_HUB_CACHE

        roots += (Path(HF_HUB_CACHE).resolve(),)
    if not _stays_inside(file, roots):
        raise _refused(file.name, "path", f"{file.name!r:.200} leads out of the host's folders")


def _roots(files: FileSettings) -> tuple[Path, ...]:
    """The folders that weights may come from, links followed."""
    return tuple(root.resolve() for root in (MODELS_FOLDER, *files.roots))


def _resolved(path: Path) -> Path:
    """A path, all links followed.

    Raises:
        OSError, RuntimeError: they run in a circle; what stands behind such a one, pathlib leaves as it is.
    """
    resolved = path.resolve()
    if resolved.resolve() != resolved:
        raise RuntimeError("its links run in a circle")
    return resolved


def _inside(path: Path, roots: Iterable[Path]) -> bool:
    return any(path.is_relative_to(root) for root in roots)


def _stays_inside(path: Path, roots: Iterable[Path]) -> bool:
    """Whether it lies in a root, links followed."""
    try:
        return _inside(_resolved(path), roots)
    except (OSError, RuntimeError):
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long
        return False


def _nearest(name: str, roots: Sequence[Path]) -> str:
    """What a client could have meant: the weights two levels down that are all there, but for parts of whole models."""
    found = []
    for root in roots:
        for folder in (folder for folder in _listed(root) if _stays_inside(folder, roots)):
            whole_model = _exists(folder / "model_index.json")
            for path in (path for path in _listed(folder) if _stays_inside(path, roots)):
                weights = path.suffix == ".safetensors" or (not whole_model and _holds_weights(path))
                if weights and is_whole(path):
                    found.append(str(path.relative_to(root)))
    near = difflib.get_close_matches(name[:200], found, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(found)[:20]) or 'none'}"


def _listed(folder: Path) -> list[Path]:
    """What lies in a folder; nothing where there is no folder, or none that may be read: links may lead anywhere."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _holds_weights(folder: Path) -> bool:
    return any(file.suffix == ".safetensors" for file in _listed(folder))


def local_models(models: Mapping[str, ModelSettings]) -> dict[str, ModelSettings]:
    """The models, those from the hub downloaded, with a progress bar in the terminal.

    Raises:
        SettingsError: the hub does not give one, and it is not here from an earlier time.
    """
    local = {}
    for name, model in models.items():
        if model.hub is None:
            local[name] = model
            continue
        try:
            path = _download(model.hub, MODEL)
        except Exception as error:
            raise SettingsError(f"models.{name}.hub: the hub gives no {model.hub!r}: {error!s:.300}") from error
        local[name] = model.model_copy(update={"path": path})
    return local


def _from_hub(name: str, field: str) -> Path:
    try:
        return _download(name, WEIGHTS)
    except Exception as error:
        raise _refused(name, field, f"the hub gives no {name!r}: {type(error).__name__}: {error!s:.300}") from error


def _download(hub_id: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download  # takes a while to import, and few need it

    return Path(snapshot_download(hub_id, allow_patterns=patterns, ignore_patterns=VARIANTS))


def _refused(name: str, field: str, message: str) -> InvalidParams:
    return InvalidParams(message, [{"path": [field], "message": message, "got": name[:200]}])
