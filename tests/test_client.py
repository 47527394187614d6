"""The Python client, async and plain, against a real host and against hosts that misbehave."""

import asyncio
import gc
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import msgpack
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

import latentwire
from latentwire.client import (
    Accepted,
    ConnectionLost,
    Image,
    Latents,
    PluginEvent,
    Preview,
    RemoteError,
    Result,
    Started,
    Step,
    connect,
    connect_sync,
)

from .conftest import Served, serving, wait_for
from .wire import SUBPROTOCOL, in_loop

SMALL: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 3, "seed": 1}
LONG: dict[str, Any] = SMALL | {"num_inference_steps": 1000}


async def no_jobs_left(served: Served) -> None:
    await asyncio.to_thread(wait_for, lambda: not served.host.jobs.all(), "the job to be cancelled")


@in_loop
async def test_generate_yields_typed_events_and_a_result_last(served: Served) -> None:
    async with connect(served.url) as host:
        assert host.hello["host"] == latentwire.__version__
        events = [event async for event in host.generate("red apple", previews=True, latents=True, **SMALL)]
    kinds = [type(event) for event in events if not isinstance(event, Preview | Latents)]
    assert kinds == [Accepted, Started, Step, Step, Step, Image, Result]
    result = events[-1]
    assert isinstance(result, Result)
    assert (result.images, result.seeds, result.model, result.scheduler, result.mode) == (
        1,
        [1],
        "emoji",
        "ddim",
        "fast",
    )
    assert {event.job for event in events if not isinstance(event, PluginEvent)} == {result.job}
    image = events[-2]
    assert isinstance(image, Image)
    assert image.image is not None
    assert image.image.data.startswith(b"\x89PNG")
    latents = [event for event in events if isinstance(event, Latents)]
    assert (latents[-1].step, latents[-1].latents.dtype, latents[-1].latents.shape) == (3, "float16", [4, 8, 8])
    previews = [event for event in events if isinstance(event, Preview)]
    assert (previews[-1].step, previews[-1].image.format) == (3, "jpeg")


def test_the_plain_form_does_the_same(served: Served) -> None:
    with connect_sync(served.url) as host:
        assert host.hello["protocol"] == SUBPROTOCOL
        assert host.call("jobs") == {"jobs": []}
        previews = {"format": "png", "size": 32}
        events = list(host.generate("red apple", steps=False, previews=previews, output_type="latent", **SMALL))
        assert [type(event) for event in events if not isinstance(event, Preview)] == [Accepted, Started, Image, Result]
        assert {event.image.width for event in events if isinstance(event, Preview)} == {32}
        [image] = [event for event in events if isinstance(event, Image)]
        assert image.image is None
        assert image.latents is not None
        assert len(list(host.generate("again", **SMALL))) == 7


@in_loop
async def test_commands_of_one_connection_run_side_by_side(served: Served) -> None:
    async with connect(served.url) as host:

        async def seeds(seed: int) -> list[int]:
            async for event in host.generate("red apple", **SMALL | {"seed": seed}):
                if isinstance(event, Result):
                    return event.seeds
            raise AssertionError("no result")

        answers = await asyncio.gather(*(seeds(seed) for seed in range(4)), *(host.call("ping") for _ in range(50)))
        assert answers[:4] == [[0], [1], [2], [3]]


@in_loop
async def test_leaving_the_loop_early_cancels_the_job_and_the_connection_goes_on(served: Served) -> None:
    async with connect(served.url) as host:
        async for event in host.generate("red apple", **LONG):
            if isinstance(event, Step):
                break
        await no_jobs_left(served)
        assert (await host.call("jobs"))["jobs"] == []


def test_so_does_leaving_the_plain_loop(served: Served) -> None:
    with connect_sync(served.url) as host:
        for event in host.generate("red apple", **LONG):
            if isinstance(event, Step):
                break
        wait_for(lambda: not served.host.jobs.all(), "the job to be cancelled")
        assert host.call("jobs") == {"jobs": []}


@in_loop
@pytest.mark.parametrize("turns", [0, 1, 2, 5, 20])
async def test_a_cancelled_task_cancels_its_job_at_whatever_moment(served: Served, turns: int) -> None:
    async with connect(served.url) as host:

        async def draw() -> None:
            async for _ in host.generate("red apple", **LONG):
                pass

        drawing = asyncio.create_task(draw())
        for _ in range(turns):
            await asyncio.sleep(0.001)
        drawing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await drawing
        await host.call("ping")  # by now a job that was asked for is there, or cancelled again
        await no_jobs_left(served)


