"""The host's side of connections whose clients read nothing, as the kernel sees it: /proc/net/tcp, so Linux only."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from serving import HostProcess

ESTABLISHED = "01"
PERIOD_S = 0.1
BLOCKED_S = 1.0  # a queue that did not get shorter or longer for so long is one that nobody reads
TIMEOUT_S = 60.0


@dataclass
class Queue:
    """What the kernel has of one connection, unsent or unacknowledged."""

    size: int = 0
    since: float = 0.0  # it has had this size
    blocked: float | None = None  # when the host could first send no more
    gone: float | None = None  # when the host had let go of the connection


@dataclass
class Followed:
    """Some connections over a while.

    Attributes:
        most_grown: By how many bytes the host's memory was above its beginning, at most.
    """

    queues: dict[int, Queue]
    most_grown: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    def wait_until_gone(self, patience_s: float) -> None:
        """Until all are gone, or the patience with the last one that is blocked is at its end."""
        end = perf_counter() + patience_s
        while perf_counter() < end and any(queue.gone is None for queue in self.queues.values()):
            time.sleep(PERIOD_S)

    def figures(self) -> dict[str, Any]:
        """How many were blocked, and gone how long after that."""
        rows = [queue for queue in self.queues.values() if queue.blocked is not None]
        after = [queue.gone - queue.blocked for queue in rows if queue.gone is not None and queue.blocked is not None]
        return {
            "blocked": len(rows),
            "gone": len(after),
            "gone_after_s": {"median": round(median(after), 1), "last": round(max(after), 1)} if after else None,
        }


class Sockets:
    """The connections that a host has taken on its port."""

    def __init__(self, host: HostProcess) -> None:
        self._port = urlsplit(host.socket).port
        self._host = host

    def established(self) -> dict[int, int]:
        """For each client's port the bytes in the queue towards it."""
        found = {}
        for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
            _, local, remote, state, queues, *_ = line.split()
            if int(local.partition(":")[2], 16) == self._port and state == ESTABLISHED:
                found[int(remote.partition(":")[2], 16)] = int(queues.partition(":")[0], 16)
        return found

    def wait_until(self, count: int) -> None:
        """Until there are so many.

        Raises:
            TimeoutError: there are still others.
        """
        end = perf_counter() + TIMEOUT_S
        while len(self.established()) != count:
            if perf_counter() > end:
                raise TimeoutError(f"the host still has {len(self.established())} connections, wanted {count}")
            time.sleep(PERIOD_S)

    @contextmanager
    def followed(self, ports: list[int]) -> Iterator[Followed]:
        """Look at some, and at the host's memory, while the block runs."""
        followed = Followed({port: Queue() for port in ports})
        thread = threading.Thread(target=self._follow, args=(followed,))
        thread.start()
        try:
            yield followed
        finally:
            followed._over.set()
            thread.join()

    def _follow(self, followed: Followed) -> None:
        before = self._host.memory
        while not followed._over.wait(PERIOD_S):
            followed.most_grown = max(followed.most_grown, self._host.memory - before)
            now, sizes = perf_counter(), self.established()
            for port, queue in followed.queues.items():
                if queue.gone is not None:
                    continue
                if port not in sizes:
                    queue.gone = now
                elif sizes[port] != queue.size:
                    queue.size, queue.since, queue.blocked = sizes[port], now, None
                elif queue.size and now - queue.since > BLOCKED_S:
                    queue.blocked = queue.since
