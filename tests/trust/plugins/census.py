"""Command `census`: what the host's process has now of all that a job or a client could leave behind."""

import asyncio
import gc
import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil  # type: ignore[import-untyped]
from greenlet import greenlet

from latentwire import CommandContext, NoParams, PluginRegistry, hookimpl
from latentwire.core.jobs import Job
from latentwire.core.memory import give_back
from latentwire.core.run import Run
from latentwire.server.session import Session
from latentwire.server.websocket import HostWebSocket

CREWS = ("prepare", "finish")  # their threads come as they are needed and stay, too
COUNTED = {"jobs": Job, "runs": Run, "sessions": Session, "sockets": HostWebSocket}


def is_under_way(one: greenlet) -> bool:
    """Whether it has begun and not ended; a thread's own first greenlet, which has no parent, does not count."""
    return bool(one) and not one.dead and one.parent is not None


async def census(context: CommandContext, params: NoParams) -> dict[str, Any]:
    """Count tasks, threads, greenlets, file descriptors and the objects of jobs and clients."""
    gc.collect()
    give_back()
    everything = gc.get_objects()
    kinds = Counter({name: sum(isinstance(thing, kind) for thing in everything) for name, kind in COUNTED.items()})
    # a pool's threads come as they are needed and stay, up to the pool's bound
    pools = {f"{id(pool)}": pool for pool in everything if type(pool) is ThreadPoolExecutor}
    pooled = {thread for pool in pools.values() for thread in pool._threads}
    pooled |= {thread for thread in threading.enumerate() if thread.name in CREWS}
    result = {
        "tasks": len(asyncio.all_tasks()),
        "threads": sum(thread not in pooled for thread in threading.enumerate()),
        "pools": len(pools),
        "greenlets": sum(type(thing) is greenlet and is_under_way(thing) for thing in everything),
        "descriptors": len(os.listdir("/proc/self/fd")),
        **kinds,
    }
    memory = {"pool_threads": len(pooled), "memory": psutil.Process().memory_info().rss, "objects": len(everything)}
    return {"counted": result, **memory}


@hookimpl
def register(registry: PluginRegistry) -> None:
    registry.add_command("census", NoParams, census)
