"""How much is kept: the oldest results go until the bounds hold. Within the caller's transaction."""

import sqlite3

from .settings import Settings


def exceeded(connection: sqlite3.Connection, bounds: Settings, now: float) -> bool:
    """Whether something has to go; quick."""
    return _too_old(connection, bounds, now) or _too_much(connection, bounds)


def trim(connection: sqlite3.Connection, bounds: Settings, now: float) -> list[str]:
    """Delete the oldest rows until the bounds hold; their ids.

    The newest goes for its age alone: a picture that has just been stored shall not be gone at once.
    """
    gone: list[tuple[str]] = []
    if _too_old(connection, bounds, now):
        gone += connection.execute(
            "DELETE FROM results WHERE created < ? RETURNING id", [_oldest(bounds, now)]
        ).fetchall()
    while _too_much(connection, bounds):
        oldest = "DELETE FROM results WHERE number = (SELECT min(number) FROM results) RETURNING id"
        gone += connection.execute(oldest).fetchall()
    return [result for (result,) in gone]


def _too_old(connection: sqlite3.Connection, bounds: Settings, now: float) -> bool:
    (first,) = connection.execute("SELECT min(created) FROM results").fetchone()
    return first is not None and bounds.max_age_days is not None and first < _oldest(bounds, now)


def _too_much(connection: sqlite3.Connection, bounds: Settings) -> bool:
    count, size = connection.execute("SELECT count, bytes FROM totals").fetchone()
    too_many = bounds.max_count is not None and count > bounds.max_count
    return count > 1 and (too_many or (bounds.max_mib is not None and size > bounds.max_mib << 20))


def _oldest(bounds: Settings, now: float) -> float:
    """The moment, in seconds since 1970, from which on results are kept."""
    return now - (bounds.max_age_days or 0) * 86400
