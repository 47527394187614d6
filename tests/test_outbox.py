"""The outbox: one order, two kinds of message, two bounds, gaps; and how events from any thread come into it."""

import asyncio
import random
import threading
from collections.abc import Hashable
from typing import Any

import msgpack
import pytest

from latentwire.core.errors import LatentwireError
from latentwire.core.events import Event, Picture, Preview, Step
from latentwire.server import outbox as outbox_module
from latentwire.server.message import Body, Message, error_body, result_body
from latentwire.server.outbox import Bound, Outbox
from latentwire.server.post import Post
from latentwire.server.session import Command

from .wire import in_loop


def message(name: str, size: int = 0, *, key: Hashable = None, revision: int | None = None, of: Any = 1) -> Message:
    picture = {"image": {"data": bytes(size)}} if size else {}
    return Message(of, Body({"event": name, **picture}), key, revision)


def read(sent: Message) -> dict[str, Any]:
    plain: dict[str, Any] = msgpack.unpackb(b"".join(sent.frame()))
    return plain


def all_of(outbox: Outbox) -> list[dict[str, Any]]:
    """Everything that waits, as its client gets it."""
    got = []
    while (sent := outbox.next()) is not None:
        got.append(read(sent))
    return got


def told(outbox: Outbox) -> list[Any]:
    """The same in short: the names of the messages, and the numbers that a gap stands for."""
    return [
        (plain["from_seq"], plain["to_seq"]) if plain["event"] == "gap" else plain["event"] for plain in all_of(outbox)
    ]


def put(outbox: Outbox, *names: str) -> None:
    for name in names:
        outbox.put(message(name))


def test_messages_come_in_order_and_are_numbered_from_1() -> None:
    outbox = Outbox()
    put(outbox, "a", "b", "c")
    assert all_of(outbox) == [
        {"id": 1, "event": "a", "seq": 1},
        {"id": 1, "event": "b", "seq": 2},
        {"id": 1, "event": "c", "seq": 3},
    ]


def test_the_latest_takes_its_own_place_and_the_older_one_is_gone() -> None:
    outbox = Outbox()
    for number in (1, 2):
        outbox.put(message(f"step {number}"))
        outbox.put(message(f"preview {number}", key="preview"))
    put(outbox, "step 3")
    assert told(outbox) == ["step 1", "step 2", "preview 2", "step 3"]


def test_a_sent_message_is_not_replaced_and_keys_do_not_mix() -> None:
    outbox = Outbox()
    outbox.put(message("preview 1 of a", key="a"))
    assert told(outbox) == ["preview 1 of a"]
    outbox.put(message("preview 1 of b", key="b"))
    outbox.put(message("preview 2 of a", key="a"))
    assert told(outbox) == ["preview 1 of b", "preview 2 of a"]


def test_an_older_revision_never_takes_the_place_of_a_newer_one() -> None:
    outbox = Outbox()
    for revision in (1, 3, 2):
        outbox.put(message(f"preview of {revision}", key="slot", revision=revision))
    assert told(outbox) == ["preview of 3"]


def test_no_number_of_previews_pushes_a_life_cycle_message_out() -> None:
    outbox = Outbox()
    for number in range(1000):
        outbox.put(message(f"preview {number}", size=1 << 20, key="preview"))
        outbox.put(message(f"step {number}"))
    assert told(outbox) == [*(f"step {number}" for number in range(999)), "preview 999", "step 999"]


def test_a_commands_previews_are_taken_back_but_not_a_newer_revisions() -> None:
    outbox = Outbox()
    outbox.put(message("preview of 1", key="a", of=1))
    outbox.put(message("preview of 1", key="b", of=1))
    outbox.put(message("preview of 2", key="b", of=2))
    outbox.drop(1, {"a", "b"})
    assert told(outbox) == ["preview of 2"]


def test_beyond_the_bound_a_gap_stands_where_something_is_missing_and_ends_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outbox = Outbox()
    outbox.bound = Bound(10, 1000)
    put(outbox, "step", "step", "result", "step", *["step"] * 5, "last", "newest")
    # the eleventh is one too many, so 2 go (to a tenth below); the gap takes a place as well
    assert told(outbox) == [(1, 2), "result", *["step"] * 6, "last", "newest"]
    assert outbox.seq == 11  # whoever counts finds nothing missing
    outbox.bound = Bound(4, 1000)
    put(outbox, *["step", "error"] * 4)
    assert [part for part in told(outbox) if not isinstance(part, tuple)].count("error") >= 2


