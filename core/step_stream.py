"""What streams back after each step of a picture: the step itself, a preview, latents; and the plugins' turn."""

from functools import partial
from typing import Any

import torch
from PIL import Image as PILImage

from .events import Latents, Preview, Step
from .hookspecs import StepContext
from .images import encode, to_size, to_tensor
from .jobs import Job
from .painter import Painter
from .plugin_host import PluginHost
from .previews import Previewer
from .requests import LatentsOptions, PreviewOptions
from .stepping import FinishedStep
from .tuning import Tuner
from .watching import Watcher


class StepStream:
    """Told of each step of one picture, on the engine's thread; gives the latents to go on with.

    Raises:
        PluginError: a plugin raised in `step_finished`, or left latents of another kind.
    """

    def __init__(
        self, job: Job, index: int, size: int, previewer: Previewer, plugins: PluginHost, painter: Painter, tuner: Tuner
    ) -> None:
        self._job = job
        self._index = index
        self._size = size  # pixels of the picture's longer side
        self._previewer = previewer
        self._plugins = plugins
        self._painter = painter
        self._tuner = tuner

    def __call__(self, finished: FinishedStep) -> torch.Tensor:
        job, index, step, steps = self._job, self._index, finished.step, finished.steps
        job.steps_done += 1
        latents = finished.latents
        if self._plugins.listens("step_finished"):
            context = StepContext(
                job.id, index, job.request, step, steps, finished.timestep, finished.sigma, latents, finished.predict
            )
            self._plugins.call("step_finished", context)
            latents = context.latents
        watchers = job.watchers
        event = Step(job.id, index, step, steps, finished.timestep, finished.sigma, round(finished.seconds, 6))
        job.emit_to(tuple(watcher for watcher in watchers if watcher.stream.steps), event)
        self._paint_for(watchers, finished)
        self._send_latents(watchers, finished, latents)
        if job.request.stream.previews is None:  # else it is shown once its preview is
            job.shown(step)
        self._tuner.catch_up(step)
        return latents

    def _paint_for(self, watchers: tuple[Watcher, ...], finished: FinishedStep) -> None:
        """Have a preview painted, once for all who want one."""
        wanted: dict[PreviewOptions, list[Watcher]] = {}
        for watcher in watchers:
            if watcher.stream.previews and watcher.wants_preview(self._index, finished.step, finished.is_last):
                wanted.setdefault(watcher.stream.previews, []).append(watcher)
        if wanted:
            original = finished.predict()[0].float().cpu().numpy()
            work = partial(self._paint, original, finished.step, finished.steps, wanted)
            self._painter.paint((self._job.id, self._index), work)

    def _paint(self, original: Any, step: int, steps: int, wanted: dict[PreviewOptions, list[Watcher]]) -> None:
        small = PILImage.fromarray(self._previewer.paint(original))
        encoded: dict[tuple[Any, ...], Preview] = {}
        for options, watchers in wanted.items():
            size = options.size or self._size
            file = (options.format, size, options.quality)
            if file not in encoded:
                picture = encode(to_size(small, size), options.format, options.quality)
                encoded[file] = Preview(self._job.id, self._index, step, steps, picture)
            self._job.emit_to(tuple(watchers), encoded[file])
        self._job.shown(step)

    def _send_latents(self, watchers: tuple[Watcher, ...], finished: FinishedStep, latents: torch.Tensor) -> None:
        wanted: dict[LatentsOptions, list[Watcher]] = {}
        for watcher in watchers:
            if watcher.stream.latents and watcher.wants_latents(finished.step, finished.is_last):
                wanted.setdefault(watcher.stream.latents, []).append(watcher)
        for options, interested in wanted.items():
            tensor = to_tensor(latents[0].float().cpu().numpy(), options.dtype)
            event = Latents(self._job.id, self._index, finished.step, finished.steps, tensor)
            self._job.emit_to(tuple(interested), event)
