"""Figures of the machine, the process and the engine: a command, a subscription, and `GET /metrics` for Prometheus."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from latentwire import CommandContext, Event, Host, NoParams, PluginRegistry, Strict, Subscribed, hookimpl

from .metrics import registry_of
from .readings import Reader

Value = TypeVar("Value")


class SubscribeParams(Strict):
    """How often to send the figures."""

    period: float = Field(1.0, ge=0.1, le=3600, allow_inf_nan=False, description="seconds from one event to the next")


@dataclass(frozen=True, slots=True)
class Stats(Event):
    """What the command `stats` gives, as it is now; the first one comes at once."""

    name: ClassVar[str] = "stats"
    latest_wins: ClassVar[bool] = True

    stats: dict[str, Any]


class Plugin:
    """The commands and the route of one host."""

    def __init__(self) -> None:
        self._reader = Reader()
        self._thread = ThreadPoolExecutor(1, "stats")  # one: a driver that hangs must not use up everybody's threads

    @hookimpl
    def register(self, registry: PluginRegistry) -> None:
        registry.add_command("stats", NoParams, self.tell)
        registry.add_command("stats.subscribe", SubscribeParams, self.subscribe)
        registry.add_event(Stats)
        registry.add_routes(self.routes)

    async def tell(self, context: CommandContext, params: NoParams) -> dict[str, Any]:
        """Give figures of the CPU, the GPUs, the host's process and the engine."""
        return await self._stats(context.host)

    async def subscribe(self, context: CommandContext, params: SubscribeParams) -> dict[str, Any]:
        """Send what stats gives, now and once each period, until unsubscribed."""
        clock = asyncio.get_running_loop().time
        with context.host.subscriptions.open(context.client) as subscription:
            context.emit(Subscribed(subscription.id))
            due = clock()
            going = True
            while going:
                context.emit(Stats(await self._stats(context.host)))
                due = max(due + params.period, clock())  # what took too long is not caught up with
                going = await subscription.pause(due - clock())
        return {"subscription": subscription.id}

    def routes(self, host: Host) -> list[Route]:
        """`GET /metrics`."""
        registry = registry_of(host, self._reader)

        async def metrics(_: Request) -> Response:
            text = await self._in_thread(generate_latest, registry)
            return Response(text, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

        return [Route("/metrics", metrics)]

    async def _stats(self, host: Host) -> dict[str, Any]:
        return (await self._in_thread(self._reader.read, host)).plain()

    async def _in_thread(self, function: Callable[..., Value], *args: Any) -> Value:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)
