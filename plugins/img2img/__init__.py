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
    PluginRegistry,
    Remembered,
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


class Plugin:
    """Keeps the latest pictures at their results' size: live requests repeat them, and a job's pictures share one."""

    def __init__(self) -> None:
        self._pictures = Remembered(128 << 20, lambda picture: 3 * picture.width * picture.height)

    @hookimpl
    def register(self, registry: PluginRegistry) -> None:
        registry.add_field("img2img", Img2Img)

    @hookimpl
    def modify_build(self, context: BuildContext) -> None:
        section = _section(context.request)
        if section is not None:
            context.build = replace(context.build, task="inpaint" if section.mask is not None else "img2img")

    @hookimpl
    def modify_call(self, context: CallContext) -> None:
        section = _section(context.request)
        if section is None:
            return
        call = context.call
        strength = section.strength if section.strength is not None else (0.8 if section.mask is None else 1.0)
        if int(call.num_inference_steps * strength) < 1:
            steps = call.num_inference_steps
            message = f"strength {strength:g} of {steps} steps leaves no step to make; raise one of them"
            raise InvalidParams(message, [{"path": ["img2img", "strength"], "message": message, "got": strength}])
        arguments: dict[str, Any] = {"image": self._picture(context, "image", section), "strength": strength}
        if section.mask is not None:
            arguments["mask_image"] = self._picture(context, "mask", section).convert("L")
        context.call = call.with_extra(**arguments)

    def _picture(self, context: CallContext, field: str, section: Img2Img) -> Image:
        """The picture at the size of the result."""
        width, height = context.call.width, context.call.height
        how = Resampling.NEAREST if field == "mask" else Resampling.LANCZOS

        def make() -> Image:
            picture = context.host.picture(getattr(section, field), ["img2img", field])
            return resized(picture, width, height, section.resize, how)

        wanted = section.model_dump_json(include={field, "resize"})
        ready: Image = self._pictures.get((wanted, width, height), make)
        return ready


def _section(request: Any) -> Img2Img | None:
    section: Img2Img | None = getattr(request, "img2img", None)
    return section
