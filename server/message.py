"""One message on its way to a client, and the part of it that all who are told the same have in common."""

import logging
from collections.abc import Hashable
from typing import Any

from ..core.errors import InternalError, LatentwireError
from ..core.events import Event, to_plain
from ..core.secret_settings import struck_out
from . import codec

log = logging.getLogger(__name__)

MessageId = int | str

PREVIEW, EVENT, END, GAP = range(4)
"""How dear a message is: previews make room first, gaps never."""


class Body:
    """What a message says, but for its `id` and `seq`. However many send it, it is packed once.

    Raises:
        Exception: of many kinds: msgpack cannot hold what is in it.
    """

    __slots__ = ("name", "packed")

    def __init__(self, values: dict[str, Any]) -> None:
        self.name: str = values["event"]
        self.packed = codec.pack(values)

    @property
    def size(self) -> int:
        """Bytes that it takes, all but the few of a frame's head."""
        return len(self.packed.data)


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
        return codec.join(self.id, self.body.packed, self.seq)


def event_body(event: Event) -> Body:
    """An event as a message's body."""
    return Body({"event": event.name, **to_plain(event)})


def result_body(result: dict[str, Any]) -> Body:
    """A command's result; where a plugin put something into it that msgpack cannot hold, an error in its place."""
    try:
        return Body({"event": "result", "result": result})
    except Exception as error:
        return error_body(unsendable("result", error))


def error_body(error: LatentwireError) -> Body:
    """An error as a message's body."""
    said = struck_out({"message": error.message, "details": error.details})  # a plugin's own error may quote anything
    try:
        return Body({"event": "error", "code": error.code, **said, **error.about})
    except Exception as problem:  # a plugin's own error, with something odd in its details
        return error_body(unsendable("error", problem))


def unsendable(name: str, error: Exception) -> InternalError:
    """What is told in place of a message that msgpack cannot hold."""
    log.error("a message cannot be sent", exc_info=error)
    reason = f"{error}".encode(errors="backslashreplace").decode()  # half a surrogate pair may be what was wrong
    return InternalError(f"the {name} of this command cannot be sent: {type(error).__name__}: {reason}")


def gap_body(first: int, last: int) -> Body:
    """The body of the message that stands for those from `first` to `last`."""
    return Body({"event": "gap", "from_seq": first, "to_seq": last})
