"""The graphs that run and wait; on the event loop alone."""

import asyncio
import bisect
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from .clients import Clients
from .history import Entry
from .run import Prompt, Run

log = logging.getLogger(__name__)


class Prompts:
    """The queue of a host.

    Args:
        make_run: Of a graph whose turn has come.
        keep: Keeps what is to be remembered of one that has ended. May raise.
    """

    def __init__(
        self,
        max_running: int,
        clients: Clients,
        make_run: Callable[[Prompt], Run],
        keep: Callable[[Entry], Coroutine[Any, Any, None]],
    ) -> None:
        self._max_running = max_running
        self._clients = clients
        self._make_run = make_run
        self._keep = keep
        self.pending: list[Prompt] = []
        self.running: dict[str, Prompt] = {}
        self._runs: dict[str, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self.pending) + len(self.running)

    @property
    def size(self) -> int:
        """Bytes of all graphs."""
        return sum(prompt.size for prompt in (*self.running.values(), *self.pending))

    def has(self, prompt: str) -> bool:
        """Whether a graph of this id runs or waits."""
        return prompt in self.running or any(other.id == prompt for other in self.pending)

    def add(self, prompt: Prompt) -> None:
        """Run a graph when its turn comes: those with lower numbers first."""
        bisect.insort(self.pending, prompt, key=lambda other: other.number)
        self._go_on()

    def cancel(self, prompt: str) -> bool:
        """Let a graph that runs or waits end; whether there was one."""
        return self.interrupt(prompt) or bool(self.remove([prompt]))

    def interrupt(self, prompt: str | None) -> bool:
        """Let a graph that runs end at its next step; all of them without an id. Whether there was one."""
        runs = list(self._runs.values()) if prompt is None else [run for run in [self._runs.get(prompt)] if run]
        for run in runs:
            run.cancel()
        return bool(runs)

    def remove(self, prompts: list[str] | None) -> list[Prompt]:
        """Take graphs out that wait; all of them without ids. Those that there were."""
        gone = [prompt for prompt in self.pending if prompts is None or prompt.id in prompts]
        self.pending = [prompt for prompt in self.pending if prompt not in gone]
        self.tell_length()
        return gone

    def tell_length(self) -> None:
        """Tell everybody how many graphs there are."""
        self._clients.tell_all("status", status=self.status())

    def status(self) -> dict[str, Any]:
        """As clients get it."""
        return {"exec_info": {"queue_remaining": len(self)}}

    def state_for(self, client: str) -> list[tuple[str, dict[str, Any]]]:
        """What a client is told that comes back."""
        runs = [self._runs[prompt.id] for prompt in self.running.values() if prompt.client == client]
        return [message for run in runs for message in run.state()]

    def _go_on(self) -> None:
        while self.pending and len(self.running) < self._max_running:
            prompt = self.pending.pop(0)
            self.running[prompt.id] = prompt
            self._runs[prompt.id] = self._make_run(prompt)
            task = asyncio.create_task(self._run(prompt, self._runs[prompt.id]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self.tell_length()

    async def _run(self, prompt: Prompt, run: Run) -> None:
        try:
            entry = await run.to_its_end()
            try:
                await self._keep(entry)
            except Exception as error:  # its pictures are there all the same
                log.error("graph %s cannot be kept in the history: %s", prompt.id, error)
        finally:
            del self.running[prompt.id], self._runs[prompt.id]
            run.tell_end()
            self._go_on()
