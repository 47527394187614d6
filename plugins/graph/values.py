"""What goes from node to node.

A MODEL, CLIP, VAE or CONDITIONING only says what is meant: names, weights and texts. Nothing is loaded or computed for
it until a sampler runs, which is one job of the host. Pictures and masks are arrays, float32 from 0 to 1, on the CPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from latentwire import Host, OutOfMemory

Pixels = npt.NDArray[np.float32]
"""An IMAGE `(batch, height, width, 3)`, a MASK `(batch, height, width)`, or latents `(batch, channels, h, w)`."""

Adapters = tuple[tuple[str, float], ...]

SEEDS = 2**63 - 64  # of a request, whose pictures count up
SMALL_BYTES = 256  # about what a value without an array takes


def with_adapter(adapters: Adapters, name: str, weight: float) -> Adapters:
    """Adapters with one more; the weights of the same one add up."""
    weights = dict(adapters)
    weights[name] = weights.get(name, 0.0) + weight
    return tuple((other, total) for other, total in weights.items() if total)


@dataclass(frozen=True, slots=True)
class Model:
    """A MODEL: the denoiser of a model of the host, with adapters."""

    name: str
    adapters: Adapters = ()


@dataclass(frozen=True, slots=True)
class Clip:
    """A CLIP: the text encoders of a model of the host, with adapters; `skip` of their last layers are left out."""

    name: str
    adapters: Adapters = ()
    skip: int = 0


@dataclass(frozen=True, slots=True)
class Vae:
    """A VAE: the autoencoder of a model of the host."""

    name: str


@dataclass(frozen=True, slots=True)
class ControlNet:
    """A CONTROL_NET: one that is loaded."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Control:
    """A ControlNet in use: with its picture, how strongly, and from which part of the steps to which."""

    net: ControlNet
    image: Pixels
    strength: float
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text for a CLIP, or the zeros that stand for no text; with ControlNets."""

    clip: Clip
    text: str
    zeroed: bool = False
    controls: tuple[Control, ...] = ()


Conditioning = tuple[Prompt, ...]
"""A CONDITIONING: what the denoiser predicts for each prompt is averaged."""


@dataclass(frozen=True, slots=True, eq=False)
class Latent:
    """A LATENT of `batch` pictures: nothing yet, pictures that are to be encoded, or an array.

    Attributes:
        samples: The latents as the denoiser sees them.
        image, vae: What is encoded where it is needed: a sampler does it as `generate` does.
        mask: White (1) is made anew, black is kept; `(batch, height, width)` in pixels.
        noisy: Whether a sampler left noise in `samples`: its name.
    """

    width: int
    height: int
    batch: int
    samples: Pixels | None = None
    image: Pixels | None = None
    vae: Vae | None = None
    mask: Pixels | None = None
    noisy: str | None = None

    @property
    def is_empty(self) -> bool:
        return self.samples is None and self.image is None

    @classmethod
    def of(cls, pictures: Sequence[Pixels]) -> Self:
        """Of what a job has made."""
        return cls(0, 0, 0).with_samples(np.stack(pictures))

    def with_samples(self, samples: Pixels, **changes: Any) -> Self:
        """Other latents, of whatever size."""
        batch, _, height, width = samples.shape
        sizes = {"batch": batch, "height": height * 8, "width": width * 8}
        return replace(self, **sizes | {"samples": samples, "image": None, "vae": None} | changes)


@dataclass(slots=True)
class Shown:
    """What an output node has shown."""

    images: list[dict[str, Any]] = field(default_factory=list)


def nbytes(value: Any) -> int:
    """What a value takes."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, Shown):
        return SMALL_BYTES + sum(len(image["data"]) for image in value.images)
    if isinstance(value, Latent):
        return SMALL_BYTES + sum(nbytes(part) for part in (value.samples, value.image, value.mask) if part is not None)
    if isinstance(value, Control):
        return SMALL_BYTES + value.image.nbytes
    if isinstance(value, Prompt):
        return SMALL_BYTES + len(value.text) + sum(map(nbytes, value.controls))
    if isinstance(value, tuple | list):
        return SMALL_BYTES + sum(map(nbytes, value))
    size = getattr(value, "nbytes", None)  # a tensor of a plugin's, say
    return size if isinstance(size, int) else SMALL_BYTES


def check_pixels(host: Host, batch: int, width: int, height: int) -> None:
    """Refuse to make more pixels than the host takes in one picture.

    Raises:
        OutOfMemory: it would be more.
    """
    most = host.settings.limits.input_pixels
    if batch * width * height > most:
        raise OutOfMemory(f"{batch} pictures of {width}x{height} are more than {most} pixels in all, the host's limit")
