"""Graphs that have run and what came of them, in one SQLite file; bounded. All of it blocks: it is for worker threads.

An entry that a client deletes is only taken off the list: its pictures stay where they are, as with the original, until
the bounds want their room.
"""

import json
import math
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentwire import PluginError

from .pictures import Stored

VERSION = 1
PAGE_SIZE = 4 << 20  # letters of a list

SCHEMA = """
CREATE TABLE IF NOT EXISTS prompts (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL,
    listed INTEGER NOT NULL DEFAULT 1,
    number REAL NOT NULL,
    created INTEGER NOT NULL,
    begun INTEGER,
    ended INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    graph TEXT NOT NULL,
    extra TEXT NOT NULL,
    targets TEXT NOT NULL,
    outputs TEXT NOT NULL,
    messages TEXT NOT NULL,
    error TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS prompts_listed ON prompts (listed, place);
"""

MAPS = ("graph", "extra", "targets", "outputs", "messages", "error")
COLUMNS = ("id", "status", "number", "created", "begun", "ended", "bytes", *MAPS)


@dataclass(frozen=True)
class Entry:
    """A graph that has run; times in milliseconds since 1970."""

    id: str
    status: str  # completed, failed or cancelled
    number: float
    created: int
    begun: int | None
    ended: int
    bytes: int
    graph: dict[str, Any]
    extra: dict[str, Any]
    targets: list[str]
    outputs: dict[str, Any]
    messages: list[Any]
    error: dict[str, Any] | None

    @property
    def row(self) -> dict[str, Any]:
        """As `/history` has it."""
        said = "success" if self.status == "completed" else "error"
        return {
            "prompt": [self.number, self.id, self.graph, self.extra, self.targets],
            "outputs": self.outputs,
            "status": {"status_str": said, "completed": self.status == "completed", "messages": self.messages},
            "meta": {node: {"node_id": node, "display_node": node, "parent_node": None} for node in self.outputs},
        }


class History:
    """The history of one folder.

    Args:
        remove: Removes a picture of an entry that goes.

    Raises:
        PluginError: a newer version has made the file, or it cannot be used.
    """

    def __init__(self, file: Path, max_count: int, max_bytes: int, remove: Callable[[Stored], None]) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._remove = remove
        self._lock = threading.Lock()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                message = f"{file} has version {version}, this host knows {VERSION}; update it, or set another folder"
                raise PluginError(message, plugin="comfy_api")
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.executescript(SCHEMA)
            self._connection.execute(f"PRAGMA user_version = {VERSION}")
            self._bytes: int = self._connection.execute("SELECT coalesce(sum(bytes), 0) FROM prompts").fetchone()[0]
            self._count: int = self._connection.execute("SELECT count(*) FROM prompts").fetchone()[0]
        except (OSError, sqlite3.Error) as error:
            raise PluginError(f"the history {file} cannot be used: {error}", plugin="comfy_api") from error

    def last_number(self) -> int:
        """The highest number that a graph has had, or the next whole one; 0 where there is none."""
        with self._lock:
            (number,) = self._connection.execute("SELECT max(coalesce(max(number), 0), 0) FROM prompts").fetchone()
        last: float = number
        return math.ceil(last)

    def add(self, entry: Entry) -> None:
        """Keep an entry; the oldest go where there are too many."""
        texts = {name: json.dumps(getattr(entry, name)) for name in MAPS}
        size = entry.bytes + sum(map(len, texts.values()))
        row = {name: getattr(entry, name) for name in COLUMNS} | texts | {"bytes": size}
        values = [row[name] for name in COLUMNS]
        places = ", ".join("?" * len(COLUMNS))
        gone: list[str] = []
        with self._lock:
            self._connection.execute(f"INSERT INTO prompts ({', '.join(COLUMNS)}) VALUES ({places})", values)
            self._count += 1
            self._bytes += size
            while self._count > 1 and (self._count > self._max_count or self._bytes > self._max_bytes):
                oldest = "DELETE FROM prompts WHERE place = (SELECT min(place) FROM prompts) RETURNING outputs, bytes"
                outputs, freed = self._connection.execute(oldest).fetchone()
                self._count -= 1
                self._bytes -= freed
                gone.append(outputs)
        for outputs in gone:
            for output in json.loads(outputs).values():
                for picture in output.get("images", ()):
                    with suppress(OSError):
                        self._remove(Stored(**picture))

    def get(self, prompt: str) -> Entry | None:
        """One entry that is listed, where there is one."""
        found = self._select("WHERE listed AND id = ?", [prompt])
        return found[0] if found else None

    def newest(self, limit: int, offset: int = 0, statuses: Sequence[str] = ()) -> list[Entry]:
        """Entries that are listed, the newest first; fewer than `limit` where they are very large."""
        states = f"AND status IN ({', '.join('?' * len(statuses))})" if statuses else ""
        return self._select(f"WHERE listed {states} ORDER BY place DESC LIMIT ? OFFSET ?", [*statuses, limit, offset])

    def count(self, statuses: Sequence[str]) -> int:
        """How many are listed."""
        places = ", ".join("?" * len(statuses))
        with self._lock:
            query = f"SELECT count(*) FROM prompts WHERE listed AND status IN ({places})"
            (count,) = self._connection.execute(query, list(statuses)).fetchone()
        return int(count)

    def has(self, prompt: str) -> bool:
        """Whether a graph has had this id, listed or not."""
        with self._lock:
            return self._connection.execute("SELECT 1 FROM prompts WHERE id = ?", [prompt]).fetchone() is not None

    def unlist(self, prompts: Sequence[str] | None) -> None:
        """Take entries off the list; all of them where it is None."""
        with self._lock:
            if prompts is None:
                self._connection.execute("UPDATE prompts SET listed = 0")
            else:
                rows = [[prompt] for prompt in prompts]
                self._connection.executemany("UPDATE prompts SET listed = 0 WHERE id = ?", rows)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _select(self, condition: str, values: list[Any]) -> list[Entry]:
        with self._lock:
            query = f"SELECT {', '.join(COLUMNS)} FROM prompts {condition}"
            rows: list[Sequence[Any]] = []
            size = 0
            for row in self._connection.execute(query, values):
                size += sum(len(value) for value in row if isinstance(value, str))
                if rows and size > PAGE_SIZE:
                    break
                rows.append(row)
        return [_entry(row) for row in rows]


def _entry(row: Sequence[Any]) -> Entry:
    values = dict(zip(COLUMNS, row, strict=True))
    if values["number"].is_integer():  # SQLite makes a float of it, which clients did not get when they sent the graph
        values["number"] = int(values["number"])
    return Entry(**{name: json.loads(value) if name in MAPS else value for name, value in values.items()})
