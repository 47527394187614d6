"""An autoencoder that stays in float32 among components in half precision."""

import functools
from typing import Any

import torch


def keep_upcast(vae: Any) -> None:
    """Let a float32 autoencoder take half-precision tensors.

    diffusers' SDXL pipelines move the module to float32 and back around each use (`force_upcast`), which others who
    share it would feel in the midst of their own.
    """
    vae.register_to_config(force_upcast=False)
    for name in ("encode", "decode"):
        setattr(vae, name, _taking_any_dtype(getattr(vae, name)))


def _taking_any_dtype(method: Any) -> Any:
    @functools.wraps(method)
    def call(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return method(tensor.float(), *args, **kwargs)

    return call
