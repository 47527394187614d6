"""Which forwards may be one: several calls of a module merged into one, and the output split again.

A call's rows are the entries along dimension 0 of its batched tensors: two for a picture with guidance.
Calls may merge when everything but the contents of their rows is equal, which their `key` tells.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.utils import _pytree as pytree

LEAF = pytree.tree_structure(0)
BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
LOOSE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """How a module's forward takes batches.

    Attributes:
        rows: The argument whose first dimension counts the rows.
        scalars: Arguments given once a call that the module also takes as one value a row.
        factors: Arguments given once a call that scale the output, so that the module takes one value a row as well,
            shaped `(rows, 1, 1, 1)`; not in guess mode, which makes others of them.
        zero_filled: Tensor arguments whose absence means zeros; where the first one is `nothing`, all are left out.
        prepares: It makes a run ready for a denoising step, so the engine lets it go before those who are ready.
        bucketed: In mode reproducible it runs at a fixed number of rows. The others run each call alone.
        per_latent: Positions of its input to one latent pixel.
        most_rows: More than so many rows in one forward gain nothing and cost memory.
        paints: It makes pixels, which must be finite.
        remembers: What it gave for some token ids is kept, since it is likely asked the same again.
    """

    rows: str
    scalars: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()
    zero_filled: tuple[str, ...] = ()
    prepares: bool = False
    bucketed: bool = False
    per_latent: int = 1
    most_rows: int = 1 << 30
    paints: bool = False
    remembers: bool = False


UNSHARED = BatchSpec(rows="")
"""Calls run one by one."""

# by class name; any other module is UNSHARED
SPECS: dict[str, BatchSpec] = {
    "UNet2DConditionModel": BatchSpec(
        rows="sample",
        scalars=("timestep",),
        zero_filled=("down_block_additional_residuals", "mid_block_additional_residual"),
        bucketed=True,
    ),
    "SD3Transformer2DModel": BatchSpec(rows="hidden_states", bucketed=True),
    "ControlNetModel": BatchSpec(
        rows="sample", scalars=("timestep",), factors=("conditioning_scale",), prepares=True, bucketed=True
    ),
    "CLIPTextModel": BatchSpec(rows="input_ids", prepares=True, remembers=True),
    "CLIPTextModelWithProjection": BatchSpec(rows="input_ids", prepares=True, remembers=True),
    "T5EncoderModel": BatchSpec(rows="input_ids", prepares=True, remembers=True),
    "Encoder": BatchSpec(rows="sample", prepares=True, per_latent=64, most_rows=4),
    "Decoder": BatchSpec(rows="sample", most_rows=4, paints=True),
}


@dataclass(slots=True)
class Parts:
    """A call taken apart: for each argument its structure and leaves; leaves that are tensors hold rows.

    `positions` are the latent pixels of one row (an encoder's: pixels), 1 for rows that are no pictures. `key` must be
    equal for calls to merge, `filled` too unless one of them is empty: it stands for the zero-filled arguments.
    """

    rows: int
    positions: int
    structures: dict[str, Any]
    leaves: dict[str, list[Any]]
    key: tuple[Any, ...]
    filled: tuple[Any, ...]

    def fits(self, other: "Parts") -> bool:
        """Whether the two may share a forward."""
        return self.key == other.key and (not self.filled or not other.filled or self.filled == other.filled)


class Batcher:
    """Takes calls of one module apart, and puts them together as one."""

    def __init__(self, spec: BatchSpec, forward: Callable[..., Any]) -> None:
        self.spec = spec
        parameters = inspect.signature(forward).parameters.values()
        self._names = [parameter.name for parameter in parameters if parameter.kind in BY_POSITION]
        self._known = {parameter.name: None for parameter in parameters if parameter.kind not in LOOSE}
        self._takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)

    def take_apart(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Parts | None:
        """The call's parts; None where it can only run alone: a tensor has no rows, or its arguments are wrong."""
        arguments = self._by_name(args, kwargs)
        first = arguments.get(self.spec.rows)
        if not isinstance(first, torch.Tensor) or first.dim() == 0:
            return None
        rows = first.shape[0]
        structures: dict[str, Any] = {}
        leaves: dict[str, list[Any]] = {}
        key: list[Any] = []
        filled: list[Any] = []
        silent = self.spec.zero_filled if _is_nothing(arguments, self.spec) else ()
        # in half precision a factor of a row would be rounded, and one of the whole call is not
        factors = self.spec.factors if first.dtype == torch.float32 and not arguments.get("guess_mode") else ()
        for name, value in arguments.items():
            if value is None or name in silent:
                continue
            if name in self.spec.scalars:
                value = torch.as_tensor(value, dtype=torch.float32, device=first.device).expand(rows)
            elif name in factors:
                value = torch.as_tensor(value, dtype=torch.float32, device=first.device).expand(rows, 1, 1, 1)
            if isinstance(value, torch.Tensor):  # as most are; what follows would give the same
                if value.shape[:1] != first.shape[:1]:
                    return None
                leaves[name], structures[name] = [value], LEAF
                kind: tuple[Any, ...] = (name, LEAF, _kind(value))
            else:
                leaves[name], structures[name] = pytree.tree_flatten(value)
                if not all(_may_merge(leaf, rows) for leaf in leaves[name]):
                    return None
                kind = (name, structures[name], *map(_kind, leaves[name]))
            (filled if name in self.spec.zero_filled else key).append(kind)
        return Parts(rows, prod(first.shape[2:]), structures, leaves, tuple(key), tuple(filled))

    def _by_name(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments in the order of the signature, which takes a tenth of the time that `inspect` takes.

        Empty for those that the module does not take: it says so best itself.
        """
        given = dict(zip(self._names, args, strict=False)) | kwargs
        more = {name: value for name, value in given.items() if name not in self._known}
        if len(given) < len(args) + len(kwargs) or (more and not self._takes_any):
            return {}
        return {name: given[name] for name in self._known if name in given} | more

    def put_together(self, calls: Sequence[Parts], rows: int) -> dict[str, Any]:
        """Keyword arguments for one forward over all calls' rows, the last row repeated up to `rows`."""
        padding = rows - sum(call.rows for call in calls)
        names = {name: call for call in calls for name in call.leaves}
        merged = {}
        for name, model in names.items():
            columns = [call.leaves.get(name) or _zeros(model, name, call.rows) for call in calls]
            leaves = [
                _join(column, padding) if isinstance(column[0], torch.Tensor) else column[0]
                for column in zip(*columns, strict=True)
            ]
            structure = model.structures[name]
            merged[name] = leaves[0] if structure is LEAF else pytree.tree_unflatten(leaves, structure)
        return merged


def nothing(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """Zeros of a shape, in the memory of one; a merged forward that is given them need not add them."""
    return like.new_zeros(()).expand(tuple(shape))


def _is_nothing(arguments: dict[str, Any], spec: BatchSpec) -> bool:
    """Whether the first of the zero-filled arguments is given and made of `nothing`."""
    value = arguments.get(spec.zero_filled[0]) if spec.zero_filled else None
    leaves = pytree.tree_leaves(value) if value is not None else []
    return bool(leaves) and all(isinstance(leaf, torch.Tensor) and not any(leaf.stride()) for leaf in leaves)


def split(output: Any, rows: Sequence[int]) -> list[Any]:
    """The output of one forward as one output a call; rows beyond theirs (padding) are dropped."""
    leaves, structure = pytree.tree_flatten(output)
    results, begin = [], 0
    for count in rows:
        mine = [leaf[begin : begin + count] if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        results.append(pytree.tree_unflatten(mine, structure))
        begin += count
    return results


def _may_merge(leaf: Any, rows: int) -> bool:
    """Whether a leaf holds one entry a row, or is a plain value that can be compared."""
    if isinstance(leaf, torch.Tensor):
        return leaf.shape[:1] == (rows,)
    return leaf is None or isinstance(leaf, bool | int | float | str)


def _kind(leaf: Any) -> Any:
    """What must be equal of a leaf: all but the rows' contents."""
    return (leaf.shape[1:], leaf.dtype, leaf.device) if isinstance(leaf, torch.Tensor) else leaf


def _zeros(model: Parts, name: str, rows: int) -> list[torch.Tensor]:
    """What a call would have given that left a zero-filled argument out."""
    return [leaf.new_zeros((rows, *leaf.shape[1:])) for leaf in model.leaves[name]]


def _join(tensors: Sequence[torch.Tensor], padding: int) -> torch.Tensor:
    if padding:
        tensors = [*tensors, tensors[-1][-1:].expand(padding, *tensors[-1].shape[1:])]
    return torch.cat(list(tensors))
