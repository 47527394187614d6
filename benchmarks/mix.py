"""A mix of jobs: every third one plain, with a ControlNet, with one of two LoRAs; and its raw forwards."""

import io
from itertools import cycle, islice
from typing import Any, Literal

import diffusers
import torch
from PIL import Image as PILImage
from PIL import ImageDraw
from plain import Plain

from latentwire.client import Connection
from latentwire.core.adapters import Weighted, added
from latentwire.core.memory import keep_freed_memory
from latentwire.core.settings import EMBEDDED_MODEL, MODELS_FOLDER
from latentwire.plugins.lora.files import choose, read_adapter

Kind = Literal["plain", "controlnet", "pixel-art", "pencil"]

CONTROLNET = "controlnets/emoji-outline"
LORAS: dict[Kind, str] = {"pixel-art": "loras/emoji-pixel-art", "pencil": "loras/emoji-pencil"}
ORDER: list[Kind] = ["plain", "controlnet", "pixel-art", "plain", "controlnet", "pencil"]


def kinds_of(count: int) -> list[Kind]:
    """Those of so many jobs."""
    return list(islice(cycle(ORDER), count))


async def fields_of(connection: Connection) -> dict[Kind, dict[str, Any]]:
    """Load the ControlNet and the LoRAs; what a request of each kind has beside its prompt."""
    await connection.call("controlnet.load", path=CONTROLNET, name="outline")
    for kind, path in LORAS.items():
        await connection.call("lora.load", path=path, name=kind)
    image = (await connection.call("images.put", data=_outline()))["image_id"]
    uses: dict[Kind, dict[str, Any]] = {kind: {"lora": [{"name": kind}]} for kind in LORAS}
    return {"plain": {}, "controlnet": {"controlnet": [{"name": "outline", "image": image}]}, **uses}


class Mixed(Plain):
    """The embedded model with its ControlNet and LoRAs; for the main thread of a process of its own.

    The LoRAs are added to the plain modules by the host's own means, so that both compute the same. The control
    image's embedding is left out: the host computes it once a picture.
    """

    def __init__(self, dtype: str) -> None:
        keep_freed_memory()  # as the host does; without it the forwards of many rows, and so the limit, are slower
        super().__init__(EMBEDDED_MODEL, dtype)
        unet = self.pipeline.unet
        self._net = diffusers.ControlNetModel.from_pretrained(
            MODELS_FOLDER / CONTROLNET, dtype=unet.dtype, use_safetensors=True, local_files_only=True
        )
        self._net.controlnet_cond_embedding = torch.nn.Identity()
        self._layers = dict(unet.named_modules())
        self._weighted: dict[Kind, list[Weighted]] = {}
        for kind, path in LORAS.items():
            adapter = read_adapter(choose(MODELS_FOLDER / path)[0], self.pipeline.components)
            self._weighted[kind] = [(adapter.to(self.device, unet.dtype), 1.0)]

    def alone(self, kind: Kind, times: int) -> float:
        """Median seconds of one job's forwards in a step."""
        return self.together([kind], times)

    def together(self, kinds: list[Kind], times: int) -> float:
        """Median seconds of a step's forwards of all jobs: one ControlNet's and one UNet's, with two rows a job."""
        seconds = 0.0
        arguments = self.inputs(2 * len(kinds))
        controlled = 2 * kinds.count("controlnet")
        if controlled:
            given = self.inputs(controlled)
            size = given["sample"].shape[-1]
            hint = torch.randn(controlled, self._net.config.block_out_channels[0], size, size, dtype=self._net.dtype)

            def control() -> Any:
                return self._net(**given, controlnet_cond=hint, return_dict=False)

            seconds += self.seconds(control, times)
            with torch.inference_mode():
                down, mid = control()
            more = 2 * len(kinds) - controlled
            arguments["down_block_additional_residuals"] = tuple(_with_zeros(part, more) for part in down)
            arguments["mid_block_additional_residual"] = _with_zeros(mid, more)
        groups = [(2 * kinds.count(kind), self._weighted.get(kind, [])) for kind in dict.fromkeys(sorted(kinds))]

        def denoise() -> None:
            with added("unet", self._layers, groups):
                self.pipeline.unet(**arguments)

        return seconds + self.seconds(denoise, times)


def _with_zeros(residual: torch.Tensor, more: int) -> torch.Tensor:
    """With rows of zeros, for jobs that have no ControlNet."""
    return torch.cat([residual, residual.new_zeros((more, *residual.shape[1:]))])


def _outline() -> bytes:
    """A control image: a ring, white on black."""
    image = PILImage.new("RGB", (128, 128))
    ImageDraw.Draw(image).ellipse((24, 24, 104, 104), outline=(255, 255, 255), width=2)
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()
