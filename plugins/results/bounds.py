"""How much is kept: the oldest results go until the bounds hold. Within the caller's transaction."""

import sqlite3
import time

from .settings import Settings


def exceeded(connection: sqlite3.Connection, bounds: Settings) -> bool:
    """Whether something has to go; quick."""
    return _too_old(connection, bounds) or _too_much(connection, bounds)


def trim(connection: sqlite3.Connection, bounds: Settings) -> list[str]:
    """Delete the oldest rows until the bounds hold; their ids.

    The newest goes for its age alone: a picture that has just been stored shall not be gone at once.
    """
    gone: list[tuple[str]] = []
    if _too_old(connection, bounds):
        gone += connection.execute("DELETE FROM results WHERE created < ? RETURNING id", [_oldest(bounds)]).fetchall()
    while _too_much(connection, bounds):
        oldest = "DELETE FROM results WHERE number = (SELECT min(number) FROM results) RETURNING id"
        gone += connection.execute(oldest).fetchall()
    return [result for (result,) in gone]


def _too_old(connection: sqlite3.Connection, bounds: Settings) -> bool:
    (first,) = connection.execute("SELECT min(created) FROM results").fetchone()
    return first is not None and bounds.max_age_days is not None and first < _oldest(bounds)


def _too_much(connection: sqlite3.Connection, bounds: Settings) -> bool:
    count, size = connection.execute("SELECT count, bytes FROM totals").fetchone()
    too_many = bounds.max_count is not None and count > bounds.max_count
    return count > 1 and (too_many or (bounds.max_mib is not None and size > bounds.max_mib << 20))


def _oldest(bounds: Settings) -> float:
    """The moment, in seconds since 1970, from which on results are kept."""
    return time.time() - (bounds.max_age_days or 0) * 86400
