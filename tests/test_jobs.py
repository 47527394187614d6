"""Jobs on a host without a network: pictures, seeds, previews, latents, metadata, cancel, limits."""

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from latentwire import Host
from latentwire.core.errors import HostClosing, InvalidParams, JobCancelled, TooManyJobs, UnknownJob
from latentwire.core.events import Accepted, Event, Image, JobEvent, Latents, Picture, Preview, Started, Step

from .conftest import running_host

REQUEST: dict[str, Any] = {"prompt": "red apple on a blue background", "num_inference_steps": 4, "seed": 7}


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with running_host(limits={"jobs_per_client": 3, "jobs": 4}) as host:
        yield host


def generate(host: Host, **fields: Any) -> tuple[dict[str, Any], list[Event]]:
    events: list[Event] = []
    return asyncio.run(host.dispatch("generate", REQUEST | fields, "test", events.append)), events


def only(kind: type, events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def opened(picture: Picture) -> PILImage.Image:
    image = PILImage.open(io.BytesIO(picture.data))
    assert (image.format, image.width, image.height) == (picture.format.upper(), picture.width, picture.height)
    return image


def test_events_come_in_order_and_the_result_says_what_was_used(host: Host) -> None:
    result, events = generate(host)
    assert [event.name for event in events if event.name != "loading"] == [
        "accepted",
        "started",
        *["step"] * 4,
        "image",
    ]
    assert {event.job for event in events if isinstance(event, JobEvent)} == {result["job"]}
    assert only(Started, events)[0].scheduler == result["scheduler"] == "ddim"
    assert result["seeds"] == [7]


def test_the_models_own_defaults_fill_in_what_a_request_leaves_out(host: Host) -> None:
    _, events = generate(host, num_inference_steps=None, guidance_scale=None)
    assert only(Step, events)[0].steps == 20
    parameters = opened(only(Image, events)[0].image).info["parameters"]
    assert "CFG scale: 4," in parameters
    assert "Size: 128x128" in parameters


@pytest.mark.parametrize("fields", [{"seed": 7, "num_images": 3}, {"seed": [7, 8, 9]}])
def test_picture_k_of_several_is_the_picture_of_its_own_seed(host: Host, fields: dict[str, Any]) -> None:
    result, events = generate(host, mode="exact", **fields)
    assert result["seeds"] == [7, 8, 9]
    pictures = {event.index: event.image.data for event in only(Image, events)}
    for index, seed in enumerate((7, 8, 9)):
        alone = only(Image, generate(host, mode="exact", seed=seed)[1])[0].image
        assert np.array_equal(np.asarray(opened(alone)), np.asarray(PILImage.open(io.BytesIO(pictures[index]))))


def test_a_seed_is_drawn_when_none_is_given_and_makes_the_picture_again(host: Host) -> None:
    result, events = generate(host, seed=None, mode="exact")
    again, repeated = generate(host, seed=result["seeds"][0], mode="exact")
    assert only(Image, events)[0].image.data == only(Image, repeated)[0].image.data
    assert only(Accepted, events)[0].seeds == again["seeds"]


@pytest.mark.parametrize(("width", "height"), [(64, 128), (192, 64)])
def test_width_and_height_decide_the_size(host: Host, width: int, height: int) -> None:
    image = opened(only(Image, generate(host, width=width, height=height)[1])[0].image)
    assert image.size == (width, height)


def test_a_negative_prompt_changes_the_picture(host: Host) -> None:
    plain, other = (
        only(Image, generate(host, mode="exact", negative_prompt=text)[1])[0].image.data for text in ("", "red")
    )
    assert plain != other


def test_the_png_carries_the_request_and_the_text_that_the_fields_tools_read(host: Host) -> None:
    _, events = generate(host, negative_prompt="blurry", guidance_scale=5, seed=None, mode="exact")
    image = only(Image, events)[0]
    info = opened(image.image).info
    request = json.loads(info["latentwire"])
    assert request["prompt"] == REQUEST["prompt"]
    assert info["parameters"].splitlines() == [
        REQUEST["prompt"],
        "Negative prompt: blurry",
        f"Steps: 4, Sampler: ddim, CFG scale: 5, Seed: {image.seed}, Size: 128x128, Model: emoji, Version: latentwire",
    ]
    again = asyncio.run(host.dispatch("generate", request, "test", events.append))
    assert again["seeds"] == [image.seed]
    assert only(Image, events)[-1].image.data == image.image.data


@pytest.mark.parametrize("format", ["jpeg", "webp", "png"])
def test_previews_come_in_the_format_and_size_asked_for(host: Host, format: str) -> None:
    _, events = generate(host, stream={"previews": {"format": format, "size": 64, "every": 2}})
    previews = only(Preview, events)
    assert previews[-1].step in (2, 4)
    for preview in previews:
        assert preview.step % 2 == 0
        assert opened(preview.image).size == (64, 64)
        assert preview.image.format == format


def test_a_highest_rate_thins_previews_out_but_not_the_last(host: Host) -> None:
    _, events = generate(host, num_inference_steps=10, stream={"previews": {"max_rate": 0.001}})
    assert {preview.step for preview in only(Preview, events)} <= {1, 10}


def test_the_last_preview_looks_like_the_finished_picture(host: Host) -> None:
    _, events = generate(host, num_inference_steps=10, stream={"previews": {"format": "png"}})
    preview, final = only(Preview, events)[-1], only(Image, events)[0]
    small = [np.asarray(opened(each.image).resize((8, 8)), dtype=float) for each in (preview, final)]
    assert np.abs(small[0] - small[1]).mean() < 40
    assert np.corrcoef(small[0].ravel(), small[1].ravel())[0, 1] > 0.8


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_latents_come_raw_and_the_last_ones_are_the_final_ones(host: Host, dtype: str) -> None:
    stream = {"latents": {"dtype": dtype, "every": 3}, "steps": False}
    _, events = generate(host, stream=stream, output_type="latent", mode="exact")
    latents = only(Latents, events)
    assert [event.step for event in latents] == [3, 4]
    assert not only(Step, events)
    final = only(Image, events)[0]
    assert final.image is None
    got = np.frombuffer(latents[-1].latents.data, dtype).reshape(latents[-1].latents.shape)
    want = np.frombuffer(final.latents.data, "float32").reshape(final.latents.shape)
    assert got.shape == (4, 16, 16)
    assert np.array_equal(got, want.astype(dtype))


def while_running(host: Host, then: Callable[[str], Any], **fields: Any) -> tuple[Any, list[Event]]:
    """Start a long job, call `then` with its id at its third step, and give how the job ended."""
    events: list[Event] = []

    async def scenario() -> Any:
        loop, third = asyncio.get_running_loop(), asyncio.Event()

        def listen(event: Event) -> None:
            events.append(event)
            if isinstance(event, Step) and event.step == 3:
                loop.call_soon_threadsafe(third.set)

        job = asyncio.create_task(
            host.dispatch("generate", REQUEST | {"num_inference_steps": 500} | fields, "test", listen)
        )
        await third.wait()
        accepted = events[0]
        assert isinstance(accepted, Accepted)
        answer = then(accepted.job)
        if asyncio.iscoroutine(answer):
            await answer
        return (await asyncio.gather(job, return_exceptions=True))[0]

    return asyncio.run(scenario()), events


def test_a_cancelled_job_stops_within_a_step_and_nothing_follows(host: Host) -> None:
    async def cancel(job: str) -> None:
        assert await host.dispatch("cancel", {"job": job}, "test", print) == {"job": job, "cancelled": True}

    ended, events = while_running(host, cancel, num_images=2, stream={"previews": {}})
    assert isinstance(ended, JobCancelled)
    count = len(events)
    generate(host)  # the engine has gone on; nothing of the old job may come now
    assert len(events) == count
    assert max(event.step for event in only(Step, events)) < 10
    assert not host.jobs.all()


def test_only_its_client_sees_and_cancels_a_job(host: Host) -> None:
    async def meddle(job: str) -> None:
        assert (await host.dispatch("jobs", {}, "other", print))["jobs"] == []
        with pytest.raises(UnknownJob, match=job):
            await host.dispatch("cancel", {"job": job}, "other", print)
        listed = (await host.dispatch("jobs", {}, "test", print))["jobs"]
        assert [(row["job"], row["state"]) for row in listed] == [(job, "running")]
        await host.dispatch("cancel", {"job": job}, "test", print)

    assert isinstance(while_running(host, meddle)[0], JobCancelled)


def test_a_client_and_a_host_that_are_full_say_so_and_take_more_later(host: Host) -> None:
    async def crowd(job: str) -> None:
        long = REQUEST | {"num_inference_steps": 500}
        mine = [asyncio.create_task(host.dispatch("generate", long, "test", lambda _: None)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(TooManyJobs, match="this client has 3"):
            await host.dispatch("generate", long, "test", lambda _: None)
        theirs = asyncio.create_task(host.dispatch("generate", long, "other", lambda _: None))
        await asyncio.sleep(0)
        with pytest.raises(TooManyJobs, match="the host has 4"):
            await host.dispatch("generate", long, "third", lambda _: None)
        for task in (*mine, theirs):
            task.cancel()
        await asyncio.gather(*mine, theirs, return_exceptions=True)
        await host.dispatch("cancel", {"job": job}, "test", print)

    assert isinstance(while_running(host, crowd)[0], JobCancelled)
    assert generate(host)[0]["images"] == 1


def test_a_picture_over_the_limit_and_an_unknown_scheduler_are_refused_by_field(host: Host) -> None:
    for fields, path in (({"width": 4096, "height": 4096}, ["width"]), ({"scheduler": "ddmi"}, ["scheduler"])):
        with pytest.raises(InvalidParams) as caught:
            generate(host, **fields)
        assert caught.value.details[0]["path"] == path


def test_closing_the_host_ends_its_jobs_with_an_error_that_says_so() -> None:
    with running_host() as host:
        ended, _ = while_running(host, lambda _: host.close())
        assert isinstance(ended, HostClosing)
        with pytest.raises(HostClosing):
            generate(host)
