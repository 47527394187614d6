"""Adapters (LoRAs) as values beside a module, never inside it: each forward adds what its rows ask for.

Hu et al. 2021, "LoRA": a layer's output plus `up(down(x)) * weight * alpha / rank`. Hooks on the layers add it for
the length of one forward, row by row, so rows with different adapters, or none, share that forward, and nothing of
the base is ever changed or wrapped. The sums are those of peft's layers, bit for bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class LowRank:
    """What an adapter adds to one layer.

    Attributes:
        down: `(rank, inputs)` of a linear layer, `(rank, inputs, kh, kw)` of a convolution.
        up: `(outputs, rank)`, or `(outputs, rank, 1, 1)`.
        scale: alpha / rank.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float

    def fits(self, layer: nn.Module) -> bool:
        """Whether the layer is of the kind and shape that this was trained for."""
        if isinstance(layer, nn.Linear):
            shapes = (self.down.shape[1:], self.up.shape[:1]) == ((layer.in_features,), (layer.out_features,))
            return shapes and self.down.dim() == self.up.dim() == 2 and self.up.shape[1] == self.down.shape[0]
        if isinstance(layer, nn.Conv2d):
            wanted = ((layer.in_channels, *layer.kernel_size), (layer.out_channels, self.down.shape[0], 1, 1))
            return layer.groups == 1 and (self.down.shape[1:], self.up.shape) == wanted
        return False

    def added(self, layer: nn.Module, inputs: torch.Tensor, weight: float) -> torch.Tensor:
        """What is added to the layer's output for these inputs."""
        scale = weight * self.scale
        if isinstance(layer, nn.Conv2d):
            low = functional.conv2d(inputs, self.down, None, layer.stride, layer.padding, layer.dilation)
            change = functional.conv2d(low, self.up)
            return change if scale == 1 else change.mul_(scale)
        rows = inputs.reshape(-1, inputs.shape[-1])  # as torch does where weights could be trained, such as peft's
        change = functional.linear(functional.linear(rows, self.down), self.up)
        if scale != 1:
            change.mul_(scale)
        return change.view(*inputs.shape[:-1], -1)


@dataclass(frozen=True, eq=False)
class Adapter:
    """One LoRA: component (`unet`, `text_encoder`, ...) -> layer's name in it -> what it adds there."""

    layers: Mapping[str, Mapping[str, LowRank]]

    @property
    def nbytes(self) -> int:
        """Memory of its tensors."""
        parts = [part for layers in self.layers.values() for part in layers.values()]
        return sum(part.down.nbytes + part.up.nbytes for part in parts)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Adapter":
        """The same adapter there, in that dtype; always a copy, since what was read may lie in the file's own pages."""
        return Adapter(
            {
                component: {
                    name: LowRank(
                        part.down.to(device, dtype, copy=True), part.up.to(device, dtype, copy=True), part.scale
                    )
                    for name, part in layers.items()
                }
                for component, layers in self.layers.items()
            }
        )


Weighted = tuple[Adapter, float]
"""An adapter and its weight."""


@contextmanager
def added(
    component: str, layers: Mapping[str, nn.Module], rows: Sequence[tuple[int, Sequence[Weighted]]]
) -> Iterator[None]:
    """While the block runs, forwards of a component get what its rows' adapters add.

    Args:
        layers: The component's layers by name.
        rows: For each group of neighbouring rows how many they are, and their adapters.
    """
    plan: dict[str, list[tuple[slice, LowRank, float]]] = {}
    begin = 0
    for count, adapters in rows:
        mine = slice(None) if len(rows) == 1 else slice(begin, begin + count)
        for adapter, weight in adapters:
            for name, part in adapter.layers.get(component, {}).items():
                plan.setdefault(name, []).append((mine, part, weight))
        begin += count
    with ExitStack() as hooks:
        for name, parts in plan.items():
            hooks.callback(layers[name].register_forward_hook(_hook(parts)).remove)
        yield


def _hook(parts: Sequence[tuple[slice, LowRank, float]]) -> Callable[[nn.Module, Any, torch.Tensor], torch.Tensor]:
    def add(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        for mine, part, weight in parts:
            output[mine].add_(part.added(layer, inputs[0][mine], weight))
        return output

    return add
