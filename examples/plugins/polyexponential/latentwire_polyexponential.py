"""Scheduler `euler_polyexponential`: Euler whose noise levels fall polynomially in their logarithm.

{"prompt": "red apple", "scheduler": "euler_polyexponential"}

With rho 1 the levels fall by the same factor at each step. With a larger rho the steps lie closer together where little
noise is left and details form; with a smaller one where the picture's layout does.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field

from latentwire import InvalidParams, PluginRegistry, Strict, hookimpl

LATENTWIRE_API = "1.0"

NAME = "euler_polyexponential"


class Settings(Strict):
    """What plugins.toml may set for this plugin."""

    rho: float = Field(1.5, gt=0, le=10, description="1: exponential; larger: more steps with little noise")


class Plugin:
    def __init__(self, settings: Settings) -> None:
        self.rho = settings.rho

    @hookimpl
    def register(self, registry: PluginRegistry) -> None:
        registry.add_scheduler(NAME, self.make)

    def make(self, config: Mapping[str, Any]) -> Any:
        """A new scheduler for one picture, from the model's own scheduler config."""
        if "beta_schedule" not in config:
            message = f"{NAME} is for models trained with betas, and this one was trained by flow matching"
            raise InvalidParams(message, [{"path": ["scheduler"], "message": message, "got": NAME}])
        return scheduler_class(self.rho).from_config(dict(config))


@functools.cache
def scheduler_class(rho: float) -> Any:
    """diffusers' Euler with other sigmas; made when first needed, so that loading the plugin imports no diffusers."""
    from diffusers import EulerDiscreteScheduler

    class EulerPolyexponentialScheduler(EulerDiscreteScheduler):  # type: ignore[misc]  # diffusers has no types
        def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, **given: Any) -> None:
            if num_inference_steps is None:  # the caller has timesteps or sigmas of its own
                super().set_timesteps(device=device, **given)
                return
            sigmas = np.sqrt((1 - self.alphas_cumprod.numpy()) / self.alphas_cumprod.numpy())
            lowest, highest = math.log(sigmas[0]), math.log(sigmas[-1])
            ramp = np.linspace(1, 0, num_inference_steps) ** rho
            super().set_timesteps(sigmas=[*np.exp(lowest + ramp * (highest - lowest)), 0.0], device=device)

    return EulerPolyexponentialScheduler
