"""The wire's format: one msgpack map a frame. This module alone knows msgpack; server and client share it."""

from dataclasses import dataclass
from typing import Any

import msgpack

from ..core.errors import BadMessage

SUBPROTOCOL = "latentwire.v1.msgpack"
MAX_DEPTH = 16  # maps and lists inside one another
MAX_ENTRIES = 10_000  # of a message's maps and lists, all together: each may cost an error on the loop of all clients

_PLAIN = {str, bytes, int, float, bool, type(None)}


def encode(message: dict[str, Any]) -> bytes:
    """A message as a frame."""
    frame: bytes = msgpack.packb(message)
    return frame


@dataclass(frozen=True, slots=True)
class Packed:
    """The entries of a map without the map's own header: what is the same in several messages."""

    entries: int
    data: memoryview


def pack(values: dict[str, Any]) -> Packed:
    """A map as what `join` puts into messages."""
    header = len(_packer.pack_map_header(len(values)))
    return Packed(len(values), memoryview(encode(values))[header:])


def join(message_id: int | str | None, body: Packed, seq: int) -> list[bytes | memoryview]:
    """A message as a frame in parts: its id, the body, its number."""
    head: bytes = _packer.pack_map_header(body.entries + 2)
    return [head, _ID, msgpack.packb(message_id), body.data, _SEQ, msgpack.packb(seq)]


_packer = msgpack.Packer()
_ID, _SEQ = msgpack.packb("id"), msgpack.packb("seq")


def decode(frame: bytes) -> dict[Any, Any]:
    """A frame as a map. What is in it may still be nonsense: see `check`.

    Raises:
        BadMessage: the frame is truncated, no msgpack, or no map.
    """
    # msgpack makes room for as many entries as a header claims; a claim beyond the frame's own bytes is a lie
    most = min(MAX_ENTRIES, len(frame))
    try:
        message = msgpack.unpackb(frame, strict_map_key=True, max_array_len=most, max_map_len=most)
    except Exception as error:  # msgpack raises a dozen kinds
        reason = str(error) or type(error).__name__
        raise BadMessage(f"the frame is no msgpack that this host reads: {reason}; wanted one map a frame") from error
    if not isinstance(message, dict):
        raise BadMessage(f"the frame holds a {type(message).__name__}, wanted a map")
    return message


def decode_trusted(frame: bytes) -> dict[str, Any]:
    """A frame from one's own host as a message."""
    message: dict[str, Any] = msgpack.unpackb(frame)
    return message


def check(message: dict[Any, Any]) -> None:
    """Make sure that a message is maps with text keys, lists and plain values, and of a sane size.

    Raises:
        BadMessage: it is nested too deep, has too many entries, a key that is no text, or an extension type.
    """
    level: list[Any] = [message]
    depth = entries = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise BadMessage(f"the message is nested more than {MAX_DEPTH} deep")
        below: list[Any] = []
        for part in level:
            entries += len(part)
            if entries > MAX_ENTRIES:
                raise BadMessage(f"the message has more than {MAX_ENTRIES} entries; send numbers in bulk as bytes")
            if isinstance(part, dict):
                for key in part:
                    if type(key) is not str:
                        raise BadMessage(f"the message has the key {key!r:.80}; keys must be texts")
                part = part.values()
            for value in part:
                if type(value) is dict or type(value) is list:
                    below.append(value)
                elif type(value) not in _PLAIN:
                    raise BadMessage("the message has a msgpack extension type (a timestamp is one); send plain values")
        level = below
