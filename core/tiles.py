"""One forward of an autoencoder's half in tiles, for when memory does not last for the whole picture.

The autoencoder itself stays as it is: whoever shares it goes on without tiles.
"""

import copy
from typing import Any

import torch
from torch import nn

SMALLEST = 8  # latent pixels of a tile's side


def in_tiles(vae: Any, half: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The half's output for these arguments, made of overlapping tiles; None where it cannot be.

    Args:
        vae: An `AutoencoderKL`, or one that is called like it.
        half: Its encoder or decoder.
    """
    encodes = half is getattr(vae, "encoder", None)
    tiled = getattr(vae, "_tiled_encode" if encodes else "tiled_decode", None)
    if tiled is None or kwargs or len(args) != 1 or not isinstance(args[0], torch.Tensor):
        return None
    given = args[0]
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    side = max(given.shape[-2:]) // (scale if encodes else 1)
    twin = _twin(vae)
    twin.tile_latent_min_size = max(SMALLEST, min(vae.tile_latent_min_size, side // 2))
    twin.tile_sample_min_size = twin.tile_latent_min_size * scale
    rows = [twin._tiled_encode(row) if encodes else twin.tiled_decode(row).sample for row in given.split(1)]
    return torch.cat(rows)


def _twin(vae: Any) -> Any:
    """A second one over the same halves, without the 1x1 convolutions that come before or after them."""
    twin = copy.copy(vae)
    twin._modules = dict(vae._modules)
    for name in ("quant_conv", "post_quant_conv"):
        if twin._modules.get(name) is not None:
            twin._modules[name] = nn.Identity()
    return twin
