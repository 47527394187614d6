"""Request field `tint`: mix a colour into the final picture.

    {"prompt": "red apple", "tint": {"color": "#ff8800"}}

In plugins.toml, `settings = { strength = 0.5 }` sets the strength of requests that name none.
"""

from PIL import Image
from pydantic import Field

from latentwire import ImageContext, PluginRegistry, Strict, hookimpl

LATENTWIRE_API = "1.0"


class Settings(Strict):
    """What plugins.toml may set for this plugin."""

    strength: float = Field(0.3, ge=0, le=1)


class Tint(Strict):
    """A colour to mix into the finished picture."""

    color: str = Field(pattern="^#[0-9a-fA-F]{6}$", description="such as #ff8800")
    strength: float | None = Field(None, ge=0, le=1, description="0: the picture alone, 1: the colour alone")


class Plugin:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @hookimpl
    def register(self, registry: PluginRegistry) -> None:
        registry.add_field("tint", Tint)

    @hookimpl
    def image_finished(self, context: ImageContext) -> None:
        tint: Tint | None = getattr(context.request, "tint", None)
        if tint is None:
            return
        strength = self.settings.strength if tint.strength is None else tint.strength
        colour = Image.new("RGB", context.image.size, tint.color)
        context.image = Image.blend(context.image, colour, strength)
        context.metadata["tint"] = f"{tint.color} at {strength:g}"
