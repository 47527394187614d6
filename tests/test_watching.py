"""Watching a job from another connection, pausing it, changing it while it runs, its place in the queue."""

import asyncio
import gc
import io
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import save_file

from latentwire import Event, Host, JobEvent
from latentwire.core.errors import JobCancelled, LatentwireError
from latentwire.core.settings import EMBEDDED_MODEL

from .conftest import Served, running_host, serving
from .wire import LONG, SMALL, Wire, in_loop, wire

REQUEST: dict[str, Any] = {"prompt": "red apple", "num_inference_steps": 12, "seed": 5, "mode": "exact"}


KEY = "whose jobs these all are"


async def start(client: Wire, message_id: int, **params: Any) -> str:
    """Send a request; its job's id once its first step is done."""
    await client.send(message_id, "generate", **params)
    job: str = (await client.until("step", message_id))["job"]
    return job


@in_loop
async def test_a_late_watcher_gets_the_present_state_then_what_comes_then_the_same_end(served: Served) -> None:
    async with wire(served.url, KEY) as owner, wire(served.url, KEY) as other:
        job = await start(owner, 1, **SMALL | {"num_inference_steps": 40, "num_images": 2, "seed": [3, 4]})
        await other.send(1, "jobs.watch", job=job)
        messages = await other.all_of(1)
        own = await owner.all_of(1)
    assert [message["event"] for message in messages[:2]] == ["subscribed", "job_state"]
    state = messages[1]
    assert (state["state"], state["prompt"], state["position"]) == ("running", "red apple", None)
    assert [(picture["index"], picture["seed"], picture["done"]) for picture in state["pictures"]] == [
        (0, 3, False),
        (1, 4, False),
    ]
    for index in (0, 1):
        steps = [message["step"] for message in messages if message["event"] == "step" and message["index"] == index]
        assert steps == list(range(state["pictures"][index]["step"] + 1, 41))
    images = {message["index"]: message["image"] for message in messages if message["event"] == "image"}
    assert images == {message["index"]: message["image"] for message in own if message["event"] == "image"}
    assert messages[-1]["result"] == own[-1]["result"]


@in_loop
async def test_a_watcher_of_an_ended_job_gets_its_pictures_and_its_end(served: Served) -> None:
    async with wire(served.url, KEY) as owner:
        await owner.send(1, "generate", **SMALL)
        own = await owner.all_of(1)
        await owner.send(2, "generate", **LONG)
        cancelled = (await owner.until("accepted", 2))["job"]
        await owner.ask("cancel", job=cancelled)
    async with wire(served.url, KEY) as other:
        await other.send(1, "jobs.watch", job=own[0]["job"])
        messages = await other.all_of(1)
        await other.send(2, "jobs.watch", job=cancelled)
        others = await other.all_of(2)
    assert [message["event"] for message in messages] == ["job_state", "image", "result"]
    assert messages[0]["state"] == "finished"
    assert messages[1]["image"] == next(message["image"] for message in own if message["event"] == "image")
    assert messages[2]["result"] == own[-1]["result"]
    assert (others[0]["state"], others[-1]["code"]) == ("cancelled", "cancelled")


@in_loop
async def test_watchers_choose_what_they_get_and_the_owner_is_not_disturbed(served: Served) -> None:
    async with wire(served.url, KEY) as owner, wire(served.url, KEY) as first, wire(served.url, KEY) as second:
        job = await start(owner, 1, **SMALL | {"num_inference_steps": 40})
        await first.send(1, "jobs.watch", job=job, stream={"steps": False, "previews": {"format": "png", "size": 32}})
        await second.send(1, "jobs.watch", job=job, stream={"latents": {"every": 10}, "previews": {}})
        pictures, latents, own = await first.all_of(1), await second.all_of(1), await owner.all_of(1)
    assert {message["event"] for message in pictures} == {"subscribed", "job_state", "preview", "image", "result"}
    for preview in (message["image"] for message in pictures if message["event"] == "preview"):
        assert (preview["format"], preview["width"]) == ("png", 32)
    assert {message["step"] for message in latents if message["event"] == "latents"} <= {10, 20, 30, 40}
    assert {message["image"]["format"] for message in latents if message["event"] == "preview"} == {"jpeg"}
    assert not {"preview", "latents"} & {message["event"] for message in own}


