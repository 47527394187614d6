"""The shelf: loaded things by key. One load for all who ask at once, users counted, the longest unused put away.

It knows nothing of what it holds but how many bytes that takes.
"""

import itertools
import logging
import threading
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from .errors import InUse
from .memory import bytes_of, give_back

log = logging.getLogger(__name__)


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Loaded:
    """What a load gives.

    Attributes:
        value: The thing itself.
        nbytes: Its memory, where it is not that of the module's tensors (shared ones count elsewhere).
        put_away: Called once it is off the shelf.
    """

    value: Any
    nbytes: int | None = None
    put_away: Callable[[], None] = _nothing


@dataclass
class _Slot:
    """One thing, loaded or being loaded."""

    loading: Future[Any] = field(default_factory=Future)
    users: int = 0
    nbytes: int = 0
    last_use: int = 0
    leaving: bool = False
    put_away: Callable[[], None] = _nothing

    @property
    def loaded(self) -> bool:
        return self.loading.done() and self.loading.exception() is None


Key = TypeVar("Key", bound=Hashable)


class Shelf(Generic[Key]):
    """All loaded things of one host.

    Args:
        budget: Bytes that they may take; what nobody uses is put away to stay below. None: no bound.
        changed: Told, from any thread, when something has come, gone, or changed hands.
    """

    def __init__(self, budget: int | None, changed: Callable[[], None] = _nothing) -> None:
        self._budget = budget
        self._changed = changed
        self._lock = threading.Lock()
        self._slots: dict[Key, _Slot] = {}
        self._clock = itertools.count()
        self.loads = 0
        self.hits = 0

    def take(
        self, key: Key, load: Callable[[], Loaded], announce: Callable[[], None] = _nothing, expected: int = 0
    ) -> Any:
        """A thing, in use until it is given back; loaded by whoever asks first, the others wait for that one load.

        Args:
            announce: Called where there is something to wait for.
            expected: About how many bytes it will take; room is made before it is loaded.

        Raises:
            Whatever `load` raises: nothing is kept then, and the next who asks tries again.
        """
        with self._lock:
            slot = self._slots.get(key)
            mine = slot is None
            if slot is None:
                slot = self._slots[key] = _Slot()
                self.loads += 1
            else:
                self.hits += 1
            slot.users += 1
            slot.last_use = next(self._clock)
        if mine:
            announce()
            self._make_room(expected)
            try:
                loaded = load()
            except BaseException as error:
                with self._lock:
                    del self._slots[key]
                slot.loading.set_exception(error)
                raise
            with self._lock:
                slot.put_away = loaded.put_away
                slot.nbytes = bytes_of(loaded.value) if loaded.nbytes is None else loaded.nbytes
                slot.loading.set_result(loaded.value)
            self._make_room(0)
            self._changed()
        elif not slot.loading.done():
            announce()
        return slot.loading.result()

    def give_back(self, keys: Iterable[Key]) -> None:
        """End one use of each."""
        leaving = []
        with self._lock:
            for key in keys:
                slot = self._slots[key]
                slot.users -= 1
                slot.last_use = next(self._clock)
                if slot.leaving and not slot.users:
                    leaving.append(self._slots.pop(key))
        self._let_go(leaving)
        self._make_room(0)
        self._changed()

    def put_away(self, keys: Iterable[Key], when_free: bool = False) -> bool:
        """Put things away that are there; True when that is done, False when it is left to their last users.

        Raises:
            InUse: something is in use, and `when_free` is false; then nothing is put away.
        """
        with self._lock:
            slots = {key: self._slots[key] for key in keys if key in self._slots}
            users = sum(slot.users for slot in slots.values())
            if users and not when_free:
                raise InUse(f"it is in use by {users} job(s); wait for them, or ask for it when free")
            free = [self._slots.pop(key) for key, slot in slots.items() if not slot.users]
            for slot in slots.values():
                slot.leaving = True
        self._let_go(free)
        self._changed()
        return not users

    def contents(self) -> dict[Key, tuple[Any, int, int]]:
        """Everything loaded: the thing, its bytes, and how many use it."""
        with self._lock:
            loaded = {key: slot for key, slot in self._slots.items() if slot.loaded}
            return {key: (slot.loading.result(), slot.nbytes, slot.users) for key, slot in loaded.items()}

    def _make_room(self, expected: int) -> None:
        """Put away what nobody uses, the longest unused first, until the rest and what is expected fit the budget."""
        if self._budget is None:
            return
        gone = []
        with self._lock:
            total = sum(slot.nbytes for slot in self._slots.values()) + expected
            idle = [(slot.last_use, key) for key, slot in self._slots.items() if slot.loaded and not slot.users]
            for _, key in sorted(idle, key=lambda entry: entry[0]):
                if total <= self._budget:
                    break
                total -= self._slots[key].nbytes
                gone.append(self._slots.pop(key))
                log.info("put away %s to make room", key)
        self._let_go(gone)

    def _let_go(self, slots: list[_Slot]) -> None:
        if not slots:
            return
        while slots:
            slots.pop().put_away()  # the slot held the thing last
        give_back()
