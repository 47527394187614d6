"""Nodes for pictures and masks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image as PILImage

from latentwire import Host, NodeContext, NodeInput, NodeOutput, NodeType, UnknownImage, read_picture

from .nodes_latent import CROPS, sizes_of
from .pictures import picture_of, rescaled, to_pixels
from .refusals import refused
from .values import Pixels, check_pixels

IMAGE, MASK = NodeOutput("IMAGE", "IMAGE"), NodeOutput("MASK", "MASK")
IMAGES = NodeInput("images", "IMAGE")
PICTURE = NodeInput("image", "STRING", upload=True, description="the id of an uploaded or made picture")
IMAGE_METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")
CHANNELS = ("alpha", "red", "green", "blue")
MOST_SIDE = 16384


def _read(host: Host, name: str) -> PILImage.Image:
    """A picture with its transparency."""
    return read_picture(host.images.get(name), host.settings.limits.input_pixels, alpha=True)


def _transparency(picture: PILImage.Image) -> Pixels:
    """White where it is transparent."""
    if picture.mode != "RGBA":
        return np.zeros((1, picture.height, picture.width), np.float32)
    return np.float32(1) - np.asarray(picture.getchannel("A"), np.float32)[None] / np.float32(255)


def check_picture(host: Host, values: Mapping[str, Any]) -> Mapping[str, str]:
    try:
        host.images.get(values.get("image") or "")
    except UnknownImage as error:
        return {"image": error.message}
    return {}


def load_image(context: NodeContext, given: Mapping[str, Any]) -> tuple[Any, ...]:
    picture = _read(context.host, given["image"])
    return to_pixels(picture), _transparency(picture)


def load_mask(context: NodeContext, given: Mapping[str, Any]) -> tuple[Any, ...]:
    picture = _read(context.host, given["image"])
    if given["channel"] == "alpha":
        return (_transparency(picture),)
    return (to_pixels(picture)[..., CHANNELS.index(given["channel"]) - 1],)


def scale(context: NodeContext, given: Mapping[str, Any]) -> tuple[Any, ...]:
    _, height, width, _ = given["image"].shape
    return _scaled(context, given, *sizes_of(given, width, height), given["crop"])


def scale_by(context: NodeContext, given: Mapping[str, Any]) -> tuple[Any, ...]:
    _, height, width, _ = given["image"].shape
    return _scaled(context, given, round(width * given["scale_by"]) or 1, round(height * given["scale_by"]) or 1)


def _scaled(
    context: NodeContext, given: Mapping[str, Any], width: int, height: int, crop: str = "disabled"
) -> tuple[Any, ...]:
    check_pixels(context.host, len(given["image"]), width, height)
    method = given["upscale_method"]
    made = [to_pixels(rescaled(picture_of(image), width, height, method, crop)) for image in given["image"]]
    return (np.concatenate(made),)


def invert(context: NodeContext, given: Mapping[str, Any]) -> tuple[Any, ...]:
    return (1 - given["image"],)


def canny(context: NodeContext, given: Mapping[str, Any]) -> tuple[Any, ...]:
    registry = context.host.registry
    if "canny" not in registry.preprocessors:
        raise refused("image", "the plugin controlnet, whose canny this is, is not loaded", "canny")
    low, high = (round(given[f"{name}_threshold"] * 255) for name in ("low", "high"))
    options = registry.preprocessors["canny"].options.model_validate({"low": min(low, high), "high": high})
    made = [to_pixels(registry.preprocess("canny", picture_of(image), options)) for image in given["image"]]
    return (np.concatenate(made),)


def save(context: NodeContext, given: Mapping[str, Any]) -> tuple[Any, ...]:
    for image in given["images"]:
        context.show(picture_of(image), True)
    return ()


def preview(context: NodeContext, given: Mapping[str, Any]) -> tuple[Any, ...]:
    for image in given["images"]:
        context.show(picture_of(image), False)
    return ()


THRESHOLD: dict[str, Any] = {"minimum": 0.01, "maximum": 0.99, "step": 0.01}

NODES = (
    NodeType(
        "LoadImage",
        "Load Image",
        "image",
        (PICTURE,),
        (IMAGE, MASK),
        load_image,
        description="A picture, and a mask that is white where it is transparent.",
        check=check_picture,
    ),
    NodeType(
        "LoadImageMask",
        "Load Image (as Mask)",
        "mask",
        (PICTURE, NodeInput("channel", "COMBO", default=CHANNELS[0], choices=CHANNELS)),
        (MASK,),
        load_mask,
        description="A channel of a picture as a mask; of alpha the transparent part is white.",
        check=check_picture,
    ),
    NodeType(
        "ImageScale",
        "Upscale Image",
        "image/upscaling",
        (
            NodeInput("image", "IMAGE"),
            NodeInput("upscale_method", "COMBO", default=IMAGE_METHODS[0], choices=IMAGE_METHODS),
            NodeInput("width", "INT", default=512, minimum=0, maximum=MOST_SIDE, step=1),
            NodeInput("height", "INT", default=512, minimum=0, maximum=MOST_SIDE, step=1),
            NodeInput("crop", "COMBO", default=CROPS[0], choices=CROPS),
        ),
        (IMAGE,),
        scale,
        description="Pictures at another size; 0 keeps the ratio.",
    ),
    NodeType(
        "ImageScaleBy",
        "Upscale Image By",
        "image/upscaling",
        (
            NodeInput("image", "IMAGE"),
            NodeInput("upscale_method", "COMBO", default=IMAGE_METHODS[0], choices=IMAGE_METHODS),
            NodeInput("scale_by", "FLOAT", default=1.0, minimum=0.01, maximum=8.0, step=0.01),
        ),
        (IMAGE,),
        scale_by,
        description="Pictures at so many times their size.",
    ),
    NodeType(
        "ImageInvert",
        "Invert Image",
        "image",
        (NodeInput("image", "IMAGE"),),
        (IMAGE,),
        invert,
        description="Each colour's opposite.",
    ),
    NodeType(
        "Canny",
        "Canny",
        "image/preprocessors",
        (
            NodeInput("image", "IMAGE"),
            NodeInput("low_threshold", "FLOAT", default=0.4, **THRESHOLD),
            NodeInput("high_threshold", "FLOAT", default=0.8, **THRESHOLD),
        ),
        (IMAGE,),
        canny,
        description="Thin white lines along edges, for ControlNets.",
    ),
    NodeType(
        "SaveImage",
        "Save Image",
        "image",
        (IMAGES, NodeInput("filename_prefix", "STRING", default="latentwire")),
        (),
        save,
        output=True,
        description="Pictures for the client, and for good where the host keeps results.",
    ),
    NodeType(
        "PreviewImage",
        "Preview Image",
        "image",
        (IMAGES,),
        (),
        preview,
        output=True,
        description="Pictures for the client.",
    ),
)
