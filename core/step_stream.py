"""What streams back after each step of a picture: the step itself, a preview, latents; and the plugins' turn."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from PIL import Image as PILImage

from .errors import PluginError
from .events import Latents, Preview, Step
from .finite import FiniteWatch
from .hookspecs import StepContext
from .images import encode, to_size, to_tensor
from .jobs import Job
from .painter import Painter
from .plugin_host import PluginHost
from .requests import LatentsOptions, PreviewOptions
from .stepping import FinishedStep
from .tuning import Tuner
from .watching import Watcher

MOST_FILES = 4  # kinds of preview that a picture is painted in; clients must not fill the painter's threads
PreviewFile = tuple[str | None, Literal["jpeg", "webp", "png"], int, int]
"""Previewer, format, longer side in pixels, quality."""

Paint = Callable[[str | None, Any], Any]
"""Takes a previewer's name (None: the model's own) and latents `(channels, h, w)`; gives a picture `(h', w', 3)`."""


class Decoded:
    """A step's predicted picture, decoded when the first preview of it is painted."""

    def __init__(self, paint: Callable[[], Any]) -> None:
        self._paint = paint
        self._lock = threading.Lock()
        self._picture: PILImage.Image | None = None

    @property
    def picture(self) -> PILImage.Image:
        with self._lock:
            if self._picture is None:
                self._picture = PILImage.fromarray(self._paint())
            return self._picture


class StepStream:
    """Told of each step of one picture, on the engine's thread; gives the latents to go on with.

    Raises:
        NotFinite: the latents hold NaN or infinite values.
        PluginError: a plugin raised in `step_finished`, or left latents of another kind.
    """

    def __init__(
        self, job: Job, index: int, size: int, paint: Paint, plugins: PluginHost, painter: Painter, tuner: Tuner
    ) -> None:
        self._job = job
        self._index = index
        self._size = size  # pixels of the picture's longer side
        self._paint = paint
        self._plugins = plugins
        self._painter = painter
        self._tuner = tuner
        self._files: list[PreviewFile] = []
        self._finite = FiniteWatch()

    def __call__(self, finished: FinishedStep) -> torch.Tensor:
        job, index, step, steps = self._job, self._index, finished.step, finished.steps
        job.steps_done += 1
        latents = finished.latents
        self._finite.look(step, steps, latents)  # before plugins see them
        if self._plugins.listens("step_finished"):
            context = StepContext(
                job.id, index, job.request, step, steps, finished.timestep, finished.sigma, latents, finished.predict
            )
            self._plugins.call("step_finished", context)
            latents = context.latents
        event = Step(job.id, index, step, steps, finished.timestep, finished.sigma, round(finished.seconds, 6))
        job.emit(event, lambda watcher: watcher.stream.steps)
        watchers = job.watchers
        self._paint_for(watchers, finished)
        self._send_latents(watchers, finished, latents)
        if job.owner.stream.previews is None:  # else it is shown once its preview is
            job.shown(step)
        self._tuner.catch_up(step)
        return latents

    def _paint_for(self, watchers: tuple[Watcher, ...], finished: FinishedStep) -> None:
        """Have a preview painted: decoded once, and encoded once for all who want the same file."""
        wanted: dict[PreviewFile, list[Watcher]] = {}
        for watcher in watchers:
            options = watcher.stream.previews
            if options is not None and watcher.wants_preview(self._index, finished.step, finished.is_last):
                wanted.setdefault(self._file_of(options), []).append(watcher)
        if not wanted:
            return
        latents = finished.predict()[0].float().cpu().numpy()
        decoded = {name: Decoded(partial(self._paint, name, latents)) for name, *_ in wanted}
        for file, interested in wanted.items():
            work = partial(self._send_preview, decoded[file[0]], finished.step, finished.steps, file, interested)
            self._painter.paint((self._job.id, self._index, file), work)

    def _file_of(self, options: PreviewOptions) -> PreviewFile:
        """What a watcher gets: what it asks for, or what the first did, where too many ask for something else."""
        file = (options.previewer, options.format, options.size or self._size, options.quality)
        if file not in self._files and len(self._files) < MOST_FILES:
            self._files.append(file)
        return file if file in self._files else self._files[0]

    def _send_preview(
        self, decoded: Decoded, step: int, steps: int, file: PreviewFile, interested: list[Watcher]
    ) -> None:
        if self._job.outcome.done():
            return
        _, format, size, quality = file
        try:
            picture = encode(to_size(decoded.picture, size), format, quality)
        except PluginError as error:  # a plugin's previewer: its job fails, as with anything else that a plugin raises
            self._job.fail(error)
            return
        self._job.emit(Preview(self._job.id, self._index, step, steps, picture), interested.__contains__)
        if self._job.owner in interested:
            self._job.shown(step)

    def _send_latents(self, watchers: tuple[Watcher, ...], finished: FinishedStep, latents: torch.Tensor) -> None:
        wanted: dict[LatentsOptions, list[Watcher]] = {}
        for watcher in watchers:
            if watcher.stream.latents and watcher.wants_latents(finished.step, finished.is_last):
                wanted.setdefault(watcher.stream.latents, []).append(watcher)
        for options, interested in wanted.items():
            tensor = to_tensor(latents[0].float().cpu().numpy(), options.dtype)
            event = Latents(self._job.id, self._index, finished.step, finished.steps, tensor)
            self._job.emit(event, interested.__contains__)
