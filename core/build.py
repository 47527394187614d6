"""What a pipeline is made of (`PipelineBuild`) and how it is called (`PipelineCall`), as plain values.

Two equal builds share all their modules. Building reads no disk: `assemble` puts leased modules and a
fresh scheduler into an ordinary diffusers pipeline, which then belongs to one picture alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, Self

import diffusers

Task = Literal["text2img"]

# family -> task -> pipeline class; the family is the class that the model's own index names
PIPELINES: dict[str, dict[Task, str]] = {
    "StableDiffusionPipeline": {"text2img": "StableDiffusionPipeline"},
}


@dataclass(frozen=True, slots=True)
class PipelineBuild:
    """The parts of a pipeline: names and numbers, no modules. Plugins change it in `modify_build`."""

    model: str
    scheduler: str
    dtype: str
    task: Task = "text2img"


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
        return {
            **self.extra,
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "width": self.width,
            "height": self.height,
            "output_type": "latent" if self.output_type == "latent" else "pt",
        }


def assemble(family: str, task: Task, components: Mapping[str, Any], scheduler: Any) -> Any:
    """A diffusers pipeline of shared modules and its own scheduler; costs well under a millisecond."""
    pipeline_class = getattr(diffusers, PIPELINES[family][task])
    pipeline = pipeline_class(**components, scheduler=scheduler, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
