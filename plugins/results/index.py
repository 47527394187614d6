"""The index of all results: a row each, in one SQLite file.

Several hosts of one machine may share a folder: SQLite's own locks keep them apart.
"""

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .bounds import exceeded, trim
from .schema import connect
from .settings import Settings

NAME = "index.sqlite3"
PATIENCE_S = 2.0  # to wait for another host's write, which takes milliseconds


@dataclass(frozen=True, slots=True)
class Result:
    """What is known of a kept picture: `created` in seconds since 1970, `bytes` of its file, `request` to remake it.

    `owner` is whose it is: nobody's where it was kept before there were owners, so that only observers see it.
    """

    id: str
    created: float
    job: str
    index: int
    prompt: str
    negative_prompt: str
    model: str
    seed: int
    width: int
    height: int
    bytes: int
    request: dict[str, Any]
    owner: str

    def plain(self) -> dict[str, Any]:
        """As a map of plain values, but for its owner."""
        return {name: value for name, value in asdict(self).items() if name != "owner"}


NAMES = [field.name for field in fields(Result)]
COLUMNS = ", ".join(f'"{name}"' for name in NAMES)


class Index:
    """One connection to the index, for any thread. It is opened when it is needed, and again after an error.

    Everything raises sqlite3.Error or OSError where the disk does not play along, and PluginError where a newer
    version of this plugin has made the file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / NAME
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None

    def check_writable(self, patience_s: float) -> None:
        """Make sure that the index can be written just now; waits so long for others to finish."""
        with self._using() as connection:
            connection.execute(f"PRAGMA busy_timeout = {round(1000 * patience_s)}")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
            connection.execute(f"PRAGMA busy_timeout = {round(1000 * PATIENCE_S)}")

    def add(self, result: Result, bounds: Settings, now: float, is_there: Callable[[], bool]) -> list[str]:
        """Add a row; when this returns, it is on the disk.

        Args:
            now: Seconds since 1970.
            is_there: Whether the file still is; asked while nobody else can write, so that no sweep comes between.

        Returns:
            The ids of the rows that had to go for it.
        """
        row = asdict(result) | {"request": json.dumps(result.request), "searched": result.prompt.casefold()}
        places = ", ".join("?" * len(row))
        with self._writing() as connection:
            if not is_there():
                raise FileNotFoundError(f"the file of result {result.id} has gone")
            names = ", ".join(f'"{name}"' for name in row)
            connection.execute(f"INSERT INTO results ({names}) VALUES ({places})", list(row.values()))
            return trim(connection, bounds, now)

    def trim(self, bounds: Settings, now: float) -> list[str]:
        """Let the oldest rows go until the bounds hold; their ids."""
        with self._using() as connection:
            if not exceeded(connection, bounds, now):
                return []
        with self._writing() as connection:
            return trim(connection, bounds, now)

    def newest(
        self,
        limit: int,
        before: int | None,
        words: Sequence[str] = (),
        job: str | None = None,
        owner: str | None = None,
    ) -> list[tuple[int, Result]]:
        """Rows and their numbers, newest first.

        Args:
            before: Only of lower numbers.
            words: Which must all be in the prompt.
            job, owner: Only of that one.
        """
        conditions = ["instr(searched, ?) > 0"] * len(words)
        values: list[Any] = [word.casefold() for word in words]
        for condition, value in (("number < ?", before), ("job = ?", job), ("owner = ?", owner)):
            if value is not None:
                conditions.append(condition)
                values.append(value)
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        query = f"SELECT number, {COLUMNS} FROM results {where} ORDER BY number DESC LIMIT ?"
        with self._using() as connection:
            rows = connection.execute(query, [*values, limit]).fetchall()
        return [(number, _result(row)) for number, *row in rows]

    def get(self, result: str) -> Result | None:
        """One row, where there is one."""
        with self._using() as connection:
            row = connection.execute(f"SELECT {COLUMNS} FROM results WHERE id = ?", [result]).fetchone()
        return None if row is None else _result(row)

    def delete(self, results: Sequence[str], owner: str) -> list[str]:
        """Remove an owner's rows; the ids of those that there were, in the order asked for."""
        with self._writing() as connection:
            statement = "DELETE FROM results WHERE id = ? AND owner = ? RETURNING id"
            return [result for result in results if connection.execute(statement, [result, owner]).fetchall()]

    def ids(self, begin: str) -> set[str]:
        """All ids that begin so."""
        with self._using() as connection:
            rows = connection.execute("SELECT id FROM results WHERE id >= ? AND id < ?", [begin, f"{begin}g"])
            return {result for (result,) in rows}

    def begun(self) -> float:
        """When this index was made, in seconds since 1970."""
        with self._using() as connection:
            (begun,) = connection.execute("SELECT time FROM begun").fetchone()
            return float(begun)

    def unless_kept(self, result: str, act: Callable[[], None]) -> None:
        """Do something if there is no such row, while nobody can add one."""
        with self._writing() as connection:
            if connection.execute("SELECT 1 FROM results WHERE id = ?", [result]).fetchone() is None:
                act()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that holds from the start; committed at the end, rolled back by an error.

        The connection outlives that: on a full disk there may be no opening another one.
        """
        with self._using() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
                return
            except Exception as error:
                problem = error
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        raise problem

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time; an error closes it."""
        with self._lock:
            try:
                # whoever removes the folder under a running host must not leave it writing into a deleted file
                if self._connection is None or _identity(self._file) != self._opened:
                    self._close()
                    self._connection = connect(self._file, PATIENCE_S)
                    self._opened = _identity(self._file)
                yield self._connection
            except BaseException:
                self._close()
                raise

    def close(self) -> None:
        """Close the file; it is opened again when it is needed."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def _result(row: Sequence[Any]) -> Result:
    values = dict(zip(NAMES, row, strict=True))
    return Result(**values | {"request": json.loads(values["request"])})


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
