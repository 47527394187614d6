"""A host of the command line's own, in its process: with the settings of `latentwire serve`, and leaving no results."""

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.settings import PluginSettings, Settings
from .logs import quiet_libraries

if TYPE_CHECKING:
    from ..core.host import Host

READY_TIMEOUT_S = 600  # a large model is read from a slow disk


@contextmanager
def own_host(settings: Settings) -> "Iterator[Host]":
    """A host, closed at the end of the block; what it makes is not kept with the results of the real one."""
    from ..core.host import Host

    quiet_libraries()
    with tempfile.TemporaryDirectory(prefix="latentwire-") as folder:
        plugins = [_elsewhere(plugin, Path(folder)) for plugin in settings.plugins]
        host = Host(settings.model_copy(update={"plugins": plugins}))
        try:
            yield host
        finally:
            host.close()


@contextmanager
def serving_thread(host: "Host", timeout_s: float = READY_TIMEOUT_S) -> Iterator[str]:
    """The address of a host that a thread serves on a free port of loopback, its model loaded; it is closed at the end.

    Raises:
        RuntimeError: it did not become ready.
    """
    import uvicorn

    from .app import create_app
    from .serve import server_config

    server = uvicorn.Server(server_config(create_app(host)))
    thread = threading.Thread(target=server.run, name="own-server", daemon=True)
    thread.start()
    try:
        until = time.monotonic() + timeout_s
        while not (server.started and host.ready):
            if not thread.is_alive() or time.monotonic() > until:
                raise RuntimeError("the host did not become ready; `latentwire doctor` may say why")
            time.sleep(0.01)
        yield f"ws://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/ws"
    finally:
        server.should_exit = True
        thread.join(timeout=30)


def _elsewhere(plugin: PluginSettings, folder: Path) -> PluginSettings:
    if plugin.name != "results" or "folder" not in plugin.settings:
        return plugin
    return plugin.model_copy(update={"settings": plugin.settings | {"folder": str(folder)}})
