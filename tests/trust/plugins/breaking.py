"""Has a command that always fails in a way that nobody expects."""

from typing import Any

from latentwire import CommandContext, NoParams, PluginRegistry, hookimpl


async def run(context: CommandContext, params: NoParams) -> dict[str, Any]:
    """Fail."""
    raise ZeroDivisionError("a fault of the plugin's own")


@hookimpl
def register(registry: PluginRegistry) -> None:
    registry.add_command("breaking.run", NoParams, run)
