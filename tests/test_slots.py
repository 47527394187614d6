"""Live slots over the wire: the newest request of each is what counts, and nothing queues up behind it."""

import asyncio
from typing import Any

import pytest

from .conftest import Served
from .wire import LONG, SMALL, Wire, in_loop, wire

LIVE: dict[str, Any] = SMALL | {"slot": "canvas"}
ENDS = ("result", "error")


async def until_all_ended(client: Wire, ids: set[int]) -> dict[int, dict[str, Any]]:
    """The last message of each command."""
    ends = {message["id"]: message for message in client.seen if message["event"] in ENDS}
    while not ids <= ends.keys():
        message = await client.receive()
        if message["event"] in ENDS:
            ends[message["id"]] = message
    return {number: ends[number] for number in ids}


@in_loop
async def test_fifty_revisions_leave_one_picture_and_no_older_one_takes_a_step_after_a_newer_has_begun(
    served: Served,
) -> None:
    async with wire(served.url) as client:
        for number in range(1, 51):
            await client.send(number, "generate", **LIVE | {"num_inference_steps": 30, "seed": number})
            await asyncio.sleep(0.02)
        ends = await until_all_ended(client, set(range(1, 51)))
    assert [number for number, end in ends.items() if end["event"] == "result"] == [50]
    assert {end["code"] for end in ends.values() if end["event"] == "error"} == {"superseded"}
    assert [message["id"] for message in client.seen if message["event"] == "image"] == [50]
    newest = 0
    for message in client.seen:
        if message["event"] == "started":
            newest = max(newest, message["revision"])
        if message["event"] in ("step", "preview", "image"):
            assert message["revision"] >= newest
    assert not served.host.jobs.all()


@in_loop
async def test_every_message_of_a_slots_request_carries_its_slot_and_revision(served: Served) -> None:
    async with wire(served.url) as client:
        await client.send(1, "generate", **LONG | {"slot": "canvas", "stream": {"previews": {}}})
        await client.until("preview", 1)
        await client.send(2, "generate", **LIVE | {"stream": {"previews": {}}})
        await until_all_ended(client, {1, 2})
    for message in client.seen:
        carried = message["result"] if message["event"] == "result" else message
        assert (carried["slot"], carried["revision"]) == ("canvas", message["id"])
    assert "job" in next(message for message in client.seen if message["event"] == "error")


@in_loop
async def test_requests_without_a_slot_say_nothing_of_one(served: Served) -> None:
    async with wire(served.url) as client:
        await client.send(1, "generate", **SMALL)
        for message in await client.all_of(1):
            assert not {"slot", "revision"} & message.keys()


@in_loop
async def test_slots_and_clients_do_not_disturb_one_another(served: Served) -> None:
    async with wire(served.url) as first, wire(served.url) as second:
        await first.send(1, "generate", **LIVE | {"num_inference_steps": 20})
        await first.until("started", 1)
        await first.send(2, "generate", **LIVE | {"slot": "other"})
        await second.send(1, "generate", **LIVE)
        assert (await second.all_of(1))[-1]["result"]["revision"] == 1
        ends = await until_all_ended(first, {1, 2})
    assert {number: end["result"]["revision"] for number, end in ends.items()} == {1: 1, 2: 1}


@in_loop
async def test_an_invalid_request_leaves_the_running_one_alone(served: Served) -> None:
    async with wire(served.url) as client:
        await client.send(1, "generate", **LIVE | {"num_inference_steps": 20})
        await client.until("started", 1)
        assert (await client.error(2, "generate", **LIVE | {"scheduler": "nonsense"}))["code"] == "invalid_params"
        assert (await until_all_ended(client, {1}))[1]["event"] == "result"


@in_loop
async def test_with_min_steps_shown_each_begun_request_shows_so_much_and_only_the_newest_waits(served: Served) -> None:
    request = LIVE | {"num_inference_steps": 200, "min_steps_shown": 3, "stream": {"previews": {}}}
    async with wire(served.url) as client:
        for number in range(1, 21):
            await client.send(number, "generate", **request | {"num_inference_steps": 4 if number == 20 else 200})
        ends = await until_all_ended(client, set(range(1, 21)))
    assert [number for number, end in ends.items() if end["event"] == "result"] == [20]
    begun = {message["id"] for message in client.seen if message["event"] == "started"}
    assert 1 in begun
    assert len(begun) < 20
    for number in begun:
        assert (
            max(message["step"] for message in client.seen if message["event"] == "step" and message["id"] == number)
            >= 3
        )
        previews = [
            message["step"] for message in client.seen if (message["event"], message["id"]) == ("preview", number)
        ]
        assert max(previews) >= 3


