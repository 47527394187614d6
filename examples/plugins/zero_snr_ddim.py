"""Scheduler `ddim_zero_snr`: DDIM whose first step is pure noise, for very dark and very bright pictures.

The usual betas leave a little of the picture's brightness in the first step's latents, and the model learns
to rely on it. Here the betas are rescaled until nothing is left (Lin et al. 2023, "Common Diffusion Noise
Schedules and Sample Steps are Flawed"). Only models that predict v can start from pure noise.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from latentwire import PluginRegistry, hookimpl

LATENTWIRE_API = "1.0"

if TYPE_CHECKING:
    from diffusers import DDIMScheduler


def make(config: Mapping[str, Any]) -> "DDIMScheduler":
    """A new scheduler for one picture, from the model's own scheduler config."""
    from diffusers import DDIMScheduler  # not sooner: the host's start would wait for it

    if config.get("prediction_type") != "v_prediction":
        raise ValueError(f"ddim_zero_snr needs a model with v_prediction, this one has {config.get('prediction_type')}")
    return DDIMScheduler.from_config(dict(config), rescale_betas_zero_snr=True, timestep_spacing="trailing")


@hookimpl
def register(registry: PluginRegistry) -> None:
    registry.add_scheduler("ddim_zero_snr", make)
