"""Runs commands on a host, and keeps what comes back."""

import asyncio
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage

from ..core.events import Event, Image, Tensor

if TYPE_CHECKING:
    from ..core.host import Host

REQUEST: dict[str, Any] = {"num_inference_steps": 2, "seed": 1, "mode": "exact"}
"""Of `generate`: quick, and always the same picture."""

TIMEOUT_S = 60.0


class Events:
    """Keeps the events of a command: it is what `emit` wants. From any thread."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._news = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self._news:
            self._events.append(event)
            self._news.notify_all()

    def __iter__(self) -> Iterator[Event]:
        return iter(list(self._events))

    def __len__(self) -> int:
        return len(self._events)

    @property
    def names(self) -> list[str]:
        """What came, in order."""
        return [event.name for event in self]

    def named(self, name: str) -> list[Any]:
        """The events of one kind, in order."""
        return [event for event in self if event.name == name]

    def wait_for(self, name: str, count: int = 1, timeout_s: float = TIMEOUT_S) -> list[Any]:
        """The events of one kind once there are so many; blocks.

        Raises:
            AssertionError: they did not come in time; names what did.
        """
        with self._news:
            there = self._news.wait_for(lambda: len(self.named(name)) >= count, timeout_s)
        assert there, f"waited {timeout_s:g} s for {count} of {name!r}, got {self.names}"
        return self.named(name)


@dataclass(frozen=True)
class Generated:
    """What one `generate` gave: its result, and all its events."""

    result: dict[str, Any]
    events: Events

    @property
    def files(self) -> list[bytes]:
        """The PNG files, in the order of the job's pictures."""
        done: list[Image] = sorted(self.events.named("image"), key=lambda event: event.index)
        return [event.image.data for event in done if event.image is not None]

    @property
    def pictures(self) -> list[PILImage.Image]:
        """The pictures; a PNG's text chunks are in `.info`."""
        return [PILImage.open(io.BytesIO(file)) for file in self.files]

    @property
    def picture(self) -> PILImage.Image:
        """The only picture."""
        (picture,) = self.pictures
        return picture

    @property
    def latents(self) -> npt.NDArray[np.float32]:
        """The final latents `(channels, height / 8, width / 8)` of a job with `output_type="latent"`."""
        (event,) = self.events.named("image")
        assert isinstance(event.latents, Tensor), 'ask for output_type="latent"'
        return np.frombuffer(event.latents.data, "<f4").reshape(event.latents.shape)


def generate(host: "Host", prompt: str = "red apple", **fields: Any) -> Generated:
    """Make pictures and wait for them: two steps of seed 1 in mode exact, where the fields do not say otherwise.

    Raises:
        LatentwireError: the job failed, or was refused.
    """
    events = Events()
    result = asyncio.run(host.dispatch("generate", {"prompt": prompt} | REQUEST | fields, "test", events))
    return Generated(result, events)


def call(host: "Host", command: str, params: Any = None, client: str = "test", emit: Events | None = None) -> Any:
    """Run a command to its end; its result.

    Args:
        client: Who asks: jobs and results are seen by the one who made them.
        emit: Is given the command's events.

    Raises:
        LatentwireError: it failed.
    """
    hear = Events() if emit is None else emit  # one that has heard nothing yet is false
    return asyncio.run(host.dispatch(command, {} if params is None else params, client, hear))
