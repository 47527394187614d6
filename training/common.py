"""What the stages share: their options, the training loop, checkpoints without pickle, a progress bar."""

import argparse
import copy
import json
import os
from collections.abc import Callable, Iterator
from math import cos, pi
from pathlib import Path
from time import monotonic
from typing import TextIO, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

MODEL_DIR = Path(__file__).parents[1] / "models" / "emoji"


def parser(description: str | None, *, steps: int, batch: int, rate: float) -> argparse.ArgumentParser:
    """The options every stage takes."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--steps", type=int, default=steps)
    options.add_argument("--batch", type=int, default=batch)
    options.add_argument("--rate", type=float, default=rate, help="highest learning rate")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=MODEL_DIR, help="the model's folder")
    options.add_argument("--work", type=Path, default=Path("training-runs"), help="checkpoints, logs, samples")
    options.add_argument("--every", type=int, default=250, help="steps between checkpoints")
    return options


def pick_device() -> torch.device:
    """The GPU when there is one; the recipe is the same on both."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


Trained = TypeVar("Trained", bound=nn.Module)
Tensors = dict[str, torch.Tensor]


def fit(
    module: Trained,
    losses: Callable[[int], Tensors],
    folder: Path,
    options: argparse.Namespace,
    *,
    warmup: int,
    decay: float,
    weight_decay: float = 0.0,
    show: Callable[[Trained, int], None] | None = None,
) -> Trained:
    """Train those parameters of a module that want gradients, from the folder's checkpoint if it holds one.

    Args:
        losses: the losses of a step, by name, computed under bfloat16; the first one is to become small.
        warmup: steps until the learning rate is `options.rate`; from there it falls along a cosine.
        decay: of the moving average of the weights, by step.
        show: called at every checkpoint with a copy that has the averaged weights, and the number of steps done.

    Returns:
        a copy with the averaged weights.
    """
    trained: Tensors = {name: value for name, value in module.named_parameters() if value.requires_grad}
    average = {name: value.detach().clone() for name, value in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=options.rate, betas=(0.9, 0.99), weight_decay=weight_decay)
    checkpoint = folder / "checkpoint.safetensors"
    start = load_checkpoint(checkpoint, trained, average, optimizer)
    device = next(iter(trained.values())).device.type
    for step, log in track(start, options.steps, folder / "log.jsonl"):
        torch.manual_seed(seed_of(options, step))
        for group in optimizer.param_groups:
            group["lr"] = options.rate * cosine_rate(step, options.steps, warmup)
        with torch.autocast(device, torch.bfloat16):
            found = losses(step)
        optimizer.zero_grad()
        next(iter(found.values())).backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        keep = min(decay, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), list(trained.values()), 1 - keep)
        log.add(step, **{name: value.item() for name, value in found.items()})
        if (step + 1) % options.every == 0 or step + 1 == options.steps:
            save_checkpoint(checkpoint, step + 1, trained, average, optimizer)
            if show:
                show(with_weights(module, average), step + 1)
    return with_weights(module, average)


def seed_of(options: argparse.Namespace, step: int) -> int:
    """What everything random in a step begins from."""
    seed: int = options.seed * 1_000_003 + step
    return seed


def with_weights(module: Trained, weights: Tensors) -> Trained:
    """A copy of the module, for looking at and for keeping, with some of its weights replaced."""
    replaced = copy.deepcopy(module).eval().requires_grad_(False)
    replaced.load_state_dict(weights, strict=False)
    return replaced


def save_checkpoint(
    path: Path, step: int, trained: Tensors, average: Tensors, optimizer: torch.optim.Optimizer
) -> None:
    """Write everything that a resumed run needs, by rename, as safetensors."""
    tensors = {f"trained.{k}": v for k, v in trained.items()} | {f"average.{k}": v for k, v in average.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file({k: v.contiguous() for k, v in tensors.items()}, part, metadata={"step": str(step)})
    os.replace(part, path)


@torch.no_grad()
def load_checkpoint(path: Path, trained: Tensors, average: Tensors, optimizer: torch.optim.Optimizer) -> int:
    """Restore a run in place; the number of steps already done (0 when there is no checkpoint)."""
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        step = int(file.metadata()["step"])
    state: dict[int, Tensors] = {}
    for name, parameter in trained.items():
        parameter.copy_(tensors[f"trained.{name}"])
        average[name].copy_(tensors[f"average.{name}"])
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    print(f"resumed {path} at step {step}")
    return step


def tidy_config(folder: Path) -> None:
    """Take out of a saved component's config what diffusers puts there and does not want back: paths, for one."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config.pop("_name_or_path", None)
    if config["_class_name"] == "AutoencoderTiny":
        config.pop("block_out_channels", None)
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def track(start: int, steps: int, log: Path) -> Iterator[tuple[int, "Log"]]:
    """Count steps under a progress bar; what is written to the log survives as JSON lines."""
    log.parent.mkdir(parents=True, exist_ok=True)
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    log.write_text("".join(line for line in lines if json.loads(line)["step"] <= start))  # the rest is done again
    with tqdm(total=steps, initial=start, unit="step", mininterval=5) as bar, log.open("a") as file:
        writer = Log(bar, file)
        for step in range(start, steps):
            yield step, writer
            bar.update()


class Log:
    """Losses, averaged over 50 steps, shown beside the bar and kept as one JSON line each."""

    def __init__(self, bar: tqdm, file: TextIO) -> None:
        self._bar = bar
        self._file = file
        self._sums: dict[str, float] = {}
        self._count = 0
        self._begin = monotonic()

    def add(self, step: int, **values: float) -> None:
        """Take note of a step's losses."""
        self._count += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        if self._count == 50:
            means = {name: round(total / 50, 5) for name, total in self._sums.items()}
            self._bar.set_postfix(means)
            seconds = round((monotonic() - self._begin) / 50, 3)
            print(json.dumps({"step": step + 1, **means, "seconds_per_step": seconds}), file=self._file, flush=True)
            self._sums, self._count, self._begin = {}, 0, monotonic()


def cosine_rate(step: int, steps: int, warmup: int) -> float:
    """Learning-rate factor: linear warm-up, then a cosine down to a twentieth."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.05 + 0.95 * 0.5 * (1 + cos(pi * (step - warmup) / max(1, steps - warmup)))
