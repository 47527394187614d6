"""A server that echoes, with the host's own WebSocket under it: `python -m latentwire.tests.trust.echo [deflate]`.

It prints its port. Its bounds are wider: a case may send 16 MiB, or 4 MiB in 65,536 fragments. `deflate` is off in a
host.
"""

import asyncio
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from latentwire.server import websocket as host_websocket
from latentwire.server.serve import server_config


async def echo(websocket: WebSocket) -> None:
    """Whatever comes goes back as it came."""
    await websocket.accept()
    while (message := await websocket.receive())["type"] == "websocket.receive":
        await websocket.send({"type": "websocket.send", "text": message.get("text"), "bytes": message.get("bytes")})


async def serve() -> None:
    """Until it is killed."""
    host_websocket.MAX_FRAGMENTS = 1 << 17
    config = server_config(Starlette(routes=[WebSocketRoute("/", echo)]))
    config.ws_max_size = 32 << 20
    config.ws_per_message_deflate = "deflate" in sys.argv[1:]
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await running


if __name__ == "__main__":
    asyncio.run(serve())
