"""The fixtures that pytest finds wherever latentwire is installed; nothing is imported until a test asks for one."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..client.sync import SyncConnection
    from ..core.host import Host
    from .clock import FakeClock


@pytest.fixture
def latentwire_host() -> "Iterator[Callable[..., Host]]":
    """Starts hosts without a server, which the test's end closes: `host = latentwire_host("my_plugin")`.

    Arguments as for `latentwire.testing.running_host`, which is for a host that several tests share.
    """
    from .hosts import running_host

    with ExitStack() as hosts:

        def start(*plugins: Any, **settings: Any) -> "Host":
            return hosts.enter_context(running_host(*plugins, **settings))

        yield start


@pytest.fixture
def latentwire_client() -> "Iterator[Callable[..., SyncConnection]]":
    """Starts hosts on a real socket and connects to them: `client = latentwire_client("my_plugin")`.

    Arguments as for `latentwire.testing.serving`, which gives the address, for a client of another kind.
    """
    from ..client import connect_sync
    from .hosts import serving

    with ExitStack() as clients:

        def start(*plugins: Any, **settings: Any) -> "SyncConnection":
            served = clients.enter_context(serving(*plugins, **settings))
            return clients.enter_context(connect_sync(served.url))

        yield start


@pytest.fixture
def latentwire_clock() -> "FakeClock":
    """A clock that stands still until it is told to move: `latentwire_host("my_plugin", clock=latentwire_clock)`."""
    from .clock import FakeClock

    return FakeClock()
