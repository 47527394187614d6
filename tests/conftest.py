"""What tests share: a host in this process, and a real server on a real socket."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch

from latentwire import Host, Settings
from latentwire.testing.hosts import ENGINE as ENGINE
from latentwire.testing.hosts import START_TIMEOUT_S
from latentwire.testing.hosts import Served as Served
from latentwire.testing.hosts import served as serve

from .trust import audit

# Plain pipelines run on the main thread beside the hosts' engines. With a team of threads for each, all would sleep
# between kernels (core/threads.py); and a plain picture has the same bits as an engine's only on as many threads.
torch.set_num_threads(1)

# A shell that starts the tests in its background has them ignore Ctrl-C, and so would all processes that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

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


@contextmanager
def serving(**settings: Any) -> Iterator[Served]:
    """Serve a new host from a thread, its model warmed up."""
    with serve(Host(Settings.model_validate({"discover": False, "engine": ENGINE, **settings}))) as served:
        yield served


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