@in_loop
async def test_a_watcher_that_leaves_leaves_the_job_alone(served: Served) -> None:
    async with wire(served.url, KEY) as owner:
        job = await start(owner, 1, **SMALL | {"num_inference_steps": 60})
        async with wire(served.url, KEY) as gone, wire(served.url, KEY) as other:
            await gone.send(1, "jobs.watch", job=job)
            await gone.until("job_state", 1)
            await other.send(1, "jobs.watch", job=job)
            subscription = (await other.until("subscribed", 1))["subscription"]
            await other.ask("unsubscribe", subscription=subscription)
            assert (await other.until("result", 1))["result"] == {"subscription": subscription}
        assert (await owner.all_of(1))[-1]["event"] == "result"
        error = await owner.error(2, "jobs.watch", job="0123456789abcdef")
        assert error["code"] == "unknown_job"


@in_loop
async def test_only_its_own_client_may_pause_resume_change_or_cancel_a_job(served: Served) -> None:
    async with wire(served.url, KEY) as owner, wire(served.url) as other:
        job = await start(owner, 1, **LONG)
        for command in ("jobs.watch", "jobs.pause", "jobs.resume", "jobs.update", "cancel"):
            assert (await other.error(command, command, job=job))["code"] == "unknown_job"
        await owner.ask("cancel", job=job)


@in_loop
async def test_a_paused_job_takes_no_step_others_run_on_and_its_picture_is_the_same(served: Served) -> None:
    async with wire(served.url, KEY) as client:
        await client.send(1, "generate", **REQUEST)
        plain = await client.all_of(1)
        job = await start(client, 2, **REQUEST)
        assert (await client.ask("jobs.pause", job=job))["paused"]
        assert not (await client.ask("jobs.pause", job=job))["paused"]
        assert (await client.ask("jobs"))["jobs"][0]["state"] == "paused"
        before = (await client.ask("jobs"))["jobs"][0]["steps_done"]
        await client.send(3, "generate", **REQUEST)
        await client.until("result", 3)
        assert (await client.ask("jobs"))["jobs"][0]["steps_done"] <= before + 1  # the one that was under way
        assert (await client.ask("jobs.resume", job=job))["resumed"]
        await client.until("result", 2)
    images = [message["image"]["data"] for message in client.seen if message["event"] == "image"]
    assert images[0] == next(message["image"]["data"] for message in plain if message["event"] == "image")
    assert images[1:] == images[:1] * 2
    events = [message["event"] for message in client.seen if message["id"] == 2]
    assert events.index("paused") < events.index("resumed")


@in_loop
async def test_a_paused_job_can_be_cancelled_while_nothing_else_runs(served: Served) -> None:
    async with wire(served.url, KEY) as client:
        job = await start(client, 1, **LONG)
        await client.ask("jobs.pause", job=job)
        await client.ask("cancel", job=job)
        assert (await client.all_of(1))[-1]["code"] == "cancelled"
        await client.send(2, "generate", **SMALL)
        assert (await client.all_of(2))[-1]["event"] == "result"


def pixels(messages: list[dict[str, Any]]) -> PILImage.Image:
    (image,) = (message["image"] for message in messages if message["event"] == "image")
    return PILImage.open(io.BytesIO(image["data"]))


