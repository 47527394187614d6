"""Nodes that sample."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latentwire import Host, NodeContext, NodeInput, NodeType

from .nodes_latent import LATENT
from .samplers import SAMPLERS, SCHEDULERS, problem_of
from .sampling import MOST_STEPS, Samples, Steps
from .values import SEEDS

MOST_SEED = 2**64 - 1  # that graphs have

ENABLED = ("enable", "disable")
MODEL = NodeInput("model", "MODEL")
PROMPTS = (NodeInput("positive", "CONDITIONING"), NodeInput("negative", "CONDITIONING"))
LATENT_IMAGE = NodeInput("latent_image", "LATENT")
STEPS = NodeInput("steps", "INT", default=20, minimum=1, maximum=MOST_STEPS)
CFG = NodeInput("cfg", "FLOAT", default=8.0, minimum=0.0, maximum=100.0, step=0.1)
SAMPLER = NodeInput("sampler_name", "COMBO", default="euler", choices=tuple(SAMPLERS))
SCHEDULER = NodeInput("scheduler", "COMBO", default="normal", choices=tuple(SCHEDULERS))


def seed_input(name: str) -> NodeInput:
    return NodeInput(name, "INT", default=0, minimum=0, maximum=MOST_SEED, random=True)


def check(host: Host, values: Mapping[str, Any]) -> Mapping[str, str]:
    """A sampler with a scheduler that it does not know."""
    sampler, scheduler = values.get("sampler_name"), values.get("scheduler")
    problem = problem_of(sampler, scheduler) if sampler and scheduler else None
    return {} if problem is None else {"scheduler": problem}


@dataclass(frozen=True, slots=True)
class SamplingNodes:
    samples: Samples

    async def sample(self, context: NodeContext, given: Mapping[str, Any]) -> tuple[Any, ...]:
        if not given["denoise"]:
            return (given["latent_image"],)
        steps = Steps.of_denoise(given["steps"], given["denoise"])
        return await self._sampled(context, given, given["seed"], steps)

    async def sample_some(self, context: NodeContext, given: Mapping[str, Any]) -> tuple[Any, ...]:
        total = given["steps"]
        steps = Steps(
            first=min(given["start_at_step"], total),
            end=min(given["end_at_step"], total),
            total=total,
            noise=given["add_noise"] == "enable",
            clean=given["return_with_leftover_noise"] == "disable",
        )
        return await self._sampled(context, given, given["noise_seed"], steps)

    async def _sampled(
        self, context: NodeContext, given: Mapping[str, Any], seed: int | None, steps: Steps
    ) -> tuple[Any, ...]:
        made = await self.samples.sample(
            context,
            given["model"],
            given["positive"],
            given["negative"],
            given["latent_image"],
            seed=None if seed is None else seed % SEEDS,
            steps=steps,
            cfg=given["cfg"],
            sampler=given["sampler_name"],
            scheduler=given["scheduler"],
        )
        return (made,)

    def types(self) -> tuple[NodeType, ...]:
        return (
            NodeType(
                "KSampler",
                "KSampler",
                "sampling",
                (
                    MODEL,
                    seed_input("seed"),
                    STEPS,
                    CFG,
                    SAMPLER,
                    SCHEDULER,
                    *PROMPTS,
                    LATENT_IMAGE,
                    NodeInput("denoise", "FLOAT", default=1.0, minimum=0.0, maximum=1.0, step=0.01),
                ),
                (LATENT,),
                self.sample,
                description="Makes latents by a model and prompts; denoise below 1 keeps something of those given.",
                check=check,
            ),
            NodeType(
                "KSamplerAdvanced",
                "KSampler (Advanced)",
                "sampling",
                (
                    MODEL,
                    NodeInput("add_noise", "COMBO", default="enable", choices=ENABLED),
                    seed_input("noise_seed"),
                    STEPS,
                    CFG,
                    SAMPLER,
                    SCHEDULER,
                    *PROMPTS,
                    LATENT_IMAGE,
                    NodeInput("start_at_step", "INT", default=0, minimum=0, maximum=10000),
                    NodeInput("end_at_step", "INT", default=10000, minimum=0, maximum=10000),
                    NodeInput(
                        "return_with_leftover_noise", "COMBO", default="disable", choices=tuple(reversed(ENABLED))
                    ),
                ),
                (LATENT,),
                self.sample_some,
                description="Makes some of a schedule's steps, with or without noise before and after them.",
                check=check,
            ),
        )
