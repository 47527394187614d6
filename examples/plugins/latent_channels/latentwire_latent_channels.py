"""Previewer `latent_channels`: what the model works on, its latents' channels side by side in grey.

{"prompt": "red apple", "stream": {"previews": {"previewer": "latent_channels"}}}
"""

import math

import numpy as np
import numpy.typing as npt

from latentwire import PluginRegistry, hookimpl

LATENTWIRE_API = "1.0"


@hookimpl
def register(registry: PluginRegistry) -> None:
    registry.add_previewer("latent_channels", paint)


def paint(latents: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """`(channels, h, w)` latents to an RGB picture: 4 channels are a square of two by two, 16 one of four by four."""
    channels, height, width = latents.shape
    columns = math.ceil(math.sqrt(channels))
    rows = math.ceil(channels / columns)
    lowest = latents.min(axis=(1, 2), keepdims=True)
    spread = latents.max(axis=(1, 2), keepdims=True) - lowest
    grey = np.zeros((rows * columns, height, width), np.uint8)
    grey[:channels] = np.round(255 * (latents - lowest) / np.maximum(spread, 1e-6))
    tiled = grey.reshape(rows, columns, height, width).transpose(0, 2, 1, 3).reshape(rows * height, columns * width)
    return np.repeat(tiled[:, :, None], 3, axis=2)