@in_loop
async def test_guidance_changed_while_running_shows_and_the_picture_says_so(served: Served) -> None:
    async with wire(served.url, KEY) as client:
        made = []
        for number, guidance in enumerate((2.0, 8.0)):
            await client.send(number, "generate", **REQUEST | {"guidance_scale": guidance})
            made.append(pixels(await client.all_of(number)))
        job = await start(client, 2, **REQUEST | {"guidance_scale": 2.0})
        result = await client.ask("jobs.update", job=job, guidance_scale=8.0)
        assert result == {"job": job, "guidance_scale": 8.0, "adapters": {}, "controlnet_scales": {}}
        changed = pixels(await client.all_of(2))
    assert len({picture.tobytes() for picture in (*made, changed)}) == 3
    (change,) = json.loads(changed.info["latentwire_changes"])
    assert change.pop("after_step") in range(1, 12)
    assert change == {"guidance_scale": 8.0}
    assert "latentwire_changes" not in made[0].info
    events = [message["event"] for message in client.seen if message["id"] == 2]
    assert events.count("changed") == 1


@pytest.mark.parametrize(
    ("request_fields", "update", "path"),
    [
        ({"guidance_scale": 1.0}, {"guidance_scale": 3.0}, ["guidance_scale"]),
        ({}, {"guidance_scale": 1.0}, ["guidance_scale"]),
        ({}, {"guidance_scale": "much"}, ["guidance_scale"]),
        ({}, {"lora": [{"name": "nobody", "weight": 1.0}]}, ["lora", 0, "name"]),
        ({}, {"controlnet": [{"name": "nobody", "controlnet_conditioning_scale": 1.0}]}, ["controlnet", 0, "name"]),
        ({}, {"prompt": "something else"}, ["prompt"]),
    ],
)
def test_what_cannot_be_changed_is_refused_and_the_job_goes_on(
    served: Served, request_fields: dict[str, Any], update: dict[str, Any], path: list[Any]
) -> None:
    async def refused() -> tuple[dict[str, Any], dict[str, Any]]:
        async with wire(served.url, KEY) as client:
            job = await start(client, 1, **REQUEST | {"num_inference_steps": 30} | request_fields)
            error = await client.error(2, "jobs.update", job=job, **update)
            ended = [
                message for message in client.seen if message["id"] == 1 and message["event"] in ("result", "error")
            ]
            return error, ended[0] if ended else (await client.all_of(1))[-1]

    error, end = asyncio.run(refused())
    assert (error["code"], error["details"][0]["path"]) == ("invalid_params", path)
    assert end["event"] == "result"


@in_loop
async def test_those_that_wait_are_told_their_place_and_begin_in_its_order() -> None:
    with serving(engine={"device": "cpu", "max_running": 1}) as served:
        async with wire(served.url, KEY) as client:
            await start(client, 1, **REQUEST | {"num_inference_steps": 60})
            for number in (2, 3, 4):
                await client.send(number, "generate", **REQUEST)
                assert (await client.until("queued", number))["position"] == number - 1
            await start(client, 5, **SMALL | {"priority": "batch"})  # one picture of each rank always runs
            assert [row["position"] for row in (await client.ask("jobs"))["jobs"]] == [None, 1, 2, 3, None]
            await client.until("result", 4)
        for number in (2, 3, 4):
            queued = [message for message in client.seen if (message["event"], message["id"]) == ("queued", number)]
            places = [message["position"] for message in queued]
            assert places == sorted(places, reverse=True)
            for message in queued:
                assert 0 <= message["starts_in"] <= message["ends_in"]
        starts = [message["id"] for message in client.seen if message["event"] == "started"]
        assert starts == [1, 5, 2, 3, 4]


@in_loop
async def test_another_clients_fifty_pictures_do_not_keep_ones_first_picture_waiting() -> None:
    with serving(engine={"device": "cpu", "max_batch_rows": 4}) as served:
        async with wire(served.url, KEY) as many, wire(served.url, KEY) as one:
            await many.send(1, "generate", **SMALL | {"num_inference_steps": 10, "num_images": 50})
            await many.until("step", 1)
            await one.send(1, "generate", **SMALL | {"num_inference_steps": 10})
            events = [message["event"] for message in await one.all_of(1)]
            assert "queued" not in events
            jobs = await many.ask("jobs")
            assert jobs["jobs"][0]["steps_done"] < 150  # while the one was made, a third of the many at most
            await many.ask("cancel", all=True)


