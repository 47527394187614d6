"""Things that were costly to make and are likely wanted again, the latest that fit."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any


class Remembered:
    """Values by key.

    Args:
        budget: Bytes of all values together; the longest unused are forgotten first.
        weigh: The bytes of one value.
    """

    def __init__(self, budget: int, weigh: Callable[[Any], int]) -> None:
        self._budget = budget
        self._weigh = weigh
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, Any] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gave for this key, or gives now; two threads may both make it. `make` never gives None."""
        value = self.find(key)
        if value is None:
            value = make()
            self.keep(key, value)
        return value

    def find(self, key: Hashable) -> Any:
        """What was kept under this key; None where nothing is, or no longer."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def keep(self, key: Hashable, value: Any) -> None:
        """Remember a value, in place of an older one of its key."""
        with self._lock:
            if key in self._values:
                self._bytes -= self._weigh(self._values.pop(key))
            self._values[key] = value
            self._bytes += self._weigh(value)
            while self._bytes > self._budget and len(self._values) > 1:
                _, old = self._values.popitem(last=False)
                self._bytes -= self._weigh(old)

    def clear(self) -> None:
        """Remember nothing."""
        with self._lock:
            self._values.clear()
            self._bytes = 0
