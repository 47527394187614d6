"""Pictures that requests may name: what clients uploaded and what the host made, the newest that fit."""

import hashlib
import threading
from collections import OrderedDict

from .errors import UnknownImage


def image_id(data: bytes) -> str:
    """A picture's id is the hash of its file: who knows it has seen the picture, and the same one has the same id."""
    return hashlib.sha256(data).hexdigest()[:32]


class ImageStore:
    """Encoded pictures by id, in memory.

    Args:
        budget: Bytes of all files together; the longest unused are forgotten first.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._lock = threading.Lock()
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    def put(self, data: bytes) -> str:
        """Keep a picture's file, as it is; its id."""
        name = image_id(data)
        with self._lock:
            if name not in self._files:
                self._files[name] = data
                self._bytes += len(data)
            self._files.move_to_end(name)
            while self._bytes > self._budget and len(self._files) > 1:
                _, old = self._files.popitem(last=False)
                self._bytes -= len(old)
        return name

    def get(self, name: str) -> bytes:
        """The file with that id.

        Raises:
            UnknownImage: there is none, or no longer.
        """
        with self._lock:
            if name not in self._files:
                raise UnknownImage(f"there is no image {name!r:.80}, or no longer; send its bytes, or put it again")
            self._files.move_to_end(name)
            return self._files[name]
