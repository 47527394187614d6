"""Counts of what happens to a host, for metrics."""

import threading
from collections import Counter
from collections.abc import Callable

COUNTED = {
    "refused_connections": ("Connections and requests that were refused.", "reason"),
    "dropped_connections": ("Connections that the host ended.", "reason"),
    "messages": ("Messages that clients sent.", "outcome"),
    "unstored_pictures": ("Pictures that should have been stored and could not be.", "reason"),
    "jobs_ended": ("Jobs by how they ended.", "outcome"),
}
"""Each name, its text, and what its label tells apart."""


class Counters:
    """The counts of one host; from any thread.

    Attributes:
        gauges: Figures that go up and down: the text of each, and what reads it, on the event loop or in any thread.
    """

    def __init__(self) -> None:
        self.gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, name: str, label: str) -> None:
        """Count one more.

        Raises:
            KeyError: nothing of that name is counted.
        """
        _ = COUNTED[name]
        with self._lock:
            self._counts[name, label] += 1

    def read(self) -> list[tuple[str, str, str, dict[str, int]]]:
        """Each name, its text, its label's name, and the counts by label."""
        return [(name, text, label, self.of(name)) for name, (text, label) in COUNTED.items()]

    def of(self, name: str) -> dict[str, int]:
        """The counts so far, by label."""
        with self._lock:
            return {label: count for (counted, label), count in self._counts.items() if counted == name}
