"""CPU offload: a model's large components take turns on the device, for GPUs that cannot hold them all."""

from typing import Any
from weakref import WeakSet

import torch
from accelerate.hooks import CpuOffload, add_hook_to_module


class TakeTurns(CpuOffload):  # type: ignore[misc]  # accelerate has no types
    """Brings its module to the device before a forward, and the model's others back to the CPU.

    The autoencoder stays once it was there: its halves are forwards of their own, with work in between.
    """

    def __init__(self, device: torch.device, group: "WeakSet[torch.nn.Module]") -> None:
        super().__init__(execution_device=device)
        self._group = group

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        for other in list(self._group):  # a load may add to it
            if other is not module:
                torch.nn.Module.to(other, "cpu")
        return super().pre_forward(module, *args, **kwargs)


def offload(module: torch.nn.Module, component: str, device: torch.device, group: "WeakSet[torch.nn.Module]") -> None:
    """Let a component, which is on the CPU, come to the device only when it is called.

    Args:
        group: The same model's components that take turns; this one joins them.
    """
    if component != "vae":
        group.add(module)
    add_hook_to_module(module, TakeTurns(device, group))
