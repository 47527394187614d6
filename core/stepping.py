"""Watches one pipeline call step by step, through public means: its own scheduler and the step callback."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from .schedulers import noise_level, predict_original


@dataclass(slots=True)
class FinishedStep:
    """A step that is over. `predict` gives the predicted x0, shaped like `latents` `(1, channels, h/8, w/8)`."""

    step: int
    steps: int
    timestep: float
    sigma: float | None
    seconds: float
    latents: torch.Tensor
    predict: Callable[[], torch.Tensor]

    @property
    def is_last(self) -> bool:
        return self.step == self.steps


OnStep = Callable[[FinishedStep], torch.Tensor]
"""Is told of each step and gives the latents to go on with."""


def watch(pipeline: Any, on_step: OnStep) -> Callable[..., dict[str, Any]]:
    """Attach to the pipeline's scheduler; what comes back goes into the call as `callback_on_step_end`."""
    scheduler = pipeline.scheduler
    scheduler_step = scheduler.step
    seen: dict[str, Any] = {}
    timesteps: list[float] = []
    last = perf_counter()

    @functools.wraps(scheduler_step)  # pipelines look for eta and generator in its signature
    def step(model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.update(model_output=model_output, timestep=timestep, sample=sample, sigma=noise_level(scheduler))
        return scheduler_step(model_output, timestep, sample, *args, **kwargs)

    def callback(_pipeline: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        nonlocal last
        if not timesteps:
            # one sync a picture, not one a step; with a strength below 1 the first ones are skipped
            timesteps.extend(float(t) for t in scheduler.timesteps.tolist()[-pipeline.num_timesteps :])
        now = perf_counter()
        finished = FinishedStep(
            step=index + 1,
            steps=pipeline.num_timesteps,
            timestep=timesteps[index],
            sigma=seen["sigma"],
            seconds=now - last,
            latents=tensors["latents"],
            predict=functools.partial(predict_original, scheduler, **seen),
        )
        last = now
        return {"latents": on_step(finished)}

    scheduler.step = step
    return callback