def test_neighbouring_gaps_become_one() -> None:
    outbox = Outbox()
    outbox.bound = Bound(10, 1000)
    put(outbox, *["step"] * 1000)
    parts = told(outbox)
    assert isinstance(parts[0], tuple)
    first, last = parts[0]
    assert first == 1
    assert parts[1:] == ["step"] * (1000 - last)
    assert 0 < len(parts) <= 11


def test_whole_ends_are_given_up_only_when_nothing_else_is_left() -> None:
    outbox = Outbox()
    outbox.bound = Bound(10, 1000)
    put(outbox, *["result"] * 11)
    assert told(outbox) == [(1, 2), *["result"] * 9]


def test_too_many_bytes_cost_the_oldest_pictures_and_nothing_else() -> None:
    outbox = Outbox()
    outbox.bound = Bound(100, 10_000)
    for number in range(4):
        outbox.put(message(f"step {number}"))
        outbox.put(message(f"image {number}", size=4_000))
    assert told(outbox) == ["step 0", (2, 2), "step 1", (4, 4), "step 2", "image 2", "step 3", "image 3"]


def test_one_picture_beyond_the_bound_still_comes() -> None:
    outbox = Outbox()
    outbox.bound = Bound(100, 100)
    outbox.put(message("image", size=1000))
    assert told(outbox) == ["image"]
    outbox.rewind(0)
    assert told(outbox) == ["image"]


def test_what_was_sent_is_sent_again_in_order_with_its_numbers_and_before_what_is_new() -> None:
    outbox = Outbox()
    put(outbox, "a", "b", "c")
    first = all_of(outbox)
    put(outbox, "d")
    outbox.rewind(1)
    assert outbox.next() is not None
    outbox.rewind(1)  # cut in the middle
    again = all_of(outbox)
    assert again[:2] == first[1:]
    assert [(plain["event"], plain["seq"]) for plain in again] == [("b", 2), ("c", 3), ("d", 4)]
    outbox.rewind(4)
    assert all_of(outbox) == []


def test_of_sent_previews_only_the_latest_comes_again_and_no_gap_tells_of_the_others() -> None:
    outbox = Outbox()
    for number in range(3):
        outbox.put(message(f"preview {number}", key="preview"))
        outbox.put(message(f"step {number}"))
        all_of(outbox)
    outbox.rewind(1)
    assert [(plain["event"], plain["seq"]) for plain in all_of(outbox)] == [
        ("step 0", 2),
        ("step 1", 4),
        ("preview 2", 5),
        ("step 2", 6),
    ]


def test_of_sent_messages_beyond_the_bound_a_gap_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "SENT", Bound(10, 10_000))
    outbox = Outbox()
    put(outbox, "hello", "result", *["step"] * 20)
    all_of(outbox)
    outbox.rewind(1)
    again = all_of(outbox)
    assert again[0]["event"] == "result"
    assert (again[1]["event"], again[1]["from_seq"], again[1]["seq"]) == ("gap", 3, again[1]["to_seq"])
    assert [plain["seq"] for plain in again[2:]] == list(range(again[1]["to_seq"] + 1, 23))
    outbox.rewind(again[1]["to_seq"])  # who has been told of the gap is not told again
    assert {plain["event"] for plain in all_of(outbox)} == {"step"}


def test_whatever_happens_each_life_cycle_message_comes_once_or_is_in_one_gap() -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    draw = random.Random(seed)
    for _ in range(200):
        outbox = Outbox()
        outbox.bound = Bound(draw.randint(5, 40), 10_000)
        count, seen = 0, 0
        times: dict[str, int] = {}
        covered = 0
        for _ in range(300):
            for _ in range(draw.randint(0, 4)):
                if draw.random() < 0.3:
                    outbox.put(message("preview", key=draw.randint(0, 2)))
                else:
                    kind = "result" if draw.random() < 0.2 else "step"
                    outbox.put(Message(1, Body({"event": kind, "number": count})))
                    count += 1
            for _ in range(draw.randint(0, 3)):
                sent = outbox.next()
                if sent is None:
                    break
                plain = read(sent)
                if draw.random() < 0.05:  # it is lost with its connection
                    outbox.rewind(seen)
                    break
                assert plain["seq"] > seen
                seen = plain["seq"]
                if plain["event"] == "gap":
                    covered += plain["to_seq"] - plain["from_seq"] + 1
                elif plain["event"] != "preview":
                    times[plain["number"]] = times.get(plain["number"], 0) + 1
        for plain in all_of(outbox):
            if plain["event"] == "gap":
                covered += plain["to_seq"] - plain["from_seq"] + 1
            elif plain["event"] != "preview":
                times[plain["number"]] = times.get(plain["number"], 0) + 1
        assert set(times.values()) == {1}
        assert len(times) + covered == count
        assert list(times) == sorted(times)