@in_loop
async def test_an_error_of_the_host_is_raised_with_its_code_and_details(served: Served) -> None:
    async with connect(served.url) as host:
        with pytest.raises(RemoteError) as refused:
            async for _ in host.generate("red apple", num_inference_steps=0):
                pass
        assert refused.value.code == "invalid_params"
        assert refused.value.details[0]["path"] == ["num_inference_steps"]
        assert "invalid_params: generate: num_inference_steps" in str(refused.value)
        with pytest.raises(RemoteError, match="did you mean 'ping'"):
            await host.call("pin")
        assert await host.call("ping")


def test_the_plain_form_raises_the_same_errors(served: Served) -> None:
    with connect_sync(served.url) as host:
        with pytest.raises(RemoteError, match="unknown_model"):
            list(host.generate("red apple", model="none"))
        with pytest.raises(RemoteError, match="unknown_job"):
            host.call("cancel", job="none")
        assert host.call("ping")


@in_loop
async def test_a_job_that_another_command_cancels_raises_cancelled(served: Served) -> None:
    async with connect(served.url) as host:
        events = host.generate("red apple", **LONG)
        accepted = await anext(events)
        assert isinstance(accepted, Accepted)
        await host.call("cancel", job=accepted.job)
        with pytest.raises(RemoteError, match=r"^cancelled: "):
            _ = [event async for event in events]


@in_loop
async def test_a_request_over_the_limit_fails_alone(served: Served) -> None:
    async with connect(served.url) as host:
        async for event in host.generate("red apple", **SMALL | {"num_inference_steps": 30}):
            if isinstance(event, Started):
                with pytest.raises(RemoteError, match="message_too_large"):
                    await host.call("ping", x=bytes(2 << 20))
        assert isinstance(event, Result)


@in_loop
async def test_a_param_that_msgpack_cannot_write_is_a_type_error(served: Served) -> None:
    async with connect(served.url) as host:
        with pytest.raises(TypeError):
            async for _ in host.generate("red apple", seed=object()):
                pass
        assert await host.call("ping")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.parametrize(
    "url",
    [f"ws://127.0.0.1:{free_port()}/ws", "ws://127.0.0.1:99999/ws", "nonsense", "http://127.0.0.1/ws", "ws://"],
    ids=["nobody there", "no such port", "no address", "no WebSocket", "no host"],
)
def test_a_host_that_cannot_be_reached_is_connection_lost(url: str) -> None:
    with (
        pytest.raises(ConnectionLost, match=r"cannot connect to .* is `latentwire serve` running there"),
        connect_sync(url),
    ):
        pass


@pytest.mark.filterwarnings("error")
def test_a_client_that_was_left_says_so(served: Served) -> None:
    with connect_sync(served.url) as host:
        pass
    for use in (lambda: host.call("ping"), lambda: host.picture("apple"), lambda: list(host.generate("apple"))):
        with pytest.raises(ConnectionLost, match="this client has closed the connection"):
            use()
    gc.collect()  # a coroutine that nobody ran would warn now


def test_a_path_that_is_no_socket_is_connection_lost(served: Served) -> None:
    with pytest.raises(ConnectionLost, match="refuses the connection"), connect_sync(served.url + "/other"):
        pass


