"""Whatever a client sends: a clear error with a stable code, the connection goes on, and nobody else notices."""

import asyncio
import math
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgpack
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from latentwire.core.errors import BadMessage
from latentwire.server import codec

from .conftest import Served, wait_for
from .wire import LONG, SMALL, Wire, in_loop, wire


@pytest.fixture(autouse=True)
def undisturbed(served: Served, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """After each of these tests the host still makes pictures, and has logged no error."""
    yield

    async def make_one() -> None:
        async with wire(served.url) as client:
            await client.send(1, "generate", **SMALL | {"num_inference_steps": 1})
            assert (await client.all_of(1))[-1]["event"] == "result"

    asyncio.run(make_one())
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def packed(**message: Any) -> bytes:
    frame: bytes = msgpack.packb(message)
    return frame


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


PING: dict[str, Any] = {"id": 7, "command": "ping"}

BAD_FRAMES: dict[str, tuple[bytes | str, int | None, str]] = {
    # what is sent, the id that the error has, words that its message has
    "text": ('{"id": 7, "command": "ping"}', None, "text frame"),
    "empty": (b"", None, "no msgpack"),
    "garbage": (b"\xc1\xff\x00garbage", None, "no msgpack"),
    "truncated": (packed(**PING)[:-2], None, "incomplete"),
    "two messages": (packed(**PING) * 2, None, "extra data"),
    "a list": (msgpack.packb([1, 2]), None, "list, wanted a map"),
    "a number": (b"\x07", None, "int, wanted a map"),
    "number as key": (msgpack.packb({1: 2, "id": 7}), 7, "keys must be texts"),
    "list as key": (b"\x81\x90\x01", None, "keys must be texts"),
    "a key twice": (b"\x83\xa2id\x07\xa7command\xa4ping\xa2id\x08", None, "the key 'id' is there twice"),
    "a key twice, deep inside": (b"\x82\xa2id\x07\xa6params\x82\xa1a\x00\xd9\x01a\x01", None, "'a' is there twice"),
    "bytes as key": (msgpack.packb({b"x": 1} | PING), 7, "keys must be texts"),
    "bytes as key in params": (packed(**PING, params={"a": {b"x": 1}}), 7, "keys must be texts"),
    "invalid utf-8": (b"\x82\xa2id\x07\xa7command\xa4p\xff\xfeg", None, "utf-8"),
    "a lone surrogate": (b"\x82\xa2id\x07\xa7command\xa3\xed\xa0\x80", None, "utf-8"),
    "deep nesting": (packed(**PING, params={"a": nested(50)}), 7, "nested more than 16 deep"),
    "very deep nesting": (b"\x91" * 200_000 + b"\x01", None, "nested more than 16 deep"),
    "extension type": (packed(**PING, params={"a": msgpack.ExtType(5, b"x")}), 7, "extension type"),
    "timestamp": (packed(**PING, params={"a": [msgpack.Timestamp(1)]}), 7, "extension type"),
    "extension type as id": (packed(id=msgpack.ExtType(5, b"x"), command="ping"), None, "id must be"),
    "100,000 entries": (packed(**PING, params={"a": [0] * 100_000}), 7, "more than 10000 entries"),
    "many entries in all": (packed(**PING, params={"a": [[0] * 6000] * 2}), 7, "more than 10000 entries"),
    "a claim of many entries": (b"\xdd\xff\xff\xff\xff", None, "more than 10000 entries"),
    "claims in claims": (b"\xdd\x00\x00\x10\x00" * 1000, None, "more than 10000 entries"),
    "no id": (packed(command="ping"), None, "id must be"),
    "id null": (packed(id=None, command="ping"), None, "got None"),
    "id true": (packed(id=True, command="ping"), None, "got True"),
    "id a float": (packed(id=1.5, command="ping"), None, "got 1.5"),
    "id nan": (packed(id=math.nan, command="ping"), None, "got nan"),
    "id bytes": (packed(id=b"7", command="ping"), None, "got b'7'"),
    "id a list": (packed(id=[7], command="ping"), None, "got [7]"),
    "id an empty text": (packed(id="", command="ping"), None, "1 to 64 letters"),
    "id a long text": (packed(id="x" * 65, command="ping"), None, "1 to 64 letters"),
    "no command": (packed(id=7), 7, "command must be a text, got None"),
    "command bytes": (packed(id=7, command=b"ping"), 7, "command must be a text"),
    "command a number": (packed(id=7, command=5), 7, "command must be a text, got 5"),
    "params a list": (packed(**PING, params=[]), 7, "params must be a map, got list"),
    "params null": (packed(**PING, params=None), 7, "params must be a map"),
    "unknown key": (packed(**PING, parms={}), 7, "unknown key 'parms'; a message has id, command and params"),
}


@in_loop
@pytest.mark.parametrize("kind", BAD_FRAMES)
async def test_a_bad_frame_gets_bad_message_and_the_connection_goes_on(served: Served, kind: str) -> None:
    frame, message_id, words = BAD_FRAMES[kind]
    async with wire(served.url) as client:
        await client.send_frame(frame)
        error = await client.receive()
        assert (error["event"], error["code"], error["id"]) == ("error", "bad_message", message_id)
        assert words in error["message"]
        assert len(error["message"]) < 300
        assert await client.ask("ping")


@in_loop
async def test_ids_of_every_allowed_kind_come_back_as_they_were(served: Served) -> None:
    async with wire(served.url) as client:
        for message_id in (0, -5, 2**64 - 1, -(2**63), "x", "x" * 64, "ü\x00😀"):
            await client.send(message_id, "ping")
            answer = await client.receive()
            assert (answer["id"], answer["event"]) == (message_id, "result")


@in_loop
@pytest.mark.parametrize(
    ("command", "hint"),
    [("genrate", "did you mean 'generate'?"), ("model.list", "did you mean 'models.list'?"), ("", "commands: cancel,"),
     ("x" * 500_000, "commands: cancel,")],
)  # fmt: skip
async def test_an_unknown_command_names_the_nearest(served: Served, command: str, hint: str) -> None:
    async with wire(served.url) as client:
        error = await client.error(7, command)
        assert error["code"] == "unknown_command"
        assert hint in error["message"]
        assert len(error["message"]) < 300
        assert await client.ask("ping")


BAD_PARAMS: dict[str, tuple[dict[str, Any], list[Any], str]] = {
    # what is changed in a good request, the path in details, words of its message
    "no steps": ({"num_inference_steps": 0}, ["num_inference_steps"], "greater than or equal to 1"),
    "10,000 steps": ({"num_inference_steps": 10_000}, ["num_inference_steps"], "less than or equal to 1000"),
    "half a step": ({"num_inference_steps": 2.5}, ["num_inference_steps"], "valid integer"),
    "steps as text": ({"num_inference_steps": "20"}, ["num_inference_steps"], "valid integer"),
    "steps true": ({"num_inference_steps": True}, ["num_inference_steps"], "valid integer"),
    "steps a huge int": ({"num_inference_steps": 2**64 - 1}, ["num_inference_steps"], "less than or equal to 1000"),
    "steps a huge float": ({"num_inference_steps": 1e300}, ["num_inference_steps"], "less than or equal to 1000"),
    "steps infinite": ({"num_inference_steps": math.inf}, ["num_inference_steps"], "valid integer"),
    "width not by 8": ({"width": 100}, ["width"], "multiple of 8"),
    "height not by 8": ({"height": 513}, ["height"], "multiple of 8"),
    "width too small": ({"width": 8}, ["width"], "greater than or equal to 64"),
    "width negative": ({"width": -64}, ["width"], "greater than or equal to 64"),
    "too many pixels": ({"width": 4096, "height": 4096}, ["width"], "the host's limit"),
    "guidance nan": ({"guidance_scale": math.nan}, ["guidance_scale"], "finite number"),
    "guidance infinite": ({"guidance_scale": -math.inf}, ["guidance_scale"], "finite number"),
    "guidance negative": ({"guidance_scale": -1.0}, ["guidance_scale"], "greater than or equal to 0"),
    "prompt bytes": ({"prompt": b"red"}, ["prompt"], "valid string"),
    "prompt null": ({"prompt": None}, ["prompt"], "valid string"),
    "prompt too long": ({"prompt": "x" * 10_001}, ["prompt"], "at most 10000 characters"),
    "seed negative": ({"seed": -1}, ["seed"], "or a list of 1 to 64 of them"),
    "seed too large": ({"seed": 2**63}, ["seed"], "or a list of 1 to 64 of them"),
    "no seeds": ({"seed": []}, ["seed"], "or a list of 1 to 64 of them"),
    "many bad seeds": ({"seed": [-1] * 9000}, ["seed"], "or a list of 1 to 64 of them"),
    "seeds and another count": ({"seed": [1, 2], "num_images": 3}, [], "lists 2 seeds, but num_images is 3"),
    "65 pictures": ({"num_images": 65}, ["num_images"], "less than or equal to 64"),
    "unknown mode": ({"mode": "fastest"}, ["mode"], "'exact', 'reproducible' or 'fast'"),
    "unknown scheduler": ({"scheduler": "dimm"}, ["scheduler"], "there is no scheduler 'dimm'"),
    "unknown output type": ({"output_type": "pil"}, ["output_type"], "'png' or 'latent'"),
    "unknown key": ({"promt": "x"}, ["promt"], "unknown key, did you mean 'prompt'?"),
    "unknown key below": ({"stream": {"previews": {"sise": 1}}}, ["stream", "previews", "sise"], "mean 'size'?"),
    "unknown key of a plugin": (
        {"clip_skip": {"layers": 1, "layer": 1}},
        ["clip_skip", "layer"],
        "did you mean 'layers'?",
    ),
    "a huge unknown key": ({"x" * 500_000: 1}, ["x" * 80], "unknown key, known keys"),
    "many unknown keys": ({f"k{n}": 1 for n in range(9000)}, ["k0"], "unknown key"),
    "stream a list": ({"stream": []}, ["stream"], "valid dictionary"),
    "no preview rate": ({"stream": {"previews": {"max_rate": 0}}}, ["stream", "previews", "max_rate"], "greater"),
    "previews every 0": ({"stream": {"previews": {"every": 0}}}, ["stream", "previews", "every"], "greater"),
}


@in_loop
@pytest.mark.parametrize("kind", BAD_PARAMS)
async def test_bad_params_are_named_with_their_path(served: Served, kind: str) -> None:
    change, path, words = BAD_PARAMS[kind]
    async with wire(served.url) as client:
        error = await client.error(7, "generate", **SMALL | change)
        assert error["code"] == "invalid_params"
        assert error["details"][0]["path"] == path
        assert words in error["details"][0]["message"]
        assert len(error["details"]) <= 20
        assert len(msgpack.packb(error)) < 10_000
        assert await client.ask("ping")


@in_loop
async def test_a_missing_prompt_is_named(served: Served) -> None:
    async with wire(served.url) as client:
        error = await client.error(7, "generate")
        assert (error["code"], error["details"][0]["path"]) == ("invalid_params", ["prompt"])
        assert "prompt: Field required" in error["message"]


@in_loop
async def test_an_unknown_model_has_its_own_code(served: Served) -> None:
    async with wire(served.url) as client:
        error = await client.error(7, "generate", **SMALL | {"model": "../../etc"})
        assert (error["code"], "models: emoji" in error["message"]) == ("unknown_model", True)


@in_loop
async def test_commands_without_params_refuse_any(served: Served) -> None:
    async with wire(served.url) as client:
        assert (await client.error(7, "ping", x=1))["code"] == "invalid_params"
        assert (await client.error(8, "cancel"))["details"][0]["path"] == ["job"]
        assert (await client.error(9, "cancel", job="x" * 100_000))["code"] == "unknown_job"


@in_loop
@pytest.mark.parametrize("prompt", ["", "\x00", "😀" * 2000, "<|endoftext|>", "(((:1.5)", "\u202e\ufeff\n\t"])
async def test_odd_prompts_are_prompts(served: Served, prompt: str) -> None:
    async with wire(served.url) as client:
        await client.send(1, "generate", **SMALL | {"prompt": prompt, "negative_prompt": prompt})
        assert (await client.all_of(1))[-1]["event"] == "result"


@in_loop
async def test_whole_numbers_may_come_as_floats(served: Served) -> None:
    async with wire(served.url) as client:
        await client.send(1, "generate", **SMALL | {"num_inference_steps": 2.0, "width": 64.0, "guidance_scale": 3})
        assert (await client.all_of(1))[-1]["event"] == "result"


@in_loop
async def test_an_id_in_use_is_refused_and_the_older_command_runs_on(served: Served) -> None:
    async with wire(served.url) as client:
        await client.send(7, "generate", **SMALL | {"num_inference_steps": 20})
        await client.until("started")
        await client.send(7, "ping")
        error = await client.until("error")
        assert (error["id"], error["code"]) == (None, "duplicate_id")
        assert (await client.all_of(7))[-1]["event"] == "result"


@in_loop
async def test_a_frame_over_the_limit_is_refused_and_one_at_the_limit_is_read(served: Served) -> None:
    async with wire(served.url) as client:
        limit = client.hello["limits"]["message_bytes"]
        room = limit - len(packed(**PING, params={"x": b"x" * 70_000})) + 70_000
        await client.send_frame(packed(**PING, params={"x": b"x" * room}))
        assert (await client.receive())["code"] == "invalid_params"  # ping takes no x
        await client.send_frame(packed(**PING, params={"x": b"x" * (room + 1)}))
        error = await client.receive()
        assert (error["id"], error["code"]) == (None, "message_too_large")
        assert error["message"] == f"the frame has {limit + 1} bytes, the limit is {limit}"
        assert await client.ask("ping")


@in_loop
async def test_a_frame_over_the_hard_limit_ends_its_connection_alone(served: Served) -> None:
    async with wire(served.url) as other, wire(served.url) as client:
        await client.send(1, "generate", **SMALL | {"num_inference_steps": 50})
        await client.until("started")
        with suppress(ConnectionClosed):
            await client.send_frame(bytes((4 << 20) + 1))
        await client.socket.wait_closed()
        assert client.socket.close_code == 1009
        assert await other.ask("ping")
    await asyncio.to_thread(wait_for, lambda: not served.host.jobs.all(), "its job to end: its session is kept")


@in_loop
async def test_a_client_has_at_most_its_number_of_jobs(served: Served) -> None:
    async with wire(served.url) as client, wire(served.url) as other:
        limit = client.hello["limits"]["jobs"]
        for number in range(limit):
            await client.send(number, "generate", **LONG)
        error = await client.error("one more", "generate", **LONG)
        assert error["code"] == "too_many_jobs"
        assert f"{limit} unfinished jobs" in error["message"]
        assert len((await client.ask("jobs"))["jobs"]) == limit
        await other.send(1, "generate", **LONG)
        await other.until("accepted")
    await asyncio.to_thread(wait_for, lambda: not served.host.jobs.all(), "the jobs to be cancelled")


@in_loop
async def test_a_flood_of_commands_and_bad_frames_gets_an_answer_each(served: Served) -> None:
    async with wire(served.url) as client:

        async def flood() -> None:
            for number in range(1500):
                await client.send(number, "ping")
                await client.send_frame(b"\xc1")

        flooding = asyncio.create_task(flood())
        answers = [await client.receive() for _ in range(3000)]
        await flooding
    assert sorted(answer["id"] for answer in answers if answer["event"] == "result") == list(range(1500))
    assert sum(answer.get("code") == "bad_message" for answer in answers) == 1500


async def raw(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = url.removeprefix("ws://").removesuffix("/ws").partition(":")
    return await asyncio.open_connection(host, int(port))


async def handshake(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await raw(url)
    host = url.removeprefix("ws://").removesuffix("/ws")
    writer.write(
        f"GET /ws HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


@in_loop
@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 1000,  # reserved bits and an unknown opcode
        b"\x82\x05hello",  # not masked
        b"\x02\x80\x00\x00\x00\x00\x02\x80\x00\x00\x00\x00",  # a new message inside a fragmented one
        b"\x80\x80\x00\x00\x00\x00",  # goes on with what has not begun
        b"\x89\xfe\x01\x00" + bytes(300),  # a control frame that is too long
        b"\x81\x82\x00\x00\x00\x00\xff\xfe",  # text that is no utf-8
        b"\x82\xff" + struct.pack("!Q", 2**62) + bytes(4),  # a claim of exabytes
        b"\x82\xff" + b"\xff" * 8 + bytes(4),
        b"\x88\x81\x00\x00\x00\x00x",  # a close frame with half a code
    ],
)
async def test_broken_websocket_frames_end_their_connection(
    served: Served, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await handshake(served.url)
    writer.write(data)
    async with asyncio.timeout(10):
        while await reader.read(1000):
            pass
    writer.close()
    caplog.clear()  # the server library logs text that is no utf-8 as an error


@in_loop
async def test_connections_that_never_finish_a_handshake_or_a_frame_cost_nothing(served: Served) -> None:
    writers = []
    for start in (b"", b"GET /ws HTTP/1.1\r\nHost: x", b"\x16\x03\x01\x02\x00\x01", b"\x00" * 100):
        _, writer = await raw(served.url)
        writer.write(start)
        writers.append(writer)
    _, writer = await handshake(served.url)
    writer.write(b"\x82\xfe\xff")  # the beginning of a frame
    writers.append(writer)
    async with wire(served.url) as client:
        assert await client.ask("ping")
    for writer in writers:
        writer.transport.abort()


@in_loop
async def test_a_fragmented_message_with_pings_in_between_is_read(served: Served) -> None:
    async with connect(served.url, proxy=None) as socket:
        client = Wire(socket, {})
        await client.until("hello")

        async def parts() -> Any:
            frame = packed(**PING)
            for start in range(0, len(frame), 5):
                yield frame[start : start + 5]
                await socket.ping()

        await socket.send(parts())
        assert (await client.receive())["event"] == "result"


def test_the_codec_refuses_what_only_another_encoder_could_write() -> None:
    for frame in (b"", b"\xc1", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x05"):
        with pytest.raises(BadMessage):
            codec.decode(frame)


def test_the_codec_brings_every_plain_value_through() -> None:
    message: dict[str, Any] = {"a": [None, True, 1, -(2**63), 2**64 - 1, 0.5, "ü", b"\x00\xff", {"": []}]}
    decoded = codec.decode(codec.encode(message))
    codec.check(decoded)
    assert decoded == message
