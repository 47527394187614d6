"""Memory: what things take, and giving freed memory back to the system."""

import ctypes
import sys
from typing import Any

import torch

# glibc's numbers for M_MMAP_THRESHOLD (32 MiB, its most), M_TRIM_THRESHOLD (free at the top of a thread's memory) and
# M_TOP_PAD (asked for at once)
MALLOC = {-3: 32 << 20, -1: 128 << 20, -2: 64 << 20}


def bytes_of(thing: Any) -> int:
    """The memory of a module's tensors, or what the thing itself says; 0 for what is small."""
    if isinstance(thing, torch.nn.Module):
        tensors = [*thing.parameters(), *thing.buffers()]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        return sum(storages.values())
    return int(getattr(thing, "nbytes", 0))


def keep_freed_memory() -> None:
    """Let malloc keep what a forward frees for the next one, once, for a process that does little else.

    Otherwise glibc returns a large forward's memory each time, and the next one waits for each of its pages to be
    zeroed again. What is kept goes with `give_back`, as ever.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        for option, value in MALLOC.items():
            mallopt(option, value)


def give_back() -> None:
    """Return what has been freed, which allocators keep for later."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Any:
    """A function that only glibc has; None elsewhere."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
