"""The Python client: `connect` for async code, `connect_sync` for plain code. Needs none of torch."""

from ..core.events import (
    Accepted,
    Event,
    JobEvent,
    Latents,
    Loading,
    Queued,
    Started,
    StateChanged,
    Step,
    Tensor,
)
from .connection import Connection, MessagesLost, RemoteError, connect
from .events import Image, Picture, PluginEvent, Preview, Result
from .link import ConnectionLost
from .live import Live
from .sync import SyncConnection, SyncLive, connect_sync

__all__ = [
    "Accepted",
    "Connection",
    "ConnectionLost",
    "Event",
    "Image",
    "JobEvent",
    "Latents",
    "Live",
    "Loading",
    "MessagesLost",
    "Picture",
    "PluginEvent",
    "Preview",
    "Queued",
    "RemoteError",
    "Result",
    "Started",
    "StateChanged",
    "Step",
    "SyncConnection",
    "SyncLive",
    "Tensor",
    "connect",
    "connect_sync",
]
