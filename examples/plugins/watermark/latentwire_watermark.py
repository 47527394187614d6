"""Request field `watermark`: draw a text or a logo in a corner of the finished picture.

{"prompt": "red apple", "watermark": true}
"""

from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont
from pydantic import ConfigDict, Field, RootModel

from latentwire import ImageContext, PluginRegistry, Strict, hookimpl

LATENTWIRE_API = "1.0"


class Settings(Strict):
    """What plugins.toml may set for this plugin."""

    text: str = Field("synthetic picture", min_length=1, max_length=100)
    logo: Path | None = Field(None, strict=False, description="a picture, in place of the text; may be transparent")
    opacity: float = Field(0.6, gt=0, le=1)
    corner: Literal["top-left", "top-right", "bottom-left", "bottom-right"] = "bottom-right"
    always: bool = Field(False, description="also where the request does not say")


class Watermark(RootModel[bool]):
    """Whether the picture gets the host's watermark; as the host has set it, if left out."""

    model_config = ConfigDict(strict=True)


class Plugin:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.logo = None if settings.logo is None else Image.open(settings.logo).convert("RGBA")

    @hookimpl
    def register(self, registry: PluginRegistry) -> None:
        registry.add_field("watermark", Watermark)

    @hookimpl
    def image_finished(self, context: ImageContext) -> None:
        wanted: Watermark | None = getattr(context.request, "watermark", None)
        if not (self.settings.always if wanted is None else wanted.root):
            return
        settings = self.settings
        mark = _lettering(settings.text, context.image.size) if self.logo is None else _fitted(self.logo, context.image)
        mark.putalpha(mark.getchannel("A").point(lambda alpha: round(alpha * settings.opacity)))
        picture = context.image.convert("RGBA")
        picture.alpha_composite(mark, _place(settings.corner, mark.size, picture.size))
        context.image = picture.convert("RGB")
        context.metadata["watermark"] = settings.text if settings.logo is None else settings.logo.name


def _lettering(text: str, size: tuple[int, int]) -> Image.Image:
    """The text in white with a black edge, seen on any ground, no wider than the picture."""
    width, height = size
    points = max(10.0, height / 16)
    points *= min(1.0, 0.9 * width / ImageFont.load_default(points).getlength(text))
    font = ImageFont.load_default(points)
    left, top, right, bottom = font.getbbox(text)
    mark = Image.new("RGBA", (round(right - left) + 2, round(bottom - top) + 2))
    ImageDraw.Draw(mark).text((1 - left, 1 - top), text, "white", font, stroke_width=1, stroke_fill="black")
    return mark


def _fitted(logo: Image.Image, picture: Image.Image) -> Image.Image:
    """The logo at a quarter of the picture's size at most."""
    small = logo.copy()
    small.thumbnail((picture.width // 4, picture.height // 4))
    return small


def _place(corner: str, mark: tuple[int, int], picture: tuple[int, int]) -> tuple[int, int]:
    margin = min(picture) // 50
    x = margin if corner.endswith("left") else picture[0] - mark[0] - margin
    y = margin if corner.startswith("top") else picture[1] - mark[1] - margin
    return max(0, x), max(0, y)
