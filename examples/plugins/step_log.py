"""Command `step_log.steps`: how a job's latents went, step by step.

{"id": 1, "command": "step_log.steps", "params": {"job": "9f2c51d07be84a36"}}
"""

from collections import OrderedDict
from typing import Any

from latentwire import CommandContext, PluginRegistry, StepContext, Strict, hookimpl

LATENTWIRE_API = "1.0"

JOBS_KEPT = 100


class StepsParams(Strict):
    """Which job to tell of. Ids are hard to guess, so nobody reads of another client's jobs."""

    job: str


class Plugin:
    def __init__(self) -> None:
        self._rows: OrderedDict[str, list[dict[str, Any]]] = OrderedDict()

    @hookimpl
    def register(self, registry: PluginRegistry) -> None:
        registry.add_command("step_log.steps", StepsParams, self.steps)

    @hookimpl
    def step_finished(self, context: StepContext) -> None:
        # All jobs wait for this: two small reductions are fine, a file or a network is not.
        row = {
            "index": context.index,
            "step": context.step,
            "timestep": context.timestep,
            "mean": float(context.latents.mean()),
            "std": float(context.latents.std()),
        }
        self._rows.setdefault(context.job, []).append(row)
        if len(self._rows) > JOBS_KEPT:
            self._rows.popitem(last=False)

    async def steps(self, context: CommandContext, params: StepsParams) -> dict[str, Any]:
        """Give the mean and standard deviation of a job's latents after each of its steps."""
        return {"job": params.job, "steps": list(self._rows.get(params.job, ()))}
