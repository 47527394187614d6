"""What streams back after each step of a picture: the step itself, a preview, latents; and the plugins' turn."""

from functools import partial
from time import monotonic
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
from .requests import PreviewOptions
from .stepping import FinishedStep


class StepStream:
    """Told of each step of one picture, on the engine's thread; gives the latents to go on with.

    Raises:
        PluginError: a plugin raised in `step_finished`, or left latents of another kind.
    """

    def __init__(
        self, job: Job, index: int, size: int, previewer: Previewer, plugins: PluginHost, painter: Painter
    ) -> None:
        self._job = job
        self._index = index
        self._size = size  # pixels of the picture's longer side
        self._previewer = previewer
        self._plugins = plugins
        self._painter = painter
        self._stream = job.request.stream
        self._preview_at = 0.0

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
        if self._stream.steps:
            job.emit(Step(job.id, index, step, steps, finished.timestep, finished.sigma, round(finished.seconds, 6)))
        previews = self._stream.previews
        if previews is not None and self._preview_is_due(previews, finished):
            original = finished.predict()[0].float().cpu().numpy()
            paint = partial(self._paint, original, step, steps, previews)
            self._painter.paint((job.id, index), paint)
        options = self._stream.latents
        if options is not None and (step % options.every == 0 or finished.is_last):
            tensor = to_tensor(latents[0].float().cpu().numpy(), options.dtype)
            job.emit(Latents(job.id, index, step, steps, tensor))
        return latents

    def _preview_is_due(self, options: PreviewOptions, finished: FinishedStep) -> bool:
        if finished.is_last:
            return True
        now = monotonic()
        if finished.step % options.every or now < self._preview_at:
            return False
        self._preview_at = now + (1 / options.max_rate if options.max_rate else 0)
        return True

    def _paint(self, original: Any, step: int, steps: int, options: PreviewOptions) -> None:
        small = PILImage.fromarray(self._previewer.paint(original))
        size = options.size or self._size
        picture = encode(to_size(small, size), options.format, options.quality)
        self._job.emit(Preview(self._job.id, self._index, step, steps, picture))
