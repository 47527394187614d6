"""What the front end keeps at the host: its settings, and files such as workflows. It blocks: for worker threads."""

import json
import threading
from pathlib import Path
from typing import Any

from .asked import MAX_JSON, Refused, tellable
from .paths import below, make_folder, size_of, write

USER = "default"  # the one that there is
SETTINGS = "comfy.settings.json"
STYLE = "user.css"  # the front end asks for it, whether there is one or not
MAX_FILES = 10_000  # in a list


class UserData:
    """The files of one folder.

    Args:
        max_bytes: Of all of them together.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder / USER
        self._max_bytes = max_bytes
        self._lock = threading.Lock()

    def settings(self) -> dict[str, Any]:
        """All settings that are not as they come."""
        try:
            settings = tellable((self._folder / SETTINGS).read_bytes())
        except FileNotFoundError:
            return {}
        except (ValueError, RecursionError) as error:
            raise Refused(500, f"the file {SETTINGS} is damaged: {error!s:.100}; mend or remove it") from error
        return settings if isinstance(settings, dict) else {}

    def set(self, values: dict[str, Any]) -> None:
        """Change settings."""
        with self._lock:
            text = json.dumps(self.settings() | values, indent=4)
            if len(text) > MAX_JSON:
                raise Refused(413, f"the settings would have more than {MAX_JSON} letters, the limit")
            self._write(self._folder / SETTINGS, text.encode())

    def list_all(self, folder: str, recurse: bool) -> list[dict[str, Any]]:
        """The files of a folder; none where there is no such folder."""
        place = below(self._folder, folder)
        if not place.is_dir():
            return []
        found: list[dict[str, Any]] = []
        for path in place.rglob("*") if recurse else place.iterdir():
            if path.is_file() and path.suffix != ".part":
                found.append(self._info(path, place))
            if len(found) >= MAX_FILES:
                break
        return sorted(found, key=lambda row: str(row["path"]))

    def read(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            Refused: there is no such file.
        """
        if name == STYLE and not self._path(name).is_file():
            return b""
        return self._existing(name).read_bytes()

    def write(self, name: str, data: bytes, overwrite: bool) -> dict[str, Any]:
        """Keep a file; what is known of it.

        Raises:
            Refused: there is one, or there is no room.
        """
        path = self._path_to_write(name)
        with self._lock:
            if path.is_dir() or (path.exists() and not overwrite):
                raise Refused(409, f"there is a file {name!r:.80}")
            self._write(path, data)
            return self._info(path, self._folder)

    def delete(self, name: str) -> None:
        """Remove a file.

        Raises:
            Refused: there is no such file.
        """
        self._existing(name).unlink(missing_ok=True)

    def move(self, name: str, to: str, overwrite: bool) -> dict[str, Any]:
        """Call a file otherwise; what is known of it.

        Raises:
            Refused: there is no such file, or one of the new name.
        """
        source, target = self._existing(name), self._path_to_write(to)
        with self._lock:
            if target.is_dir() or (target.exists() and not overwrite):
                raise Refused(409, f"there is a file {to!r:.80}")
            make_folder(target.parent)
            source.replace(target)
            return self._info(target, self._folder)

    def _path(self, name: str) -> Path:
        path = below(self._folder, name)
        if path == self._folder:
            raise Refused(400, "a file needs a name")
        return path

    def _path_to_write(self, name: str) -> Path:
        path = self._path(name)
        if path == self._folder / SETTINGS:  # which must stay something that can be told to all
            raise Refused(409, "settings are changed by POST /settings")
        return path

    def _existing(self, name: str) -> Path:
        path = self._path(name)
        if not path.is_file():
            raise Refused(404, f"there is no file {name!r:.80}")
        return path

    def _write(self, path: Path, data: bytes) -> None:
        if size_of(self._folder) + len(data) > self._max_bytes:
            raise Refused(507, f"settings and workflows would have more than {self._max_bytes >> 20} MiB, the limit")
        write(path, data)

    def _info(self, path: Path, folder: Path) -> dict[str, Any]:
        status = path.stat()
        times = {"modified": round(status.st_mtime * 1000), "created": round(status.st_ctime * 1000)}
        return {"path": str(path.relative_to(folder)), "size": status.st_size, **times}
