"""The Python client over a line that breaks: loops go on, nothing is missing, nothing comes twice."""

import asyncio
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from latentwire.client import (
    Accepted,
    ConnectionLost,
    Image,
    MessagesLost,
    Preview,
    RemoteError,
    Result,
    Started,
    Step,
    connect,
    connect_sync,
)
from latentwire.server.outbox import Bound

from .conftest import Served, serving, wait_for
from .relay import Relay, relay
from .wire import in_loop, wire

SMALL: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 3, "seed": 1}
LONG: dict[str, Any] = SMALL | {"num_inference_steps": 1000}


@pytest.fixture(scope="module")
def brief() -> Iterator[Served]:
    """A host that keeps a session for a second."""
    with serving(server={"resume_grace_s": 1}) as served:
        yield served


async def no_jobs_left(served: Served) -> None:
    await asyncio.to_thread(wait_for, lambda: not served.host.jobs.all(), "the jobs to be cancelled")


async def cutting(line: Relay, draw: random.Random) -> None:
    while True:
        await asyncio.sleep(draw.choice([0.001, 0.02, 0.1, 0.3, 0.5]))
        line.cut()


def assert_whole(events: list[Any], steps: int) -> None:
    kept = [event for event in events if not isinstance(event, Preview)]
    assert [type(event) for event in kept] == [Accepted, Started, *[Step] * steps, Image, Result]
    assert [event.step for event in kept if isinstance(event, Step)] == list(range(1, steps + 1))


@in_loop
async def test_loops_go_on_over_a_line_that_is_cut_at_random(served: Served) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    made = served.host.engine.figures.runs_finished
    async with relay(served.url) as line, connect(line.url) as host:

        async def draw(number: int) -> None:
            fields = SMALL | {"num_inference_steps": 30 + number, "seed": number}
            assert_whole([event async for event in host.generate("red apple", previews=True, **fields)], 30 + number)

        async def ask() -> None:
            for _ in range(30):
                assert (await host.call("ping"))["time"]
                await asyncio.sleep(0.05)

        cutter = asyncio.create_task(cutting(line, random.Random(seed)))
        try:
            for begin in range(0, 12, 4):
                await asyncio.gather(*(draw(number) for number in range(begin, begin + 4)), ask(), ask())
        finally:
            cutter.cancel()
        print("connections", line.connections)
        assert line.connections > 3
    await no_jobs_left(served)
    assert served.host.engine.figures.runs_finished - made == 12  # no command was taken twice


def test_the_plain_form_does_the_same(brief: Served) -> None:
    lines: list[Relay] = []
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def keep_line() -> None:
        async with relay(brief.url) as line:
            lines.append(line)
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(keep_line(),))
    thread.start()
    try:
        wait_for(lambda: bool(lines), "the line")
        with connect_sync(lines[0].url) as host:
            events = []
            for event in host.generate("red apple", **SMALL | {"num_inference_steps": 20}):
                events.append(event)
                if isinstance(event, Step) and event.step in (3, 9):
                    loop.call_soon_threadsafe(lines[0].cut)
            assert_whole(events, 20)
        assert lines[0].connections >= 2
        with connect_sync(lines[0].url, resume=False) as host:
            drawing = host.generate("red apple", **LONG)
            next(drawing)
            loop.call_soon_threadsafe(lines[0].cut)
            with pytest.raises(ConnectionLost):
                list(drawing)
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


@in_loop
async def test_a_command_given_while_the_line_is_down_runs_when_it_is_up_again(served: Served) -> None:
    async with relay(served.url) as line, connect(line.url) as host:
        assert await host.call("ping")
        line.down = True
        line.cut()
        asking = asyncio.create_task(host.call("ping"))
        await asyncio.sleep(0.3)
        assert not asking.done()
        line.down = False
        assert (await asking)["time"]


