"""Which faults are the memory's and which the device's, whatever libraries call them, and what a client is told."""

import errno
import re

import torch

from .errors import EngineRestarted, JobFailed, LatentwireError, OutOfMemory

MEMORY = re.compile(r"out of memory|can't allocate memory|cannot allocate memory|_ALLOC_FAILED", re.I)
# Nothing on the device goes on after these. A launch that was merely refused is none: odd input may bring that about.
DEVICE = re.compile(
    r"\s*(CUDA|HIP|cuDNN|cuBLAS|CUDNN|CUBLAS|MPS)[ _].*?("  # first in the text: the rest may quote anything
    r"illegal (memory access|address|instruction)|device-side assert|unspecified launch failure|misaligned address|"
    r"launch timed out|hardware stack error|uncorrectable ECC|device(s)? (is|are) (lost|busy or unavailable)|"
    r"STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR))",
    re.I | re.S,
)
REFUSED = re.compile(
    r"invalid (configuration |device )?(argument|ordinal|function)|not supported|no kernel image", re.I
)
ASKED = re.compile(r"tried to allocate ([\d.]+ ?\w+)", re.I)


def is_memory(error: BaseException | None) -> bool:
    """Whether there was not enough memory, on the device or in the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | OutOfMemory):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and MEMORY.search(str(error)) is not None


def is_device(error: BaseException | None) -> bool:
    """Whether the device is in a state in which nothing that follows can be trusted."""
    if is_memory(error):
        return False
    if isinstance(error, torch.AcceleratorError):
        return REFUSED.search(str(error)) is None
    return isinstance(error, RuntimeError) and DEVICE.match(str(error)) is not None


def typed(error: BaseException, picture: str = "") -> LatentwireError:
    """What a job's client is told of whatever was raised.

    Args:
        picture: What was being made, such as `512x512`.
    """
    if isinstance(error, LatentwireError):
        return error
    if is_memory(error):
        asked = ASKED.search(str(error))
        what = f"{asked[1]} more were asked for" if asked else "the allocation failed"
        return OutOfMemory(
            f"out of memory{f' for a picture of {picture} pixels' if picture else ''}: {what}, also after what can be "
            "freed was freed; ask for a smaller picture, or fewer at a time, or let the host's owner set vae_tiling, "
            "cpu_offload or a smaller dtype for the model"
        )
    if is_device(error):
        return restarted(error)
    return JobFailed(f"the pipeline failed: {type(error).__name__}: {error}")


def restarted(error: BaseException) -> EngineRestarted:
    """What the jobs under way are told of a fault of the device."""
    first = str(error).strip().partition("\n")[0]
    return EngineRestarted(
        f"the device failed ({type(error).__name__}: {first:.200}), so the engine is started anew; send it again"
    )
