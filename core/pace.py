"""The pace of a denoiser: how long its forward takes by rows, and from how many rows on a bigger one gains nothing.

The more rows share a forward, the longer each of them waits for it. Up to some number that is paid back in rows a
second; beyond this knee it is not, so nobody should wait for a bigger batch.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from .gates import gate_of

FEWEST = 2  # rows of one picture with guidance
WORTH = 1.05  # a bigger forward must give so many times the rows a second
QUICK_S = 0.1
REPETITIONS = 3
TOKENS = 77  # of a prompt, as CLIP takes it
TOKENS_FOR_T5 = 256
TIME_IDS = 6  # of SDXL: the sizes that it is told


@dataclass(frozen=True)
class Pace:
    """Seconds of one forward by its rows, as measured; at least one entry."""

    measured: Mapping[int, float]

    @property
    def knee(self) -> int | None:
        """The most rows that are worth sharing a forward; None if only one number was tried.

        The fewest that give nearly as many rows a second as any number tried. But a forward so quick that nobody minds
        its wait is never split: what a busy machine made of the measurement must not cost speed for good.
        """
        if len(self.measured) < 2:
            return None
        best = max(rows / seconds for rows, seconds in self.measured.items())
        knee = min(rows for rows, seconds in self.measured.items() if rows / seconds * WORTH >= best)
        return max(knee, *(rows for rows, seconds in self.measured.items() if seconds <= QUICK_S or rows == FEWEST))

    def seconds(self, rows: int) -> float:
        """What a forward of so many rows takes: in proportion between those measured, by rows beyond them."""
        known = sorted(self.measured.items())
        if rows <= known[0][0]:
            return known[0][1]
        if rows >= known[-1][0]:
            return known[-1][1] * rows / known[-1][0]
        after = bisect_left(known, rows, key=lambda entry: entry[0])
        (low, seconds), (high, more) = known[after - 1], known[after]
        return seconds + (more - seconds) * (rows - low) / (high - low)


def measure(forward: Callable[[int], None], most_rows: int, budget_s: float) -> Pace | None:
    """Time forwards of two rows, four, and so on up to the most; a few rounds, of which the quickest counts.

    A size that would likely take more than what is left of the budget is left out, so a slow model costs little more
    than its smallest forward; and so is one for which memory runs out.

    Args:
        forward: Makes one forward of so many rows and waits for its end.

    Returns:
        None where not even the smallest one could be made.
    """
    end = perf_counter() + budget_s
    measured: dict[int, float] = {}
    most = max(most_rows, FEWEST)
    for _ in range(REPETITIONS):  # in rounds: what disturbs one moment disturbs no size each time
        rows, expected = FEWEST, 0.0
        while rows <= most and perf_counter() + expected <= end:
            try:
                begin = perf_counter()
                forward(rows)
                seconds = perf_counter() - begin
            except Exception:  # out of memory, whose kinds are many
                most = rows // 2
                break
            measured[rows] = min(seconds, measured.get(rows, seconds))
            rows, expected = 2 * rows, 2 * measured[rows]
    return Pace(measured) if measured else None


def measure_denoiser(module: Any, device: torch.device, most_rows: int, budget_s: float = 2.0) -> Pace | None:
    """The pace of a model's denoiser at its own size, with made-up inputs; on the engine's thread, in a run.

    Args:
        module: A UNet of Stable Diffusion 1.x, 2.x or SDXL, or a transformer of Stable Diffusion 3.
        device: Where it works.

    Returns:
        None for a denoiser of another kind, and where not even the smallest forward could be made.
    """
    if made_up_inputs(module, FEWEST, device) is None:
        return None
    gate = gate_of(module)
    call = module.forward if gate is None else gate.compiled or gate.forward

    def forward(rows: int) -> None:
        call(**(made_up_inputs(module, rows, device) or {}))
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return measure(forward, most_rows, budget_s)


def made_up_inputs(module: Any, rows: int, device: torch.device) -> dict[str, Any] | None:
    """Keyword arguments for a forward of a denoiser at its own size, as pipelines give them.

    None for a kind that is not known here.
    """
    config, dtype = module.config, module.dtype

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(rows, *shape, device=device, dtype=dtype)

    name = type(module).__name__
    size = config.get("sample_size")
    if not isinstance(size, int):
        return None
    inputs: dict[str, Any] = {"timestep": torch.full((rows,), 500.0, device=device), "return_dict": False}
    if name == "SD3Transformer2DModel":
        inputs["hidden_states"] = noise(config.in_channels, size, size)
        inputs["encoder_hidden_states"] = noise(TOKENS + TOKENS_FOR_T5, config.joint_attention_dim)
        inputs["pooled_projections"] = noise(config.pooled_projection_dim)
        return inputs
    if name != "UNet2DConditionModel" or not isinstance(config.cross_attention_dim, int) or config.class_embed_type:
        return None
    inputs["sample"] = noise(config.in_channels, size, size)
    inputs["encoder_hidden_states"] = noise(TOKENS, config.cross_attention_dim)
    if config.addition_embed_type == "text_time":  # SDXL
        width = config.projection_class_embeddings_input_dim - TIME_IDS * config.addition_time_embed_dim
        sizes = torch.full((rows, TIME_IDS), 8.0 * size, device=device, dtype=dtype)
        inputs["added_cond_kwargs"] = {"text_embeds": noise(width), "time_ids": sizes}
    elif config.addition_embed_type:
        return None
    return inputs
