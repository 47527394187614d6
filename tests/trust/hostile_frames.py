"""Frames that no honest client sends, of about a given size each."""

import struct

HEAD = b"\x83\xa2id\x07\xa7command\xa4ping\xa6params"
"""The begin of a message; the value of `params` follows."""


def _filled(pattern: bytes, size: int) -> bytes:
    return (pattern * (size // len(pattern) + 1))[:size]


def hostile_frames(size: int) -> dict[str, bytes]:
    """By what is wrong with each."""
    room = size - len(HEAD) - 5
    many = struct.pack(">I", room)
    text = HEAD + b"\xdb" + many
    patterns = {
        "lists in lists": b"\x91",
        "maps in maps": b"\x81\xa1a",
        "each list claims 10,000": b"\xdc\x27\x10",
        "each map claims 10,000": b"\xde\x27\x10\xa1a",
        "each list claims 2^32-1": b"\xdd\xff\xff\xff\xff",
        "each map claims 2^32-1": b"\xdf\xff\xff\xff\xff\xa1a",
        "16 levels of full lists": b"\x91" * 12 + b"\xdc\x27\x10",
        "timestamps": b"\xd6\xff\x00\x00\x00\x00",
        "nothing but 0xc1": b"\xc1",
    }
    frames = {name: _filled(pattern, size) for name, pattern in patterns.items()}
    frames |= {f"{name}, in params": HEAD + _filled(pattern, room) for name, pattern in patterns.items()}
    return frames | {
        "a list of small numbers": HEAD + b"\xdd" + many + bytes(room),
        "a list of small texts": HEAD + b"\xdd" + struct.pack(">I", room // 2) + b"\xa1a" * (room // 2),
        "a list of empty maps": HEAD + b"\xdd" + many + b"\x80" * room,
        "a list of empty lists": HEAD + b"\xdd" + many + b"\x90" * room,
        "a list of empty bytes": HEAD + b"\xdd" + struct.pack(">I", room // 2) + b"\xc4\x00" * (room // 2),
        "a list of timestamps": HEAD + b"\xdd" + struct.pack(">I", room // 6) + b"\xd6\xff\0\0\0\0" * (room // 6),
        "a map of empty keys": HEAD + b"\xdf" + struct.pack(">I", room // 2) + b"\xa0\x01" * (room // 2),
        "9,000 equal keys": HEAD + b"\xde\x23\x28" + b"\xa1a\x01" * 9000,
        "9,000 number keys": HEAD + b"\xde\x23\x28" + b"\x01\x01" * 9000,
        "a list as key": b"\x81" + _filled(b"\x91", size - 1),
        "a text that ends wrong": text + b"a" * (room - 1) + b"\xff",
        "a wide text that ends wrong": text + b"a" * (room - 5) + "😀".encode() + b"\xed",
        "half a surrogate pair": text + b"a" * (room - 3) + b"\xed\xa0\x80",
        "a text that claims 2^32-1": HEAD + b"\xdb\xff\xff\xff\xff" + b"a" * room,
        "bytes that claim 2^32-1": HEAD + b"\xc6\xff\xff\xff\xff" + bytes(room),
        "an extension that claims 2^32-1": HEAD + b"\xc9\xff\xff\xff\xff\x05" + bytes(room),
        "an extension": HEAD + b"\xc9" + struct.pack(">I", room - 1) + b"\x05" + bytes(room - 1),
        "the last byte cut off": HEAD + b"\xc6" + many + bytes(room - 1),
        "one byte too many": HEAD + b"\xc6" + many + bytes(room + 1),
        "a list that lacks its last entry": HEAD + b"\xdc\x27\x00" + b"\x01" * (0x2700 - 1),
        "9,990 texts, the last one broken": HEAD + b"\xdc\x27\x06" + b"\xa2ab" * 9989 + b"\xa1\xff",
        "9,990 maps, the last one cut off": HEAD + b"\xdc\x13\x88" + b"\x81\xa1a\xc0" * 4999 + b"\x81\xa1a",
        "a long id before too deep a list": b"\x82\xa2id\xdb" + many + b"a" * room + b"\xa1x" + b"\x91" * 40,
        "a list as id": b"\x82\xa2id" + b"\xdc\x27\x10" * 1000,
    }  # fmt: skip


def largest_frames(size: int) -> dict[str, bytes]:
    """Frames that are as dear as a frame may be that is not refused."""
    room = size - len(HEAD) - 5
    each = room // 9990 - 3
    texts = b"".join(b"\xda" + struct.pack(">H", each) + str(n).encode().rjust(each, b"k") for n in range(9990))
    half = room // 9990 - 5
    keys = b"".join(
        b"\xda" + struct.pack(">H", half) + str(n).encode().rjust(half, b"k") + b"\x80" for n in range(4995)
    )
    return {
        "empty maps": HEAD + b"\xdc\x27\x06" + b"\x80" * 9990,
        "maps of one": HEAD + b"\xdc\x13\x83" + b"\x81\xa1a\xc0" * 4995,
        "texts": HEAD + b"\xdc\x27\x06" + texts,
        "keys": HEAD + b"\xde\x13\x83" + keys,
        "a wide text": HEAD + b"\xdb" + struct.pack(">I", room) + b"a" * (room - 4) + "😀".encode(),
        "bytes": HEAD + b"\xc6" + struct.pack(">I", room) + bytes(room),
    }
