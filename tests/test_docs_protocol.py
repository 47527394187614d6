"""docs/protocol.md, held against the program: names, defaults, every example, and real messages."""

import asyncio
import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
from PIL import Image as PILImage
from pydantic import TypeAdapter
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

import latentwire
from latentwire import Host
from latentwire.client import Accepted
from latentwire.core import commands, uploads
from latentwire.core.describe import error_codes
from latentwire.core.events import EVENTS, to_plain
from latentwire.core.requests import GenerateRequest, Mode
from latentwire.core.schedulers import DIFFUSERS
from latentwire.core.settings import Settings
from latentwire.server import codec, connection, outbox, session, sessions, websocket
from latentwire.server.app import create_app
from latentwire.server.message import Body, Message

from .conftest import Served, serving
from .pages import PAGES, blocks, defaults_of, json_default, paths_of, section, subheadings, table
from .wire import LONG, wire

TOKEN = "sixteen letters!"
MESSAGES: list[dict[str, Any]] = [json.loads(block) for block in blocks(PAGES["protocol"], "json")]
COMMANDS = [message for message in MESSAGES if "command" in message]
RESULTS = {message["id"]: message["result"] for message in MESSAGES if message.get("event") == "result"}
JOB_EVENTS = [message for message in MESSAGES if message.get("event") in EVENTS]


# commands that need more than to be sent: see the tests below
APART = (
    *("generate", "cancel", "pipeline.subscribe", "plugins.subscribe", "unsubscribe", "images.put"),
    *("uploads.begin", "uploads.append", "session.open", "session.resume"),
    *("jobs.watch", "jobs.pause", "jobs.resume", "jobs.update"),
)


def talk(url: str, *messages: dict[str, Any]) -> list[dict[str, Any]]:
    """Send all messages at once on a new connection; what comes back until each has its end, the hello first."""
    with connect(url, subprotocols=[Subprotocol(codec.SUBPROTOCOL)], max_size=None) as websocket:
        for message in messages:
            websocket.send(codec.encode(message))
        got: list[dict[str, Any]] = []
        unanswered = {message["id"] for message in messages}
        while unanswered:
            frame = websocket.recv()
            assert isinstance(frame, bytes)
            got.append(codec.decode_trusted(frame))
            if got[-1]["event"] in ("result", "error"):
                unanswered.discard(got[-1]["id"])
    return got


def assert_same_shape(documented: Any, real: Any, where: str) -> None:
    """Both have the same keys at every depth; a key "..." stands for more entries of the same kind."""
    if isinstance(documented, dict) and "$bytes" in documented:
        assert isinstance(real, bytes), where
    elif isinstance(documented, dict):
        assert isinstance(real, dict), where
        named = documented.keys() - {"..."}
        assert named <= real.keys() if "..." in documented else named == real.keys(), where
        for key in named:
            assert_same_shape(documented[key], real[key], f"{where}.{key}")
    elif isinstance(documented, list):
        assert isinstance(real, list), where
        for entry in real[:1] if documented else ():
            assert_same_shape(documented[0], entry, f"{where}[0]")
    elif documented is not None and real is not None:
        kinds = {type(documented), type(real)}
        assert len(kinds) == 1 or kinds == {int, float}, where