@in_loop
async def test_what_cannot_be_resumed_in_time_is_connection_lost(brief: Served) -> None:
    async with relay(brief.url) as line, connect(line.url) as host:
        events = host.generate("red apple", **LONG)
        await anext(events)
        line.down = True
        line.cut()
        with pytest.raises(ConnectionLost, match="could not be resumed in time"):
            _ = [event async for event in events]
        with pytest.raises(ConnectionLost, match="could not be resumed in time"):
            await host.call("ping")
    await no_jobs_left(brief)


@in_loop
async def test_a_session_that_is_gone_is_connection_lost(brief: Served) -> None:
    async with relay(brief.url) as line, connect(line.url) as host:
        host.hello["limits"]["resume_seconds"] = 60  # it thinks that it has more time than the host gives
        events = host.generate("red apple", **LONG)
        await anext(events)
        line.down = True
        line.cut()
        await no_jobs_left(brief)
        line.down = False
        with pytest.raises(ConnectionLost, match="cannot be resumed: no session has this token"):
            _ = [event async for event in events]


@in_loop
async def test_whose_session_is_taken_up_elsewhere_does_not_take_it_back(served: Served) -> None:
    async with connect(served.url) as host, wire(served.url) as other:
        asking = asyncio.create_task(anext(host.subscribe("pipeline.subscribe")))
        await asking
        await other.send("r", "session.resume", token=host.hello["resume"], seq=2)
        await other.until("result", "r")
        events = host.generate("red apple", **SMALL)
        with pytest.raises(ConnectionLost, match="resumed elsewhere"):
            await anext(events)
        assert (await other.ask("ping"))["time"]


@in_loop
async def test_a_gap_is_messages_lost_and_the_job_goes_on(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentwire.server.session.AWAY", Bound(5, 1 << 30))
    async with relay(served.url) as line, connect(line.url) as host:
        events = host.generate("red apple", **LONG)
        accepted = await anext(events)
        assert isinstance(accepted, Accepted)
        line.down = True
        line.cut()
        [job] = served.host.jobs.all()
        await asyncio.to_thread(wait_for, lambda: job.steps_done > 20, "what cannot be kept")
        line.down = False
        with pytest.raises(MessagesLost, match=r"gave up messages \d+ to \d+"):
            _ = [event async for event in events]
        [row] = (await host.call("jobs"))["jobs"]
        assert row["job"] == accepted.job
        assert (await host.call("cancel", job=accepted.job))["cancelled"]
    await no_jobs_left(served)


@in_loop
async def test_leaving_while_the_line_is_down_is_no_matter(served: Served) -> None:
    async with relay(served.url) as line:
        async with connect(line.url) as host:
            line.down = True
            line.cut()
            asking = asyncio.create_task(host.call("ping"))
            await asyncio.sleep(0.2)
        with pytest.raises(ConnectionLost):
            await asking


@in_loop
async def test_a_job_that_is_left_while_the_line_is_down_is_cancelled_later(served: Served) -> None:
    async with relay(served.url) as line, connect(line.url) as host:
        events = host.generate("red apple", **LONG)
        await anext(events)
        line.down = True
        line.cut()
        await asyncio.sleep(0.1)
        leaving = asyncio.create_task(events.aclose())
        await asyncio.sleep(0.1)
        line.down = False
        await leaving
        await no_jobs_left(served)
        with pytest.raises(RemoteError, match="unknown_command"):
            await host.call("nonsense")


@in_loop
async def test_a_job_whose_task_is_cancelled_while_the_line_is_down_ends_at_once_and_later_at_the_host(
    served: Served,
) -> None:
    async def draw(host: Any) -> None:
        async for _ in host.generate("x", **LONG):
            pass

    async with relay(served.url) as line, connect(line.url) as host:
        drawing = asyncio.create_task(draw(host))
        await asyncio.to_thread(wait_for, lambda: bool(served.host.jobs.all()), "the job")
        line.down = True
        line.cut()
        await asyncio.sleep(0.2)
        drawing.cancel()
        async with asyncio.timeout(5):
            with pytest.raises(asyncio.CancelledError):
                await drawing
        assert served.host.jobs.all()
        line.down = False
        await no_jobs_left(served)
        assert (await host.call("ping"))["time"]