@in_loop
async def test_what_a_watcher_wants_costs_the_owner_no_preview(served: Served) -> None:
    request = SMALL | {"num_inference_steps": 60, "stream": {"previews": {"every": 10}}}
    async with wire(served.url, KEY) as owner, wire(served.url, KEY) as other:
        job = await start(owner, 1, **request)
        await other.send(1, "jobs.watch", job=job, stream={"previews": {"format": "png", "size": 1024}})
        await owner.until("result", 1)
    previews = [message["step"] for message in owner.seen if message["event"] == "preview"]
    assert previews[:5] == [10, 20, 30, 40, 50]


@in_loop
async def test_of_a_picture_there_are_at_most_four_kinds_of_previews(served: Served) -> None:
    async with wire(served.url, KEY) as owner:
        job = await start(owner, 1, **SMALL | {"num_inference_steps": 200, "stream": {"previews": {"size": 64}}})
        for number in range(2, 12):
            await owner.send(number, "jobs.watch", job=job, stream={"previews": {"size": 100 + number}})
        await owner.until("result", 1)
    late = [message for message in owner.seen if message["event"] == "preview" and message["step"] > 150]
    assert {message["image"]["width"] for message in late} == {64, 102, 103, 104}


@in_loop
async def test_an_ended_job_keeps_nothing_of_its_client() -> None:
    with running_host() as host:
        loop = asyncio.get_running_loop()
        stepped = asyncio.Event()

        class Client:
            def hear(self, event: Event) -> None:
                if event.name == "step":
                    loop.call_soon_threadsafe(stepped.set)

        client = Client()
        gone = weakref.ref(client)
        making = asyncio.create_task(host.dispatch("generate", LONG, "me", client.hear))
        await stepped.wait()
        await host.dispatch("cancel", {"all": True}, "me", lambda _: None)
        with pytest.raises(JobCancelled):
            await making
        del client, making
        deadline = loop.time() + 20
        while gone() is not None and loop.time() < deadline:
            gc.collect()
            await asyncio.sleep(0.05)
        assert gone() is None


def test_jobs_that_wait_for_one_broken_load_are_each_told_of_their_own(tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED_MODEL, tmp_path / "broken")
    nonsense = {"nonsense": torch.zeros(1)}  # whole, so that it is found out only when it is loaded
    save_file(nonsense, tmp_path / "broken" / "unet" / "diffusion_pytorch_model.safetensors")

    async def fail(host: Host, number: int) -> tuple[str, str]:
        events: list[Event] = []
        with pytest.raises(LatentwireError) as caught:
            await host.dispatch("generate", SMALL | {"model": "broken"}, f"{number}", events.append)
        (job,) = {event.job for event in events if isinstance(event, JobEvent)}
        return job, caught.value.about["job"]

    async def all_fail(host: Host) -> list[tuple[str, str]]:
        return await asyncio.gather(*(fail(host, number) for number in range(6)))

    with running_host(models={"broken": {"path": tmp_path / "broken"}}) as host:
        for mine, told in asyncio.run(all_fail(host)):
            assert told == mine


def test_a_request_that_a_plugin_spoils_fails_and_the_host_lives(tmp_path: Path) -> None:
    plugin = tmp_path / "spoiler.py"
    plugin.write_text(
        "from latentwire import BuildContext, hookimpl\n\n\n"
        "@hookimpl\ndef modify_build(context: BuildContext) -> None:\n"
        "    if context.request.prompt == 'spoilt':\n"
        "        context.request = context.request.model_copy(update={'priority': 'urgent'})\n"
    )
    with running_host(plugins=[{"name": "spoiler", "path": plugin}]) as host:
        with pytest.raises(LatentwireError):
            asyncio.run(host.dispatch("generate", SMALL | {"prompt": "spoilt"}, "me", lambda _: None))
        assert asyncio.run(host.dispatch("generate", SMALL, "me", lambda _: None))["images"] == 1
