"""Compares pictures and latents, and says by how much they differ."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage

Comparable = PILImage.Image | npt.NDArray[Any]


def difference(one: Comparable, other: Comparable) -> float:
    """The largest difference of two pictures (of 0 to 255), or of two latents.

    Raises:
        AssertionError: they are of different sizes.
    """
    first, second = _numbers(one), _numbers(other)
    assert first.shape == second.shape, f"their shapes differ: {first.shape} and {second.shape}"
    return float(np.abs(first - second).max())


def assert_same_picture(one: PILImage.Image, other: PILImage.Image, within: float = 0) -> None:
    """Two pictures are equal in every pixel.

    Args:
        within: So much may a channel of a pixel differ, of 0 to 255: 1 for what was rounded twice.

    Raises:
        AssertionError: they are not; says by how much and in how many pixels.
    """
    most = difference(one, other)
    if most > within:
        pixels = (np.abs(_numbers(one) - _numbers(other)) > within).any(axis=-1)
        raise AssertionError(
            f"{pixels.sum()} of {pixels.size} pixels differ by up to {most:g}, wanted {within:g} at most"
        )


def assert_same_latents(one: Any, other: Any, within: float = 0.0) -> None:
    """Two latents (arrays or tensors) are equal, and finite.

    Args:
        within: So much may they differ: 1e-3 for a job that shared its forwards in mode fast, 0 in mode exact.

    Raises:
        AssertionError: they are not; says by how much.
    """
    first, second = np.asarray(one), np.asarray(other)
    assert first.shape == second.shape, f"their shapes differ: {first.shape} and {second.shape}"
    assert np.isfinite(np.stack([first, second])).all(), "they hold NaN or infinite values"
    most = difference(first, second)
    assert most <= within, f"they differ by up to {most:g}, wanted {within:g} at most"


def _numbers(value: Comparable) -> npt.NDArray[np.float64]:
    picture = value.convert("RGB") if isinstance(value, PILImage.Image) else value
    return np.asarray(picture, np.float64)
