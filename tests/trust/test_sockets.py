"""Clients that hold a connection without using it, or flood it; against a real server, with raw sockets."""

import asyncio
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgpack
import psutil  # type: ignore[import-untyped]
import pytest
from websockets.asyncio.client import connect

from latentwire.server import http as http_module
from latentwire.server import watch as watch_module

from ..conftest import Served, serving, wait_for
from ..wire import SMALL, in_loop, wire
from .served import Server, handshake, server, status


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("flooded")) as started:
        yield started


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A host that waits a fraction of a second in place of seconds."""
    monkeypatch.setattr(watch_module, "PERIOD_S", 0.05)
    for name in ("REQUEST_S", "BODY_S", "STUCK_S"):
        monkeypatch.setattr(http_module, name, 0.3)
    with serving() as served:
        yield served


def frame(opcode: int, payload: bytes, fin: bool = True) -> bytes:
    """A client's frame, masked with zeros."""
    first = bytes([(0x80 if fin else 0) | opcode])
    if len(payload) < 126:
        return first + bytes([0x80 | len(payload)]) + bytes(4) + payload
    return first + b"\xfe" + struct.pack("!H", len(payload)) + bytes(4) + payload


def connected(port: int, receive_buffer: int | None = None) -> socket.socket:
    """A socket whose WebSocket handshake is over; it has not read beyond that."""
    stream = socket.socket()
    if receive_buffer is not None:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    stream.connect(("127.0.0.1", port))
    stream.settimeout(30)
    stream.sendall(handshake(Host=f"127.0.0.1:{port}"))
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += stream.recv(1)
    assert status(answer) == 101
    return stream


def sockets_of(running: Server) -> int:
    """How many connections the server holds."""
    connections = psutil.Process(running.process.pid).net_connections("tcp")
    return sum(connection.status != psutil.CONN_LISTEN for connection in connections)


def close_code(stream: socket.socket) -> int | None:
    """The code of the close frame that ends a connection, whatever else comes before it."""
    data = b""
    with suppress(OSError):
        while part := stream.recv(65536):
            data += part
    position = 0
    while position + 2 <= len(data):
        opcode, length, head = data[position] & 15, data[position + 1] & 127, 2
        if length == 126:
            length, head = int.from_bytes(data[position + 2 : position + 4], "big"), 4
        if opcode == 8:
            return int.from_bytes(data[position + head : position + head + 2], "big")
        position += head + length
    return None


async def quickest_ping(url: str, seconds: float) -> list[float]:
    """How long pings of another client take."""
    took = []
    async with wire(url) as other:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            begin = time.perf_counter()
            await other.ask("ping")
            took.append(time.perf_counter() - begin)
            await asyncio.sleep(0.01)
    return took


