"""Hosts for tests: real ones, on the embedded model, with the plugins that a test names and no others."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.clock import Clock
from ..core.errors import PluginError

if TYPE_CHECKING:
    from ..core.host import Host

ENGINE = {"device": "cpu", "max_batch_rows": 32}  # not measured: what else the machine does must not decide who shares
START_TIMEOUT_S = 90

Plugin = str | Path | dict[str, Any]
"""A plugin's name (built in, or installed), its file, or what `plugin` gives."""


class Served:
    """A host that serves on a free port of loopback: `url` for clients, `http` for everything else."""

    def __init__(self, host: "Host", url: str) -> None:
        self.host = host
        self.url = url
        self.http = url.replace("ws://", "http://").removesuffix("/ws")


def plugin(name: str | Path, **settings: Any) -> dict[str, Any]:
    """A plugin with settings, as plugins.toml has them.

    Args:
        name: Of a built-in or installed plugin, or the path of a file, whose stem is its name then.
    """
    if isinstance(name, Path):
        return {"name": name.stem, "path": name, "settings": settings}
    return {"name": name, "settings": settings}


def new_host(*plugins: Plugin, clock: Clock | None = None, **settings: Any) -> "Host":
    """A host on the CPU with these plugins, in this order, and no others; close it.

    Args:
        clock: In place of the machine's own.
        settings: Sections of plugins.toml, such as `limits={"jobs": 3}`.

    Raises:
        PluginError: one of the plugins failed to load; with its traceback.
        SettingsError: the settings are wrong.
    """
    from ..core.host import Host
    from ..core.plugin_loading import BUILT_IN
    from ..core.settings import Settings

    named = [plugin(entry) if isinstance(entry, str | Path) else entry for entry in plugins]
    names = {entry["name"] for entry in named}
    left_out = [{"name": name, "enabled": False} for name in BUILT_IN if name not in names]
    values: dict[str, Any] = {"discover": False, "engine": ENGINE, "plugins": [*named, *left_out], **settings}
    host = Host(Settings.model_validate(values), *([clock] if clock else []))
    for report in host.plugins.reports:
        if report.state == "failed":
            host.close()
            raise PluginError(f"plugin {report.name!r} did not load\n{report.trace}", plugin=report.name)
    return host


@contextmanager
def running_host(*plugins: Plugin, clock: Clock | None = None, **settings: Any) -> Iterator["Host"]:
    """A host without a server, closed at the end of the block; arguments as for `new_host`."""
    host = new_host(*plugins, clock=clock, **settings)
    try:
        yield host
    finally:
        host.close()


@contextmanager
def serving(*plugins: Plugin, clock: Clock | None = None, **settings: Any) -> Iterator[Served]:
    """A host behind a real socket, its model warmed up; arguments as for `new_host`."""
    with served(new_host(*plugins, clock=clock, **settings)) as running:
        yield running


@contextmanager
def served(host: "Host") -> Iterator[Served]:
    """Serve a host from a thread; it is closed at the end of the block."""
    from ..server.own_host import serving_thread

    with serving_thread(host, START_TIMEOUT_S) as url:
        yield Served(host, url)
