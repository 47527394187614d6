"""Schedulers by name, made fresh for every picture from the model's own scheduler config."""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import diffusers
import torch

MakeScheduler = Callable[[Mapping[str, Any]], Any]
"""Takes the model's scheduler config, gives a new scheduler object."""

MOST_CONFIGS = 64  # of models, which a scheduler is kept for

KARRAS = {"use_karras_sigmas": True}

# All that diffusers calls compatible with Stable Diffusion, but for DPMSolverSDE, whose noise ignores the seed,
# and EDMEuler, which is for models trained in EDM's own scaling.
# name -> (diffusers class, what differs from the model's config, package it cannot do without)
DIFFUSERS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "ddim": ("DDIMScheduler", {}, None),
    "ddpm": ("DDPMScheduler", {}, None),
    "deis": ("DEISMultistepScheduler", {}, None),
    "dpm2": ("KDPM2DiscreteScheduler", {}, None),
    "dpm2_ancestral": ("KDPM2AncestralDiscreteScheduler", {}, None),
    "dpm2_karras": ("KDPM2DiscreteScheduler", KARRAS, None),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}, None),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", KARRAS, None),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, None),
    "dpmpp_2m_sde_karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"} | KARRAS, None),
    "dpmpp_2s": ("DPMSolverSinglestepScheduler", {}, None),
    "euler": ("EulerDiscreteScheduler", {}, None),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}, None),
    "euler_karras": ("EulerDiscreteScheduler", KARRAS, None),
    "flow_euler": ("FlowMatchEulerDiscreteScheduler", {}, None),
    "flow_heun": ("FlowMatchHeunDiscreteScheduler", {}, None),
    "heun": ("HeunDiscreteScheduler", {}, None),
    "lcm": ("LCMScheduler", {}, None),
    "lms": ("LMSDiscreteScheduler", {}, "scipy"),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}, None),
    "unipc": ("UniPCMultistepScheduler", {}, None),
}


FLOW = {"flow_euler", "flow_heun"}


def suits(name: str, flow: bool) -> bool:
    """Whether a scheduler of that name can be for models trained by flow matching, or for the others.

    Of a plugin's scheduler nothing is known, so it suits both.
    """
    return name not in DIFFUSERS or (name in FLOW) == flow


@dataclass(frozen=True)
class FromDiffusers:
    """Makes one of diffusers' schedulers, the model's config carried over as diffusers does.

    The first one for a config is kept as it was made and never used; copying it takes a sixth of the time.
    """

    class_name: str
    changes: Mapping[str, Any]
    _unused: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __call__(self, config: Mapping[str, Any]) -> Any:
        try:
            key = json.dumps(config, sort_keys=True)
        except TypeError:  # a plugin may put anything into one
            return self._made(config)
        unused = self._unused.get(key)
        if unused is None:
            if len(self._unused) >= MOST_CONFIGS:
                self._unused.clear()
            unused = self._unused[key] = self._made(config)
        return copy.deepcopy(unused)

    @torch.inference_mode(False)  # the copies are used in any thread
    def _made(self, config: Mapping[str, Any]) -> Any:
        return getattr(diffusers, self.class_name).from_config(dict(config), **self.changes)


def diffusers_schedulers() -> dict[str, MakeScheduler]:
    """The schedulers of the table that this machine has the packages for."""
    return {
        name: FromDiffusers(class_name, changes)
        for name, (class_name, changes, package) in DIFFUSERS.items()
        if package is None or find_spec(package) is not None
    }


def noise_level(scheduler: Any) -> float | None:
    """The sigma that the scheduler's next step starts from; None for those that have none (DDIM, PNDM)."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None:
        return None
    index = scheduler.step_index
    if index is None:  # before the first step
        index = scheduler.begin_index or 0
    if hasattr(scheduler, "sigmas_interpol") and not scheduler.state_in_first_order:
        sigmas = scheduler.sigmas_interpol  # the second half of a KDPM2 step
    return float(sigmas[index])


def predict_original(scheduler: Any, model_output: Any, sample: Any, timestep: Any, sigma: float | None) -> Any:
    """The finished latents as the model predicts them in the middle of a run (x0, same shape as `sample`).

    `sample` is what the scheduler's step was given. Formulas: Karras et al. 2022 (EDM) for samples that
    are the picture plus sigma times noise, Ho et al. 2020 and Salimans & Ho 2022 (v-prediction) for
    samples whose variance is kept.
    """
    kind = scheduler.config.get("prediction_type", "flow_prediction")  # schedulers for flow matching know no other
    if kind in ("sample", "original_sample"):
        return model_output
    if sigma is None:
        alpha = float(scheduler.alphas_cumprod[int(timestep)]) ** 0.5
        noise = (1 - alpha**2) ** 0.5
    elif kind == "flow_prediction":
        return sample - sigma * model_output
    else:
        alpha = 1 / (sigma**2 + 1) ** 0.5
        noise = sigma * alpha
        if float(scheduler.init_noise_sigma) > 1.0:
            sample = sample * alpha  # from variance-exploding to variance-preserving
    if kind == "v_prediction":
        return alpha * sample - noise * model_output
    return (sample - noise * model_output) / alpha
