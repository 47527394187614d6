"""What the stages that train or use a UNet share: a pool of encoded pictures, and the loss of denoising them.

The pool is made once and renewed a little every few steps, so that encoding costs next to nothing.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from PIL import Image
from torch.nn import functional as F
from tqdm import tqdm

from .pictures import to_tensor

POOL = 4096
GROUP = 8
EMPTY_CAPTION = 0.1  # trains the unconditional half of guidance


@dataclass(frozen=True)
class Example:
    """What is learnt from: a 128x128 RGB picture, what it shows and, for a ControlNet, its outline (mode L)."""

    picture: Image.Image
    caption: str
    outline: Image.Image | None = None


@dataclass(frozen=True)
class Batch:
    """`(n, 4, 16, 16)` latents, n captions and `(n, 3, 128, 128)` outlines in 0..1 (no rows where there are none)."""

    latents: torch.Tensor
    captions: list[str]
    outlines: torch.Tensor


class Pool:
    """Encoded examples, in groups of eight; every fourth batch a new group takes the place of an old one.

    Which examples there are at a step, and which a batch has, follows from the seed and the step alone, so that a run
    that was stopped goes on with those that it would have had.
    """

    def __init__(self, vae: AutoencoderKL, make: Callable[[random.Random], Example], seed: int) -> None:
        self._vae, self._make, self._seed = vae, make, seed
        self._latents = torch.zeros(POOL, 4, 16, 16)
        self._captions = [""] * POOL
        self._outlines: list[Image.Image | None] = [None] * POOL
        self._filled = False

    def batch(self, step: int, count: int) -> Batch:
        """Of `count` examples, at most POOL; steps must be asked for in order, from any one on."""
        if not self._filled:
            self._fill_all(step)
        if step % 4 == 0:
            self._fill([(self._group_replaced_at(step), step)])
        rng = random.Random(f"batch {self._seed} {step}")
        rows = rng.sample(range(POOL), count)
        captions = ["" if rng.random() < EMPTY_CAPTION else self._captions[row] for row in rows]
        outlines = [as_hint(outline) for row in rows if (outline := self._outlines[row])]
        device = self._vae.device
        return Batch(
            self._latents[rows].to(device), captions, torch.stack(outlines).to(device) if outlines else torch.empty(0)
        )

    def _group_replaced_at(self, step: int) -> int:
        return random.Random(f"replace {self._seed} {step}").randrange(POOL // GROUP)

    def _fill_all(self, step: int) -> None:
        """All groups, as they are before a step."""
        since = dict.fromkeys(range(POOL // GROUP), -1)
        since |= {self._group_replaced_at(earlier): earlier for earlier in range(0, step, 4)}
        groups = list(since.items())
        for begin in tqdm(range(0, len(groups), 8), desc="encoding the pool", mininterval=5, leave=False):
            self._fill(groups[begin : begin + 8])
        self._filled = True

    @torch.no_grad()
    def _fill(self, groups: list[tuple[int, int]]) -> None:
        """Encode groups, each as it is since some step."""
        rows: list[int] = []
        examples: list[Example] = []
        for group, since in groups:
            rng = random.Random(f"group {self._seed} {group} {since}")
            rows += range(group * GROUP, (group + 1) * GROUP)
            examples += [self._make(rng) for _ in range(GROUP)]
        pictures = torch.stack([to_tensor(example.picture) for example in examples]).to(self._vae.device)
        with torch.autocast(self._vae.device.type, torch.bfloat16):
            mean = self._vae.encode(pictures).latent_dist.mean * self._vae.config.scaling_factor
        self._latents[rows] = mean.float().cpu()
        for row, example in zip(rows, examples, strict=True):
            self._captions[row], self._outlines[row] = example.caption, example.outline


def as_hint(outline: Image.Image) -> torch.Tensor:
    """A ControlNet's input, `(3, h, w)` in 0..1, as diffusers makes it from a control image."""
    return torch.from_numpy(np.asarray(outline.convert("RGB"), np.float32) / 255).permute(2, 0, 1)


def new_timesteps(count: int) -> torch.Tensor:
    """(count,) timesteps: half of them even, half around the middle, where the picture is decided.

    The middle is logit-normal, as in Esser et al., "Scaling Rectified Flow Transformers" (2024).
    """
    even = torch.rand(count)
    middle = torch.sigmoid(torch.randn(count) * 0.8 - 0.4)
    return (torch.where(torch.rand(count) < 0.5, even, middle) * 1000).long().clamp(max=999)


def velocity_loss(
    scheduler: DDIMScheduler, latents: torch.Tensor, predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Mean squared error of the predicted v (Salimans and Ho, "Progressive Distillation", 2022) at new timesteps.

    Args:
        predict: noisy latents and `(n,)` timesteps -> v.
    """
    noise = torch.randn_like(latents)
    timesteps = new_timesteps(len(latents)).to(latents.device)
    predicted = predict(scheduler.add_noise(latents, noise, timesteps), timesteps)
    return F.mse_loss(predicted.float(), scheduler.get_velocity(latents, noise, timesteps))
