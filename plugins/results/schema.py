"""The index's file: its tables, and how it is opened."""

import sqlite3
from pathlib import Path

from latentwire import PluginError

from .files import make_folder

VERSION = 2  # 2: owner

# `number` never comes twice, so that it can stand for a place in the list. `totals` is there because counting and
# summing up would read the whole table after each picture; `begun` so that a new index beside old files, whose own was
# lost, does not have them swept up.
SCHEMA = """
CREATE TABLE IF NOT EXISTS results (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    created REAL NOT NULL,
    job TEXT NOT NULL,
    "index" INTEGER NOT NULL,
    prompt TEXT NOT NULL,
    negative_prompt TEXT NOT NULL,
    model TEXT NOT NULL,
    seed INTEGER NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    searched TEXT NOT NULL,
    request TEXT NOT NULL,
    owner TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS results_created ON results (created);
CREATE INDEX IF NOT EXISTS results_job ON results (job);
CREATE INDEX IF NOT EXISTS results_owner ON results (owner, number);
CREATE TABLE IF NOT EXISTS totals (count INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO totals SELECT 0, 0 WHERE NOT EXISTS (SELECT * FROM totals);
CREATE TABLE IF NOT EXISTS begun (time INTEGER NOT NULL);
INSERT INTO begun SELECT strftime('%s', 'now') WHERE NOT EXISTS (SELECT * FROM begun);
CREATE TRIGGER IF NOT EXISTS results_in AFTER INSERT ON results
    BEGIN UPDATE totals SET count = count + 1, bytes = bytes + new.bytes; END;
CREATE TRIGGER IF NOT EXISTS results_out AFTER DELETE ON results
    BEGIN UPDATE totals SET count = count - 1, bytes = bytes - old.bytes; END;
"""


def connect(file: Path, patience_s: float) -> sqlite3.Connection:
    """Open the index, or make it; in autocommit, for any thread, and on the disk once a transaction is committed.

    Args:
        patience_s: How long to wait for a lock that somebody else has.

    Raises:
        sqlite3.Error, OSError: it cannot be opened, or is no SQLite file.
        PluginError: a newer version of this plugin has made it.
    """
    make_folder(file.parent)
    connection = sqlite3.connect(file, patience_s, isolation_level=None, check_same_thread=False)
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            message = f"{file} has version {version}, this host knows {VERSION}; update it, or set another folder"
            raise PluginError(message, plugin="results")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        if version < VERSION:
            _bring_up_to_date(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _bring_up_to_date(connection: sqlite3.Connection) -> None:
    """Make the tables, or change those of an older version; all or nothing, whoever else may be doing the same."""
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 1:
        connection.execute("ALTER TABLE results ADD COLUMN owner TEXT NOT NULL DEFAULT ''")
    statement = ""
    for line in SCHEMA.splitlines():  # `executescript` would commit first
        statement += f"{line}\n"
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")
