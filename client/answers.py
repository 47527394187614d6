"""The unread messages of one command, on the client's side of the wire."""

import asyncio
from collections.abc import Hashable
from typing import Any

from ..core.events import EVENTS


class Answers:
    """As on the host: a latest-wins message takes the place of an unread one, so a slow reader is never late."""

    def __init__(self) -> None:
        self._messages: dict[Hashable, dict[str, Any]] = {}  # in order of arrival
        self._count = 0
        self._news = asyncio.Event()

    def put(self, message: dict[str, Any]) -> None:
        """Add a message."""
        self._count += 1
        key: Hashable = self._count
        event = EVENTS.get(message["event"])
        if event is not None and event.latest_wins:
            key = (event.name, message.get("index"))
        self._messages.pop(key, None)
        self._messages[key] = message
        self._news.set()

    async def get(self) -> dict[str, Any]:
        """Wait for the next message; only one task may get."""
        while not self._messages:
            self._news.clear()
            await self._news.wait()
        return self._messages.pop(next(iter(self._messages)))
