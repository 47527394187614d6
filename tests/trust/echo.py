"""A server that echoes, with the host's own WebSocket under it: `python -m latentwire.tests.trust.echo`.

It prints its port. A message may be larger than a host takes: there are cases of 16 MiB.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from latentwire.core.counters import Counters
from latentwire.core.settings import LimitSettings
from latentwire.server.serve import server_config
from latentwire.server.watch import Watch


async def echo(websocket: WebSocket) -> None:
    """Whatever comes goes back as it came."""
    await websocket.accept()
    while (message := await websocket.receive())["type"] == "websocket.receive":
        await websocket.send({"type": "websocket.send", "text": message.get("text"), "bytes": message.get("bytes")})


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
    """What the host's connections find in the app's state."""
    yield {"watch": Watch(lambda: None), "limits": LimitSettings(), "counters": Counters()}


async def serve() -> None:
    """Until it is killed."""
    config = server_config(Starlette(routes=[WebSocketRoute("/", echo)], lifespan=lifespan))
    config.ws_max_size = 32 << 20
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await running


if __name__ == "__main__":
    asyncio.run(serve())