def flood(stream: socket.socket, unit: bytes, seconds: float) -> None:
    """Send as much as the host takes for so long, and read nothing."""
    stream.settimeout(0.2)
    end = time.monotonic() + seconds
    chunk = unit * (65536 // len(unit))
    while time.monotonic() < end:
        try:
            stream.sendall(chunk)
        except TimeoutError:  # a part of it may be out: what follows is no frame any more
            return
        except OSError:
            return


FLOODS = {
    "pings": frame(9, b"x" * 125),
    "pongs": frame(10, b"x" * 125),
    "bad messages": frame(2, b"\x80"),
    "texts": frame(1, b"x"),
    "describe": frame(2, msgpack.packb({"id": 1, "command": "describe"})),
}


@pytest.mark.parametrize("unit", FLOODS.values(), ids=FLOODS.keys())
@in_loop
async def test_a_flood_that_reads_nothing_stalls_nobody_and_fills_no_memory(flooded: Server, unit: bytes) -> None:
    await quickest_ping(flooded.url, 0.2)
    before = flooded.memory
    with connected(flooded.port, 4096) as stream:
        flooding = asyncio.create_task(asyncio.to_thread(flood, stream, unit, 2))
        took = await quickest_ping(flooded.url, 2)
        await flooding
    assert sorted(took)[len(took) // 2] < 0.25
    assert flooded.memory - before < 100 << 20


def test_a_flood_of_fragments_ends_the_connection(flooded: Server) -> None:
    for first, unit in ((frame(2, b"", fin=False), frame(0, b"", fin=False)), (b"", frame(2, b"x", fin=False))):
        with connected(flooded.port) as stream:
            with suppress(OSError):
                stream.sendall(first + 5_000 * unit)
            assert close_code(stream) in (1009, 1002)
    with connected(flooded.port) as stream:  # a thousand are taken
        stream.sendall(frame(2, b"\x81", fin=False) + 900 * frame(0, b"", fin=False) + frame(0, b"", fin=True))
        stream.sendall(frame(8, struct.pack("!H", 1000)))
        assert close_code(stream) == 1000


@pytest.mark.parametrize("size", [(1 << 20) + 1, 4 << 20, (4 << 20) + 1, 1 << 40])
def test_a_message_that_is_too_large_is_refused_by_its_head(flooded: Server, size: int) -> None:
    with connected(flooded.port) as stream:
        begin = flooded.memory
        stream.sendall(b"\x82\xff" + struct.pack("!Q", size) + bytes(4))
        if size > 4 << 20:
            assert close_code(stream) == 1009
        assert flooded.memory - begin < 16 << 20


@pytest.mark.parametrize("last", [frame(8, struct.pack("!H", 1000)), frame(3, b""), frame(1, b"\xff"), b""])
def test_one_that_does_not_read_is_freed_all_the_same(flooded: Server, last: bytes) -> None:
    before = sockets_of(flooded)
    stream = connected(flooded.port, 4096)
    with stream:
        stream.sendall(200 * FLOODS["describe"])
        wait_for(lambda: sockets_of(flooded) > before, "the connection")
        with suppress(OSError):
            stream.sendall(last)
        if not last:
            stream.close()
        wait_for(lambda: sockets_of(flooded) <= before, "the connection to be freed", 40)


def test_a_request_that_is_never_finished_is_dropped(quick: Served) -> None:
    port = int(quick.http.rpartition(":")[2])
    heads = {
        "nothing": b"",
        "half a line": b"GET / HT",
        "no end of the head": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        "half a handshake": handshake(Host=f"127.0.0.1:{port}")[:-2],
        "no body": f"POST /generate-image/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 9\r\n\r\n".encode(),
        "a second one": f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\nGET / HT".encode(),
    }
    for text, head in heads.items():
        with socket.create_connection(("127.0.0.1", port), timeout=20) as stream:
            stream.sendall(head)
            with suppress(ConnectionResetError):
                while stream.recv(65536):  # until the host has closed it
                    pass
        assert text
    assert quick.host.counters.of("dropped_connections")["slow"] >= 4


@pytest.mark.parametrize(
    "more", [{"Content_Length": "1"}, {"Transfer_Encoding": "chunked"}, {"Sec_WebSocket_Key": "x"}]
)
def test_an_upgrade_that_is_none_is_answered_and_ends(flooded: Server, more: dict[str, str]) -> None:
    before = sockets_of(flooded)
    with socket.create_connection(("127.0.0.1", flooded.port), timeout=20) as stream:
        stream.sendall(handshake(Host=f"127.0.0.1:{flooded.port}", **more))
        answer = b""
        while part := stream.recv(65536):
            answer += part
        assert status(answer) == 400
    wait_for(lambda: sockets_of(flooded) <= before, "the connection to be freed", 20)


def test_an_answer_that_nobody_reads_is_dropped(quick: Served) -> None:
    port = int(quick.http.rpartition(":")[2])
    asked = f"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    with socket.socket() as stream:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        stream.connect(("127.0.0.1", port))
        stream.settimeout(5)
        with suppress(OSError):
            for _ in range(400):
                stream.sendall(asked)
        wait_for(lambda: quick.host.counters.of("dropped_connections").get("slow", 0) > 0, "it to be dropped", 30)


# Uploads in parts.

UPLOAD = b"\x89PNG" + bytes(1000)


@in_loop
async def test_a_large_picture_comes_in_parts_and_is_the_same(served: Served) -> None:
    import io

    import numpy as np
    from PIL import Image as PILImage

    from latentwire import connect

    pixels = np.random.default_rng(1).integers(0, 256, (900, 900, 3), np.uint8)
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, "png")
    assert len(buffer.getvalue()) > 2 << 20
    async with connect(served.url) as client:
        image_id = await client.upload(buffer.getvalue())
    assert served.host.images.get(image_id) == buffer.getvalue()


@in_loop
async def test_uploads_have_a_quota_and_end_with_their_client() -> None:
    with serving(limits={"upload_mib": 1}) as served:
        async with wire(served.url) as client, wire(served.url) as other:
            upload = (await client.ask("uploads.begin", size=1000))["upload"]
            error = await client.error(1, "uploads.begin", size=(1 << 20) - 999)
            assert (error["code"], error["details"][0]["path"]) == ("invalid_params", ["size"])
            assert (await other.error(1, "uploads.append", upload=upload, data=b"x"))["code"] == "invalid_params"
            assert (await client.ask("uploads.append", upload=upload, data=UPLOAD[:600]))["received"] == 600
            error = await client.error(2, "images.put", upload=upload)
            assert "400 bytes of the upload are still missing" in error["message"]
            assert (
                "it was to have 1000"
                in (await client.error(3, "uploads.append", upload=upload, data=UPLOAD))["message"]
            )
            assert (await client.ask("uploads.append", upload=upload, data=UPLOAD[600:1000]))["received"] == 1000
            assert (await client.error(4, "images.put", upload=upload))["code"] == "invalid_params"  # it is no picture
            assert (await client.error(5, "images.put", upload=upload))["details"][0]["path"] == [
                "upload"
            ]  # and is over
            for params in ({}, {"upload": upload, "data": b"x"}):
                assert "wanted either data or upload" in (await client.error(6, "images.put", **params))["message"]
            await client.ask("uploads.begin", size=1 << 20)
        async with wire(served.url) as client:
            for _ in range(7):
                assert (await client.ask("uploads.begin", size=1 << 17))["upload"]


# Shutting down.

RESULTS = '[[plugins]]\nname = "results"\nsettings = { folder = "results" }\n'
STEPS: dict[str, Any] = SMALL | {"num_inference_steps": 40}


@pytest.mark.slow
@in_loop
async def test_running_jobs_finish_and_are_stored_clients_are_told_and_a_stuck_one_holds_up_nothing(
    tmp_path: Path,
) -> None:
    with server(tmp_path, "server.shutdown_grace_s=60", toml=RESULTS) as started:
        stuck = connected(started.port, 4096)
        stuck.sendall(frame(2, msgpack.packb({"id": 1, "command": "generate", "params": STEPS | LARGE})))
        stuck.sendall(50 * FLOODS["describe"])
        async with wire(started.url) as client, wire(started.url) as other:
            await client.send(1, "generate", **STEPS)
            await client.until("step")
            begin = time.monotonic()
            ending = asyncio.create_task(asyncio.to_thread(started.stop))
            closing = await other.until("closing")
            assert (closing["id"], closing["seconds"]) == (None, 60)
            error = await other.error(2, "generate", **SMALL)
            assert error["code"] == "host_closing"
            assert (await other.ask("ping"))["time"]
            assert (await asyncio.to_thread(started.get, "/readyz"))[0] == 503
            messages = await client.all_of(1)
            assert messages[-1]["event"] == "result", (messages[-1], started.log)
            assert messages[-2]["result"] is not None
            assert await ending == 0
            assert time.monotonic() - begin < 65
        stuck.close()
        assert len(list((tmp_path / "results").glob("??/*.png"))) == 2
        assert started.errors() == []


LARGE = {"stream": {"previews": {"format": "png", "size": 512}, "latents": {"dtype": "float32"}}}


@pytest.mark.slow
@in_loop
async def test_what_takes_longer_than_the_grace_time_ends_with_a_reason(tmp_path: Path) -> None:
    with server(tmp_path, "server.shutdown_grace_s=1") as started:
        async with wire(started.url) as client:
            await client.send(1, "generate", **SMALL | {"num_inference_steps": 1000, "width": 256, "height": 256})
            await client.until("step")
            begin = time.monotonic()
            ending = asyncio.create_task(asyncio.to_thread(started.stop))
            assert (await client.until("error"))["code"] == "host_closing"
            assert await ending == 0
            assert time.monotonic() - begin < 6


HANG = """
import asyncio, threading, time
from latentwire import NoParams, hookimpl

async def forever(context, params):
    while True:
        try:
            await asyncio.sleep(3600)
        except BaseException:
            pass

async def block(context, params):
    time.sleep(3600)

async def in_thread(context, params):
    threading.Thread(target=time.sleep, args=[3600]).start()
    return {}

@hookimpl
def register(registry):
    registry.add_command("forever", NoParams, forever)
    registry.add_command("in_thread", NoParams, in_thread)
    registry.add_command("block", NoParams, block)
"""


@contextmanager
def hanging(folder: Path) -> Iterator[Server]:
    """A server with that plugin, and a second to shut down in."""
    (folder / "hang.py").write_text(HANG)
    toml = '[[plugins]]\nname = "hang"\npath = "hang.py"\n'
    with server(folder, "server.shutdown_grace_s=1", toml=toml) as started:
        yield started


@pytest.mark.slow
@in_loop
async def test_a_plugin_that_will_not_end_holds_up_nothing_for_long(tmp_path: Path) -> None:
    with hanging(tmp_path) as started:
        async with wire(started.url) as client:
            await client.ask("in_thread")
            await client.send(1, "forever")
            await client.ask("ping")
            begin = time.monotonic()
            await asyncio.to_thread(started.stop)
            assert time.monotonic() - begin < 6


@pytest.mark.slow
@in_loop
async def test_nor_does_one_that_blocks_the_event_loop(tmp_path: Path) -> None:
    with hanging(tmp_path) as started:
        async with connect(started.url) as client:
            await client.send(msgpack.packb({"id": 1, "command": "block"}))
            await asyncio.sleep(0.5)
            begin = time.monotonic()
            assert await asyncio.to_thread(started.stop) == 1
            assert time.monotonic() - begin < 7
            client.transport.abort()


@in_loop
async def test_eight_clients_that_claim_uploads_keep_nobody_from_uploading() -> None:
    with serving(limits={"upload_mib": 1}) as served:
        async with AsyncExitStack() as stack:
            for _ in range(9):
                other = await stack.enter_async_context(wire(served.url))
                await other.ask("uploads.begin", size=1 << 20)
            client = await stack.enter_async_context(wire(served.url))
            upload = (await client.ask("uploads.begin", size=1000))["upload"]
            assert (await client.ask("uploads.append", upload=upload, data=bytes(1000)))["received"] == 1000
