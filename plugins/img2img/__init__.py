"""Image to image, and inpainting where a mask says which part of the picture to make anew."""

from dataclasses import replace
from typing import Any

from PIL.Image import Image, Resampling
from pydantic import Field

from latentwire import (
    BuildContext,
    CallContext,
    ImageInput,
    InvalidParams,
    LatentwireError,
    PluginRegistry,
    Resize,
    Strict,
    hookimpl,
    resized,
)


class Img2Img(Strict):
    """A picture to start from."""

    image: ImageInput
    mask: ImageInput | None = Field(None, description="white: made anew, black: kept; makes it inpainting")
    strength: float | None = Field(
        None, gt=0, le=1, description="how much of the picture goes: 0.8, and 1 with a mask, if left out"
    )
    resize: Resize = Field("fill", description="of image and mask alike")


@hookimpl
def register(registry: PluginRegistry) -> None:
    registry.add_field("img2img", Img2Img)


@hookimpl
def modify_build(context: BuildContext) -> None:
    section = _section(context.request)
    if section is not None:
        context.build = replace(context.build, task="inpaint" if section.mask is not None else "img2img")


@hookimpl
def modify_call(context: CallContext) -> None:
    section = _section(context.request)
    if section is None:
        return
    call = context.call
    strength = section.strength if section.strength is not None else (0.8 if section.mask is None else 1.0)
    if int(call.num_inference_steps * strength) < 1:
        message = f"strength {strength:g} of {call.num_inference_steps} steps leaves no step to make; raise one of them"
        raise InvalidParams(message, [{"path": ["img2img", "strength"], "message": message, "got": strength}])
    arguments: dict[str, Any] = {"image": _picture(context, "image", section), "strength": strength}
    if section.mask is not None:
        arguments["mask_image"] = _picture(context, "mask", section).convert("L")
    context.call = call.with_extra(**arguments)


def _section(request: Any) -> Img2Img | None:
    section: Img2Img | None = getattr(request, "img2img", None)
    return section


def _picture(context: CallContext, field: str, section: Img2Img) -> Image:
    """The picture at the size of the result."""
    image: bytes | str = getattr(section, field)
    try:
        picture = context.host.picture(image)
    except LatentwireError as error:
        got = image[:80] if isinstance(image, str) else f"{len(image)} bytes"
        error.details = [{"path": ["img2img", field], "message": error.message, "got": got}]
        raise
    how = Resampling.NEAREST if field == "mask" else Resampling.LANCZOS
    return resized(picture, context.call.width, context.call.height, section.resize, how)
