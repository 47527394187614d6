"""A filter that can refuse: prompts by words, finished pictures by their look.

Pictures are compared by their dHash: how the brightness goes from pixel to pixel in a copy of 9 x 8 pixels. It stays
nearly the same when a picture is scaled, compressed or tinted.
"""

import re
from typing import Annotated

from PIL import Image
from pydantic import Field

from latentwire import BuildContext, CallContext, ImageContext, InvalidParams, LatentwireError, Strict, hookimpl

LATENTWIRE_API = "1.0"

Hash = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]


class Settings(Strict):
    """What plugins.toml may set for this plugin."""

    words: list[Annotated[str, Field(min_length=1)]] = Field([], description="none of these in a prompt")
    hashes: list[Hash] = Field([], description="of pictures that none may look like, as `dhash` gives them")
    distance: int = Field(6, ge=0, le=20, description="of 64 bits that may differ between pictures that look alike")


class PictureRefused(LatentwireError):
    """A finished picture looks like one that this host gives to nobody."""

    code = "picture_refused"


class Plugin:
    def __init__(self, settings: Settings) -> None:
        words = "|".join(map(re.escape, settings.words))
        self.words = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE) if words else None
        self.hashes = [int(known, 16) for known in settings.hashes]
        self.distance = settings.distance

    @hookimpl
    def modify_build(self, context: BuildContext) -> None:
        self._check(context.request.prompt)
        if not self.hashes:
            return
        if context.request.output_type == "latent":
            message = "this host looks at finished pictures, which latents are not; ask for png"
            raise InvalidParams(message, [{"path": ["output_type"], "message": message, "got": "latent"}])
        # what streams shows the picture before it has been looked at
        quiet = context.request.stream.model_copy(update={"previews": None, "latents": None})
        context.request = context.request.model_copy(update={"stream": quiet})

    @hookimpl
    def modify_call(self, context: CallContext) -> None:
        self._check(context.call.prompt)  # what other plugins have made of it

    @hookimpl
    def image_finished(self, context: ImageContext) -> None:
        if not self.hashes:
            return
        looks = dhash(context.image)
        if any((looks ^ known).bit_count() <= self.distance for known in self.hashes):
            raise PictureRefused("the picture looks like one that this host gives to nobody; change the prompt or seed")

    def _check(self, prompt: str) -> None:
        """Refuse a prompt with one of the words; which one is not said, nor what others there are."""
        if self.words is not None and self.words.search(prompt):
            message = "the prompt asks for something that this host does not make"
            raise InvalidParams(message, [{"path": ["prompt"], "message": message, "got": prompt[:80]}])


def dhash(picture: Image.Image) -> int:
    """64 bits, each telling whether a pixel of a small grey copy is darker than its right neighbour."""
    grey = picture.convert("L").resize((9, 8), Image.Resampling.LANCZOS).tobytes()
    bits = 0
    for row in range(8):
        for column in range(8):
            place = 9 * row + column
            bits = bits << 1 | (grey[place] < grey[place + 1])
    return bits
