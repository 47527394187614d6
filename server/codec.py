"""The wire's format: one msgpack map a frame. This module alone knows msgpack; server and client share it."""

from typing import Any

import msgpack

from ..core.errors import BadMessage

SUBPROTOCOL = "latentwire.v1.msgpack"
MAX_DEPTH = 16  # maps and lists inside one another
MAX_ENTRIES = 100_000  # of one map or list


def encode(message: dict[str, Any]) -> bytes:
    """A message as a frame."""
    frame: bytes = msgpack.packb(message)
    return frame


def decode(frame: bytes) -> dict[str, Any]:
    """A frame as a message: a map with string keys.

    Raises:
        BadMessage: the frame is truncated, no msgpack, no map, too deep or too wide.
    """
    try:
        message = msgpack.unpackb(
            frame,
            strict_map_key=True,
            max_array_len=MAX_ENTRIES,
            max_map_len=MAX_ENTRIES,
        )
    except Exception as error:  # msgpack raises a dozen kinds
        raise BadMessage(f"the frame is no msgpack: {type(error).__name__}: {error}; wanted one map a frame") from error
    if not isinstance(message, dict):
        raise BadMessage(f"the frame holds a {type(message).__name__}, wanted a map")
    _check_depth(message)
    return message


def decode_trusted(frame: bytes) -> dict[str, Any]:
    """A frame from one's own host as a message, large pictures and tensors included."""
    message: dict[str, Any] = msgpack.unpackb(frame, max_bin_len=len(frame))
    return message


def _check_depth(message: Any) -> None:
    level, depth = [message], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise BadMessage(f"the message is nested more than {MAX_DEPTH} deep")
        children = [entry for part in level for entry in (part.values() if isinstance(part, dict) else part)]
        level = [entry for entry in children if isinstance(entry, dict | list)]
