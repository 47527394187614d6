"""A plugin for benchmarks/soak.py: what the host's process holds on to, and a hook that fails when it is asked to."""

import asyncio
import gc
import os
import re
import threading
from typing import Any

import greenlet
import torch

from latentwire import CallContext, CommandContext, NoParams, PluginRegistry, hookimpl


@hookimpl
def register(registry: PluginRegistry) -> None:
    registry.add_command("soak.counts", NoParams, counts)


@hookimpl
def modify_call(context: CallContext) -> None:
    if "fail" in context.request.prompt:
        raise RuntimeError("this plugin fails when it is asked to")


async def counts(context: CommandContext, params: NoParams) -> dict[str, Any]:
    """Count what a leak would leave behind."""
    gc.collect()
    things = gc.get_objects()
    return {
        "tasks": len(asyncio.all_tasks()),
        "threads": sum(re.search(r"_\d+$", thread.name) is None for thread in threading.enumerate()),  # not of pools
        "pooled": threading.active_count(),
        "greenlets": sum(isinstance(thing, greenlet.greenlet) and not thing.dead for thing in things),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "tensors": sum(issubclass(type(thing), torch.Tensor) for thing in things),
    }
