"""One message on its way to a client, and the part of it that all who are told the same have in common."""

import logging
from collections.abc import Hashable
from typing import Any

from ..core.errors import InternalError, LatentwireError
from ..core.events import Event, to_plain
from . import codec

log = logging.getLogger(__name__)

MessageId = int | str

PREVIEW, EVENT, END, GAP = range(4)
"""How dear a message is: previews make room first, gaps never."""


class Body:
    """What a message says, but for its `id` and `seq`. However many send it, it is packed once.

    Attributes:
        name: The event's name.
        weight: Bytes of the files and tensors in it.
    """

    __slots__ = ("_packed", "_values", "name", "weight")

    def __init__(self, values: dict[str, Any]) -> None:
        self.name: str = values["event"]
        self.weight = _weight(values)
        self._values: dict[str, Any] | None = values
        self._packed: codec.Packed | None = None

    def packed(self) -> codec.Packed:
        """The packed entries; where a plugin put something into them that msgpack cannot hold, an error's."""
        if self._packed is None:
            assert self._values is not None
            try:
                self._packed = codec.pack(self._values)
            except Exception as error:
                log.exception("a message cannot be sent")
                text = f"the {self.name} of this command cannot be sent: {type(error).__name__}: {error}"
                self._packed = codec.pack(error_values(InternalError(text)))
            self._values = None
        return self._packed


class Message:
    """A body with its `id`: what one session is told.

    Attributes:
        key: Of latest-wins messages: a newer one with the same key takes the place of an older one.
        revision: The slot's, if there is one; an older revision never takes the place of a newer one.
        seq: Its number in the session, from when it is first sent.
        lost: Of a gap: how many messages it stands for.
    """

    __slots__ = ("body", "id", "key", "lost", "rank", "revision", "seq")

    def __init__(
        self, message_id: MessageId | None, body: Body, key: Hashable = None, revision: int | None = None
    ) -> None:
        self.id = message_id
        self.body = body
        self.key = key
        self.revision = revision
        self.rank = END if body.name in ("result", "error") else EVENT if key is None else PREVIEW
        self.seq = 0
        self.lost = 0

    def frame(self) -> list[bytes | memoryview]:
        """The frame, in parts."""
        return codec.join(self.id, self.body.packed(), self.seq)

    @property
    def size(self) -> int:
        """Bytes of the frame, roughly."""
        return len(self.body.packed().data)


def event_body(event: Event) -> Body:
    """An event as a message's body."""
    return Body({"event": event.name, **to_plain(event)})


def error_values(error: LatentwireError) -> dict[str, Any]:
    """An error as a message without `id` and `seq`."""
    return {
        "event": "error",
        "code": error.code,
        "message": error.message,
        "details": error.details,
        **error.about,
    }


def gap_body(first: int, last: int) -> Body:
    """The body of the message that stands for those from `first` to `last`."""
    return Body({"event": "gap", "from_seq": first, "to_seq": last})


def _weight(value: Any) -> int:
    """The bytes of the files and tensors in a message, wherever they are."""
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_weight, value.values()))
    return sum(map(_weight, value)) if isinstance(value, list) else 0
