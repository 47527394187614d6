"""The commands about plugins: what there is and how it goes, and switches for the host's operator."""

from dataclasses import asdict
from typing import Any

from pydantic import Field

from .command_context import CommandContext, NoParams
from .errors import Unauthorized
from .events import Event, PluginsChanged
from .plugin_host import PluginReport
from .requests import Strict


class PluginParams(Strict):
    """Which plugin."""

    name: str = Field(max_length=100, description="of plugins.list")


async def list_all(context: CommandContext, params: NoParams) -> dict[str, Any]:
    """List all plugins in running order: version, state, hooks and their time, and what is wrong with a failed one."""
    return {"plugins": [_plain(report) for report in context.host.plugins.reports]}


async def subscribe(context: CommandContext, params: NoParams) -> dict[str, Any]:
    """Send the list of plugins now and whenever one comes, goes, is switched or fails, until unsubscribed."""
    host = context.host

    def look() -> tuple[Any, Event]:
        rows = [_plain(report) for report in host.plugins.reports]
        return [row | {"times": None} for row in rows], PluginsChanged(rows)  # times never rest

    with host.subscriptions.open(context.client) as subscription:
        await host.plugin_state.follow(subscription, context.emit, look)
    return {"subscription": subscription.id}


async def enable(context: CommandContext, params: PluginParams) -> dict[str, Any]:
    """Let a disabled plugin work, for operators: it is loaded where it is not yet, and forgiven what it failed in."""
    _check_operator(context)
    return _plain(await context.host.enable_plugin(params.name))


async def disable(context: CommandContext, params: PluginParams) -> dict[str, Any]:
    """Let a plugin rest until it is enabled, for operators: its hooks are not called, what it brought is refused."""
    _check_operator(context)
    return _plain(await context.host.disable_plugin(params.name))


async def reload(context: CommandContext, params: PluginParams) -> dict[str, Any]:
    """Load a plugin anew, as its code is now, for operators."""
    _check_operator(context)
    return _plain(await context.host.reload_plugin(params.name))


def _check_operator(context: CommandContext) -> None:
    if not context.caller.operator:
        raise Unauthorized("only an operator may switch plugins; connect with the host's server.operator_token")


def _plain(report: PluginReport) -> dict[str, Any]:
    row = asdict(report)
    del row["trace"]  # which shows the host's machine
    return row
