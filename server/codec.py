"""The wire's format: one msgpack map a frame. This module alone knows msgpack; server and client share it."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import msgpack

from ..core.errors import BadMessage

SUBPROTOCOL = "latentwire.v1.msgpack"
MAX_DEPTH = 16  # maps and lists inside one another
MAX_ENTRIES = 10_000  # of a message's maps and lists, all together: each may cost an error on the loop of all clients
FIRST_KEYS = 3  # among which a message's id is looked for when all the rest of it is refused


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
    """A frame as a map. Of one that goes too far no more than the id is ever built, and `check` says what is wrong.

    Raises:
        BadMessage: the frame is truncated, no msgpack, no map, has a key twice, or goes too far and shows no id.
    """
    try:
        problem = scan(frame)
        if problem is not None:
            return _TooMuch(_id_of(frame, problem), problem)
        message = msgpack.unpackb(frame, object_pairs_hook=_no_key_twice)
    except BadMessage:
        raise
    except Exception as error:  # msgpack raises a dozen kinds
        reason = str(error).removeprefix("Unpack failed: ") or type(error).__name__
        raise BadMessage(
            f"the frame is no msgpack that this host reads: {reason:.200}; wanted one map a frame"
        ) from error
    if not isinstance(message, dict):
        raise BadMessage(f"the frame holds a {type(message).__name__}, wanted a map")
    return message


def decode_trusted(frame: bytes) -> dict[str, Any]:
    """A frame from one's own host as a message."""
    message: dict[str, Any] = msgpack.unpackb(frame)
    return message


def check(message: dict[Any, Any]) -> None:
    """Make sure that a decoded message is maps with text keys, lists and plain values, and of a sane size.

    Raises:
        BadMessage: it is nested too deep, has too many entries, a key that is no text, or an extension type.
    """
    if isinstance(message, _TooMuch):
        raise BadMessage(message.problem)


class _TooMuch(dict[str, Any]):
    """What is left of a message that goes too far: its id, if it has one."""

    def __init__(self, left: dict[str, Any], problem: str) -> None:
        super().__init__(left)
        self.problem = problem


def scan(frame: bytes) -> str | None:
    """What is wrong with a frame beyond its format, found on its headers alone: no value is made.

    Raises:
        ValueError: the frame is truncated, no msgpack, or more than one value.
    """
    position, end = 0, len(frame)
    entries = 0
    left, in_map = 1, False  # values to come in the innermost container; the frame itself counts as one
    outer: list[tuple[int, bool]] = []
    try:
        while True:
            if not left:
                if not outer:
                    break
                left, in_map = outer.pop()
                continue
            code = frame[position]
            if in_map and not left & 1 and code not in _TEXTS:
                return "the message has a key that is no text; keys must be texts"
            left -= 1
            step = _STEPS[code]
            if step > 0:
                position += step
                continue
            if step < 0:  # a length follows in so many bytes
                begin = position + 1
                position = begin - step
                length = int.from_bytes(frame[begin:position], "big")
                if code not in _CONTAINERS:
                    position += length
                    continue
                if position > end:
                    break
            elif code in _EXTENSIONS:
                return "the message has a msgpack extension type (a timestamp is one); send plain values"
            elif code == 0xC1:
                raise ValueError("a byte 0xc1")
            else:
                length = code & 15
                position += 1
            entries += length
            if entries > MAX_ENTRIES:
                return f"the message has more than {MAX_ENTRIES} entries; send numbers in bulk as bytes"
            if len(outer) >= MAX_DEPTH:
                return f"the message is nested more than {MAX_DEPTH} deep"
            outer.append((left, in_map))
            in_map = code in _MAPS
            left = 2 * length if in_map else length
    except IndexError:
        position = end + 1
    if position > end:
        raise ValueError("incomplete input")
    if position < end:
        raise ValueError("extra data after it")
    return None


_MAPS = frozenset([*range(0x80, 0x90), 0xDE, 0xDF])
_CONTAINERS = _MAPS | {*range(0x90, 0xA0), 0xDC, 0xDD}
_TEXTS = frozenset([*range(0xA0, 0xC0), 0xD9, 0xDA, 0xDB])
_EXTENSIONS = frozenset([0xC7, 0xC8, 0xC9, *range(0xD4, 0xD9)])


def _steps() -> dict[int, int]:
    """Of each first byte, how many bytes the value takes; below 0, in how many its length follows; 0: neither."""
    steps = dict.fromkeys(range(256), 1)
    steps |= dict.fromkeys(_CONTAINERS | _EXTENSIONS | {0xC1}, 0)
    steps |= {code: 1 + (code & 31) for code in range(0xA0, 0xC0)}
    lengths = {1: (0xC4, 0xD9), 2: (0xC5, 0xDA, 0xDC, 0xDE), 4: (0xC6, 0xDB, 0xDD, 0xDF)}
    numbers = {1: (0xCC, 0xD0), 2: (0xCD, 0xD1), 4: (0xCA, 0xCE, 0xD2), 8: (0xCB, 0xCF, 0xD3)}
    steps |= {code: -size for size, codes in lengths.items() for code in codes}
    steps |= {code: 1 + size for size, codes in numbers.items() for code in codes}
    return steps


_STEPS = [_steps()[code] for code in range(256)]


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r:.80} is there twice")
    return values


def _id_of(frame: bytes, problem: str) -> dict[str, Any]:
    """A map of nothing but a frame's id, which must be among the first keys; an error under no id helps few."""
    unpacker = msgpack.Unpacker(max_buffer_size=len(frame))
    unpacker.feed(frame)
    try:
        for _ in range(min(unpacker.read_map_header(), FIRST_KEYS)):
            value = unpacker.tell() + len(_ID)
            if frame[value - len(_ID) : value] == _ID and frame[value] not in _CONTAINERS:
                unpacker.skip()
                return {"id": unpacker.unpack()}
            unpacker.skip()
            unpacker.skip()
    except Exception as error:  # msgpack raises a dozen kinds
        raise BadMessage(problem) from error
    raise BadMessage(problem)
