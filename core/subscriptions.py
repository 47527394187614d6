"""Commands that run until their client has enough of them."""

import asyncio
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from .errors import UnknownSubscription
from .events import Event, Subscribed

PERIOD_S = 0.1


class Subscription:
    """One running subscription; used on the event loop alone, but for `wake`."""

    def __init__(self, client: str) -> None:
        self.id = secrets.token_hex(8)
        self.client = client
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._end = asyncio.Event()

    async def wait(self) -> bool:
        """Sleep until the next `wake`; False once the subscription has ended."""
        await self._news.wait()
        self._news.clear()
        return not self._end.is_set()

    async def pause(self, seconds: float) -> bool:
        """Sleep so long, whatever is new; False, and at once, when the subscription has ended."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._end.wait()
        return not self._end.is_set()

    def wake(self) -> None:
        """There is news: let `wait` return; from any thread."""
        with suppress(RuntimeError):  # the loop is closed, and with it the connection
            self._loop.call_soon_threadsafe(self._news.set)

    def end_soon(self) -> None:
        """As `end`, from any thread."""
        with suppress(RuntimeError):  # as above
            self._loop.call_soon_threadsafe(self.end)

    def end(self) -> None:
        """Let `wait` and `pause` return False."""
        self._end.set()
        self._news.set()


class Topic:
    """Something that clients are told of, as it is now and whenever it has changed."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()

    def changed(self) -> None:
        """Let those who have subscribed look again; from any thread."""
        for subscription in list(self._subscriptions):
            subscription.wake()

    async def follow(
        self, subscription: Subscription, emit: Callable[[Event], None], look: Callable[[], tuple[Any, Event]]
    ) -> None:
        """Send what there is to see, until the subscription ends; at most ten times a second.

        Args:
            look: Gives what must be new to be worth an event, and the event.
        """
        self._subscriptions.add(subscription)
        told: Any = None
        try:
            emit(Subscribed(subscription.id))
            subscription.wake()
            while await subscription.wait():
                news, event = look()
                if news != told:
                    emit(event)
                    told = news
                await subscription.pause(PERIOD_S)
        finally:
            self._subscriptions.discard(subscription)


class Subscriptions:
    """All running subscriptions of a host."""

    def __init__(self) -> None:
        self._running: dict[str, Subscription] = {}

    @contextmanager
    def open(self, client: str) -> Iterator[Subscription]:
        """A subscription for as long as the block runs."""
        subscription = Subscription(client)
        self._running[subscription.id] = subscription
        try:
            yield subscription
        finally:
            del self._running[subscription.id]

    def end(self, subscription_id: str, client: str) -> None:
        """End a client's own subscription.

        Raises:
            UnknownSubscription: it has no such subscription, or no longer.
        """
        subscription = self._running.get(subscription_id)
        if subscription is None or subscription.client != client:
            raise UnknownSubscription(f"this client has no running subscription {subscription_id!r:.80}")
        subscription.end()
