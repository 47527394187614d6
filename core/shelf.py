"""The shelf: loaded things by key. One load for all who ask at once, users counted, the longest unused put away.

It knows nothing of what it holds but how many bytes that takes.
"""

import gc
import itertools
import logging
import threading
import time
import weakref
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

    def take(self, key: Key, load: Callable[[], Loaded], announce: Callable[[], None] = _nothing) -> Any:
        """A thing, in use until it is given back; loaded by whoever asks first, the others wait for that one load.

        Args:
            announce: Called where there is something to wait for.

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
            try:
                announce()
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
            self._make_room()
            self._changed()
        elif not slot.loading.done():
            announce()
        return slot.loading.result()

    def give_back(self, keys: Iterable[Key]) -> None:
        """End one use of each."""
        leaving = []
        with self._lock:
            for key in keys:
                self._slots[key].users -= 1
                self._slots[key].last_use = next(self._clock)
                if self._slots[key].leaving and not self._slots[key].users:
                    leaving.append(self._slots.pop(key))
        self._let_go(leaving)
        self._make_room()
        self._changed()

    def put_away(self, keys: Iterable[Key], when_free: bool = False) -> bool:
        """Put things away that are there; True when that is done, False when it is left to their last users.

        Raises:
            InUse: something is in use, and `when_free` is false; then nothing is put away.
        """
        with self._lock:
            there = [key for key in keys if key in self._slots]
            users = sum(self._slots[key].users for key in there)
            if users and not when_free:
                raise InUse(f"it is in use by {users} job(s); wait for them, or ask for it when free")
            free = [self._slots.pop(key) for key in there if not self._slots[key].users]
            for key in there:
                if key in self._slots:
                    self._slots[key].leaving = True
        self._let_go(free)
        self._changed()
        return not users

    def contents(self) -> dict[Key, tuple[Any, int, int]]:
        """Everything loaded: the thing, its bytes, and how many use it."""
        with self._lock:
            loaded = {key: slot for key, slot in self._slots.items() if slot.loaded}
            return {key: (slot.loading.result(), slot.nbytes, slot.users) for key, slot in loaded.items()}

    def put_away_unused(self) -> None:
        """Put away what nobody uses just now."""
        with self._lock:
            free = [key for key, slot in self._slots.items() if slot.loaded and not slot.users]
            gone = [self._slots.pop(key) for key in free]
        self._let_go(gone)
        self._changed()

    def empty(self) -> None:
        """Put everything away, each thing as soon as nobody uses it; what still comes is put away as well."""
        self._budget = 0
        with self._lock:
            for slot in self._slots.values():
                slot.leaving = True
        self.put_away_unused()

    def _make_room(self) -> None:
        """Put away what nobody uses, the longest unused first, until the rest fits the budget."""
        if self._budget is None:
            return
        gone = []
        with self._lock:
            total = sum(slot.nbytes for slot in self._slots.values())
            idle = [(slot.last_use, key) for key, slot in self._slots.items() if slot.loaded and not slot.users]
            for _, key in sorted(idle, key=lambda entry: entry[0]):
                if total <= self._budget:
                    break
                total -= self._slots[key].nbytes
                gone.append(self._slots.pop(key))
                log.info("put away %s to make room", key)
        self._let_go(gone)

    def _let_go(self, slots: list[_Slot]) -> None:
        """Forget things and give their memory back."""
        if not slots:
            return
        things = [weakref.ref(slot.loading.result()) for slot in slots]
        for slot in slots:
            try:
                slot.put_away()
            except Exception:
                log.exception("something could not be put away cleanly")
            slot.put_away, slot.loading = _nothing, Future()
        threading.Thread(target=_sweep, args=(things,), name="sweep", daemon=True).start()


def _sweep(things: list["weakref.ref[Any]"]) -> None:
    """Give memory back once the last frame that held it is gone.

    Collecting garbage stops every thread, so it is only done for what stays: a cancelled call leaves reference cycles.
    """
    for seconds in (0.0, 0.1, 0.5, 2.0):
        time.sleep(seconds)
        if any(thing() is not None for thing in things):
            gc.collect()
        if all(thing() is None for thing in things):
            break
    give_back()
