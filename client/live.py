"""A live picture: the newest request of a slot is what counts."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from ..core.events import Accepted, JobEvent, Loading, Queued
from .events import JobMessage, PluginEvent

Generate = Callable[..., AsyncGenerator[JobMessage]]

BEFORE_IT_BEGINS = (Accepted, Queued, Loading)


class Live:
    """A slot: `send` each change as it happens; iterating gives the events of the newest request that has begun.

    What fails ends the iteration with the exception that `generate` raises; `send` again and iterate anew to go on.
    Only one task may iterate.
    """

    def __init__(self, generate: Generate, slot: str, fields: dict[str, Any]) -> None:
        self._generate = generate
        self._slot = slot
        self._fields = fields
        self._wanted: tuple[str, dict[str, Any]] | None = None  # has not been sent
        self._sender: asyncio.Task[None] | None = None
        self._following: set[asyncio.Task[None]] = set()
        self._unread: list[JobMessage | Exception] = []
        self._shown = 0  # the newest revision that has begun
        self._ending = False
        self._news = asyncio.Event()

    def send(self, prompt: str, **fields: Any) -> None:
        """Want this picture in place of the last one; does not wait.

        Of what is sent before the host has taken the last one, only the newest goes out.
        """
        self._wanted = (prompt, self._fields | fields)
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())

    def end(self) -> None:
        """Let the iteration end with the result of the newest request."""
        self._ending = True
        self._news.set()

    async def next(self) -> JobMessage | None:
        """The next event; None when all is done after `end`."""
        while not self._unread:
            if self._ending and self._wanted is None and not self._following:
                return None
            self._news.clear()
            await self._news.wait()
        event = self._unread.pop(0)
        if isinstance(event, Exception):
            raise event
        return event

    def __aiter__(self) -> "Live":
        return self

    async def __anext__(self) -> JobMessage:
        event = await self.next()
        if event is None:
            raise StopAsyncIteration
        return event

    async def close(self) -> None:
        """Cancel what is under way."""
        tasks = {*self._following, *([self._sender] if self._sender else [])}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.end()

    async def _send(self) -> None:
        """Send what is wanted, one after the other as the host takes them."""
        try:
            while self._wanted is not None:
                (prompt, fields), self._wanted = self._wanted, None
                taken = asyncio.Event()
                task = asyncio.create_task(self._follow(prompt, fields, taken))
                self._following.add(task)
                task.add_done_callback(self._followed)
                await taken.wait()
        finally:
            self._sender = None

    async def _follow(self, prompt: str, fields: dict[str, Any], taken: asyncio.Event) -> None:
        try:
            async with aclosing(self._generate(prompt, slot=self._slot, **fields)) as events:
                async for event in events:
                    taken.set()
                    self._put(event)
        except Exception as error:
            if getattr(error, "code", None) != "superseded":
                self._unread.append(error)
        finally:
            taken.set()

    def _followed(self, task: "asyncio.Task[None]") -> None:
        self._following.discard(task)
        self._news.set()

    def _put(self, event: JobMessage) -> None:
        revision = _revision(event)
        if not isinstance(event, BEFORE_IT_BEGINS):
            if revision < self._shown:
                return
            if revision > self._shown:
                self._shown = revision
                self._unread = [old for old in self._unread if isinstance(old, Exception) or _revision(old) >= revision]
        if isinstance(event, JobEvent) and event.latest_wins:
            self._unread = [old for old in self._unread if _kind(old) != _kind(event)]
        self._unread.append(event)
        self._news.set()


def _revision(event: JobMessage) -> int:
    found = event.values.get("revision") if isinstance(event, PluginEvent) else event.revision
    return int(found or 0)


def _kind(event: JobMessage | Exception) -> tuple[type, int | None]:
    """What a newer preview takes the place of."""
    return type(event), getattr(event, "index", None)
