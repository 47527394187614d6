"""Samplers and schedulers as graphs name them, and the host's schedulers that they mean.

A graph's *sampler* is a class of diffusers' schedulers, its *scheduler* how the noise levels are spaced. `normal` is
the model's own way, so that these are the host's schedulers as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

from latentwire import Host, PluginRegistry

from .refusals import refused


@dataclass(frozen=True, slots=True)
class Sampler:
    """One row.

    Attributes:
        name: Of the host's scheduler.
        kind: Of diffusers'.
        changes: What differs from the model's config.
        spaced: Whether it knows Karras and exponential spacing.
        stops: Whether it can end cleanly in the midst of its schedule.
        explodes: Whether its noisy latents are the picture plus so much noise; else their variance is kept.
    """

    name: str
    kind: str
    changes: Mapping[str, Any]
    spaced: bool = True
    stops: bool = True
    explodes: bool = False


SAMPLERS = {
    "euler": Sampler("euler", "EulerDiscreteScheduler", {}, explodes=True),
    "euler_ancestral": Sampler("euler_ancestral", "EulerAncestralDiscreteScheduler", {}, spaced=False, explodes=True),
    "heun": Sampler("heun", "HeunDiscreteScheduler", {}, stops=False, explodes=True),
    "dpm_2": Sampler("dpm2", "KDPM2DiscreteScheduler", {}, stops=False, explodes=True),
    "dpm_2_ancestral": Sampler("dpm2_ancestral", "KDPM2AncestralDiscreteScheduler", {}, stops=False, explodes=True),
    "lms": Sampler("lms", "LMSDiscreteScheduler", {}, explodes=True),
    "dpmpp_2m": Sampler("dpmpp_2m", "DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_sde": Sampler("dpmpp_2m_sde", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "ddpm": Sampler("ddpm", "DDPMScheduler", {}, spaced=False, stops=False),
    "lcm": Sampler("lcm", "LCMScheduler", {}, spaced=False, stops=False),
    "deis": Sampler("deis", "DEISMultistepScheduler", {}),
    "ddim": Sampler("ddim", "DDIMScheduler", {}, spaced=False, stops=False),
    "uni_pc": Sampler("unipc", "UniPCMultistepScheduler", {}),
}
if find_spec("scipy") is None:
    del SAMPLERS["lms"]

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "normal": ("", {}),
    "karras": ("_karras", {"use_karras_sigmas": True}),
    "exponential": ("_exponential", {"use_exponential_sigmas": True}),
    "sgm_uniform": ("_trailing", {"timestep_spacing": "trailing"}),
    "simple": ("_trailing", {"timestep_spacing": "trailing"}),
}
FLOW = {"euler": "flow_euler", "heun": "flow_heun"}  # of models that were trained by flow matching

SPACED_BY_HOST = {"euler_karras", "dpm2_karras", "dpmpp_2m_karras", "dpmpp_2m_sde_karras"}


def add_spacings(registry: PluginRegistry) -> None:
    """Offer the spacings that the host's own schedulers do not have."""
    for sampler in SAMPLERS.values():
        for suffix, changes in dict(SCHEDULERS.values()).items():
            name = sampler.name + suffix
            if suffix and name not in SPACED_BY_HOST and (sampler.spaced or suffix == "_trailing"):
                registry.add_scheduler(name, partial(_make, sampler.kind, {**sampler.changes, **changes}))


def problem_of(sampler: str, scheduler: str) -> str | None:
    """Why a sampler does not go with a scheduler; None where it does."""
    row, (suffix, _) = SAMPLERS[sampler], SCHEDULERS[scheduler]
    if row.spaced or suffix in ("", "_trailing"):
        return None
    fitting = ", ".join(name for name, (other, _) in SCHEDULERS.items() if other in ("", "_trailing"))
    spaced = ", ".join(name for name, other in SAMPLERS.items() if other.spaced)
    return f"{sampler} has no {scheduler} spacing, but {fitting}; samplers with {scheduler}: {spaced}"


def scheduler_for(host: Host, model: str, sampler: str, scheduler: str) -> str:
    """The host's scheduler for a model.

    Raises:
        InvalidParams: there is none.
    """
    suffix, _ = SCHEDULERS[scheduler]
    if not host.store.card(model).row.flow:
        return SAMPLERS[sampler].name + suffix
    if sampler not in FLOW or suffix not in ("", "_trailing"):
        message = (
            f"model {model!r} was trained by flow matching, for which there are the samplers {' and '.join(FLOW)} with "
            f"the schedulers normal, simple and sgm_uniform; got {sampler} with {scheduler}"
        )
        raise refused("sampler_name", message, sampler)
    return FLOW[sampler]


def _make(kind: str, changes: dict[str, Any], config: Mapping[str, Any]) -> Any:
    import diffusers

    return getattr(diffusers, kind).from_config(dict(config), **changes)
