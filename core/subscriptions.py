"""Commands that run until their client has enough of them."""

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from .errors import UnknownSubscription


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
