"""How long the hooks of plugins take."""

import threading
from typing import Any


class HookTime:
    """Of one hook of one plugin; from any thread."""

    __slots__ = ("_lock", "calls", "seconds", "slowest")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.calls = 0
        self.seconds = 0.0
        self.slowest = 0.0

    def add(self, seconds: float) -> None:
        """It was called once more."""
        with self._lock:
            self.calls += 1
            self.seconds += seconds
            if seconds > self.slowest:
                self.slowest = seconds

    def plain(self) -> dict[str, Any]:
        """Calls, and seconds: all together, and the slowest."""
        return {"calls": self.calls, "seconds": round(self.seconds, 6), "slowest": round(self.slowest, 6)}
