"""Looks for NaN and infinite values as soon as they can be there, at the price of one reduction a step."""

import torch

from .errors import NotFinite

ADVICE = "try dtype float32 or bfloat16 for this model, a lower guidance_scale or another scheduler"


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite; waits for the device."""
    # a sum is ten times as quick as looking at each value, and cannot miss one; only it may itself be too large
    return _is_number(float(tensor.sum(dtype=torch.float32))) or bool(tensor.isfinite().all())


class FiniteWatch:
    """Looks at the latents of one picture after each of its steps.

    On a GPU it learns of a step when the next one has been queued, so that the device never waits for it.
    """

    def __init__(self) -> None:
        self._sum: torch.Tensor | None = None  # of the step before, on its way from the GPU
        self._arrived: torch.cuda.Event | None = None

    def look(self, step: int, steps: int, latents: torch.Tensor) -> None:
        """Look at the latents of a step that is over.

        Raises:
            NotFinite: they hold NaN or infinite values, or those of the step before did.
        """
        if latents.device.type != "cuda":
            if not is_finite(latents):
                raise _found(step, steps)
            return
        if self._arrived is None or self._sum is None:
            self._sum, self._arrived = torch.empty((), pin_memory=True), torch.cuda.Event()
        else:
            self._arrived.synchronize()
            if not _is_number(float(self._sum)) and not is_finite(latents):
                raise _found(step - 1, steps)
        self._sum.copy_(latents.sum(dtype=torch.float32), non_blocking=True)
        self._arrived.record()


def not_finite(what: str) -> NotFinite:
    """The error that says what holds such values, and what to do."""
    return NotFinite(f"{what} NaN or infinite values; {ADVICE}")


def _found(step: int, steps: int) -> NotFinite:
    return not_finite(f"after step {step} of {steps} the latents hold")


def _is_number(value: float) -> bool:
    return value - value == 0
