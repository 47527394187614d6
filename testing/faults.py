"""Faults, put into a host's models for a while: what does a plugin do when memory runs out in the third step?"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ..core.host import Host

Fault = BaseException | Callable[[Any], Any]
"""What a forward raises, or what it makes of its output."""


@contextmanager
def fault_in(host: "Host", component: str, fault: Fault, at: int = 1, times: int | None = None) -> Iterator[None]:
    """Let forwards of a module of the default model fail.

    Args:
        component: `unet`, `text_encoder`, or a half of the autoencoder: `vae.encoder`, `vae.decoder`.
        fault: An exception to raise, or a function that is given the forward's output and gives another.
        at: The first forward that fails, counted from 1.
        times: So many fail; all that follow, if left out.
    """
    from ..core.gates import gate_of

    name, _, half = component.partition(".")
    with host.store.leased(host.settings.defaults.model) as lease:
        module = getattr(lease.components[name], half) if half else lease.components[name]
        gate = gate_of(module)
        assert gate is not None, (
            f"{component!r} is called by no gate; the autoencoder is by its halves, vae.decoder say"
        )
        real, made = gate.forward, 0

        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal made
            made += 1
            fails = made >= at and (times is None or made < at + times)
            if fails and isinstance(fault, BaseException):
                raise fault
            output = real(*args, **kwargs)
            return fault(output) if fails and callable(fault) else output

        gate.forward = forward
        try:
            yield
        finally:
            gate.forward = real


def out_of_memory() -> "torch.OutOfMemoryError":
    """What torch raises where a device has no memory left."""
    import torch

    return torch.OutOfMemoryError("out of memory, on purpose")


def with_nan(output: Any) -> Any:
    """An output with all its tensors NaN; a fault for `fault_in`."""
    import torch
    from torch.utils import _pytree as pytree

    return pytree.tree_map(lambda leaf: leaf * float("nan") if isinstance(leaf, torch.Tensor) else leaf, output)
