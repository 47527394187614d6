"""Clients that read slowly, or not at all: what they get, when they are given up, and that it costs nobody else."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import uvicorn

from latentwire.server import watch as watch_module
from latentwire.server import websocket as websocket_module
from latentwire.server.app import create_app
from latentwire.server.serve import server_config

from .conftest import Served, running_host, serving, wait_for
from .raw_socket import RawClient, raw_client
from .wire import LONG, SMALL, in_loop, wire

LARGE = {"previews": {"format": "png", "size": 1024}, "latents": {"dtype": "float32"}}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second in place of 15."""
    monkeypatch.setattr(watch_module, "PERIOD_S", 0.05)
    monkeypatch.setattr(websocket_module, "STUCK_S", 0.5)


@pytest.fixture
def forgetful() -> Iterator[Served]:
    """A host that keeps no session whose connection has ended."""
    with serving(server={"resume_grace_s": 0}) as served:
        yield served


async def no_jobs_left(served: Served) -> None:
    await asyncio.to_thread(wait_for, lambda: not served.host.jobs.all(), "the jobs to be cancelled")


@in_loop
async def test_a_client_that_never_reads_costs_the_others_nothing_and_is_given_up(
    forgetful: Served, quick: None
) -> None:
    async with raw_client(forgetful.url) as stuck, wire(forgetful.url) as other:
        await stuck.send(1, "generate", **LONG | {"stream": LARGE})
        for number in range(3):
            await other.send(number, "generate", **SMALL | {"num_inference_steps": 5})
            messages = await other.all_of(number)
            assert [step["step"] for step in messages if step["event"] == "step"] == list(range(1, 6))
        await no_jobs_left(forgetful)
        assert (await other.ask("ping"))["time"]


@in_loop
async def test_the_session_of_a_client_that_was_given_up_is_kept(served: Served, quick: None) -> None:
    params = SMALL | {"num_inference_steps": 60, "stream": LARGE}
    async with raw_client(served.url) as stuck:
        await stuck.send(1, "generate", **params)
        read = [stuck.hello, await stuck.receive()]
        await no_jobs_left(served)
        with suppress(ConnectionResetError):  # what had been sent before can still be read, and then the end comes
            while True:
                read.append(await stuck.receive())
                await asyncio.sleep(1)
    async with wire(served.url) as back:
        await back.send("r", "session.resume", token=stuck.hello["resume"], seq=read[-1]["seq"])
        rest = await back.all_of(1)
    steps = [message["step"] for message in (*read, *rest) if message["event"] == "step"]
    assert steps == list(range(1, 61))
    assert [message["event"] for message in rest[-2:]] == ["image", "result"]


async def slowly(client: RawClient, message_id: Any) -> list[dict[str, Any]]:
    """A command's messages, read at 320 kB a second."""
    messages: list[dict[str, Any]] = []
    while not messages or messages[-1]["event"] not in ("result", "error"):
        message = await client.receive(8 << 10, 0.025)
        if message["id"] == message_id:
            messages.append(message)
    return messages


@in_loop
async def test_a_slow_reader_gets_fewer_previews_every_step_and_the_picture_and_is_not_given_up(
    served: Served, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its messages takes longer than the time in which it must take something, or answer a ping."""
    monkeypatch.setattr(websocket_module, "PING_INTERVAL_S", 0.2)
    monkeypatch.setattr(websocket_module, "PING_TIMEOUT_S", 0.5)
    async with raw_client(served.url) as client:
        client.answers = True
        stream = {"previews": {"format": "png", "size": 2048}}
        await client.send(1, "generate", **SMALL | {"num_inference_steps": 40, "stream": stream})
        messages = await slowly(client, 1)
    assert [message["step"] for message in messages if message["event"] == "step"] == list(range(1, 41))
    assert [message["event"] for message in messages[-2:]] == ["image", "result"]
    previews = [message for message in messages if message["event"] == "preview"]
    assert 0 < len(previews) < 20
    assert max(len(preview["image"]["data"]) for preview in previews) > 0.5 * 320_000
    steps = [preview["step"] for preview in previews]
    assert steps == sorted(set(steps))


@in_loop
async def test_one_that_reads_nothing_for_a_while_gets_what_matters(served: Served) -> None:
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


@in_loop
async def test_a_silent_client_is_pinged_and_let_go_unless_it_answers(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "PERIOD_S", 0.02)
    monkeypatch.setattr(websocket_module, "PING_INTERVAL_S", 0.1)
    monkeypatch.setattr(websocket_module, "PING_TIMEOUT_S", 0.3)
    async with raw_client(served.url) as dumb, wire(served.url) as quiet:
        with pytest.raises(ConnectionResetError, match="1011"):
            await dumb.receive()
        assert (await quiet.ask("ping"))["time"]


def test_a_host_that_shuts_down_does_not_wait_for_stuck_clients(quick: None) -> None:
    with running_host() as host:
        server = uvicorn.Server(server_config(create_app(host)))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        wait_for(lambda: server.started and host.ready, "the server to be ready")
        served = Served(host, f"ws://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/ws")

        async def scenario() -> None:
            async with raw_client(served.url) as one, raw_client(served.url) as other:
                for client in (one, other):
                    await client.send(1, "generate", **LONG | {"stream": LARGE})
                await asyncio.to_thread(wait_for, lambda: len(host.jobs.all()) == 2, "their jobs")
                await asyncio.sleep(0.3)
                server.should_exit = True
                await asyncio.to_thread(thread.join, 30)

        asyncio.run(scenario())
        assert not thread.is_alive()
        assert not server.server_state.connections
