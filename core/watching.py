"""Those who follow a job: its own client, and whoever else watches."""

from collections.abc import Callable
from time import monotonic

from .events import Event
from .requests import StreamOptions

Listener = Callable[[Event], None]
"""Is told of a job's events; from any thread, so it must not block."""


class Watcher:
    """One who follows a job, and what of each step it wants; used on the engine's thread, but for `listener`."""

    def __init__(self, stream: StreamOptions, listener: Listener, ended: Callable[[], None] = lambda: None) -> None:
        self.stream = stream
        self.listener = listener
        self.ended = ended  # called once the job's outcome is known
        self._not_before: dict[int, float] = {}  # picture -> when its next preview may be

    def wants_preview(self, index: int, step: int, is_last: bool) -> bool:
        """Whether a preview of this step is due; asked once a step."""
        options = self.stream.previews
        if options is None:
            return False
        now = monotonic()
        if not is_last and (step % options.every or now < self._not_before.get(index, 0.0)):
            return False
        self._not_before[index] = now + (1 / options.max_rate if options.max_rate else 0)
        return True

    def wants_latents(self, step: int, is_last: bool) -> bool:
        """Whether the latents of this step are due."""
        options = self.stream.latents
        return options is not None and (step % options.every == 0 or is_last)
