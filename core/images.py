"""Pictures and tensors as bytes: encoding, and what a PNG says about itself."""

import io
import json
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage
from PIL.PngImagePlugin import PngInfo

from .build import PipelineCall
from .events import Picture, Tensor

PNG_LEVEL = 1  # at 512x512 a third of the default level's time for a tenth more bytes


def to_picture(pixels: npt.NDArray[np.float32]) -> PILImage.Image:
    """`(3, h, w)` in 0..1 -> picture, rounded as diffusers rounds."""
    return PILImage.fromarray((pixels.transpose(1, 2, 0) * 255).round().astype(np.uint8))


def encode(
    picture: PILImage.Image,
    format: Literal["png", "jpeg", "webp"],
    quality: int = 80,
    metadata: dict[str, str] | None = None,
) -> Picture:
    """A file of the picture; `metadata` goes into a PNG's text chunks, `quality` is for the other formats."""
    buffer = io.BytesIO()
    if format == "png":
        chunks = PngInfo()
        for key, value in (metadata or {}).items():
            chunks.add_itxt(key, value)
        picture.save(buffer, "png", pnginfo=chunks, compress_level=PNG_LEVEL)
    else:
        picture.save(buffer, format, quality=quality)
    return Picture(format, picture.width, picture.height, buffer.getvalue())


def to_size(picture: PILImage.Image, longer_side: int) -> PILImage.Image:
    """The picture with its longer side at so many pixels."""
    scale = longer_side / max(picture.size)
    if scale == 1:
        return picture
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, PILImage.Resampling.BICUBIC)


def to_tensor(array: npt.NDArray[Any], dtype: Literal["float32", "float16"]) -> Tensor:
    """A tensor event's value: row-major, little-endian."""
    data = np.ascontiguousarray(array).astype(np.dtype(dtype).newbyteorder("<"))
    return Tensor(dtype, list(data.shape), data.tobytes())


def describe_in_png(
    request: dict[str, Any], call: PipelineCall, model: str, scheduler: str, changes: list[dict[str, Any]]
) -> dict[str, str]:
    """Text chunks for a finished picture.

    `latentwire` holds the request as JSON, all defaults filled in; `parameters` the text that the field's
    tools read: prompt, negative prompt, then `Key: value` pairs. `latentwire_changes` is there where values were
    changed while the picture formed, which the request alone does not make again.
    """
    pairs = {
        "Steps": call.num_inference_steps,
        "Sampler": scheduler,
        "CFG scale": f"{call.guidance_scale:g}",
        "Seed": call.seed,
        "Size": f"{call.width}x{call.height}",
        "Model": model,
        "Version": "latentwire",
    }
    lines = [call.prompt]
    if call.negative_prompt:
        lines.append(f"Negative prompt: {call.negative_prompt}")
    lines.append(", ".join(f"{key}: {value}" for key, value in pairs.items()))
    described = {"parameters": "\n".join(lines).replace("\0", ""), "latentwire": _to_json(request)}
    return described | {"latentwire_changes": _to_json(changes)} if changes else described


def _to_json(value: Any) -> str:
    """JSON in ASCII that may also stand inside HTML, where some tools show it."""
    return json.dumps(value).replace("<", "\\u003c")
