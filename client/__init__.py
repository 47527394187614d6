"""The Python client: `connect` for async code, `connect_sync` for plain code. Needs none of torch."""

from ..core.events import Accepted, Event, Image, Latents, Loading, Picture, Preview, Started, Step, Tensor
from .connection import Connection, ConnectionLost, RemoteError, Result, connect
from .sync import SyncConnection, connect_sync

__all__ = [
    "Accepted",
    "Connection",
    "ConnectionLost",
    "Event",
    "Image",
    "Latents",
    "Loading",
    "Picture",
    "Preview",
    "RemoteError",
    "Result",
    "Started",
    "Step",
    "SyncConnection",
    "Tensor",
    "connect",
    "connect_sync",
]
