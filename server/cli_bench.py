"""The command `latentwire bench`: how many pictures a second a host makes, and how soon the first preview comes."""

import argparse
import asyncio
import os
import statistics
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .terminal import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..client import Connection

    AddParser = Callable[..., argparse.ArgumentParser]

PROMPT = "red apple on a blue background"


def add_bench(add_parser: "AddParser", client: argparse.ArgumentParser, settings: argparse.ArgumentParser) -> None:
    """Add the parser of `latentwire bench`."""
    parser = add_parser(
        "bench", parents=[client, settings], help="measure a host: the one at --url, or one in this process"
    )
    parser.set_defaults(url=os.environ.get("LATENTWIRE_URL"))
    parser.add_argument("--clients", type=_numbers, default=[1, 8], metavar="N[,N...]", help="(default: 1,8)")
    parser.add_argument("--rounds", type=_positive, default=5, metavar="N", help="of each (default: %(default)s)")
    parser.add_argument("--steps", type=_positive, metavar="N", help="of each picture (default: the model's)")
    parser.add_argument("--model", metavar="NAME", help="(default: the host's)")
    parser.add_argument("--json", action="store_true", help="print the figures as a line of JSON")


def bench(options: argparse.Namespace, file: Path | None, overrides: list[str]) -> int:
    """Measure and print."""
    if options.url is not None:
        return asyncio.run(_measure(options.url, options.token, options))
    from ..core.settings import load_settings
    from .own_host import own_host, serving_thread

    settings = load_settings(file, os.environ, overrides)
    with own_host(settings) as host, serving_thread(host) as url:
        return asyncio.run(_measure(url, settings.server.token, options))


async def _measure(url: str, token: str | None, options: argparse.Namespace) -> int:
    from ..client import connect

    fields = {"num_inference_steps": options.steps, "model": options.model}
    rates: dict[int, list[float]] = {count: [] for count in options.clients}
    previews: list[float] = []
    async with AsyncExitStack() as stack:
        hosts = [
            await stack.enter_async_context(connect(url, token=token, key=options.key))
            for _ in range(max(options.clients))
        ]
        result = await _picture(hosts[0], -1, fields)  # loads the model
        for number in range(options.rounds):
            for count in options.clients:  # taken in turns, so that a slow moment of the machine hits all
                begin = perf_counter()
                await asyncio.gather(
                    *(_picture(host, number * count + i, fields) for i, host in enumerate(hosts[:count]))
                )
                rates[count].append(count / (perf_counter() - begin))
            previews.append(await _first_preview(hosts[0], number, fields))
    figures = {
        "host": hosts[0].hello["host"],
        "model": result.model,
        "mode": result.mode,
        "rounds": options.rounds,
        "pictures_per_second": {str(count): round(statistics.median(found), 3) for count, found in rates.items()},
        "first_preview_seconds": round(statistics.median(previews), 4),
    }
    if options.json:
        from .cli_report import json_line

        json_line(figures)
    else:
        _table(url if options.url else "a host in this process", figures, rates, previews)
    return 0


async def _picture(host: "Connection", seed: int, fields: dict[str, Any]) -> Any:
    """Make one picture; its result."""
    async with aclosing(host.generate(PROMPT, steps=False, seed=seed + 1, **fields)) as events:
        async for event in events:
            last = event
    return last


async def _first_preview(host: "Connection", seed: int, fields: dict[str, Any]) -> float:
    """Seconds to a request's first preview; the job is left then, which cancels it."""
    from ..client import Preview

    begin = perf_counter()
    async with aclosing(host.generate(PROMPT, previews=True, seed=seed + 1, **fields)) as events:
        async for event in events:
            if isinstance(event, Preview):
                return perf_counter() - begin
    raise RuntimeError("a job with previews ended without one")


def _table(where: str, figures: dict[str, Any], rates: dict[int, list[float]], previews: list[float]) -> None:
    print(printable(f"{where}: latentwire {figures['host']}, {figures['model']}, mode {figures['mode']}"))
    print(f"{'median of ' + str(figures['rounds']):<30} {'median':>8} {'least':>8} {'most':>8}")
    for count, found in rates.items():
        _row(f"pictures/s, {count} client{'' if count == 1 else 's'}", found, "8.2f", 1)
    _row("first preview, ms", previews, "8.0f", 1000)


def _row(name: str, found: list[float], form: str, scale: float) -> None:
    print(
        f"{name:<30} "
        + " ".join(f"{scale * value:{form}}" for value in (statistics.median(found), min(found), max(found)))
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"wanted a whole number above 0, got {text!r}")
    return int(text)


def _numbers(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",")]
