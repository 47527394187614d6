"""Gates: a shared module's `forward`, replaced so that a run's call waits for the engine to make it.

The module keeps its class, so pipelines, isinstance checks and LoRA loading need nothing special. Called
from anywhere but a run (a test, a plain pipeline, a worker thread) the gate is the old forward.
"""

import functools
import inspect
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from greenlet import getcurrent, greenlet
from torch import nn
from torch.utils import _pytree as pytree

from .adapters import Weighted
from .batching import SPECS, UNSHARED, Batcher, BatchSpec, Parts, nothing
from .finite import is_finite
from .remembered import Remembered
from .requests import Mode
from .tiles import in_tiles

if TYPE_CHECKING:
    from .compiled import CompiledForward

REMEMBERED_BYTES = 128 << 20  # of one text encoder: 500 prompts of Stable Diffusion 1.5, 20 of SDXL's larger encoder


class Asker(Protocol):
    """What a gate may ask of the run whose call has come to it."""

    @property
    def mode(self) -> Mode: ...

    @property
    def adapters(self) -> Sequence[Weighted]: ...

    @property
    def controlnet_scales(self) -> Mapping[int, float]:
        """Those that were changed while it runs, by the id of the ControlNet."""


class RunGreenlet(greenlet):
    """The greenlet that one run's pipeline call lives in; its parent is the engine's loop.

    `asker` is the run. `memory` keeps what a gate need not compute twice in one run.
    """

    def __init__(self, call: Callable[[], Any], asker: Asker) -> None:
        super().__init__(call)
        self.asker = asker
        self.memory: dict[Any, Any] = {}


