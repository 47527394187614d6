"""Gates: a shared module's `forward`, replaced so that a run's call waits for the engine to make it.

The module keeps its class, so pipelines, isinstance checks and LoRA loading need nothing special. Called
from anywhere but a run (a test, a plain pipeline, a worker thread) the gate is the old forward.
"""

import functools
from collections.abc import Callable
from typing import Any

from greenlet import getcurrent, greenlet
from torch import nn

from .batching import SPECS, Batcher, BatchSpec, Parts


class RunGreenlet(greenlet):
    """The greenlet that one run's pipeline call lives in; its parent is the engine's loop."""


class Gate:
    """Stands in for one module's forward."""

    def __init__(self, module: nn.Module) -> None:
        self.forward: Callable[..., Any] = module.forward
        self.spec = SPECS.get(type(module).__name__, BatchSpec(rows=""))
        self.batcher = Batcher(self.spec, self.forward) if self.spec.rows else None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        current = getcurrent()
        if isinstance(current, RunGreenlet) and current.parent is not None:
            return current.parent.switch(Waiting(self, args, kwargs))
        return self.forward(*args, **kwargs)


class Waiting:
    """A call that waits at its gate."""

    __slots__ = ("args", "gate", "kwargs", "parts")

    def __init__(self, gate: Gate, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.gate = gate
        self.args = args
        self.kwargs = kwargs
        self.parts: Parts | None = gate.batcher.take_apart(args, kwargs) if gate.batcher else None

    @property
    def spec(self) -> BatchSpec:
        return self.gate.spec

    def run(self) -> Any:
        """The call as it came."""
        return self.gate.forward(*self.args, **self.kwargs)


def install_gate(module: nn.Module) -> None:
    """Put a gate before the module's forward, once."""
    if isinstance(getattr(module.forward, "__wrapped_gate__", None), Gate):
        return
    gate = Gate(module)

    @functools.wraps(gate.forward)  # keeps the signature, which pipelines inspect
    def forward(*args: Any, **kwargs: Any) -> Any:
        return gate(*args, **kwargs)

    forward.__wrapped_gate__ = gate  # type: ignore[attr-defined]
    module.forward = forward


def gated_parts(component: Any) -> list[nn.Module]:
    """The modules of a pipeline's component whose forwards are worth a gate.

    An autoencoder is called through `encode` and `decode`, so its gates are on its two halves.
    """
    if not isinstance(component, nn.Module):
        return []
    halves = [getattr(component, name, None) for name in ("encoder", "decoder")]
    if hasattr(component, "decode") and all(isinstance(half, nn.Module) for half in halves):
        return [half for half in halves if isinstance(half, nn.Module)]
    return [component]
