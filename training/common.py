"""What the stages share: the device, checkpoints without pickle, a moving average, a progress bar."""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import TextIO

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

MODEL_DIR = Path(__file__).parents[1] / "models" / "emoji"


def parser(description: str, *, steps: int, batch: int) -> argparse.ArgumentParser:
    """The options every stage takes."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--steps", type=int, default=steps)
    options.add_argument("--batch", type=int, default=batch)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=MODEL_DIR, help="the model's folder")
    options.add_argument("--work", type=Path, default=Path("training-runs"), help="checkpoints, logs, samples")
    options.add_argument("--every", type=int, default=250, help="steps between checkpoints")
    return options


def pick_device() -> torch.device:
    """The GPU when there is one; the recipe is the same on both."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class MovingAverage:
    """An exponential moving average of a module's parameters; samples and weights come from it."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {k: v.detach().clone().float() for k, v in module.state_dict().items()}

    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 10))
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                self.values[key].lerp_(value.detach().float(), 1 - decay)
            else:
                self.values[key] = value.clone()


def save_checkpoint(
    path: Path, step: int, module: nn.Module, average: MovingAverage, optimizer: torch.optim.Optimizer
) -> None:
    """Write everything that a resumed run needs, by rename, as safetensors."""
    tensors = {f"module.{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.values.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file({k: v.contiguous() for k, v in tensors.items()}, part, metadata={"step": str(step)})
    os.replace(part, path)


def load_checkpoint(path: Path, module: nn.Module, average: MovingAverage, optimizer: torch.optim.Optimizer) -> int:
    """Restore a run; the number of steps already done (0 when there is no checkpoint)."""
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        step = int(file.metadata()["step"])
    module.load_state_dict({k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")})
    average.values = {k.removeprefix("average."): v for k, v in tensors.items() if k.startswith("average.")}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    print(f"resumed {path} at step {step}")
    return step


def forget_origin(folder: Path) -> None:
    """Take out of a saved component's config the path that it was loaded from."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config.pop("_name_or_path", None)
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def track(start: int, steps: int, log: Path) -> Iterator[tuple[int, "Log"]]:
    """Count steps under a progress bar; what is written to the log survives as JSON lines."""
    log.parent.mkdir(parents=True, exist_ok=True)
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
    from math import cos, pi

    if step < warmup:
        return (step + 1) / warmup
    return 0.05 + 0.95 * 0.5 * (1 + cos(pi * (step - warmup) / max(1, steps - warmup)))