def test_texts_count_like_pictures() -> None:
    outbox = Outbox()
    outbox.bound = Bound(1_000, 100_000)
    for number in range(100):
        outbox.put(Message(number, Body({"event": "result", "result": {"text": "x" * 10_000}})))
    assert outbox.waiting_size <= 100_000
    assert told(outbox)[0] == (1, 92)


@pytest.mark.parametrize("value", [object(), "\ud800", 2**70, {"deep": [object()]}])
def test_what_msgpack_cannot_hold_becomes_an_error_in_its_place(value: Any) -> None:
    outbox = Outbox()
    outbox.put(Message(7, result_body({"value": value})))
    [plain] = all_of(outbox)
    assert (plain["id"], plain["event"], plain["code"], plain["seq"]) == (7, "error", "internal_error", 1)
    error = LatentwireError(f"{value}"[:20], [{"path": ["value"], "message": "odd", "got": value}])
    outbox.put(Message(8, error_body(error)))
    [plain] = all_of(outbox)
    assert (plain["id"], plain["event"], plain["code"], plain["seq"]) == (8, "error", "internal_error", 2)


class Told:
    """As much of a session as the post needs."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.pumped = 0

    def pump(self) -> None:
        self.pumped += 1


def command(session: Told, name: str = "watch", message_id: int = 1) -> Command:
    return Command(session, message_id, name)  # type: ignore[arg-type]


@in_loop
async def test_events_of_any_threads_come_in_order_and_in_batches() -> None:
    post, session = Post(), Told()

    def tell(thread: int) -> None:
        mine = command(session, message_id=thread)
        for number in range(500):
            post.send(mine, Step("job", 0, number, 500, 0.0, None, 0.0))

    threads = [threading.Thread(target=tell, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    received: list[dict[str, Any]] = []
    while len(received) < 8 * 500:
        await asyncio.sleep(0)
        received += all_of(session.outbox)
    for thread in threads:
        thread.join()
    assert [got["seq"] for got in received] == list(range(1, 4001))
    for number in range(8):
        assert [got["step"] for got in received if got["id"] == number] == list(range(500))


@in_loop
async def test_one_event_for_many_is_packed_once_and_one_hop_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    post = Post()
    sessions = [Told() for _ in range(100)]
    event = Step("job", 0, 1, 2, 0.0, None, 0.0)
    hops: list[Any] = []
    monkeypatch.setattr(post._loop, "call_soon_threadsafe", lambda call: hops.append(call))
    for session in sessions:
        post.send(command(session), event)
    assert hops == [post.deliver]
    post.deliver()
    sent = [session.outbox.next() for session in sessions]
    assert len({id(message.body.packed) for message in sent if message is not None}) == 1
    assert {session.pumped for session in sessions} == {1}


def test_telling_after_the_loop_has_ended_is_harmless() -> None:
    async def make() -> Post:
        return Post()

    asyncio.run(make()).send(command(Told()), Step("job", 0, 1, 2, 0.0, None, 0.0))


def preview(step: int, slot: str | None = None, revision: int | None = None) -> Event:
    return Preview("job", 0, step, 9, Picture("png", 1, 1, b""), slot=slot, revision=revision)


@pytest.mark.parametrize(
    ("name", "slots", "steps"),
    [
        ("generate", ("a", "a"), [2]),  # two revisions of one slot
        ("generate", ("a", "b"), [1, 2]),
        ("generate", (None, None), [1, 2]),
        ("watch", ("a", "a"), [1, 2]),  # maybe of two other clients
    ],
)
def test_a_newer_revisions_preview_takes_the_older_ones_place(
    name: str, slots: tuple[str | None, ...], steps: list[int]
) -> None:
    session = Told()
    for number, slot in enumerate(slots, start=1):
        event = preview(number, slot, number if slot else None)
        command(session, name, number).tell(event, Body({"event": "preview", "step": number}))
    assert [plain["step"] for plain in all_of(session.outbox)] == steps


def test_nothing_is_told_of_a_command_that_is_over() -> None:
    session = Told()
    mine = command(session)
    mine.over = True
    mine.tell(preview(1), Body({"event": "preview"}))
    assert all_of(session.outbox) == []
