"""What a pipeline is made of (`PipelineBuild`) and how it is called (`PipelineCall`), as plain values.

Two equal builds share all their modules. Building reads no disk: `assemble` puts leased modules and a
fresh scheduler into an ordinary diffusers pipeline, which then belongs to one picture alone.
"""

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Self

import diffusers
import torch
import transformers

from .errors import InvalidParams
from .families import FAMILIES


def _pipelines() -> dict[str, type[Any]]:
    """All at once, while there is one thread.

    diffusers imports its parts when they are first asked for, and in circles: a job and the warm-up that ask at the
    same time break each other's imports.
    """
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # it would tell of image processors for want of torchvision
    tables = [table for family in FAMILIES.values() for table in (family.pipelines, family.controlnet_pipelines)]
    found = {name: getattr(diffusers, name) for table in tables for name in table.values()}
    transformers.logging.set_verbosity(verbosity)
    return found


PIPELINES: Mapping[str, type[Any]] = _pipelines()


@dataclass(frozen=True, slots=True)
class PipelineBuild:
    """The parts of a pipeline: names and numbers, no modules. Plugins change it in `modify_build`.

    Attributes:
        task: `text2img`, `img2img`, `inpaint`, or one that a plugin has added.
        controlnets: Names of loaded ControlNets, in the order of the call's control images.
        adapters: Names of loaded adapters (LoRAs) with their weights; what they add is summed.
        modules: Further components of the pipeline, each with the name under which its module was brought.
    """

    model: str
    scheduler: str
    dtype: str
    task: str = "text2img"
    controlnets: tuple[str, ...] = ()
    adapters: tuple[tuple[str, float], ...] = ()
    modules: tuple[tuple[str, str], ...] = ()

    def with_controlnets(self, *names: str) -> Self:
        """The same build with more ControlNets."""
        return replace(self, controlnets=(*self.controlnets, *names))

    def with_adapters(self, *adapters: tuple[str, float]) -> Self:
        """The same build with more adapters, each a name and its weight."""
        return replace(self, adapters=(*self.adapters, *adapters))

    def with_modules(self, *modules: tuple[str, str]) -> Self:
        """The same build with more modules, each the component that it is and the name that it was brought under."""
        return replace(self, modules=(*self.modules, *modules))


@dataclass(frozen=True, slots=True)
class PipelineCall:
    """How the pipeline is called for one picture. Plugins change it in `modify_call`.

    `extra` holds further keyword arguments of the pipeline's own call, such as `clip_skip`.
    """

    prompt: str
    negative_prompt: str
    num_inference_steps: int
    guidance_scale: float
    width: int
    height: int
    seed: int
    output_type: str
    extra: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def with_extra(self, **arguments: Any) -> Self:
        """The same call with more keyword arguments for the pipeline."""
        return replace(self, extra=MappingProxyType({**self.extra, **arguments}))

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for the pipeline, all but the generator."""
        embedded = "prompt_embeds" in self.extra  # in place of both prompts
        return {
            **self.extra,
            "prompt": None if embedded else self.prompt,
            # SDXL takes zeros for none, which an empty one is not
            "negative_prompt": None if embedded else self.negative_prompt or None,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "width": self.width,
            "height": self.height,
            "output_type": "latent" if self.output_type == "latent" else "pt",
        }


def pipeline_class(family: str, build: PipelineBuild) -> type[Any]:
    """The diffusers pipeline for a build of a model of this family.

    Raises:
        InvalidParams: the family cannot do it.
    """
    row = FAMILIES[family]
    table: Mapping[str, str] = row.controlnet_pipelines if build.controlnets else row.pipelines
    if build.task not in table:
        what = f"{build.task} with a ControlNet" if build.controlnets else build.task
        message = f"model {build.model!r} ({family}) cannot do {what} on this host"
        raise InvalidParams(message, [{"path": ["model"], "message": message, "got": build.model}])
    return PIPELINES[table[build.task]]


def assemble(
    pipeline: type[Any],
    components: Mapping[str, Any],
    scheduler: Any,
    device: torch.device,
    controlnets: Sequence[Any] = (),
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """A diffusers pipeline of shared modules and its own scheduler; costs about a millisecond.

    Args:
        pipeline: Its class.
        device: Where it makes its tensors.
        components: By name; those that the class does not know are left out, those that are missing are None.
        options: The model's own arguments for the class, such as `force_zeros_for_empty_prompt`.
    """
    given: dict[str, Any] = {
        "requires_safety_checker": False,
        "add_watermarker": False,
        **options,
        **components,
        "scheduler": scheduler,
    }
    if controlnets:
        given["controlnet"] = controlnets[0] if len(controlnets) == 1 else list(controlnets)
    parameters = inspect.signature(pipeline.__init__).parameters.values()
    named = [p for p in parameters if p.name != "self" and p.kind is not inspect.Parameter.VAR_KEYWORD]
    wanted = {p.name: given.get(p.name) for p in named if p.name in given or p.default is inspect.Parameter.empty}
    made = _on(pipeline, device)(**wanted)  # type: ignore[arg-type]  # a class is hashable
    made.set_progress_bar_config(disable=True)
    return made


@functools.cache
def _on(pipeline: type[Any], device: torch.device) -> type[Any]:
    """The class with its device known: diffusers looks for it through all modules, several times a call."""
    return type(pipeline.__name__, (pipeline,), {"__module__": pipeline.__module__, "_execution_device": device})
