"""Refuses what its prompt says it shall refuse, and has a command that fails now and then."""

from typing import Any

from latentwire import (
    BuildContext,
    CallContext,
    CommandContext,
    ImageContext,
    InvalidParams,
    NoParams,
    PluginRegistry,
    StepContext,
    hookimpl,
)

HOOKS = ("modify_build", "modify_call", "step_finished", "image_finished")
"""A request with the prompt `fail in HOOK` fails there."""


class Plugin:
    """The hooks, and the command `failing.run`."""

    def __init__(self) -> None:
        self._calls = 0

    @hookimpl
    def register(self, registry: PluginRegistry) -> None:
        registry.add_command("failing.run", NoParams, self.run)

    async def run(self, context: CommandContext, params: NoParams) -> dict[str, Any]:
        """Refuse every third call, and raise what nobody expects in every fifth."""
        self._calls += 1
        if self._calls % 3 == 0:
            raise InvalidParams("not this time")
        if self._calls % 5 == 0:
            raise ZeroDivisionError("a fault of the plugin's own")
        return {"calls": self._calls}

    @hookimpl
    def modify_build(self, context: BuildContext) -> None:
        refuse(context.request.prompt, "modify_build")

    @hookimpl
    def modify_call(self, context: CallContext) -> None:
        refuse(context.request.prompt, "modify_call")

    @hookimpl
    def step_finished(self, context: StepContext) -> None:
        if context.step == 2:
            refuse(context.request.prompt, "step_finished")

    @hookimpl
    def image_finished(self, context: ImageContext) -> None:
        refuse(context.request.prompt, "image_finished")


def refuse(prompt: str, hook: str) -> None:
    if prompt == f"fail in {hook}":
        raise InvalidParams(f"as the prompt says, {hook} refuses this request")
