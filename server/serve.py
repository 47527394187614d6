"""Runs a host under uvicorn and tells the person at the terminal where it is.

torch and all that needs it is imported when settings and address are known to be good: it takes seconds.
"""

import asyncio
import logging
import os
import secrets
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from starlette.types import ASGIApp

from .. import __version__
from ..core.errors import LatentwireError, SettingsError
from ..core.settings import ServerSettings, Settings, load_settings
from .auth import is_loopback
from .websocket import HostWebSocket

if TYPE_CHECKING:
    from ..core.host import Host

HARD_LIMIT = 4 << 20  # bytes of a frame; the session refuses smaller ones more politely


def serve(file: Path | None, overrides: list[str]) -> int:
    """Serve until interrupted; the process's exit status: 2 for wrong settings, 1 for a device that keeps failing."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)-8s %(message)s", stream=sys.stderr)
    for noisy in ("uvicorn.error", "uvicorn.asgi"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        settings = _with_token(load_settings(file, os.environ, overrides))
        listener = _listen(settings.server)
        host, app = _make(settings)
    except LatentwireError as error:
        print(f"latentwire: {error.message}", file=sys.stderr)
        return 2
    with suppress(KeyboardInterrupt):  # Ctrl-C is how a person ends it
        HostServer(app, host, listener).run(sockets=[listener])
    return 0 if host.engine.failed is None else 1


def server_config(app: ASGIApp) -> uvicorn.Config:
    """How uvicorn serves a host's app: on any free port, unless it is given a socket when it runs."""
    return uvicorn.Config(
        app,
        port=0,
        ws=HostWebSocket,
        ws_max_size=HARD_LIMIT,
        ws_ping_interval=None,  # see `watch`
        ws_per_message_deflate=False,  # pictures are compressed already
        timeout_graceful_shutdown=5,
        log_config=None,
        access_log=False,
    )


class HostServer(uvicorn.Server):
    """Says where it listens as soon as it does, and lets clients know why it goes."""

    def __init__(self, app: ASGIApp, host: "Host", listener: socket.socket) -> None:
        super().__init__(server_config(app))
        self._host = host
        self._listener = listener

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        server = self._host.settings.server
        name = f"[{server.host}]" if ":" in server.host else server.host
        port = self._listener.getsockname()[1]
        print(f"latentwire {__version__}")
        print(f"  page    http://{name}:{port}/")
        print(f"  socket  ws://{name}:{port}/ws")
        print(f"  token   {server.token or 'none needed on loopback'}", flush=True)

    async def on_tick(self, counter: int) -> bool:
        """Whether to end now: also when the device is beyond help, so that a supervisor starts the process anew."""
        return await super().on_tick(counter) or self._host.engine.failed is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.to_thread(self._host.close)
        await asyncio.sleep(0.1)  # each unfinished job's error is on its way out; then the sockets close
        await super().shutdown(sockets)


def _listen(server: ServerSettings) -> socket.socket:
    """A socket on the configured address, before anything slow begins."""
    try:
        family, *_, address = socket.getaddrinfo(
            server.host or None, server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address[:2], family=family)
        # For the connections that come from it: asyncio sets it only where a socket's protocol is spelt out. Without
        # it a small message waits up to 40 ms for the other side to acknowledge the one before.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]
        raise SettingsError(f"cannot listen on {server.host}:{server.port}: {reason}; see --host and --port") from error


def _make(settings: Settings) -> "tuple[Host, ASGIApp]":
    import transformers

    from ..core.host import Host
    from ..core.memory import keep_freed_memory
    from .app import create_app

    keep_freed_memory()
    transformers.logging.set_verbosity_error()  # its bars and hints are for notebooks
    transformers.logging.disable_progress_bar()
    host = Host(settings)
    return host, create_app(host)


def _with_token(settings: Settings) -> Settings:
    """Settings that ask for a token wherever another machine could connect."""
    if settings.server.token or is_loopback(settings.server.host):
        return settings
    server = settings.server.model_copy(update={"token": secrets.token_urlsafe(24)})
    return settings.model_copy(update={"server": server})
