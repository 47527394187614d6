"""Work on a host's engine thread, for benchmarks that look into a host in their own process.

Only there do kernels have all cores; see core/threads.py.
"""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from greenlet import greenlet

from latentwire import Host
from latentwire.core.run import Run

Value = TypeVar("Value")


def on_engine(host: Host, work: Callable[[], Value]) -> Value:
    """Do something that the engine shall not share or interrupt: in a greenlet of its own, where gates stand open."""
    outcome: Future[Any] = Future()

    def done(result: Any, error: BaseException | None) -> None:
        outcome.set_exception(error) if error else outcome.set_result(result)

    host.engine.submit(Run("exact", lambda: greenlet(work).switch(), done))
    value: Value = outcome.result()
    return value
