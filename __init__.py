"""latentwire: hosts diffusion pipelines behind one WebSocket.

For plugins: `hookimpl`, the hooks' contexts, `PipelineBuild`, `PipelineCall`, `PluginRegistry`, `Strict`.
For clients: `connect`, `connect_sync` and the events. Importing the package imports none of torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .client import RemoteError, connect, connect_sync
    from .core.adapters import Adapter, LowRank
    from .core.api_version import API_VERSION
    from .core.build import PipelineBuild, PipelineCall
    from .core.caller import Caller, caller_of
    from .core.clock import Clock
    from .core.command_context import CommandContext, NoParams
    from .core.commands import validate
    from .core.errors import (
        InUse,
        InvalidGraph,
        InvalidParams,
        JobCancelled,
        LatentwireError,
        ModelLoadError,
        NotLoaded,
        OutOfMemory,
        PluginError,
        Superseded,
        TooManyJobs,
        UnknownImage,
        UnknownJob,
    )
    from .core.events import Event, JobEvent, Picture, Subscribed
    from .core.families import control_image_argument
    from .core.hookspecs import (
        BuildContext,
        CallContext,
        ClientContext,
        EncodedContext,
        ImageContext,
        StepContext,
        UnloadContext,
        UpdateContext,
        hookimpl,
    )
    from .core.host import Host
    from .core.images import encode
    from .core.model_store import LOADING, read_module
    from .core.nodes import NodeContext, NodeInput, NodeOutput, NodeType
    from .core.pictures import Resize, read_picture, resized
    from .core.plugin_registry import PluginRegistry
    from .core.publishing import Origin, publish
    from .core.remembered import Remembered
    from .core.requests import (
        GenerateRequest,
        ImageInput,
        Mode,
        PreviewOptions,
        Priority,
        StreamOptions,
        Strict,
        Whole,
    )
    from .core.settings import Settings, load_settings
    from .core.shelf import Loaded
    from .core.weights import parse_json, read_json, read_weights

# Where each public name lives; it is imported when first asked for, so that a client or `--help` stays light.
_HOME = {
    "publish": "core.publishing",
    "Origin": "core.publishing",
    "Priority": "core.requests",
    "PreviewOptions": "core.requests",
    "UnknownJob": "core.errors",
    "OutOfMemory": "core.errors",
    "Superseded": "core.errors",
    "JobCancelled": "core.errors",
    "TooManyJobs": "core.errors",
    "InvalidGraph": "core.errors",
    "NodeContext": "core.nodes",
    "NodeOutput": "core.nodes",
    "NodeInput": "core.nodes",
    "NodeType": "core.nodes",
    "validate": "core.commands",
    "Remembered": "core.remembered",
    "NoParams": "core.command_context",
    "API_VERSION": "core.api_version",
    "Adapter": "core.adapters",
    "BuildContext": "core.hookspecs",
    "CallContext": "core.hookspecs",
    "ClientContext": "core.hookspecs",
    "Caller": "core.caller",
    "Clock": "core.clock",
    "CommandContext": "core.command_context",
    "EncodedContext": "core.hookspecs",
    "Event": "core.events",
    "GenerateRequest": "core.requests",
    "Host": "core.host",
    "ImageContext": "core.hookspecs",
    "ImageInput": "core.requests",
    "InUse": "core.errors",
    "InvalidParams": "core.errors",
    "JobEvent": "core.events",
    "LOADING": "core.model_store",
    "LatentwireError": "core.errors",
    "Loaded": "core.shelf",
    "LowRank": "core.adapters",
    "Mode": "core.requests",
    "ModelLoadError": "core.errors",
    "NotLoaded": "core.errors",
    "Picture": "core.events",
    "PipelineBuild": "core.build",
    "PipelineCall": "core.build",
    "PluginError": "core.errors",
    "PluginRegistry": "core.plugin_registry",
    "RemoteError": "client",
    "Resize": "core.pictures",
    "Settings": "core.settings",
    "StepContext": "core.hookspecs",
    "StreamOptions": "core.requests",
    "Strict": "core.requests",
    "Subscribed": "core.events",
    "UnknownImage": "core.errors",
    "UnloadContext": "core.hookspecs",
    "UpdateContext": "core.hookspecs",
    "Whole": "core.requests",
    "connect": "client",
    "caller_of": "core.caller",
    "connect_sync": "client",
    "control_image_argument": "core.families",
    "encode": "core.images",
    "hookimpl": "core.hookspecs",
    "load_settings": "core.settings",
    "read_module": "core.model_store",
    "read_picture": "core.pictures",
    "parse_json": "core.weights",
    "read_json": "core.weights",
    "read_weights": "core.weights",
    "resized": "core.pictures",
}

__all__ = [
    "API_VERSION",
    "LOADING",
    "Adapter",
    "BuildContext",
    "CallContext",
    "Caller",
    "ClientContext",
    "Clock",
    "CommandContext",
    "EncodedContext",
    "Event",
    "GenerateRequest",
    "Host",
    "ImageContext",
    "ImageInput",
    "InUse",
    "InvalidGraph",
    "InvalidParams",
    "JobCancelled",
    "JobEvent",
    "LatentwireError",
    "Loaded",
    "LowRank",
    "Mode",
    "ModelLoadError",
    "NoParams",
    "NodeContext",
    "NodeInput",
    "NodeOutput",
    "NodeType",
    "NotLoaded",
    "Origin",
    "OutOfMemory",
    "Picture",
    "PipelineBuild",
    "PipelineCall",
    "PluginError",
    "PluginRegistry",
    "PreviewOptions",
    "Priority",
    "Remembered",
    "RemoteError",
    "Resize",
    "Settings",
    "StepContext",
    "StreamOptions",
    "Strict",
    "Subscribed",
    "Superseded",
    "TooManyJobs",
    "UnknownImage",
    "UnknownJob",
    "UnloadContext",
    "UpdateContext",
    "Whole",
    "caller_of",
    "connect",
    "connect_sync",
    "control_image_argument",
    "encode",
    "hookimpl",
    "load_settings",
    "parse_json",
    "publish",
    "read_json",
    "read_module",
    "read_picture",
    "read_weights",
    "resized",
    "validate",
]


def __getattr__(name: str) -> Any:
    from .core import api_version

    if name in api_version.NAMES:
        notice = api_version.NAMES[name]
        api_version.warn(f"latentwire.{name}", notice)
        name = notice.instead.removeprefix("latentwire.")
    if name not in _HOME:
        raise AttributeError(f"module 'latentwire' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
