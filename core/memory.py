"""Memory: what things take, and giving freed memory back to the system."""

import ctypes
import sys
from typing import Any

import torch


def bytes_of(thing: Any) -> int:
    """The memory of a module's tensors, or what the thing itself says; 0 for what is small."""
    if isinstance(thing, torch.nn.Module):
        tensors = [*thing.parameters(), *thing.buffers()]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        return sum(storages.values())
    return int(getattr(thing, "nbytes", 0))


def give_back() -> None:
    """Return what has been freed, which allocators keep for later."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)
