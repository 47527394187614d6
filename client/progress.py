"""A progress bar over the steps of one job or several, by tqdm."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from ..core.events import Accepted, Loading, Step
from .events import JobMessage, Result


class Progress:
    """A bar that is told of jobs' events; use it in a `with` block.

    Args:
        jobs: How many jobs it is for, so that their steps are known before the last one begins.
    """

    def __init__(self, jobs: int = 1) -> None:
        from tqdm import tqdm

        self.bar: Any = tqdm(unit="step", desc="waiting", delay=0.1)  # no bar for what is refused at once
        self._jobs = jobs
        self._pictures: dict[str, int] = {}  # by job
        self._steps: dict[str, int] = {}  # of all pictures, by job
        self._ended = 0
        self._seconds = 0.0

    def take(self, event: JobMessage) -> None:
        """Show what an event changes."""
        match event:
            case Accepted():
                self._pictures[event.job] = len(event.seeds)
            case Loading():
                component = "".join(filter(str.isprintable, event.component))  # a host's text, for a terminal
                self.bar.set_description(f"loading {component}")
            case Step():
                if event.job not in self._steps:
                    self._steps[event.job] = event.steps * self._pictures.get(event.job, 1)
                    # those that have not begun are taken for as long as the others
                    self.bar.total = round(sum(self._steps.values()) * max(1, self._jobs / len(self._steps)))
                self.bar.set_description("drawing", refresh=False)
                self.bar.update()
            case Result():
                self._ended += 1
                self._seconds = max(self._seconds, event.seconds)
                if self._ended == self._jobs:
                    self.bar.set_description(f"done in {self._seconds:.2f} s")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()


async def with_progress(events: AsyncGenerator[JobMessage]) -> AsyncGenerator[JobMessage]:
    """A job's events, with a bar under way."""
    with Progress() as progress:
        async with aclosing(events):
            async for event in events:
                progress.take(event)
                yield event