def test_a_proxy_of_the_environment_is_not_for_loopback(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    with connect_sync(served.url) as host:
        assert host.call("ping")


@pytest.fixture(scope="module")
def guarded() -> Iterator[Served]:
    with serving(server={"token": "correct horse battery"}) as served:
        yield served


@pytest.mark.parametrize("token", [None, "wrong", "correct horse batter", "körrekt"])
def test_a_wrong_token_is_connection_lost_and_says_so(guarded: Served, token: str | None) -> None:
    with pytest.raises(ConnectionLost, match="the token is missing or wrong"), connect_sync(guarded.url, token=token):
        pass


@in_loop
async def test_the_right_token_is_let_in(guarded: Served) -> None:
    async with connect(guarded.url, token="correct horse battery") as host:
        assert await host.call("ping")


Act = Callable[[ServerConnection], Awaitable[Any]]

HELLO = {"id": None, "event": "hello", "limits": {"message_bytes": 1000}, "seq": 1}


@asynccontextmanager
async def false_host(act: Act, protocol: str | None = SUBPROTOCOL) -> AsyncIterator[str]:
    """Something that takes connections and then does as it likes."""
    subprotocols = [Subprotocol(protocol)] if protocol else None
    select = None if protocol else (lambda *_: None)
    async with serve(act, "127.0.0.1", 0, subprotocols=subprotocols, select_subprotocol=select) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"


async def greet(client: ServerConnection) -> None:
    await client.send(msgpack.packb(HELLO))


@in_loop
async def test_a_host_that_dies_raises_connection_lost_in_everything_that_waits() -> None:
    async def die(client: ServerConnection) -> None:
        await greet(client)
        await client.recv()
        await client.recv()
        client.transport.abort()

    async with false_host(die) as url, connect(url) as host:

        async def draw() -> None:
            async for _ in host.generate("red apple"):
                pass

        ends = await asyncio.gather(draw(), host.call("ping"), return_exceptions=True)
        assert [type(end) for end in ends] == [ConnectionLost, ConnectionLost]
        with pytest.raises(ConnectionLost, match="the connection is lost"):
            await host.call("ping")


def test_a_real_host_that_closes_ends_the_plain_loop_with_an_error(served: Served) -> None:
    with serving() as closing, connect_sync(closing.url) as host:
        events = host.generate("red apple", **LONG)
        next(events)
        closing.host.close()
        with pytest.raises(RemoteError) as ended:
            list(events)
        assert ended.value.code == "host_closing"
        with pytest.raises(RemoteError, match="host_closing"):
            host.call("ping")


@in_loop
async def test_a_reason_for_closing_is_passed_on() -> None:
    async def close(client: ServerConnection) -> None:
        await greet(client)
        await client.recv()
        await client.close(1013, "this client reads too slowly")

    async with false_host(close) as url, connect(url) as host:
        with pytest.raises(ConnectionLost, match="reads too slowly"):
            await host.call("ping")


@in_loop
@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"\xc1", "cannot read"),
        (msgpack.packb([1]), "cannot read"),
        (msgpack.packb({"a": 1}), "cannot read"),
        (None, "closed"),
    ],
)
async def test_whoever_greets_wrongly_is_no_host(frame: bytes | None, reason: str) -> None:
    async def act(client: ServerConnection) -> None:
        if frame is not None:
            await client.send(frame)
            await client.wait_closed()

    async with false_host(act) as url:
        with pytest.raises(ConnectionLost, match=f"does not greet as a latentwire host.*{reason}"):
            async with connect(url):
                pass


@in_loop
async def test_whoever_is_silent_is_no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentwire.client.link.GREETING_TIMEOUT_S", 0.05)
    async with false_host(ServerConnection.wait_closed) as url:
        with pytest.raises(ConnectionLost, match="it is silent"):
            async with connect(url):
                pass


@in_loop
async def test_what_a_newer_host_adds_to_events_is_left_out_and_its_new_events_come_as_they_are() -> None:
    result = Result("j", 1, [1], "m", "s", "fast", 1.0)
    answers: list[dict[str, Any]] = [
        {"event": "accepted", "job": "j", "seeds": [1], "new": 1},
        {"event": "brand_new", "job": "j"},
        {"event": "result", "result": asdict(result) | {"new": 1}},
    ]

    async def act(client: ServerConnection) -> None:
        await greet(client)
        message_id = msgpack.unpackb(await client.recv())["id"]
        for seq, answer in enumerate(answers, start=2):
            await client.send(msgpack.packb(answer | {"id": message_id, "seq": seq}))
        await client.wait_closed()

    async with false_host(act) as url, connect(url) as host:
        events = [event async for event in host.generate("red apple")]
    assert events == [Accepted("j", [1]), PluginEvent("brand_new", {"job": "j"}), result]


@pytest.mark.parametrize("statement", ["import latentwire, latentwire.client", "from latentwire import connect"])
def test_the_client_needs_none_of_torch(statement: str) -> None:
    heavy = "{'torch', 'diffusers', 'transformers', 'pydantic', 'numpy', 'starlette', 'PIL'}"
    program = f"{statement}; import sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@in_loop
async def test_a_slow_reader_gets_fewer_previews_and_every_step(served: Served) -> None:
    steps, previews = [], []
    async with latentwire.connect(served.url) as host:
        async for event in host.generate("red apple", previews=True, **SMALL | {"num_inference_steps": 30}):
            if isinstance(event, Preview):
                previews.append(event.step)
                await asyncio.sleep(0.3)
            elif isinstance(event, Step):
                steps.append(event.step)
    assert steps == list(range(1, 31))
    assert len(previews) < 30
    assert previews == sorted(previews)
