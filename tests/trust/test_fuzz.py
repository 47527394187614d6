"""A few seconds of what `make fuzz` does for five minutes."""

import random

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from latentwire.server import codec

from .fuzz_frames import check_one, run

PLAIN = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary()
)
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=40)


def test_random_frames_are_read_or_refused_and_memory_stays() -> None:
    figures = run(5, random.randrange(1 << 32))
    print(figures)
    assert figures["frames"] > 1_000
    assert 0 < figures["read"] < figures["frames"]
    assert figures["grown_mib"] <= 20


@settings(deadline=None, print_blob=True)
@given(st.dictionaries(st.text(), VALUES, max_size=8))
def test_every_message_comes_through_as_it_was(message: dict[str, object]) -> None:
    frame = codec.encode(message)
    if codec.scan(frame) is None:
        assert codec.decode(frame) == message


@settings(deadline=None, print_blob=True)
@given(st.binary(max_size=200) | st.dictionaries(st.text(), VALUES, max_size=4).map(msgpack.packb))
def test_any_bytes_are_read_or_refused(frame: bytes) -> None:
    check_one(frame)
