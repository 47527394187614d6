"""Previews: latents to a small RGB picture, cheap enough for every step.

A model may bring a tiny decoder in its folder `previewer`. For others a linear map must do: known families have
published factors; for any other autoencoder they are fitted when it is loaded.
"""

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from .cpu import is_slow
from .memory import bytes_of

if TYPE_CHECKING:
    from .families import Family

Array = npt.NDArray[np.float32]


class Previewer(Protocol):
    """Paints the predicted picture of a step, in a thread of the painter's."""

    def paint(self, latents: Array) -> npt.NDArray[np.uint8]:
        """`(channels, h, w)` latents, scaled as the UNet sees them -> an `(h', w', 3)` picture of any size."""


def preview_dtype(device: torch.device) -> str:
    """What a tiny decoder works in, whatever its model does; its pictures are small and seen for a moment.

    It shares a CPU's cores with the engine, where a step's preview in float32 costs a third of the step.
    """
    return "bfloat16" if device.type == "cpu" and not is_slow("bfloat16") else "float32"


@dataclass(frozen=True)
class TinyDecoder:
    """An `AutoencoderTiny`, the class of Ollin Boer Bohan's TAESD, beside the model on its device."""

    vae: Any
    _lock: threading.Lock = field(default_factory=threading.Lock)  # one at a time: the engine wants the device

    @property
    def nbytes(self) -> int:
        """Memory of its weights."""
        return bytes_of(self.vae)

    @torch.inference_mode()
    def paint(self, latents: Array) -> npt.NDArray[np.uint8]:
        """`(channels, h, w)` latents -> picture, as many times larger as the decoder makes it."""
        with self._lock:
            given = torch.from_numpy(latents)[None].to(self.vae.device, self.vae.dtype)
            rgb = self.vae.decode(given).sample[0].float().cpu()
        return to_bytes((rgb.permute(1, 2, 0).numpy() + 1) / 2)


@dataclass(frozen=True)
class LatentFactors:
    """RGB in 0..1 = latents @ weights + bias; weights `(channels, 3)`, bias `(3,)`."""

    weights: Array
    bias: Array

    def paint(self, latents: Array) -> npt.NDArray[np.uint8]:
        """`(channels, h, w)` latents -> `(h, w, 3)` picture, one pixel for each latent."""
        return to_bytes(np.tensordot(latents, self.weights, axes=(0, 0)) + self.bias)


def to_bytes(rgb: Array) -> npt.NDArray[np.uint8]:
    """RGB in 0..1, and whatever lies outside, to bytes."""
    picture: npt.NDArray[np.uint8] = (np.nan_to_num(rgb).clip(0, 1) * 255).round().astype(np.uint8)
    return picture


# Published by keturn, discuss.huggingface.co/t/decoding-latents-to-rgb-without-upscaling/23204 (RGB in -1..1)
STABLE_DIFFUSION_1 = LatentFactors(
    np.array(
        [[0.298, 0.207, 0.208], [0.187, 0.286, 0.173], [-0.158, 0.189, 0.264], [-0.184, -0.271, -0.473]], np.float32
    )
    / np.float32(2),
    np.full(3, 0.5, np.float32),
)
# Published by Timothy Alexis Vass, huggingface.co/blog/TimothyAlexisVass/explaining-the-sdxl-latent-space (0..255)
STABLE_DIFFUSION_XL = LatentFactors(
    np.array([[60, 60, 60], [-60, -5, 10], [25, 15, -5], [-70, -50, -35]], np.float32) / np.float32(255),
    np.array([150, 140, 130], np.float32) / np.float32(255),
)


def factors_for(family: "Family", vae: Any) -> LatentFactors:
    """The family's factors for its published autoencoder, fitted ones for any other; not on the engine's thread."""
    published = family.factors
    made_for = (vae.config.scaling_factor, vae.config.latent_channels)
    if published is not None and made_for == (family.scaling_factor, len(published.weights)):
        return published
    return fit(vae)


@torch.inference_mode()
def fit(vae: Any, pictures: int = 32, size: int = 128) -> LatentFactors:
    """Least squares from the latents of made-up pictures to the pictures' own colours."""
    rgb = _made_up_pictures(pictures, size)
    tensor = torch.from_numpy(rgb).permute(0, 3, 1, 2) * 2 - 1
    parameter = next(vae.parameters())
    latents = torch.cat(
        [
            vae.encode(part.to(parameter.device, parameter.dtype)).latent_dist.mean.float().cpu()
            for part in tensor.split(4)
        ]
    )
    scaled = (latents - (getattr(vae.config, "shift_factor", None) or 0.0)) * vae.config.scaling_factor
    height, width = latents.shape[-2:]
    small = torch.nn.functional.adaptive_avg_pool2d((tensor + 1) / 2, (height, width))
    known = scaled.permute(0, 2, 3, 1).reshape(-1, latents.shape[1]).numpy()
    wanted = small.permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    columns = np.concatenate([known, np.ones((len(known), 1), np.float32)], axis=1)
    solution = np.linalg.lstsq(columns, wanted, rcond=None)[0].astype(np.float32)
    return LatentFactors(solution[:-1], solution[-1])


def _made_up_pictures(count: int, size: int) -> Array:
    """`(count, size, size, 3)` in 0..1: soft gradients with a few ellipses; always the same ones."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    pictures = np.empty((count, size, size, 3), np.float32)
    for picture in pictures:
        start, end = random.random((2, 3), np.float32)
        slope = (x * random.random() + y * random.random())[..., None]
        picture[:] = start + (end - start) * slope
        for _ in range(6):
            (cx, cy), (rx, ry) = random.random(2), 0.05 + 0.35 * random.random(2)
            inside = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
            picture[inside] = random.random(3, np.float32)
    return pictures.clip(0, 1)
