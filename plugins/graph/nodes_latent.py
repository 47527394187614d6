"""Nodes for latents: empty ones, other sizes, and from and to pictures."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import ImageFilter

from latentwire import Host, NodeContext, NodeInput, NodeOutput, NodeType

from .pictures import picture_of, rescaled_planes
from .refusals import refused
from .sampling import LEAST, MOST, Samples
from .values import Latent, Pixels, Vae, check_pixels

MOST_PICTURES = 64  # of a batch, as of a request

LATENT = NodeOutput("LATENT", "LATENT")
SAMPLES = NodeInput("samples", "LATENT")
LATENT_METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "bislerp")
CROPS = ("disabled", "center")


def sizes_of(given: Mapping[str, Any], width: int, height: int) -> tuple[int, int]:
    """What a node's width and height ask for; 0 is as the other one has it, or as it is."""
    wide, high = given["width"], given["height"]
    if not wide and not high:
        return width, height
    if not wide:
        wide = max(1, round(width * high / height))
    if not high:
        high = max(1, round(height * wide / width))
    return wide, high


async def empty(context: NodeContext, given: Mapping[str, Any]) -> tuple[Any, ...]:
    return (Latent(given["width"] // 8 * 8, given["height"] // 8 * 8, given["batch_size"]),)


def check_empty(host: Host, values: Mapping[str, Any]) -> Mapping[str, str]:
    most = host.settings.limits.pixels
    width, height = values.get("width", LEAST), values.get("height", LEAST)
    return {"width": f"{width}x{height} is more than {most} pixels, the host's limit"} if width * height > most else {}


def to_size(host: Host, latent: Latent, width: int, height: int, method: str, crop: str) -> Latent:
    """Latents at another size in pixels."""
    width, height = max(8, width // 8 * 8), max(8, height // 8 * 8)
    check_pixels(host, latent.batch, width, height)
    changes: dict[str, Any] = {"width": width, "height": height}
    if latent.mask is not None:
        changes["mask"] = _mask_at(host, latent.mask, width, height, crop)
    if latent.samples is not None:
        changes["samples"] = rescaled_planes(latent.samples, width // 8, height // 8, method, crop)
    return replace(latent, **changes)


@dataclass(frozen=True, slots=True)
class LatentNodes:
    """Those that encode, decode, or need what is encoded."""

    samples: Samples

    async def decode(self, context: NodeContext, given: Mapping[str, Any]) -> tuple[Any, ...]:
        return (await self.samples.decoded(context, given["vae"], given["samples"]),)

    async def upscale(self, context: NodeContext, given: Mapping[str, Any]) -> tuple[Any, ...]:
        latent: Latent = given["samples"]
        width, height = sizes_of(given, latent.width, latent.height)
        return await self._rescale(context, latent, width, height, given["upscale_method"], given["crop"])

    async def upscale_by(self, context: NodeContext, given: Mapping[str, Any]) -> tuple[Any, ...]:
        latent: Latent = given["samples"]
        width, height = round(latent.width * given["scale_by"]), round(latent.height * given["scale_by"])
        return await self._rescale(context, latent, width, height, given["upscale_method"], "disabled")

    async def _rescale(
        self, context: NodeContext, latent: Latent, width: int, height: int, method: str, crop: str
    ) -> tuple[Any, ...]:
        if latent.image is not None:
            latent = await self.samples.encoded(context, latent)
        return (await asyncio.to_thread(to_size, context.host, latent, width, height, method, crop),)

    def types(self) -> tuple[NodeType, ...]:
        scaled = (
            NodeInput("width", "INT", default=512, minimum=0, maximum=MOST, step=8),
            NodeInput("height", "INT", default=512, minimum=0, maximum=MOST, step=8),
        )
        return (
            NodeType(
                "VAEDecode",
                "VAE Decode",
                "latent",
                (SAMPLES, NodeInput("vae", "VAE")),
                (NodeOutput("IMAGE", "IMAGE"),),
                self.decode,
                description="Pictures of latents.",
            ),
            NodeType(
                "LatentUpscale",
                "Upscale Latent",
                "latent",
                (
                    SAMPLES,
                    NodeInput("upscale_method", "COMBO", default=LATENT_METHODS[0], choices=LATENT_METHODS),
                    *scaled,
                    NodeInput("crop", "COMBO", default=CROPS[0], choices=CROPS),
                ),
                (LATENT,),
                self.upscale,
                description="Latents at another size; 0 keeps the ratio.",
            ),
            NodeType(
                "LatentUpscaleBy",
                "Upscale Latent By",
                "latent",
                (
                    SAMPLES,
                    NodeInput("upscale_method", "COMBO", default=LATENT_METHODS[0], choices=LATENT_METHODS),
                    NodeInput("scale_by", "FLOAT", default=1.5, minimum=0.01, maximum=8.0, step=0.01),
                ),
                (LATENT,),
                self.upscale_by,
                description="Latents at so many times their size.",
            ),
        )


def _cropped(pixels: Pixels) -> Pixels:
    """Pictures whose sides are multiples of 8, cropped evenly."""
    height, width = (side // 8 * 8 for side in pixels.shape[1:3])
    top, left = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
    return pixels[:, top : top + height, left : left + width]


def _to_encode(pixels: Pixels, vae: Vae) -> Latent:
    pixels = _cropped(pixels)
    batch, height, width, _ = pixels.shape
    if not height or not width:
        raise refused("pixels", "it is less than 8 pixels wide or high")
    return Latent(width, height, batch, image=pixels, vae=vae)


async def encode(context: NodeContext, given: Mapping[str, Any]) -> tuple[Any, ...]:
    return (_to_encode(given["pixels"], given["vae"]),)


def encode_for_inpaint(context: NodeContext, given: Mapping[str, Any]) -> tuple[Any, ...]:
    latent = _to_encode(given["pixels"], given["vae"])
    assert latent.image is not None
    _, height, width, _ = given["pixels"].shape
    white = _cropped(_mask_at(context.host, given["mask"], width, height)) > 0.5
    white = white[np.arange(latent.batch) % len(white)]
    image = np.where(white[..., None], np.float32(0.5), latent.image)  # grey, so that nothing of it shines through
    return (replace(latent, image=image, mask=_grown(white.astype(np.float32), given["grow_mask_by"])),)


def _grown(mask: Pixels, by: int) -> Pixels:
    """A mask with so many pixels more all around."""
    if not by:
        return mask
    size = by + 1 - by % 2  # of a window, which has a centre
    grown = [np.asarray(picture_of(plane).filter(ImageFilter.MaxFilter(size)), np.float32) / 255 for plane in mask]
    return np.stack(grown)


def set_mask(context: NodeContext, given: Mapping[str, Any]) -> tuple[Any, ...]:
    latent: Latent = given["samples"]
    return (replace(latent, mask=_mask_at(context.host, given["mask"], latent.width, latent.height)),)


def _mask_at(host: Host, mask: Pixels, width: int, height: int, crop: str = "disabled") -> Pixels:
    check_pixels(host, len(mask), width, height)
    return rescaled_planes(mask, width, height, "bilinear", crop)


NODES = (
    NodeType(
        "EmptyLatentImage",
        "Empty Latent Image",
        "latent",
        (
            NodeInput("width", "INT", default=512, minimum=LEAST, maximum=MOST, step=8),
            NodeInput("height", "INT", default=512, minimum=LEAST, maximum=MOST, step=8),
            NodeInput("batch_size", "INT", default=1, minimum=1, maximum=MOST_PICTURES),
        ),
        (LATENT,),
        empty,
        description="Where pictures of nothing but a prompt begin.",
        check=check_empty,
    ),
    NodeType(
        "VAEEncode",
        "VAE Encode",
        "latent",
        (NodeInput("pixels", "IMAGE"), NodeInput("vae", "VAE")),
        (LATENT,),
        encode,
        description="Latents of pictures.",
    ),
    NodeType(
        "VAEEncodeForInpaint",
        "VAE Encode (for Inpainting)",
        "latent/inpaint",
        (
            NodeInput("pixels", "IMAGE"),
            NodeInput("vae", "VAE"),
            NodeInput("mask", "MASK"),
            NodeInput("grow_mask_by", "INT", default=6, minimum=0, maximum=64, step=1),
        ),
        (LATENT,),
        encode_for_inpaint,
        description="Latents of pictures of which the white part of a mask is made anew.",
    ),
    NodeType(
        "SetLatentNoiseMask",
        "Set Latent Noise Mask",
        "latent/inpaint",
        (SAMPLES, NodeInput("mask", "MASK")),
        (LATENT,),
        set_mask,
        description="Latents of which only the white part of a mask is made anew.",
    ),
)