def with_bytes(value: Any) -> Any:
    """An example's value with real bytes in place of their count."""
    if isinstance(value, dict):
        return bytes(value["$bytes"]) if "$bytes" in value else {key: with_bytes(entry) for key, entry in value.items()}
    return [with_bytes(entry) for entry in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def with_token() -> Iterator[Served]:
    with serving(server={"token": TOKEN}) as served:
        yield served


def test_every_example_is_a_message_of_a_known_kind() -> None:
    answers = {"hello", "login", "result", "error", "gap", *EVENTS}
    assert [message for message in MESSAGES if "command" not in message and message["event"] not in answers] == []


def test_the_commands_documented_are_those_of_the_host(host: Host) -> None:
    create_app(host)  # brings those that are about connections
    assert subheadings(section(PAGES["protocol"], "Commands")) == [*dict.fromkeys(m["command"] for m in COMMANDS[1:])]
    own = {name for name, entry in host.registry.commands.items() if entry.plugin == "latentwire"}
    assert {message["command"] for message in COMMANDS} == own


@pytest.mark.parametrize("message", COMMANDS, ids=lambda message: message["command"])
def test_command_examples_are_valid(host: Host, message: dict[str, Any]) -> None:
    create_app(host)
    assert message.keys() == {"id", "command", "params"}
    host.registry.commands[message["command"]].params.model_validate(with_bytes(message["params"]))


def test_the_fields_of_generate_are_documented_with_their_defaults() -> None:
    documented = table(section(PAGES["protocol"], "`generate`"))
    known = dict(defaults_of(GenerateRequest))
    modes = set(TypeAdapter(Mode).json_schema()["enum"])
    assert documented.keys() == known.keys() | modes
    for name, default in known.items():
        if name != "stream":
            assert json_default(documented[name][0]) == default, name


def test_one_example_of_generate_uses_every_field() -> None:
    full = max((message["params"] for message in COMMANDS if message["command"] == "generate"), key=len)
    assert set(paths_of(full)) >= dict(defaults_of(GenerateRequest)).keys()


def test_the_events_documented_are_those_of_the_host() -> None:
    assert subheadings(section(PAGES["protocol"], "Events")) == list(EVENTS)
    assert {message["event"] for message in JOB_EVENTS} == EVENTS.keys()


@pytest.mark.parametrize("message", JOB_EVENTS, ids=lambda message: message["event"])
def test_event_examples_are_valid(message: dict[str, Any]) -> None:
    kind = EVENTS[message["event"]]
    of_slots = {"slot", "revision"} - message.keys()  # the messages of requests without a slot have neither
    assert message.keys() == ({"id", "event", "seq"} | {field.name for field in fields(kind)}) - of_slots
    values = with_bytes({key: value for key, value in message.items() if key not in ("id", "event", "seq")})
    assert to_plain(TypeAdapter(kind).validate_python(values)) == values
    tensor = values.get("latents")
    if tensor:
        assert len(tensor["data"]) == math.prod(tensor["shape"]) * {"float16": 2, "float32": 4}[tensor["dtype"]]


def test_the_two_kinds_of_message_are_documented_as_they_are() -> None:
    text = section(PAGES["protocol"], "Two kinds of message")
    for kind, latest_wins in (("Never lost", False), ("Latest wins", True)):
        line = re.search(rf"^- \*\*{kind}\*\*: (.*)$", text, re.M)
        assert line
        names = {name for name, event in EVENTS.items() if event.latest_wins == latest_wins}
        assert set(re.findall(r"`(\w+)`", line[1])) == names


def test_the_error_codes_documented_are_those_of_the_host() -> None:
    assert table(section(PAGES["protocol"], "Error codes")).keys() == error_codes().keys()


def test_the_schedulers_documented_are_those_of_the_host() -> None:
    documented = table(section(PAGES["protocol"], "Schedulers"))
    assert {name: row[0] for name, row in documented.items()} == {name: row[0] for name, row in DIFFUSERS.items()}
    needing = {name for name, row in documented.items() if "only where the package" in row[1]}
    assert needing == {name for name, (_, _, package) in DIFFUSERS.items() if package}


def test_the_limits_documented_are_those_of_the_program() -> None:
    text = section(PAGES["protocol"], "Limits")
    limits, server = Settings().limits, Settings().server
    for wanted in (
        f"`server.max_message_bytes`, {server.max_message_bytes >> 20} MiB",
        f"beyond {websocket.HARD_LIMIT >> 20} MiB",
        f"{codec.MAX_DEPTH} maps and lists",
        f"{codec.MAX_ENTRIES:,}",
        f"`limits.jobs_per_client`, {limits.jobs_per_client} ",
        f"`limits.jobs`, {limits.jobs} ",
        f"`limits.pixels`, {math.isqrt(limits.pixels)} x {math.isqrt(limits.pixels)}",
        f"`limits.input_pixels`, {math.isqrt(limits.input_pixels)} x {math.isqrt(limits.input_pixels)}",
        f"`limits.images_mib`, {limits.images_mib} MiB",
        f"`limits.upload_mib`, {limits.upload_mib} MiB; {uploads.MOST} files",
        f"all sessions | {uploads.TOGETHER} times as much",
        f"for an upload | {uploads.LIFE_S / 60:g} minutes",
        f"`limits.connections`, {limits.connections}; ",
        f"`limits.connections_per_address`, {limits.connections_per_address} ",
        f"fragments of a message | {websocket.MAX_FRAGMENTS:,}, and one more for each {websocket.FRAGMENT_SIZE} bytes",
        f"to a session | {connection.MOST_WAITING >> 20} MiB",
        f"sessions together | {sessions.MAX_WAITING_SIZE >> 30} GiB",
        *(f"{bound.messages:,} messages, or {bound.size >> 20} MiB" for bound in (outbox.CONNECTED, outbox.AWAY)),
        f"{outbox.SENT.messages:,} messages, or {outbox.SENT.size >> 20} MiB",
        f"more waits | {websocket.STUCK_S:g} seconds",
        f"`server.resume_grace_s`, {server.resume_grace_s} seconds",
        f"{sessions.MAX_AWAY:,} sessions, or {sessions.MAX_AWAY_SIZE >> 20} MiB",
        f"subscriptions included | {session.MAX_COMMANDS} |",
    ):
        assert wanted in text
    for code in (websocket.NO_ANSWER, websocket.TOO_BIG, sessions.RESUMED_ELSEWHERE, connection.UNAUTHORIZED):
        assert f"\n| {code} | " in section(PAGES["protocol"], "How a connection ends")
    assert f"in up to {commands.MAX_DETAILS} places" in PAGES["protocol"]
    assert f"1 to {session.MAX_ID_LENGTH} letters" in PAGES["protocol"]


@pytest.mark.parametrize(
    ("headers", "subprotocol", "status"),
    [
        ({"Authorization": "Bearer wrong"}, None, 401),
        ({"Authorization": f"Bearer {TOKEN}", "Origin": "http://elsewhere.example"}, None, 403),
        ({"Authorization": f"Bearer {TOKEN}"}, "other", 400),
    ],
)
def test_refused_connections_get_the_documented_status(
    with_token: Served, headers: dict[str, str], subprotocol: str | None, status: int
) -> None:
    offered = None if subprotocol is None else [Subprotocol(subprotocol)]
    with (
        pytest.raises(InvalidStatus) as caught,
        connect(with_token.url, additional_headers=headers, subprotocols=offered),
    ):
        pass
    assert caught.value.response.status_code == status
    assert f", {status}." in section(PAGES["protocol"], "Connecting")


def test_real_messages_look_as_documented(served: Served) -> None:
    example_error = next(message for message in MESSAGES if message.get("event") == "error")
    wrong = {
        "id": example_error["id"],
        "command": "generate",
        "params": {"prompt": "red apple", "num_inference_steps": 0},
    }
    stream: dict[str, Any] = {"previews": {}, "latents": {}}
    right = {
        "id": 3,
        "command": "generate",
        "params": {"prompt": "red apple", "num_inference_steps": 2, "stream": stream},
    }
    others = [message for message in COMMANDS if message["command"] not in APART]
    got = talk(served.url, wrong, right, *others)
    assert_same_shape(MESSAGES[0], got[0], "hello")
    assert [message["seq"] for message in got] == list(range(1, len(got) + 1))
    assert (
        next(message for message in got if message["event"] == "error") | {"seq": example_error["seq"]} == example_error
    )
    for message in got:
        if message["event"] == "result":
            assert_same_shape(RESULTS[message["id"]], message["result"], f"result {message['id']}")
        for example in (example for example in JOB_EVENTS if example["event"] == message["event"]):
            assert example.keys() == message.keys()
    assert {message["id"] for message in got if message["event"] == "result"} == {3, *(other["id"] for other in others)}
    assert {message["event"] for message in got} >= EVENTS.keys() - {
        "closing", "loading", "queued", "subscribed", "state", "plugins", "paused", "resumed", "changed", "job_state"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("command", "event", "same_as"),
    [("pipeline.subscribe", "state", "pipeline.state"), ("plugins.subscribe", "plugins", "plugins.list")],
)
def test_a_real_subscription_looks_as_documented(served: Served, command: str, event: str, same_as: str) -> None:
    subscribe, unsubscribe = (
        next(message for message in COMMANDS if message["command"] == name) for name in (command, "unsubscribe")
    )
    with connect(served.url, subprotocols=[Subprotocol(codec.SUBPROTOCOL)], max_size=None) as websocket:

        def receive() -> dict[str, Any]:
            frame = websocket.recv()
            assert isinstance(frame, bytes)
            return codec.decode_trusted(frame)

        receive()
        websocket.send(codec.encode(subscribe))
        subscribed, told = receive(), receive()
        assert (subscribed["event"], told["event"]) == ("subscribed", event)
        example = next(message["id"] for message in COMMANDS if message["command"] == same_as)
        shown = told["state"] if event == "state" else {"plugins": told["plugins"]}
        assert_same_shape(RESULTS[example], shown, event)
        params = {"subscription": subscribed["subscription"]}
        websocket.send(codec.encode(unsubscribe | {"params": params}))
        ends = {message["id"]: message for message in (receive(), receive())}
    assert {number: message["result"] for number, message in ends.items()} == {
        subscribe["id"]: params,
        unsubscribe["id"]: params,
    }


def test_a_real_resumption_looks_as_documented(served: Served) -> None:
    (example,) = (message for message in COMMANDS if message["command"] == "session.resume")
    assert example["params"]["token"] == MESSAGES[0]["resume"]

    def open_socket() -> Any:
        return connect(served.url, subprotocols=[Subprotocol(codec.SUBPROTOCOL)], max_size=None)

    with open_socket() as lost:
        hello = codec.decode_trusted(lost.recv())
        lost.send(codec.encode({"id": 1, "command": "ping"}))
        lost.recv()
        lost.close(1001)
    with open_socket() as back:
        back.recv()
        back.send(codec.encode(example | {"params": {"token": hello["resume"], "seq": 1}}))
        got = codec.decode_trusted(back.recv())
    (documented,) = (
        message for message in MESSAGES if message.get("event") == "result" and message["id"] == example["id"]
    )
    assert_same_shape(documented, got, "session.resume")
    assert (got["seq"], documented["seq"]) == (1, example["params"]["seq"])


def test_a_real_login_looks_as_documented(with_token: Served) -> None:
    (example,) = (message for message in COMMANDS if message["command"] == "session.open")
    (documented,) = (message for message in MESSAGES if message.get("event") == "login")
    with connect(with_token.url, subprotocols=[Subprotocol(codec.SUBPROTOCOL)], max_size=None) as websocket:
        assert codec.decode_trusted(websocket.recv(decode=False)) == documented
        websocket.send(codec.encode(example | {"params": example["params"] | {"token": TOKEN}}))
        hello, opened = (
            codec.decode_trusted(websocket.recv(decode=False)),
            codec.decode_trusted(websocket.recv(decode=False)),
        )
    assert_same_shape(MESSAGES[0], hello, "hello")
    assert_same_shape(RESULTS[example["id"]], opened["result"], "session.open")
    assert opened["seq"] == 2


def test_a_real_upload_in_parts_looks_as_documented(served: Served) -> None:
    begin, append = (
        next(message for message in COMMANDS if message["command"] == f"uploads.{verb}") for verb in ("begin", "append")
    )
    _, begun = talk(served.url, begin)
    assert_same_shape(RESULTS[begin["id"]], begun["result"], "uploads.begin")
    with connect(served.url, subprotocols=[Subprotocol(codec.SUBPROTOCOL)], max_size=None) as websocket:

        def ask(message: dict[str, Any]) -> Any:
            websocket.send(codec.encode(message))
            return codec.decode_trusted(websocket.recv(decode=False))["result"]

        websocket.recv()
        upload = ask(begin)["upload"]
        received = ask(append | {"params": {"upload": upload, "data": bytes(begin["params"]["size"])}})
    assert received == RESULTS[append["id"]]


def test_a_real_gap_looks_as_documented() -> None:
    (example,) = (message for message in MESSAGES if message.get("event") == "gap")
    box = outbox.Outbox()
    box.bound = outbox.Bound(1, 1)
    for _ in range(2):
        box.put(Message(1, Body({"event": "step"})))
    sent = box.next()
    assert sent is not None
    assert_same_shape(example, codec.decode_trusted(b"".join(sent.frame())), "gap")


def test_a_real_upload_looks_as_documented(served: Served) -> None:
    (example,) = (message for message in COMMANDS if message["command"] == "images.put")
    buffer = io.BytesIO()
    PILImage.new("RGB", (128, 128), "red").save(buffer, "png")
    got = talk(served.url, example | {"params": {"data": buffer.getvalue()}})
    assert_same_shape(RESULTS[example["id"]], got[-1]["result"], "images.put")


def test_a_real_cancellation_looks_as_documented(served: Served) -> None:
    async def cancel() -> dict[str, Any]:
        async with latentwire.connect(served.url) as host:
            events = host.generate("red apple", num_inference_steps=1000)
            accepted = await anext(events)
            assert isinstance(accepted, Accepted)
            answer = await host.call("cancel", job=accepted.job)
            with pytest.raises(latentwire.RemoteError, match="cancelled"):
                _ = [event async for event in events]
            return answer

    (example,) = (message["id"] for message in COMMANDS if message["command"] == "cancel")
    assert_same_shape(RESULTS[example], asyncio.run(cancel()), "cancel")


def test_the_commands_of_a_running_job_answer_as_documented(served: Served) -> None:
    async def talk_to_a_job() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        async with wire(served.url) as client:
            await client.send("job", "generate", **LONG)
            job = (await client.until("started", "job"))["job"]
            results = {}
            for name in ("jobs.pause", "jobs.resume", "jobs.update"):
                (example,) = (message["params"] for message in COMMANDS if message["command"] == name)
                results[name] = await client.ask(name, **example | {"job": job})
            await client.send("watch", "jobs.watch", job=job, stream={"previews": {}})
            watched = [await client.until("subscribed", "watch"), await client.until("job_state", "watch")]
            await client.ask("unsubscribe", subscription=watched[0]["subscription"])
            results["jobs.watch"] = (await client.until("result", "watch"))["result"]
            await client.ask("cancel", job=job)
            told = [message for message in client.seen if message["event"] in ("paused", "resumed", "changed")]
            return results, [*watched, *told]

    results, events = asyncio.run(talk_to_a_job())
    for name, result in results.items():
        (example_id,) = (message["id"] for message in COMMANDS if message["command"] == name)
        assert_same_shape(RESULTS[example_id], result, name)
    assert [event["event"] for event in events] == ["subscribed", "job_state", "paused", "resumed", "changed"]
    for event in events:
        (example,) = (message for message in MESSAGES if message.get("event") == event["event"])
        assert example.keys() == event.keys()


def test_the_request_in_a_png_makes_the_picture_again(served: Served) -> None:
    def make(**params: Any) -> PILImage.Image:
        got = talk(served.url, {"id": 1, "command": "generate", "params": params})
        (image,) = (message["image"] for message in got if message["event"] == "image")
        return PILImage.open(io.BytesIO(image["data"]))

    first = make(prompt="red apple", negative_prompt="leaf", num_inference_steps=2, mode="exact", scheduler="euler")
    assert make(**json.loads(first.info["latentwire"])).tobytes() == first.tobytes()
    assert first.info["parameters"].startswith("red apple\nNegative prompt: leaf\nSteps: 2, ")
