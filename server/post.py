"""Brings events from any thread to the sessions: one hop to the event loop for as many as come together."""

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from ..core.events import Event
from .message import Body, event_body, unsendable

if TYPE_CHECKING:
    from .session import Command, Session


class Post:
    """Takes events in from any thread and hands them to their commands' sessions on the loop that made it.

    The engine's thread tells a hundred watchers of a step by as many calls of `send`, so these only append.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: deque[tuple[Command, Event]] = deque()
        self._called = False

    def send(self, command: "Command", event: Event) -> None:
        """Tell a command's client of an event, from any thread."""
        self._events.append((command, event))
        if not self._called:
            self._called = True
            with suppress(RuntimeError):  # the loop is closed, and with it every connection
                self._loop.call_soon_threadsafe(self.deliver)

    def deliver(self) -> None:
        """Hand over all that has come, on the loop."""
        self._called = False  # first: whoever comes from now on calls again
        bodies: dict[int, Body] = {}  # by the event's identity: those who share one event share its packed body
        told: dict[Session, None] = {}
        events = [self._events.popleft() for _ in range(len(self._events))]
        for command, event in events:
            try:
                body = bodies.get(id(event)) or bodies.setdefault(id(event), event_body(event))
                command.tell(event, body)
            except Exception as error:  # whatever a plugin made of it: nobody else's events are lost
                command.spoil(unsendable(event.name, error))
            told[command.session] = None
        for session in told:
            session.pump()
