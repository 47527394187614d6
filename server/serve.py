"""Runs a host under uvicorn and tells the person at the terminal where it is.

torch and all that needs it is imported when settings and address are known to be good: it takes seconds.
"""

import asyncio
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
import webbrowser
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp

from .. import __version__
from ..core.errors import LatentwireError, SettingsError
from ..core.events import Closing
from ..core.settings import ServerSettings, Settings, load_settings
from .access import is_loopback
from .http import HostHttp
from .logs import quiet_libraries, set_up
from .sessions import Sessions
from .websocket import HARD_LIMIT, HostWebSocket

if TYPE_CHECKING:
    from ..core.host import Host


ENDING_S = 4.5  # for all that follows once the jobs have finished
LOOPBACK_INSTEAD = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}  # for a browser on this machine
CLOSING_S = 1.5  # for the engine to come to its next step
FLUSHING_S = 1.0  # for clients to take what they have been told

log = logging.getLogger(__name__)


def serve(file: Path | None, overrides: list[str], reload: bool = False, open_page: bool = False) -> int:
    """Serve until interrupted, and end the process: with status 0, or 1 for a device that keeps failing.

    Args:
        reload: Whether plugins are loaded anew when their code changes.
        open_page: Whether the page is opened in a browser once the host is ready.

    Returns:
        2, where the settings are wrong.
    """
    try:
        settings = _with_token(load_settings(file, os.environ, overrides))
        set_up(settings.server.log)
        if reload:
            logging.getLogger("latentwire.core.plugin_host").setLevel(logging.DEBUG)  # authors want the tracebacks
        listener = _listen(settings.server)
        host, app = _make(settings)
    except LatentwireError as error:
        print(f"latentwire: {error.message}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again once all is done, and that is a good end
    with suppress(KeyboardInterrupt):  # Ctrl-C is how a person ends it
        HostServer(app, host, listener, reload, open_page).run(sockets=[listener])
    logging.shutdown()
    sys.stdout.flush()
    # Python's own end would wait for a plugin's threads, and abort in a kernel that one of ours has not come back from
    os._exit(0 if host.engine.failed is None else 1)


def server_config(app: ASGIApp) -> uvicorn.Config:
    """How uvicorn serves a host's app: on any free port, unless it is given a socket when it runs."""
    return uvicorn.Config(
        app,
        port=0,
        http=HostHttp,
        ws=HostWebSocket,
        ws_max_size=HARD_LIMIT,
        ws_ping_interval=None,  # see `watch`
        ws_per_message_deflate=False,  # pictures are compressed already
        timeout_graceful_shutdown=2,
        proxy_headers=False,  # whoever sends them could claim any address
        server_header=False,
        log_config=None,
        access_log=False,
    )


class HostServer(uvicorn.Server):
    """Says where it listens as soon as it does, and lets clients know why it goes, and running jobs finish before."""

    def __init__(
        self, app: Starlette, host: "Host", listener: socket.socket, reload: bool, open_page: bool = False
    ) -> None:
        super().__init__(server_config(app))
        self._open_page = open_page
        self._reload = reload
        self._reloading: asyncio.Task[None] | None = None
        self._app = app
        self._ends = False
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
        print(f"  token   {server.token or 'none needed'}", flush=True)
        if self._open_page:
            shown = LOOPBACK_INSTEAD.get(server.host, name)
            threading.Thread(target=_open, args=(self._host, f"http://{shown}:{port}/"), daemon=True).start()
        if self._reload:
            from .reload import reload_on_change

            self._reloading = asyncio.create_task(reload_on_change(self._host))

    async def on_tick(self, counter: int) -> bool:
        """Whether to end now: also when the device is beyond help, so that a supervisor starts the process anew."""
        return await super().on_tick(counter) or self._host.engine.failed is not None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._end_in_time()  # here: the event loop, which does the rest, may be blocked
        super().handle_exit(sig, frame)

    def _end_in_time(self) -> None:
        if not self._ends:
            self._ends = True
            end_within(self._host.settings.server.shutdown_grace_s + ENDING_S)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        grace_s = self._host.settings.server.shutdown_grace_s
        self._end_in_time()
        if self._reloading is not None:
            self._reloading.cancel()
        self._host.drain()
        sessions: Sessions = self._app.state.sessions
        sessions.announce(Closing(grace_s))
        await self._finished(grace_s)
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(self._host.close), CLOSING_S)
        await sessions.flushed(FLUSHING_S)
        await super().shutdown(sockets)

    async def _finished(self, grace_s: float) -> None:
        """Until no job is under way, or the time is over, or the person at the terminal says so again."""
        until = asyncio.get_running_loop().time() + grace_s
        told = False
        while jobs := sum(job.state != "paused" for job in self._host.jobs.all()):
            if self.force_exit or asyncio.get_running_loop().time() >= until:
                return
            if not told:
                log.info("waiting up to %g s for %d jobs to finish; Ctrl-C again ends them", grace_s, jobs)
                told = True
            await asyncio.sleep(0.02)


def _open(host: "Host", url: str) -> None:
    """Show a page to the person at this machine once its host is ready."""
    while not host.is_ready:
        if host.closing:
            return
        time.sleep(0.05)
    if not webbrowser.open(url):
        log.warning("no browser could be opened; the page is %s", url)


def end_within(seconds: float) -> None:
    """End this process by force after so long, whatever hangs: a plugin's thread, say, that Python would wait for."""

    def end() -> None:
        with suppress(OSError):  # by hand: what holds the process up may have the log's lock, too
            os.set_blocking(2, False)
            os.write(2, f"the host did not end within {seconds:g} s, so it is ended by force\n".encode())
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


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


def _make(settings: Settings) -> "tuple[Host, Starlette]":
    from ..core.host import Host
    from ..core.memory import keep_freed_memory
    from .app import create_app

    keep_freed_memory()
    quiet_libraries()
    host = Host(settings)
    return host, create_app(host)


def _with_token(settings: Settings) -> Settings:
    """Settings that ask for a token wherever another machine could connect."""
    if settings.server.token or settings.server.anyone_may_connect or is_loopback(settings.server.host):
        return settings
    server = settings.server.model_copy(update={"token": secrets.token_urlsafe(24)})
    return settings.model_copy(update={"server": server})
