"""The WebSocket protocol itself, by the cases of the Autobahn suite: an echo server on the host's WebSocket class."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import kosoku
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from latentwire.core.counters import Counters
from latentwire.core.settings import LimitSettings
from latentwire.server.serve import server_config
from latentwire.server.watch import Watch

from ..conftest import wait_for

# kosoku leaves files of its own open
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

KNOWN = {"7.1.5"}
"""A close frame inside a fragmented message: the library `websockets` closes without an answer."""

LARGEST = 32 << 20  # the cases send up to 16 MiB


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    with suppress(WebSocketDisconnect):
        while (message := await websocket.receive())["type"] == "websocket.receive":
            text = message.get("text")
            await (websocket.send_text(text) if text is not None else websocket.send_bytes(message["bytes"]))


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
    yield {"watch": Watch(lambda: None), "limits": LimitSettings(), "counters": Counters()}


@contextmanager
def echoing() -> Iterator[str]:
    """Serve on a free port; its address."""
    config = server_config(Starlette(routes=[WebSocketRoute("/", echo)], lifespan=lifespan))
    config.ws_max_size = LARGEST
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started, "the server to listen")
        yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


def failures(address: str, cases: list[str]) -> tuple[int, set[str]]:
    """How many cases of these kinds ran, and which of them failed."""
    try:
        results = asyncio.run(kosoku.run_fuzzingclient(address, cases, None, concurrency=4))
    except kosoku.FailureError as failure:
        results = failure.results
    return len(results), {result.case_id for result in results if not result.passed}


def test_every_case_but_one_that_the_library_itself_fails() -> None:
    """The cases of compression, 12 and 13, are left out: the host offers none."""
    with echoing() as address:
        assert failures(address, [f"{kind}.*" for kind in (1, 2, 3, 4, 5, 6, 7, 10)]) == (247, KNOWN)


def test_large_messages_in_many_fragments() -> None:
    with echoing() as address:
        assert failures(address, ["9.*"]) == (54, set())


def test_compression_is_not_negotiated() -> None:
    with echoing() as address, pytest.raises(kosoku.FailureError) as raised:
        asyncio.run(kosoku.run_fuzzingclient(address, ["12.1.1", "13.1.1"], None))
    assert [result.behavior.value for result in raised.value.results] == ["UNIMPLEMENTED"] * 2
