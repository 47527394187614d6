"""The outbox: one order, two kinds of message, a bound; and what it saves the other clients from."""

import asyncio
import socket
import threading
from typing import Any

import msgpack
import pytest

from latentwire.server import outbox as outbox_module
from latentwire.server import session as session_module
from latentwire.server.outbox import Outbox

from .conftest import Served, wait_for
from .wire import LONG, SMALL, in_loop, wire


def message(name: str, size: int = 0) -> dict[str, Any]:
    return {"event": name, **({"image": {"data": bytes(size)}} if size else {})}


async def taken(outbox: Outbox, count: int) -> list[str]:
    return [(await outbox.take())["event"] for _ in range(count)]


@in_loop
async def test_messages_come_in_order_and_are_numbered_from_1() -> None:
    outbox = Outbox()
    for name in ("a", "b", "c"):
        outbox.put(message(name))
    assert [await outbox.take() for _ in range(3)] == [
        {"event": "a", "seq": 1},
        {"event": "b", "seq": 2},
        {"event": "c", "seq": 3},
    ]


@in_loop
async def test_the_latest_takes_its_own_place_and_the_older_one_is_gone() -> None:
    outbox = Outbox()
    outbox.put(message("step 1"))
    outbox.put(message("preview 1"), latest_of="preview")
    outbox.put(message("step 2"))
    outbox.put(message("preview 2"), latest_of="preview")
    outbox.put(message("step 3"))
    assert await taken(outbox, 4) == ["step 1", "step 2", "preview 2", "step 3"]


@in_loop
async def test_a_sent_message_is_not_replaced_and_keys_do_not_mix() -> None:
    outbox = Outbox()
    outbox.put(message("preview 1 of a"), latest_of="a")
    assert await taken(outbox, 1) == ["preview 1 of a"]
    outbox.put(message("preview 1 of b"), latest_of="b")
    outbox.put(message("preview 2 of a"), latest_of="a")
    assert await taken(outbox, 2) == ["preview 1 of b", "preview 2 of a"]


@in_loop
async def test_no_number_of_previews_pushes_a_life_cycle_message_out() -> None:
    outbox = Outbox()
    for number in range(1000):
        outbox.put(message(f"preview {number}", size=1 << 20), latest_of="preview")
        outbox.put(message(f"step {number}"))
    assert await taken(outbox, 1001) == [
        *(f"step {number}" for number in range(999)),
        "preview 999",
        "step 999",
    ]
    assert not outbox.overflow.is_set()


@in_loop
async def test_too_many_messages_overflow_and_nothing_more_is_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "MAX_WAITING", 3)
    outbox = Outbox()
    for number in range(3):
        outbox.put(message(f"{number}"))
    await asyncio.sleep(0)
    assert not outbox.overflow.is_set()
    for number in range(3, 100):
        outbox.put(message(f"{number}"))
    await asyncio.wait_for(outbox.overflow.wait(), 10)
    assert await taken(outbox, 4) == ["0", "1", "2", "3"]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(outbox.take(), 0.01)


@in_loop
async def test_too_many_bytes_overflow_but_replaced_and_sent_ones_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "MAX_WAITING_BYTES", 100)
    outbox = Outbox()
    for _ in range(10):
        outbox.put(message("preview", size=60), latest_of="preview")
    for _ in range(10):
        outbox.put(message("image", size=40))
        await taken(outbox, 1)
    await asyncio.sleep(0)
    assert not outbox.overflow.is_set()
    outbox.put({"event": "image", "image": None, "latents": {"data": bytes(70)}})
    await asyncio.wait_for(outbox.overflow.wait(), 10)


@in_loop
async def test_any_thread_may_put_while_one_task_takes() -> None:
    outbox = Outbox()

    def put(thread: int) -> None:
        for number in range(500):
            outbox.put({"event": "step", "thread": thread, "number": number})
            outbox.put({"event": "preview", "thread": thread, "number": number}, latest_of=thread)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    received: list[dict[str, Any]] = []
    while sum(got["event"] == "step" for got in received) < 8 * 500:
        received.append(await outbox.take())
    for thread in threads:
        thread.join()
    assert [got["seq"] for got in received] == list(range(1, len(received) + 1))
    for number in range(8):
        steps = [got["number"] for got in received if (got["thread"], got["event"]) == (number, "step")]
        assert steps == list(range(500))
        previews = [got["number"] for got in received if (got["thread"], got["event"]) == (number, "preview")]
        assert previews == sorted(previews)


def test_putting_after_the_loop_has_ended_is_harmless() -> None:
    async def make() -> Outbox:
        return Outbox()

    asyncio.run(make()).put(message("too late"))


@in_loop
async def test_a_cancelled_take_loses_nothing() -> None:
    outbox = Outbox()
    waiting = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    waiting.cancel()
    outbox.put(message("a"))
    assert await taken(outbox, 1) == ["a"]


async def never_reading(served: Served) -> socket.socket:
    """A client with a small receive buffer that asks for large previews and then never reads."""
    host, _, port = served.url.removeprefix("ws://").removesuffix("/ws").partition(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((host, int(port)))
    client.sendall(
        f"GET /ws HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    while b"\r\n\r\n" not in client.recv(4096):
        pass
    stream = {"previews": {"format": "png", "size": 1024}, "latents": {"dtype": "float32"}}
    params = LONG | {"stream": stream}
    frame = msgpack.packb({"id": 1, "command": "generate", "params": params})
    assert 126 <= len(frame) < 1 << 16
    client.sendall(b"\x82\xfe" + len(frame).to_bytes(2, "big") + bytes(4) + frame)  # masked with zeros
    await asyncio.to_thread(wait_for, lambda: bool(served.host.jobs.all()), "its job")
    return client


@in_loop
async def test_a_client_that_never_reads_costs_the_others_nothing_and_is_given_up(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "MAX_WAITING", 15)
    monkeypatch.setattr(session_module, "CLOSE_TIMEOUT_S", 0.01)
    with await never_reading(served):
        async with wire(served.url) as other:
            await other.send(1, "generate", **SMALL | {"num_inference_steps": 5})
            messages = await other.all_of(1)
            assert [step["step"] for step in messages if step["event"] == "step"] == list(range(1, 6))
        await asyncio.to_thread(wait_for, lambda: not served.host.jobs.all(), "the job to be cancelled")


@in_loop
async def test_a_client_that_takes_nothing_for_too_long_is_given_up(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "SEND_TIMEOUT_S", 0.05)
    with await never_reading(served):
        await asyncio.to_thread(wait_for, lambda: not served.host.jobs.all(), "the job to be cancelled")


@in_loop
async def test_a_slow_reader_gets_fewer_previews_and_every_step(served: Served) -> None:
    async with wire(served.url) as client:
        client.socket.transport.pause_reading()
        stream = {"previews": {"format": "png", "size": 1024}}
        await client.send(1, "generate", **SMALL | {"num_inference_steps": 15, "stream": stream})
        await asyncio.to_thread(wait_for, lambda: bool(served.host.jobs.all()), "its job")
        await asyncio.to_thread(wait_for, lambda: not served.host.jobs.all(), "its end")
        client.socket.transport.resume_reading()
        messages = await client.all_of(1)
    assert [message["step"] for message in messages if message["event"] == "step"] == list(range(1, 16))
    assert [message["event"] for message in messages[-2:]] == ["image", "result"]
    previews = [message["step"] for message in messages if message["event"] == "preview"]
    assert previews == sorted(set(previews))
    assert len(previews) < 15
