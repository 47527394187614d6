"""Live slots of the Python client: the newest request is what counts, and what one gets to see."""

import asyncio
from typing import Any

import pytest

from latentwire.client import (
    Accepted,
    Connection,
    ConnectionLost,
    Image,
    JobEvent,
    Preview,
    RemoteError,
    Result,
    Started,
    Step,
    connect,
    connect_sync,
)

from .conftest import Served, wait_for
from .wire import in_loop

SMALL: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 4}


async def nothing_runs(served: Served) -> None:
    await asyncio.to_thread(wait_for, lambda: not served.host.jobs.all(), "all jobs to end")


@in_loop
async def test_of_many_changes_the_last_one_ends_as_a_picture(served: Served) -> None:
    async with connect(served.url) as host, host.live("canvas", previews=True, **SMALL) as live:

        async def drag() -> None:
            for seed in range(30):
                live.send("red apple", seed=seed)
                await asyncio.sleep(0.01)
            live.end()

        dragging = asyncio.create_task(drag())
        events = [event async for event in live]
        await dragging
    *_, image, result = [event for event in events if not isinstance(event, Preview)]
    assert isinstance(image, Image)
    assert isinstance(result, Result)
    assert image.seed == 29
    assert result.seeds == [29]
    begun = [event.revision or 0 for event in events if isinstance(event, JobEvent) and not isinstance(event, Accepted)]
    assert begun == sorted(begun)  # nothing of an older one once a newer one has begun
    assert len([event for event in events if isinstance(event, Accepted)]) <= 30
    await nothing_runs(served)


@in_loop
async def test_what_is_sent_faster_than_the_host_takes_it_is_left_out(served: Served) -> None:
    async with connect(served.url) as host, host.live("canvas", **SMALL) as live:
        for seed in range(100):
            live.send("red apple", seed=seed)  # all at once
        live.end()
        events = [event async for event in live]
    assert [event.seeds for event in events if isinstance(event, Accepted)] == [[99]]


@in_loop
async def test_a_slow_reader_sees_nothing_old(served: Served) -> None:
    async with connect(served.url) as host, host.live("canvas", previews=True, **SMALL) as live:
        before = await finished(host)
        for seed in (1, 2):
            live.send("red apple", seed=seed)
            await all_told(host, before + seed)
        live.end()
        events = [event async for event in live]
    assert {event.revision for event in events if isinstance(event, Started | Step | Preview | Image | Result)} == {2}
    assert len([event for event in events if isinstance(event, Preview)]) == 1  # the latest
    assert len([event for event in events if isinstance(event, Step)]) == 4


async def finished(host: Connection) -> int:
    """How many pictures the host has finished."""
    return int((await host.call("pipeline.state"))["engine"]["runs_finished"])


async def all_told(host: Connection, pictures: int) -> None:
    """Until so many pictures are finished and this client has been told all of them: answers come in order."""
    while await finished(host) < pictures or (await host.call("jobs"))["jobs"]:  # noqa: ASYNC110 - in another thread
        await asyncio.sleep(0.02)
    await host.call("ping")


@in_loop
async def test_an_error_of_the_newest_ends_the_iteration_and_another_goes_on(served: Served) -> None:
    async with connect(served.url) as host, host.live("canvas", **SMALL) as live:
        live.send("red apple", num_inference_steps=0)
        with pytest.raises(RemoteError, match="num_inference_steps"):
            await anext(live)
        live.send("red apple", seed=3)
        live.end()
        assert [event.seeds async for event in live if isinstance(event, Result)] == [[3]]


@in_loop
async def test_leaving_the_block_cancels_what_is_under_way(served: Served) -> None:
    async with connect(served.url) as host:
        async with host.live("canvas", **SMALL | {"num_inference_steps": 1000}) as live:
            live.send("red apple")
            async for event in live:
                if isinstance(event, Step):
                    break
        await nothing_runs(served)
        assert (await host.call("jobs"))["jobs"] == []


@in_loop
async def test_a_lost_connection_ends_the_iteration(served: Served) -> None:
    async with connect(served.url, resume=False) as host, host.live("canvas", **SMALL) as live:
        live.send("red apple", num_inference_steps=1000)
        while not isinstance(await anext(live), Step):
            pass
        await host._link.close()
        with pytest.raises(ConnectionLost):
            [event async for event in live]
    await nothing_runs(served)


def test_the_plain_form_does_the_same(served: Served) -> None:
    with connect_sync(served.url) as host, host.live("canvas", **SMALL) as live:
        for seed in range(20):
            live.send("red apple", seed=seed)
        live.end()
        events = list(live)
    assert isinstance(events[-1], Result)
    assert events[-1].seeds == [19]
    with connect_sync(served.url) as host:
        with host.live("canvas", **SMALL | {"num_inference_steps": 1000}) as live:
            live.send("red apple")
            assert isinstance(next(iter(live)), Accepted)
        wait_for(lambda: not served.host.jobs.all(), "the job to be cancelled")
        with host.live("canvas") as live:
            live.send("red apple", num_inference_steps=0)
            with pytest.raises(RemoteError, match="num_inference_steps"):
                list(live)
