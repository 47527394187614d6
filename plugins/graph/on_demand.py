"""LoRAs and ControlNets that graphs name: those that are loaded, and those that a sampler loads when it needs them.

A node's name for the latter is that of their file or folder; they are kept under the path by which the host finds them,
so that they are never taken for what somebody has loaded under a name of their own choice.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from latentwire import Host, NodeContext

LORAS = ("loras",)
CONTROLNETS = ("controlnets", "control-loras")


def loras(host: Host) -> dict[str, str]:
    """All LoRAs by their names in graphs, each with the name that it has, or will have, in the store."""
    return _known(host, host.store.brought("adapter"), LORAS, "lora.load")


def controlnets(host: Host) -> dict[str, str]:
    """All ControlNets and ControlLoRAs, as `loras`."""
    return _known(host, host.store.brought("controlnet"), CONTROLNETS, "controlnet.load")


class OnDemand:
    """Loads what samplers need; each once, however many want it."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def load(self, context: NodeContext, model: str, adapters: Iterable[str], nets: Iterable[str]) -> None:
        """Load what is not loaded, for a model.

        Raises:
            LatentwireError: one cannot be loaded.
        """
        for name in adapters:
            await self._load(context, "lora.load", "adapter", {"path": name, "name": name, "model": model})
        for name in nets:
            path = "lora_weights_path" if name.endswith(".safetensors") else "path"
            await self._load(context, "controlnet.load", "controlnet", {path: name, "name": name, "model": model})

    async def _load(self, context: NodeContext, command: str, kind: Any, params: dict[str, Any]) -> None:
        store = context.host.store
        async with self._lock:
            if store.number_of(kind, params["name"]) is None:
                await context.host.dispatch(command, params, context.caller, lambda _: None)


def _known(host: Host, rows: Iterable[Mapping[str, Any]], folders: tuple[str, ...], command: str) -> dict[str, str]:
    found = host.weights_in(*folders) if command in host.registry.commands else {}
    of_files = set(found.values())
    return found | {row["name"]: row["name"] for row in rows if row["name"] not in of_files}