class Gate:
    """Stands in for one module's forward.

    Args:
        module: The module.
        component: What the pipeline calls it, by which adapters find their layers; a half of an autoencoder is `vae`.
    """

    def __init__(self, module: nn.Module, component: str = "") -> None:
        self.forward: Callable[..., Any] = module.forward
        self.component = component
        self.spec = SPECS.get(type(module).__name__, UNSHARED)
        self.batcher = Batcher(self.spec, self.forward) if self.spec.rows else None
        self.compiled: CompiledForward | None = None
        self.whole: Any = None  # what the module is a half of
        self._module = module

    @functools.cached_property
    def layers(self) -> dict[str, nn.Module]:
        """The module's layers by name."""
        return dict(self._module.named_modules())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        current = getcurrent()
        if isinstance(current, RunGreenlet) and current.parent is not None:
            return self.wait(current, args, kwargs)
        return self.forward(*args, **kwargs)

    def wait(self, run: RunGreenlet, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Hand a run's call to the engine; what comes back is its output."""
        return self.made(run, Waiting(self, args, kwargs))

    def in_tiles(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output, made with less memory and other bits; None for modules that cannot."""
        return None if self.whole is None else in_tiles(self.whole, self._module, args, kwargs)

    def made(self, run: RunGreenlet, waiting: "Waiting") -> Any:
        """Stop a run here until the engine has made its call."""
        assert run.parent is not None
        return run.parent.switch(waiting)


class ControlNetGate(Gate):
    """Spares a ControlNet what cannot change its output: hints embedded again, and forwards at scale 0.

    It also lets a ControlNet have a dtype of its own.
    """

    def __init__(self, module: Any, component: str = "") -> None:
        super().__init__(module, component)
        self._signature = inspect.signature(self.forward)
        self._embed = module.controlnet_cond_embedding.forward
        module.controlnet_cond_embedding.forward = self._embed_once
        # looked up once: the module's own properties walk through all its parts each time
        self._dtype = module.dtype
        self._channels = tuple(module.config.block_out_channels)
        self._hint_channels = module.config.conditioning_channels
        self._embeds_before = module.config.controlnet_conditioning_channel_order == "rgb"  # else the forward turns it
        self._layers_of_blocks = [(len(block.resnets), block.downsamplers is not None) for block in module.down_blocks]

    def wait(self, run: RunGreenlet, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self._signature.bind(*args, **kwargs).arguments
        sample, hint, as_tuple = call["sample"], call["controlnet_cond"], call.get("return_dict") is False
        changed = run.asker.controlnet_scales.get(id(self._module))
        if changed is not None and call.get("conditioning_scale"):  # 0: outside of its window
            call["conditioning_scale"] = changed
        if as_tuple and call.get("conditioning_scale") == 0:
            return self._silence(sample)
        call = {name: self._cast(value) for name, value in call.items()}
        if self._embeds_before:
            call["controlnet_cond"] = self._embedded(run, hint)
        output = super().wait(run, (), call)
        if self._dtype == sample.dtype or not as_tuple:
            return output
        down, mid = output
        return [residual.to(sample.dtype) for residual in down], mid.to(sample.dtype)

    def _cast(self, value: Any) -> Any:
        """Tensors of another floating dtype in the ControlNet's own."""
        if isinstance(value, dict):
            return {name: self._cast(part) for name, part in value.items()}
        wrong = isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != self._dtype
        return value.to(self._dtype) if wrong and value.dim() else value

    def _embedded(self, run: RunGreenlet, hint: torch.Tensor) -> torch.Tensor:
        """The hint's embedding; the pipeline gives the same tensor at each step."""
        known = run.memory.get((self, id(hint)))
        if known is None:
            # the hint itself keeps its id taken
            known = run.memory[self, id(hint)] = (hint, self._embed(self._cast(hint)))
        embedded: torch.Tensor = known[1]
        return embedded

    def _embed_once(self, conditioning: torch.Tensor) -> torch.Tensor:
        """In the ControlNet's forward: leave alone what is embedded already."""
        if conditioning.shape[1] == self._channels[0] != self._hint_channels:
            return conditioning
        embedded: torch.Tensor = self._embed(conditioning)
        return embedded

    def _silence(self, sample: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The residuals at scale 0, without a forward."""
        rows, _, height, width = sample.shape
        shapes = [(rows, self._channels[0], height, width)]
        for (layers, goes_down), wide in zip(self._layers_of_blocks, self._channels, strict=True):
            shapes += [(rows, wide, height, width)] * layers
            if goes_down:
                height, width = (height + 1) // 2, (width + 1) // 2
                shapes.append((rows, wide, height, width))
        # the last one is dense: several ControlNets add theirs to it in place
        return [nothing(shape, sample) for shape in shapes], sample.new_zeros((rows, self._channels[-1], height, width))


@dataclass(frozen=True, slots=True)
class Remark:
    """An output that a gate remembers, and whether it was computed alone, so that its bits depend on no neighbour."""

    output: Any
    alone: bool

    @property
    def nbytes(self) -> int:
        return sum(leaf.nbytes for leaf in pytree.tree_leaves(self.output) if isinstance(leaf, torch.Tensor))


class RememberingGate(Gate):
    """Spares a text encoder what it was asked before: the same ids and options, with the same adapters.

    What was computed alone serves everyone, what was computed in a shared forward only runs in mode fast.
    """

    def __init__(self, module: nn.Module, component: str = "") -> None:
        super().__init__(module, component)
        self._remembered = Remembered(REMEMBERED_BYTES, lambda remark: remark.nbytes)

    def wait(self, run: RunGreenlet, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        waiting = Waiting(self, args, kwargs)
        adapters = self._mine(run)
        asked = _ids_and_options(waiting.parts)
        if asked is None:
            return self.made(run, waiting)
        known: Remark | None = self._remembered.find((asked, adapters))
        if known is not None and (known.alone or run.asker.mode == "fast"):
            return _copy(known.output)
        output = self.made(run, waiting)
        # else a weight was changed while the call waited; and a fault of this one moment must not be remembered
        if self._mine(run) == adapters and _all_finite(output):
            self._remembered.keep((asked, adapters), Remark(_copy(output), waiting.alone))
        return output

    def forget(self) -> None:
        """Give the memory back that is taken by what it remembers."""
        self._remembered.clear()

    def _mine(self, run: RunGreenlet) -> tuple[Any, ...]:
        """The run's adapters that change this module, in their order, and their weights.

        By weak reference, so that neither is an unloaded one kept, nor a new one in its place taken for it.
        """
        adapters = run.asker.adapters
        return tuple((weakref.ref(adapter), weight) for adapter, weight in adapters if self.component in adapter.layers)


def _ids_and_options(parts: Parts | None) -> Any:
    """All that a call depends on, as a key; None where it holds more than ids, masks and plain values."""
    if parts is None:
        return None
    values = []
    for leaves in parts.leaves.values():
        for leaf in leaves:
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                return None
            values.append(leaf.cpu().numpy().tobytes() if isinstance(leaf, torch.Tensor) else leaf)
    return parts.rows, parts.key, tuple(values)


def _all_finite(output: Any) -> bool:
    tensors = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
    return all(is_finite(tensor) for tensor in tensors if tensor.is_floating_point())


def _copy(output: Any) -> Any:
    """The output in tensors of its own: not of the forward that it shared, nor of whoever else was given it."""
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, output)


class Waiting:
    """A call that waits at its gate. `alone` tells afterwards whether it ran as it came."""

    __slots__ = ("alone", "args", "gate", "kwargs", "parts")

    def __init__(self, gate: Gate, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.gate = gate
        self.args = args
        self.kwargs = kwargs
        self.alone = False
        self.parts: Parts | None = gate.batcher.take_apart(args, kwargs) if gate.batcher else None

    @property
    def spec(self) -> BatchSpec:
        return self.gate.spec

    def compiled(self, adapters: Sequence[Weighted]) -> "CompiledForward | None":
        """The compiled forward that may make this call, for a run with those adapters; never one in mode exact."""
        compiled = self.gate.compiled
        if compiled is None or self.parts is None or not compiled.takes(self.parts):
            return None
        return None if any(self.gate.component in adapter.layers for adapter, _ in adapters) else compiled

    def run(self) -> Any:
        """The call as it came. It may be made again, so lists are given as copies: a UNet empties one of residuals."""
        self.alone = True
        kwargs = {name: list(value) if isinstance(value, list) else value for name, value in self.kwargs.items()}
        return self.gate.forward(*self.args, **kwargs)

    def in_tiles(self) -> Any:
        """The call in tiles, for less memory; None where it cannot be."""
        return self.gate.in_tiles(self.args, self.kwargs)


def gate_of(module: nn.Module) -> Gate | None:
    """The gate before a module's forward; None where it has none."""
    gate = getattr(module.forward, "__wrapped_gate__", None)
    return gate if isinstance(gate, Gate) else None


def install_gate(module: nn.Module, component: str = "", whole: Any = None) -> None:
    """Put a gate before the module's forward, once.

    Args:
        whole: What the module is a half of.
    """
    if gate_of(module) is not None:
        return
    if type(module).__name__ == "ControlNetModel":
        gate: Gate = ControlNetGate(module, component)
    elif SPECS.get(type(module).__name__, UNSHARED).remembers:
        gate = RememberingGate(module, component)
    else:
        gate = Gate(module, component)

    gate.whole = whole

    @functools.wraps(gate.forward)  # keeps the signature, which pipelines inspect
    def forward(*args: Any, **kwargs: Any) -> Any:
        return gate(*args, **kwargs)

    forward.__wrapped_gate__ = gate  # type: ignore[attr-defined]
    module.forward = forward


def remove_gates(modules: Iterable[nn.Module]) -> None:
    """Give modules their own forwards back, which also ends the reference cycles that gates make."""
    for module in modules:
        for part in (module, getattr(module, "controlnet_cond_embedding", None)):
            if part is not None:
                part.__dict__.pop("forward", None)


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
