"""Faults, put into the modules and plugins of a real host for a while."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

from latentwire import Host
from latentwire.core.build import PipelineBuild
from latentwire.core.errors import LatentwireError
from latentwire.core.events import Event, Image
from latentwire.core.gates import Gate, gate_of

SMALL: dict[str, Any] = {"prompt": "red apple", "num_inference_steps": 3, "seed": 1, "width": 128, "height": 128}


class Pictures:
    """What one request gave: its pictures' bytes, or its error."""

    def __init__(self, result: dict[str, Any] | None, error: LatentwireError | None, events: list[Event]) -> None:
        self.result = result
        self.error = error
        self.events = events

    @property
    def data(self) -> list[bytes]:
        assert self.error is None, self.error
        return [event.image.data for event in self.events if isinstance(event, Image) and event.image is not None]

    @property
    def code(self) -> str:
        assert self.error is not None, "it went well"
        return self.error.code

    @property
    def message(self) -> str:
        assert self.error is not None, "it went well"
        return self.error.message


async def draw_soon(host: Host, client: str = "test", **fields: Any) -> Pictures:
    """Run one request to its end."""
    events: list[Event] = []
    try:
        return Pictures(await host.dispatch("generate", SMALL | fields, client, events.append), None, events)
    except LatentwireError as error:
        return Pictures(None, error, events)


def draw(host: Host, **fields: Any) -> Pictures:
    """Run one request to its end, and wait for it."""
    return asyncio.run(draw_soon(host, **fields))


def draw_all(host: Host, *requests: dict[str, Any]) -> list[Pictures]:
    """Run some at once."""

    async def run() -> list[Pictures]:
        return list(await asyncio.gather(*(draw_soon(host, **request) for request in requests)))

    return asyncio.run(run())


def gate(host: Host, component: str, half: str | None = None) -> Gate:
    """The gate before a loaded component of the embedded model."""
    lease = host.store.lease(PipelineBuild("emoji", "ddim", "float32"))
    try:
        module = lease.components[component]
        found = gate_of(module if half is None else getattr(module, half))
        assert found is not None
        return found
    finally:
        host.store.release(lease)


Forward = Callable[..., Any]


@contextmanager
def forward_of(gate: Gate, wrap: Callable[[Forward], Forward]) -> Iterator[None]:
    """Let a module make its forwards otherwise."""
    real = gate.forward
    gate.forward = wrap(real)
    try:
        yield
    finally:
        gate.forward = real


def raising(error: Callable[[], BaseException], when: Callable[..., bool] = lambda *_: True) -> Any:
    """A forward that raises, when its positional arguments, or the batched one, are so."""

    def wrap(real: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if when(*args, *kwargs.values()):
                raise error()
            return real(*args, **kwargs)

        return forward

    return wrap


def plugin(folder: Path, name: str, source: str, **settings: Any) -> dict[str, Any]:
    """Write a plugin's file; its entry for the settings."""
    path = folder / f"{name}.py"
    path.write_text("from latentwire import *\n" + dedent(source))
    return {"name": name, "path": path, "settings": settings}
