"""The protocol, on a real server: raw WebSockets and msgpack, none of our own client."""

import asyncio
import io
import itertools
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin, Subprotocol

import latentwire

from .conftest import Served, serving, wait_for
from .wire import LONG, SMALL, SUBPROTOCOL, in_loop, wire


def named(messages: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [message for message in messages if message["event"] == name]


@in_loop
async def test_the_host_greets_first_and_seq_has_no_gap(served: Served) -> None:
    async with wire(served.url) as client:
        hello = client.hello
        assert client.socket.subprotocol == SUBPROTOCOL
        assert {key: hello[key] for key in ("id", "event", "protocol", "host", "seq")} == {
            "id": None,
            "event": "hello",
            "protocol": SUBPROTOCOL,
            "host": latentwire.__version__,
            "seq": 1,
        }
        assert (hello["observer"], hello["operator"]) == (False, True)  # on loopback, without a token
        assert hello["limits"] == {
            "message_bytes": 1 << 20, "jobs": 32, "pixels": 2048 * 2048, "resume_seconds": 120
        }  # fmt: skip
        await client.send("a", "generate", **SMALL)
        assert [message["seq"] for message in await client.all_of("a")] == list(range(2, 9))


@in_loop
async def test_each_connection_is_a_session_of_its_own(served: Served) -> None:
    async with wire(served.url) as one, wire(served.url) as other:
        assert one.hello["session"] != other.hello["session"]


@in_loop
async def test_commands_run_side_by_side_and_ids_may_be_used_again(served: Served) -> None:
    async with wire(served.url) as client:
        await client.send(0, "generate", **SMALL)
        assert (await client.ask("ping"))["time"] > 1.7e9
        await client.until("result", 0)
        await client.send(0, "ping")
        assert (await client.all_of(0))[0]["event"] == "result"


@in_loop
async def test_params_may_be_left_out(served: Served) -> None:
    async with wire(served.url) as client:
        await client.send_frame(b"\x82\xa2id\x01\xa7command\xa4ping")
        assert (await client.all_of(1))[-1]["event"] == "result"


@in_loop
async def test_describe_gives_a_schema_for_every_command_and_event(served: Served) -> None:
    async with wire(served.url) as client:
        described = await client.ask("describe")
    assert set(described["commands"]) >= {
        "cancel", "describe", "generate", "jobs", "models.list", "ping", "pipeline.state", "plugins.list"
    }  # fmt: skip
    for command in described["commands"].values():
        assert command["summary"]
        assert command["params"]["type"] == "object"
    assert set(described["commands"]["generate"]["params"]["properties"]) >= {"prompt", "seed", "stream", "clip_skip"}
    width = described["commands"]["generate"]["params"]["properties"]["width"]
    bounds = {"type": "integer", "minimum": 64, "maximum": 4096, "multipleOf": 8}
    assert width["anyOf"] == [bounds, {"type": "null"}]  # in JSON Schema's words, not in pydantic's
    assert described["fields"]["clip_skip"] == "clip_skip"
    assert {name for name, event in described["events"].items() if event["latest_wins"]} == {
        "queued",
        "preview",
        "latents",
        "state",
        "stats",
        "plugins",
        "node_progress",
        "node_preview",
    }
    assert "invalid_params" in described["errors"]
    assert "ddim" in described["schedulers"]
    assert described["modes"] == ["exact", "reproducible", "fast"]
    assert described["models"] == ["emoji"]


@in_loop
async def test_the_lists_name_the_embedded_model_and_the_built_in_plugin(served: Served) -> None:
    async with wire(served.url) as client:
        [model] = (await client.ask("models.list"))["models"]
        plugins = (await client.ask("plugins.list"))["plugins"]
        state = await client.ask("pipeline.state")
    assert (model["name"], model["family"], model["size"], model["default"], model["loaded"]) == (
        "emoji", "StableDiffusionPipeline", 128, True, True
    )  # fmt: skip
    assert ("clip_skip", "built-in", "loaded") in [(row["name"], row["source"], row["state"]) for row in plugins]
    assert (state["model"], state["scheduler"], state["mode"], state["device"]) == ("emoji", "ddim", "fast", "cpu")
    assert {row["component"] for row in state["components"]} >= {"unet", "vae", "text_encoder"}


@in_loop
async def test_a_plain_generate_streams_its_steps_and_ends_in_a_png(served: Served) -> None:
    async with wire(served.url) as client:
        await client.send(1, "generate", **SMALL)
        messages = await client.all_of(1)
    assert [message["event"] for message in messages] == ["accepted", "started", *["step"] * 3, "image", "result"]
    assert messages[0]["seeds"] == [1]
    assert {key: messages[1][key] for key in ("model", "scheduler", "mode")} == {
        "model": "emoji", "scheduler": "ddim", "mode": "fast"
    }  # fmt: skip
    assert [(step["index"], step["step"], step["steps"]) for step in named(messages, "step")] == [
        (0, 1, 3), (0, 2, 3), (0, 3, 3)
    ]  # fmt: skip
    timesteps = [step["timestep"] for step in named(messages, "step")]
    assert timesteps == sorted(timesteps, reverse=True)
    image = messages[-2]
    assert (image["seed"], image["latents"], image["image"]["format"]) == (1, None, "png")
    picture = Image.open(io.BytesIO(image["image"]["data"]))
    assert (picture.format, picture.size, picture.mode) == ("PNG", (64, 64), "RGB")
    assert {key: messages[-1]["result"][key] for key in ("job", "images", "seeds")} == {
        "job": messages[0]["job"], "images": 1, "seeds": [1]
    }  # fmt: skip


@in_loop
async def test_the_request_inside_a_png_makes_the_same_picture_again(served: Served) -> None:
    async with wire(served.url) as client:
        await client.send(1, "generate", **SMALL | {"seed": 5, "mode": "exact", "scheduler": "euler"})
        first = named(await client.all_of(1), "image")[0]["image"]["data"]
        picture = Image.open(io.BytesIO(first))
        await client.send(2, "generate", **json.loads(picture.text["latentwire"]))  # type: ignore[attr-defined]
        second = named(await client.all_of(2), "image")[0]["image"]["data"]
    assert second == first
    assert "Steps: 3, Sampler: euler" in picture.text["parameters"]  # type: ignore[attr-defined]


@in_loop
async def test_previews_and_latents_come_as_asked(served: Served) -> None:
    stream = {
        "steps": False,
        "previews": {"format": "webp", "size": 32, "every": 2},
        "latents": {"dtype": "float32", "every": 3},
    }
    async with wire(served.url) as client:
        await client.send(1, "generate", **SMALL | {"num_inference_steps": 5, "stream": stream})
        messages = await client.all_of(1)
    assert not named(messages, "step")
    latents = named(messages, "latents")
    assert [message["step"] for message in latents] == [3, 5]
    for message in latents:
        tensor = message["latents"]
        assert (tensor["dtype"], tensor["shape"]) == ("float32", [4, 8, 8])
        assert np.isfinite(np.frombuffer(tensor["data"], "<f4").reshape(tensor["shape"])).all()
    previews = named(messages, "preview")
    assert previews
    assert {message["step"] for message in previews} <= {2, 4, 5}  # latest wins: some may be dropped
    for message in previews:
        picture = Image.open(io.BytesIO(message["image"]["data"]))
        assert (picture.format, picture.size) == ("WEBP", (32, 32))


@in_loop
async def test_a_preview_of_every_step_is_the_default_and_jpeg(served: Served) -> None:
    async with wire(served.url) as client:
        await client.send(1, "generate", **SMALL | {"stream": {"previews": {}}})
        preview = await client.until("preview", 1)
        assert (preview["image"]["format"], preview["image"]["width"], preview["steps"]) == ("jpeg", 64, 3)
        await client.until("result", 1)


@in_loop
async def test_each_picture_of_a_request_has_its_own_seed_steps_and_image(served: Served) -> None:
    async with wire(served.url) as client:
        await client.send(1, "generate", **SMALL | {"num_images": 3, "seed": 9, "mode": "exact"})
        counted = await client.all_of(1)
        await client.send(2, "generate", **SMALL | {"seed": [11, 4], "mode": "exact"})
        listed = await client.all_of(2)
    assert counted[0]["seeds"] == [9, 10, 11]
    assert {(step["index"], step["step"]) for step in named(counted, "step")} == {
        (index, step) for index in range(3) for step in (1, 2, 3)
    }
    images = {image["index"]: image for image in named(counted, "image")}
    assert {index: image["seed"] for index, image in images.items()} == {0: 9, 1: 10, 2: 11}
    pixels = {image["seed"]: np.asarray(Image.open(io.BytesIO(image["image"]["data"]))) for image in images.values()}
    again = {image["seed"]: image["image"]["data"] for image in named(listed, "image")}
    assert set(again) == {11, 4}
    assert (np.asarray(Image.open(io.BytesIO(again[11]))) == pixels[11]).all()


@in_loop
async def test_output_type_latent_gives_the_final_latents_instead_of_a_png(served: Served) -> None:
    stream = {"latents": {"dtype": "float32", "every": 1000}}
    async with wire(served.url) as client:
        await client.send(1, "generate", **SMALL | {"output_type": "latent", "stream": stream})
        messages = await client.all_of(1)
    [image] = named(messages, "image")
    assert image["image"] is None
    assert (image["latents"]["dtype"], image["latents"]["shape"]) == ("float32", [4, 8, 8])
    assert image["latents"]["data"] == named(messages, "latents")[-1]["latents"]["data"]


@in_loop
async def test_what_a_command_tells_just_before_its_end_comes_before_it(tmp_path: Path) -> None:
    (tmp_path / "hasty.py").write_text("""
from latentwire import NoParams, Subscribed, hookimpl

async def run(context, params):
    for number in range(3):
        context.emit(Subscribed(str(number)))
    return {}

@hookimpl
def register(registry):
    registry.add_command("hasty.run", NoParams, run)
""")
    with serving(plugins=[{"name": "hasty", "path": tmp_path / "hasty.py"}]) as served:
        async with wire(served.url) as client:
            await client.send(1, "hasty.run")
            assert [message["event"] for message in await client.all_of(1)] == [*["subscribed"] * 3, "result"]


@in_loop
async def test_two_clients_get_their_steps_interleaved(served: Served) -> None:
    order: list[str] = []

    async def follow(name: str) -> None:
        async with wire(served.url) as client:
            await client.send(1, "generate", **SMALL | {"num_inference_steps": 30})
            while (message := await client.receive())["event"] != "result":
                if message["event"] == "step":
                    order.append(name)

    await asyncio.gather(follow("a"), follow("b"))
    both = order[max(order.index("a"), order.index("b")) :]
    both = both[: min(len(both) - both[::-1].index("a"), len(both) - both[::-1].index("b"))]
    changes = sum(one != other for one, other in itertools.pairwise(both))
    assert len(both) > 30  # most of their steps fall into the time in which both run
    assert changes > len(both) / 3  # and they alternate, but for how the two sockets' messages arrive


@in_loop
async def test_a_third_client_has_its_first_preview_within_three_engine_steps(served: Served) -> None:
    params = LONG | {"width": 128, "height": 128}
    steps = 0  # of the first client; each forward steps all who are there
    under_way = asyncio.Event()

    async def follow(count: bool) -> None:
        nonlocal steps
        async with wire(served.url) as client:
            await client.send(1, "generate", **params)
            while True:
                message = await client.receive()
                steps += message["event"] == "step" and count
                if steps == 5:
                    under_way.set()

    others = [asyncio.create_task(follow(count)) for count in (True, False)]
    try:
        async with wire(served.url) as third:
            await under_way.wait()
            await third.send(1, "generate", **params | {"stream": {"previews": {}}})
            await third.until("accepted")
            before = steps
            preview = await third.until("preview")
            assert preview["step"] == 1
            assert steps - before <= 3
    finally:
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


@in_loop
async def test_a_cancelled_job_ends_with_the_code_cancelled(served: Served) -> None:
    async with wire(served.url) as client:
        await client.send(1, "generate", **LONG)
        job = (await client.until("accepted"))["job"]
        await client.until("step")
        await client.send(2, "cancel", job=job)
        ends: dict[int, dict[str, Any]] = {}
        while len(ends) < 2:
            message = await client.receive()
            if message["event"] in ("result", "error"):
                ends[message["id"]] = message
        assert ends[1]["code"] == "cancelled"
        assert ends[2]["result"] == {"job": job, "cancelled": True}
        assert (await client.error(3, "cancel", job=job))["code"] == "unknown_job"
        assert (await client.ask("jobs"))["jobs"] == []


@in_loop
async def test_a_client_sees_and_cancels_only_its_own_jobs(served: Served) -> None:
    async with wire(served.url) as owner, wire(served.url) as other:
        await owner.send(1, "generate", **LONG)
        job = (await owner.until("accepted"))["job"]
        await owner.until("step")
        assert (await other.ask("jobs"))["jobs"] == []
        assert (await other.error(1, "cancel", job=job))["code"] == "unknown_job"
        [mine] = (await owner.ask("jobs"))["jobs"]
        assert (mine["job"], mine["state"], mine["prompt"], mine["images"]) == (job, "running", "red apple", 1)
        assert mine["steps_done"] >= 1
        assert (await other.ask("pipeline.state"))["engine"]["jobs"] == 1


@in_loop
async def test_a_client_that_goes_away_leaves_no_job_behind(served: Served) -> None:
    async with wire(served.url) as client:
        await client.send(1, "generate", **LONG)
        await client.until("step")
    await asyncio.to_thread(wait_for, lambda: not served.host.jobs.all(), "the job to be cancelled")
    await asyncio.to_thread(wait_for, lambda: served.host.engine.running == 0, "the engine to drop it")
    assert not any(row["leases"] for row in served.host.store.loaded())


@in_loop
async def test_clients_that_come_and_go_while_generating_leave_nothing_behind() -> None:
    async def visit(number: int) -> None:
        async with wire(served.url) as client:
            await client.send(1, "generate", **LONG | {"stream": {"previews": {}, "latents": {}}})
            if number % 3:
                await client.until("accepted")
            if number % 2:
                client.socket.transport.abort()

    with serving(server={"resume_grace_s": 0}) as served:
        for _ in range(3):
            await asyncio.gather(*(visit(number) for number in range(6)))
        await asyncio.to_thread(wait_for, lambda: not served.host.jobs.all(), "the jobs to be cancelled")
        async with wire(served.url) as client:
            await client.send(1, "generate", **SMALL)
            assert (await client.all_of(1))[-1]["event"] == "result"


@in_loop
async def test_a_connection_without_subprotocol_is_taken_and_one_with_another_is_refused(served: Served) -> None:
    async with connect(served.url, proxy=None) as socket:
        assert socket.subprotocol is None
        assert b"hello" in await socket.recv(decode=False)
    with pytest.raises(InvalidStatus) as refused:
        async with connect(served.url, subprotocols=[Subprotocol("graphql-ws")], proxy=None):
            pass
    assert refused.value.response.status_code == 400
    assert b"latentwire.v1.msgpack" in (refused.value.response.body or b"")


@in_loop
@pytest.mark.parametrize("origin", ["https://example.com", "null", "http://127.0.0.1:1", "http://[broken"])
async def test_pages_of_other_sites_may_not_connect(served: Served, origin: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(served.url, origin=Origin(origin), proxy=None):
            pass
    assert refused.value.response.status_code == 403


@in_loop
async def test_a_page_of_the_host_itself_may_connect(served: Served) -> None:
    async with connect(served.url, origin=Origin(served.http), proxy=None) as socket:
        assert b"hello" in await socket.recv(decode=False)


@in_loop
async def test_a_page_whose_own_name_points_to_loopback_may_not_connect(served: Served) -> None:
    port = served.url.rpartition(":")[2].partition("/")[0]
    with pytest.raises(InvalidStatus) as refused:
        async with connect(
            f"ws://evil.example:{port}/ws",
            host="127.0.0.1",
            origin=Origin(f"http://evil.example:{port}"),
            proxy=None,
        ):
            pass
    assert refused.value.response.status_code == 403


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_health_and_readiness(served: Served) -> None:
    status, body = get(f"{served.http}/healthz")
    assert (status, json.loads(body)) == (200, {"status": "ok", "version": latentwire.__version__})
    status, body = get(f"{served.http}/readyz")
    assert (status, json.loads(body)) == (200, {"ready": True})


def test_the_page_links_to_every_doc_and_each_link_works(served: Served) -> None:
    status, body = get(f"{served.http}/")
    assert status == 200
    assert "latentwire generate" in body
    links = [part.partition('"')[0] for part in body.split('href="')[1:]]
    assert "/docs/protocol" in links
    for link in links:
        assert get(served.http + link)[0] == 200


@pytest.mark.parametrize("name", ["nothing", "..%2FREADME", "%2e%2e", "protocol.md", "%00"])
def test_there_are_no_other_docs(served: Served, name: str) -> None:
    assert get(f"{served.http}/docs/{name}")[0] == 404