@in_loop
async def test_min_steps_shown_counts_steps_where_no_previews_are_wanted(served: Served) -> None:
    async with wire(served.url) as client:
        await client.send(1, "generate", **LONG | {"slot": "canvas", "min_steps_shown": 5})
        await client.send(2, "generate", **LIVE)
        ends = await until_all_ended(client, {1, 2})
    assert (ends[1]["code"], ends[2]["event"]) == ("superseded", "result")
    assert max(message["step"] for message in client.seen if (message["event"], message["id"]) == ("step", 1)) >= 5


@in_loop
async def test_a_request_that_waits_can_be_cancelled_and_the_running_one_goes_on(served: Served) -> None:
    async with wire(served.url) as client:
        await client.send(1, "generate", **LIVE | {"num_inference_steps": 12, "min_steps_shown": 12})
        await client.until("started", 1)
        await client.send(2, "generate", **LIVE)
        waiting = (await client.until("accepted", 2))["job"]
        assert (await client.ask("cancel", job=waiting))["cancelled"]
        ends = await until_all_ended(client, {1, 2})
    assert (ends[1]["event"], ends[2]["code"]) == ("result", "cancelled")


@in_loop
async def test_cancelling_a_slot_ends_its_running_and_its_waiting_request_and_the_next_one_runs(served: Served) -> None:
    async with wire(served.url) as client:
        await client.send(1, "generate", **LONG | {"slot": "canvas", "min_steps_shown": 1000})
        await client.send(2, "generate", **LIVE)
        await client.send(3, "generate", **LONG)
        jobs = {number: (await client.until("accepted", number))["job"] for number in (1, 2, 3)}
        assert set((await client.ask("cancel", slot="canvas"))["jobs"]) == {jobs[1], jobs[2]}
        ends = await until_all_ended(client, {1, 2})
        assert {end["code"] for end in ends.values()} == {"cancelled"}
        await client.send(4, "generate", **LIVE)
        assert (await until_all_ended(client, {4}))[4]["result"]["revision"] == 3
        assert (await client.ask("cancel", all=True))["jobs"] == [jobs[3]]
        assert (await client.ask("cancel", slot="canvas"))["jobs"] == []


@in_loop
async def test_a_slot_takes_no_more_of_the_limit_of_jobs_than_one(served: Served) -> None:
    limit = served.host.settings.limits.jobs_per_client
    async with wire(served.url) as client:
        for number in range(1, 2 * limit):
            await client.send(number, "generate", **LIVE | {"num_inference_steps": 20})
        ends = await until_all_ended(client, set(range(1, 2 * limit)))
    assert {end["code"] for end in ends.values() if end["event"] == "error"} == {"superseded"}


@pytest.mark.parametrize(
    ("params", "path"),
    [
        ({"slot": ""}, ["slot"]),
        ({"slot": "a" * 65}, ["slot"]),
        ({"slot": 7}, ["slot"]),
        ({"min_steps_shown": 2}, []),
        ({"slot": "a", "min_steps_shown": -1}, ["min_steps_shown"]),
        ({"priority": "urgent"}, ["priority"]),
    ],
)
def test_bad_values_are_refused(served: Served, params: dict[str, Any], path: list[str]) -> None:
    async def refused() -> dict[str, Any]:
        async with wire(served.url) as client:
            return await client.error(1, "generate", **SMALL | params)

    error = asyncio.run(refused())
    assert (error["code"], error["details"][0]["path"]) == ("invalid_params", path)


@pytest.mark.parametrize("params", [{}, {"job": "a", "slot": "b"}, {"slot": "b", "all": True}, {"all": False}])
def test_cancel_wants_one_thing(served: Served, params: dict[str, Any]) -> None:
    async def refused() -> dict[str, Any]:
        async with wire(served.url) as client:
            return await client.error(1, "cancel", **params)

    error = asyncio.run(refused())
    assert (error["code"], error["details"][0]["path"]) == ("invalid_params", ["job"])


@in_loop
async def test_a_client_may_have_only_so_many_slots(served: Served) -> None:
    async with wire(served.url) as client:
        for number in range(64):
            await client.send(number, "generate", **LIVE | {"slot": f"{number}", "num_inference_steps": 1})
            await client.until("result", number)
        assert (await client.error(64, "generate", **LIVE | {"slot": "one more"}))["code"] == "too_many_jobs"
        await client.send(65, "generate", **LIVE | {"slot": "0"})
        assert (await until_all_ended(client, {65}))[65]["event"] == "result"


@in_loop
async def test_a_paused_request_gives_way_whatever_it_has_shown(served: Served) -> None:
    async with wire(served.url) as client:
        await client.send(1, "generate", **LONG | {"slot": "canvas", "min_steps_shown": 1000})
        job = (await client.until("step", 1))["job"]
        await client.send(2, "generate", **LIVE)
        await client.until("accepted", 2)
        await client.ask("jobs.pause", job=job)
        ends = await until_all_ended(client, {1, 2})
    assert (ends[1]["code"], ends[2]["event"]) == ("superseded", "result")
