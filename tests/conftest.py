"""What tests share: a host in this process, and a real server on a real socket."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
import uvicorn

from latentwire import Host, Settings
from latentwire.server.app import create_app
from latentwire.server.serve import server_config

from .trust import audit

START_TIMEOUT_S = 90
ENGINE = {"device": "cpu", "max_batch_rows": 32}  # not measured: what else the machine does must not decide who shares

# Plain pipelines run on the main thread beside the hosts' engines. With a team of threads for each, all would sleep
# between kernels (core/threads.py); and a plain picture has the same bits as an engine's only on as many threads.
torch.set_num_threads(1)

audit.install()
audit.watch_torch()


@pytest.fixture(autouse=True)
def nothing_forbidden() -> Iterator[None]:
    """No test has made a host unpickle, read a file of elsewhere, or call out; see `trust/audit.py`."""
    yield
    caught, audit.violations[:] = list(audit.violations), []
    assert caught == []


@pytest.fixture
def host() -> Iterator[Host]:
    """A host on the embedded model, with the built-in plugins only."""
    with running_host() as host:
        yield host


@contextmanager
def running_host(**settings: Any) -> Iterator[Host]:
    host = Host(Settings.model_validate({"discover": False, "engine": ENGINE, **settings}))
    try:
        yield host
    finally:
        host.close()


class Served:
    """A host that serves on a free port of loopback."""

    def __init__(self, host: Host, url: str) -> None:
        self.host = host
        self.url = url
        self.http = url.replace("ws://", "http://").removesuffix("/ws")


@contextmanager
def serving(**settings: Any) -> Iterator[Served]:
    """Serve a new host from a thread, its model warmed up."""
    host = Host(Settings.model_validate({"discover": False, "engine": ENGINE, **settings}))
    server = uvicorn.Server(server_config(create_app(host)))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started and host.ready, "the server to be ready")
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Served(host, f"ws://127.0.0.1:{port}/ws")
    finally:
        server.should_exit = True
        thread.join(timeout=30)


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = START_TIMEOUT_S) -> None:
    """Poll until the condition holds."""

    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    """One server for all tests that do not change it."""
    with serving() as served:
        yield served


Serving = Callable[..., AbstractContextManager[Served]]
