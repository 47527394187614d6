"""A plugin that fanout.py loads: when each step was finished, by the one clock of all processes of a machine."""

from time import perf_counter
from typing import Any

from latentwire import CommandContext, PluginRegistry, StepContext, Strict, hookimpl


class StepsParams(Strict):
    """Whose steps."""

    job: str


class Plugin:
    """Takes note of every step, just before anyone is told of it."""

    def __init__(self) -> None:
        self._times: dict[str, list[float]] = {}

    @hookimpl
    def register(self, registry: PluginRegistry) -> None:
        registry.add_command("clock.steps", StepsParams, self.steps)

    @hookimpl
    def step_finished(self, context: StepContext) -> None:
        self._times.setdefault(context.job, []).append(perf_counter())

    async def steps(self, context: CommandContext, params: StepsParams) -> dict[str, Any]:
        """Give the times of a job's steps, in seconds of `perf_counter`, and forget them."""
        return {"times": self._times.pop(params.job, [])}
