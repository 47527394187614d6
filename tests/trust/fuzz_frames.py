"""Random frames against the codec: `python -m latentwire.tests.trust.fuzz_frames --seconds 300`.

Whatever comes is a map or BadMessage, what msgpack would make of it is what the codec makes of it, and memory stays.
Prints the seed, figures as JSON, and ends with status 1 on anything else.
"""

import argparse
import json
import random
import sys
import time
from typing import Any

import msgpack
import psutil  # type: ignore[import-untyped]

from latentwire.core.errors import BadMessage
from latentwire.server import codec

from .hostile_frames import hostile_frames, largest_frames

PLAIN: list[Any] = [
    None,
    True,
    0,
    -1,
    2**63,
    0.5,
    "",
    "ü",
    b"",
    b"\xff",
    [],
    {},
    "command",
    "params",
    "id",
    2**64 - 1,
    -(2**63),
]
GROWTH = 20 << 20


def some_value(chance: random.Random, depth: int = 0) -> Any:
    """Any value at all, deeper and wider than allowed now and then."""
    kind = chance.random()
    if depth > 20 or kind < 0.6:
        return chance.choice(PLAIN)
    if kind < 0.8:
        return [some_value(chance, depth + 1) for _ in range(chance.choice([0, 0, 1, 2, 5]))]
    keys = [chance.choice(["a", "b", "id", 1, b"x", ""]) for _ in range(chance.randrange(4))]
    return {key: some_value(chance, depth + 1) for key in keys}


def some_frame(chance: random.Random, seeds: list[bytes]) -> bytes:
    """A random, a valid or a hostile one, damaged or not."""
    kind = chance.random()
    if kind < 0.2:
        return chance.randbytes(chance.choice([0, 1, 5, 50, 5000]))
    message = {"id": chance.choice([1, "x"]), "command": "ping", "params": some_value(chance)}
    frame = bytearray(chance.choice(seeds) if kind < 0.3 else msgpack.packb(message))
    for _ in range(chance.choice([0, 0, 1, 2, 8])):
        if frame:
            place = chance.randrange(min(len(frame), 400))
            frame[place] = chance.choice([0xC1, 0xDD, 0xDF, 0xC9, 0xFF, chance.randrange(256)])
    if chance.random() < 0.2:
        del frame[chance.randrange(len(frame) + 1) :]
    return bytes(frame)


def check_one(frame: bytes) -> bool:
    """Whether it is read; raises where the codec does anything but read it rightly or refuse it."""
    try:
        message = codec.decode(frame)
        codec.check(message)
    except BadMessage as error:
        if not 0 < len(error.message) < 500:
            raise ValueError("its message is of an odd length") from error
        return False
    assert message == msgpack.unpackb(frame) or "nan" in repr(message)
    return True


def run(seconds: float, seed: int) -> dict[str, Any]:
    """Figures of so many seconds."""
    chance = random.Random(seed)
    frames = [*hostile_frames(1 << 16).values(), *largest_frames(1 << 16).values()]
    process, begin, before = psutil.Process(), time.monotonic(), 0
    count = read = 0
    while time.monotonic() - begin < seconds:
        frame = some_frame(chance, frames)
        try:
            read += check_one(frame)
        except Exception:
            print(f"seed {seed}, frame {count}: {frame[:200].hex()}", file=sys.stderr)
            raise
        count += 1
        if count == 1_000:
            before = process.memory_info().rss
    grown = process.memory_info().rss - before if before else 0
    return {"seed": seed, "frames": count, "read": read, "grown_mib": round(grown / (1 << 20), 1)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    figures = run(options.seconds, options.seed)
    print(json.dumps(figures))
    sys.exit(figures["grown_mib"] > GROWTH >> 20)
