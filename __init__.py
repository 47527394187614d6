"""latentwire: hosts diffusion pipelines behind one WebSocket.

For plugins: `hookimpl`, the hooks' contexts, `PipelineBuild`, `PipelineCall`, `PluginRegistry`, `Strict`.
For clients: `connect`, `connect_sync` and the events. Importing the package imports none of torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .client import RemoteError, connect, connect_sync
    from .core.build import PipelineBuild, PipelineCall
    from .core.commands import CommandContext
    from .core.errors import InvalidParams, LatentwireError, PluginError
    from .core.hookspecs import BuildContext, CallContext, ImageContext, StepContext, hookimpl
    from .core.host import Host
    from .core.registry import PluginRegistry
    from .core.requests import GenerateRequest, Strict
    from .core.settings import Settings, load_settings

# Where each public name lives; it is imported when first asked for, so that a client or `--help` stays light.
_HOME = {
    "BuildContext": "core.hookspecs",
    "CallContext": "core.hookspecs",
    "CommandContext": "core.commands",
    "GenerateRequest": "core.requests",
    "Host": "core.host",
    "ImageContext": "core.hookspecs",
    "InvalidParams": "core.errors",
    "LatentwireError": "core.errors",
    "PipelineBuild": "core.build",
    "PipelineCall": "core.build",
    "PluginError": "core.errors",
    "PluginRegistry": "core.registry",
    "RemoteError": "client",
    "Settings": "core.settings",
    "StepContext": "core.hookspecs",
    "Strict": "core.requests",
    "connect": "client",
    "connect_sync": "client",
    "hookimpl": "core.hookspecs",
    "load_settings": "core.settings",
}

__all__ = [
    "BuildContext",
    "CallContext",
    "CommandContext",
    "GenerateRequest",
    "Host",
    "ImageContext",
    "InvalidParams",
    "LatentwireError",
    "PipelineBuild",
    "PipelineCall",
    "PluginError",
    "PluginRegistry",
    "RemoteError",
    "Settings",
    "StepContext",
    "Strict",
    "connect",
    "connect_sync",
    "hookimpl",
    "load_settings",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'latentwire' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
