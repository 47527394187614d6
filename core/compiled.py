"""A denoiser's forward, compiled once for its own size and any number of rows.

Compiling takes a minute or two, so it is a part of loading, and nothing is ever compiled later: a call that the
compiled code does not take (another size, a ControlNet's residuals, a LoRA) runs as it always did. Mode exact never
comes here.
"""

import logging
import threading
from contextlib import suppress
from time import perf_counter
from typing import Any

import torch
from torch.utils import _pytree as pytree

from .batching import Parts
from .errors import InternalError
from .gates import Gate, gate_of
from .pace import FEWEST, made_up_inputs

log = logging.getLogger(__name__)

COMPILING_S = 60.0  # after which no further number of rows is begun

_ran = threading.local()
"""`times`: how often compiled code has run in this thread."""


class CompiledForward:
    """Stands in for the forward of one gate, for calls of the model's own size.

    Args:
        gate: The denoiser's.
        module: The denoiser.
        device: Where it works.
        most_rows: Of one forward. It takes as many of them as can be compiled, and tried, in some time.

    Raises:
        Exception: of many kinds, where the denoiser, or this machine, does not allow it.
    """

    def __init__(self, gate: Gate, module: Any, device: torch.device, most_rows: int) -> None:
        inputs = made_up_inputs(module, FEWEST, device)
        parts = gate.batcher.take_apart((), inputs) if inputs and gate.batcher else None
        if parts is None:
            raise ValueError(f"a {type(module).__name__} of this configuration is not known here")
        self.forwards = 0
        self._key = parts.key
        self._most_rows = 0
        compiled = torch.compile(gate.forward, backend=_inductor, fullgraph=True)
        self._forward = torch._dynamo.run(compiled)  # uses what is there, and compiles nothing more
        _compile_at(compiled, module, 2 * FEWEST, device)  # two would be taken for a number that never changes
        rows, end = FEWEST, perf_counter() + COMPILING_S
        while rows <= most_rows and perf_counter() < end:
            if not self._covers(module, rows, device):
                if not self._most_rows:
                    raise ValueError("what was compiled does not take the rows of one picture")
                _compile_at(compiled, module, rows, device)  # some kernels are chosen by the number of rows
                if not self._covers(module, rows, device):
                    break
            self._most_rows = rows
            rows *= 2
        self.forwards = 0

    def takes(self, parts: Parts) -> bool:
        """Whether a call is of the kind that was compiled."""
        return parts.key == self._key and not parts.filled

    def fits(self, rows: int) -> bool:
        """Whether a forward may have so many rows."""
        return FEWEST <= rows <= self._most_rows

    def __call__(self, strict: bool = False, **arguments: Any) -> Any:
        """One forward of calls that it takes.

        Args:
            strict: Its bits matter.

        Raises:
            InternalError: `strict`, and it did not run compiled after all.
        """
        before = _times_ran()
        output = self._forward(**pytree.tree_map_only(torch.Tensor, torch.Tensor.contiguous, arguments))
        if _times_ran() > before:
            self.forwards += 1
        elif strict:
            raise InternalError("a compiled forward did not run so; set models.NAME.compile to false, and tell us")
        return output

    def _covers(self, module: Any, rows: int, device: torch.device) -> bool:
        """Whether what has been compiled takes so many rows."""
        with suppress(InternalError):
            self(strict=True, **(made_up_inputs(module, rows, device) or {}))
            return True
        return False


def compile_denoiser(module: Any, device: torch.device, most_rows: int, model: str) -> None:
    """Compile the forward of a denoiser with a gate, or say in the log why it stays as it is; blocks.

    Others may use the device meanwhile.

    Args:
        model: Its model's name, for the log.
    """
    gate = gate_of(module)
    assert gate is not None
    log.info("compiling the denoiser of model %s; this takes a minute or two, and seconds the next time", model)
    begin = perf_counter()

    def work() -> None:
        try:
            with torch.inference_mode():  # as on the engine's thread
                gate.compiled = CompiledForward(gate, module, device, most_rows)
        except Exception as error:
            reason = " ".join(str(error).split())[:500]
            log.warning("the denoiser of model %s is not compiled, and runs as it is: %s", model, reason)
        else:
            log.info("compiled the denoiser of model %s after %.0f s", model, perf_counter() - begin)

    # in a thread that has all cores, as the engine's: how many there are is a part of the compiled code
    thread = threading.Thread(target=work, name="compile")
    thread.start()
    thread.join()


def _compile_at(compiled: Any, module: Any, rows: int, device: torch.device) -> None:
    """Compile for so many rows, and as many others as the same code is good for."""
    inputs = made_up_inputs(module, rows, device) or {}
    for leaf in pytree.tree_leaves(inputs):
        if isinstance(leaf, torch.Tensor):
            torch._dynamo.mark_dynamic(leaf, 0)
    compiled(**inputs)


def _inductor(graph: Any, inputs: Any) -> Any:
    """torch's own compiler, with a count of how often its code runs. One function for all: code may be shared."""
    code = torch._dynamo.lookup_backend("inductor")(graph, inputs)

    def run(*arguments: Any) -> Any:
        _ran.times = _times_ran() + 1
        return code(*arguments)

    return run


def _times_ran() -> int:
    times: int = getattr(_ran, "times", 0)
    return times
