"""A hostile frame costs next to nothing: it is refused on its headers, before msgpack makes room for their claims."""

import tracemalloc
from pathlib import Path
from time import thread_time
from typing import Any

import msgpack
import pytest

from latentwire.core.errors import BadMessage
from latentwire.server import codec

from ..conftest import Served
from ..wire import Wire, in_loop, wire
from .hostile_frames import HEAD, hostile_frames, largest_frames

MIB = 1 << 20
FRAMES = {size: hostile_frames(size * MIB) for size in (1, 4, 16)}
LARGEST = {size: largest_frames(size * MIB) for size in (1, 4, 16)}


def refuse(frame: bytes) -> str:
    with pytest.raises(BadMessage) as caught:
        codec.check(codec.decode(frame))
    return caught.value.message


def read(frame: bytes) -> None:
    codec.check(codec.decode(frame))


def seconds(work: Any, frame: bytes) -> float:
    """The best of some: this is about the work, not about what else the machine does."""
    times = []
    for _ in range(5):
        begin = thread_time()
        work(frame)
        times.append(thread_time() - begin)
    return min(times)


def peak(work: Any, frame: bytes) -> int:
    """Bytes that Python's allocators gave out at once."""
    tracemalloc.start()
    try:
        work(frame)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def resident(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition(f"{field}:")[2].split()[0])


@pytest.mark.parametrize("name", FRAMES[1])
def test_a_hostile_mebibyte_is_refused_within_10_ms_and_8_mib(name: str) -> None:
    frame = FRAMES[1][name]
    assert len(refuse(frame)) < 400
    assert peak(refuse, frame) <= 8 * MIB
    assert seconds(refuse, frame) <= 0.010


@pytest.mark.parametrize("name", LARGEST[1])
def test_so_is_the_dearest_frame_read_that_is_no_refused_one(name: str) -> None:
    frame = LARGEST[1][name]
    assert peak(read, frame) <= 8 * MIB
    assert seconds(read, frame) <= 0.010


def test_neither_does_the_process_grow_by_more() -> None:
    """What Python's own allocators do not tell: the peak of the whole process."""
    for name, frame in FRAMES[1].items():
        refuse(frame)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
        before = resident("VmRSS")
        refuse(frame)
        assert resident("VmHWM") - before <= 8 * MIB, name


@pytest.mark.parametrize("size", [4, 16])
def test_where_the_owner_allows_larger_frames_a_hostile_one_costs_a_few_copies_at_most(size: int) -> None:
    for name, frame in FRAMES[size].items():
        assert peak(refuse, frame) <= (5 * size + 1) * MIB, name
        assert seconds(refuse, frame) <= 0.010 * size, name
    for name, frame in LARGEST[size].items():
        assert peak(read, frame) <= (5 * size + 3) * MIB, name
        assert seconds(read, frame) <= 0.010 * size, name


def test_a_message_that_goes_too_far_keeps_its_id_and_nothing_else() -> None:
    many: dict[str, Any] = {"command": "ping", "id": "mine", "params": {"a": [0] * 20_000}}
    message = codec.decode(msgpack.packb(many))
    assert message == {"id": "mine"}
    with pytest.raises(BadMessage, match="more than 10000 entries"):
        codec.check(message)


def test_what_the_scan_lets_through_is_what_msgpack_reads() -> None:
    """Each kind of value at each of its lengths; and the same, cut off anywhere or with a byte more, is refused."""
    values: list[Any] = [None, True, False, 1.5, "", b""]
    values += [sign * 2**bits for bits in range(64) for sign in (1, -1)] + [2**64 - 1]
    values += [text * size for size in (1, 31, 32, 255, 256, 65535, 65536) for text in ("ü", b"\x00")]
    values += [[0] * size for size in (0, 15, 16, 300)] + [
        {str(n): n for n in range(size)} for size in (0, 15, 16, 300)
    ]
    for value in [*values, values[:200]]:
        for extra in ({}, {"use_single_float": True}):
            frame = msgpack.packb({"a": value, "b": [value]}, **extra)
            assert codec.scan(frame) is None
            assert codec.decode(frame) == {"a": value, "b": [value]}
        small = msgpack.packb({"a": value})
        for end in range(min(len(small), 40)):
            with pytest.raises(BadMessage, match="incomplete"):
                codec.decode(small[:end])
        with pytest.raises(BadMessage, match="extra data"):
            codec.decode(small + b"\x00")


def test_depth_and_entries_are_counted_to_the_last_one() -> None:
    deepest: Any = 1
    for _ in range(codec.MAX_DEPTH - 1):
        deepest = [deepest]
    read(msgpack.packb({"a": deepest}))
    assert "nested" in refuse(msgpack.packb({"a": [deepest]}))
    read(HEAD + msgpack.packb([0] * (codec.MAX_ENTRIES - 3)))
    assert "entries" in refuse(HEAD + msgpack.packb([0] * (codec.MAX_ENTRIES - 2)))
    read(HEAD + msgpack.packb([{"a": 1}] * ((codec.MAX_ENTRIES - 3) // 2)))
    assert "entries" in refuse(HEAD + msgpack.packb([{"a": 1}] * (codec.MAX_ENTRIES // 2)))


@in_loop
async def test_a_real_host_answers_each_and_goes_on(served: Served) -> None:
    async with wire(served.url) as client:
        for name, frame in hostile_frames(MIB - 5000).items():
            await client.send_frame(frame)
            error = await client.receive()
            assert (error["event"], error["code"], error["id"] in (None, 7)) == ("error", "bad_message", True), name
        await answers(client)


async def answers(client: Wire) -> None:
    assert (await client.ask("ping"))["time"] > 0
