"""Runs a host under uvicorn and tells the person at the terminal where it is."""

import ipaddress
import logging
import os
import secrets
import sys
from pathlib import Path

import transformers
import uvicorn

from .. import __version__
from ..core.errors import SettingsError
from ..core.host import Host
from ..core.settings import Settings, load_settings
from .app import create_app

HARD_LIMIT = 4 << 20  # bytes of a frame; the session refuses smaller ones more politely


class AnnouncingServer(uvicorn.Server):
    """Prints where it listens as soon as it does."""

    def __init__(self, config: uvicorn.Config, settings: Settings) -> None:
        super().__init__(config)
        self._settings = settings

    async def startup(self, sockets: list[object] | None = None) -> None:
        await super().startup(sockets)  # type: ignore[arg-type]
        if not self.started:
            return
        port = self.servers[0].sockets[0].getsockname()[1]
        address = self._settings.server.host
        address = f"[{address}]" if ":" in address else address
        print(f"latentwire {__version__}")
        print(f"  page    http://{address}:{port}/")
        print(f"  socket  ws://{address}:{port}/ws")
        print(f"  token   {self._settings.server.token or 'none needed on loopback'}", flush=True)


def serve(file: Path | None, overrides: list[str]) -> int:
    """Serve until interrupted; the process's exit status."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)-8s %(message)s", stream=sys.stderr)
    for noisy in ("uvicorn.error", "uvicorn.asgi"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    transformers.logging.set_verbosity_error()  # its bars and hints are for notebooks
    transformers.logging.disable_progress_bar()
    try:
        settings = _with_token(load_settings(file, os.environ, overrides))
        host = Host(settings)
    except SettingsError as error:
        print(f"latentwire: {error.message}", file=sys.stderr)
        return 2
    config = uvicorn.Config(
        create_app(host),
        host=settings.server.host,
        port=settings.server.port,
        ws="websockets-sansio",
        ws_max_size=HARD_LIMIT,
        ws_per_message_deflate=False,  # pictures are compressed already
        timeout_graceful_shutdown=5,
        log_config=None,
        access_log=False,
    )
    server = AnnouncingServer(config, settings)
    server.run()
    return 0 if server.started else 1


def _with_token(settings: Settings) -> Settings:
    """Settings that ask for a token wherever another machine could connect."""
    if settings.server.token or _is_loopback(settings.server.host):
        return settings
    token = settings.server.model_copy(update={"token": secrets.token_urlsafe(24)})
    return settings.model_copy(update={"server": token})


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
