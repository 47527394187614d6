"""What the benchmarks share: a host served in this process, and a plain pipeline on the same modules."""

import copy
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from latentwire import Host, Settings
from latentwire.core.build import PipelineBuild, assemble, pipeline_class
from latentwire.server.app import create_app
from latentwire.server.serve import server_config

PROMPT = "red apple on a blue background"


@contextmanager
def served_host(**settings: Any) -> Iterator[tuple[str, Host]]:
    """A warmed-up host on a free port of loopback, and its socket's address."""
    host = Host(Settings.model_validate({"discover": False, **settings}))
    server = uvicorn.Server(server_config(create_app(host)))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not (server.started and host.ready):
            time.sleep(0.05)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"ws://127.0.0.1:{port}/ws", host
    finally:
        server.should_exit = True
        thread.join()


def plain_pipeline(host: Host) -> Any:
    """An ordinary diffusers pipeline with modules of its own, without gates, and the host's default scheduler."""
    model = host.settings.defaults.model
    build = PipelineBuild(model, host.settings.defaults.scheduler, host.store.dtype_of(model))
    lease = host.store.lease(build)
    modules = {name: _without_gates(module) for name, module in lease.components.items()}
    scheduler = host.registry.schedulers["ddim"](lease.card.scheduler_config)
    pipeline = assemble(pipeline_class(lease.card.family, build), modules, scheduler, lease.device)
    host.store.release(lease)
    return pipeline


def _without_gates(component: Any) -> Any:
    if not hasattr(component, "modules"):
        return component
    forwards = {
        module: module.__dict__.pop("forward") for module in component.modules() if "forward" in module.__dict__
    }
    plain = copy.deepcopy(component)
    for module, forward in forwards.items():
        module.forward = forward
    return plain
