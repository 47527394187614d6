"""A plugin's events that cannot be sent: they end their own command, once, and cost nobody else anything."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Served, serving
from .wire import SMALL, in_loop, wire

SOURCE = """
import asyncio, threading, time
from dataclasses import dataclass
from typing import Any, ClassVar
from latentwire import Event, NoParams, hookimpl

@dataclass(frozen=True, slots=True)
class Odd(Event):
    name: ClassVar[str] = "odd"
    value: Any

endless = []
endless.append(endless)

async def once(context, params):
    for value in (1, {1, 2}, 3):
        context.emit(Odd(value))
    await asyncio.sleep(0.2)
    return {}

async def stream(context, params):
    def run():
        for _ in range(300):
            context.emit(Odd(endless))
            time.sleep(0.005)
    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(0.05)
    return {}

async def answer(context, params):
    return {"odd": {1, 2}}

@hookimpl
def register(registry):
    registry.add_command("odd.once", NoParams, once)
    registry.add_command("odd.stream", NoParams, stream)
    registry.add_command("odd.answer", NoParams, answer)
    registry.add_event(Odd)
"""


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    file: Path = tmp_path_factory.mktemp("odd") / "odd.py"
    file.write_text(SOURCE)
    with serving(plugins=[{"name": "odd", "path": str(file)}]) as served:
        yield served


@in_loop
async def test_one_that_cannot_be_sent_ends_its_command_and_the_rest_is_not_told(odd: Served) -> None:
    async with wire(odd.url) as client:
        await client.send(1, "odd.once")
        first, last = await client.all_of(1)
        assert (first["event"], first["value"]) == ("odd", 1)
        assert (last["event"], last["code"]) == ("error", "internal_error")
        await asyncio.sleep(0.4)
        await client.ask("ping")
        assert [message["id"] for message in client.seen].count(1) == 2  # nothing came after its end


@in_loop
async def test_a_result_that_cannot_be_sent_is_an_error(odd: Served) -> None:
    async with wire(odd.url) as client:
        error = await client.error(1, "odd.answer")
        assert "the result of this command cannot be sent" in error["message"]


@pytest.mark.slow
@in_loop
async def test_a_stream_of_them_costs_other_clients_no_event(odd: Served) -> None:
    async with wire(odd.url) as client, wire(odd.url) as other:
        await client.send(1, "odd.stream")
        for number in range(5):
            await other.send(number, "generate", **SMALL | {"num_inference_steps": 20})
            messages = await other.all_of(number)
            assert [message["step"] for message in messages if message["event"] == "step"] == list(range(1, 21))
        ends = [message for message in await client.all_of(1) if message["event"] == "error"]
        assert len(ends) == 1
        assert (await client.ask("ping"))["time"]
