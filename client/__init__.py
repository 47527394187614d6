"""The Python client: `connect` for async code, `connect_sync` for plain code. Needs none of torch."""

from ..core.events import (
    Accepted,
    Event,
    Image,
    JobEvent,
    Latents,
    Loading,
    Picture,
    Preview,
    Started,
    StateChanged,
    Step,
    Tensor,
)
from .connection import Connection, MessagesLost, PluginEvent, RemoteError, Result, connect
from .link import ConnectionLost
from .sync import SyncConnection, connect_sync

__all__ = [
    "Accepted",
    "Connection",
    "ConnectionLost",
    "Event",
    "Image",
    "JobEvent",
    "Latents",
    "Loading",
    "MessagesLost",
    "Picture",
    "PluginEvent",
    "Preview",
    "RemoteError",
    "Result",
    "Started",
    "StateChanged",
    "Step",
    "SyncConnection",
    "Tensor",
    "connect",
    "connect_sync",
]
