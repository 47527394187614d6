"""Pictures that form before one's eyes in a notebook; IPython is imported here alone, and Pillow by it.

from latentwire.client.notebook import show

with latentwire.connect_sync() as host:
    picture = show(host, "red apple on a blue background")
"""

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from .connection import Connection
from .events import Image, JobMessage, Preview
from .sync import SyncConnection

if TYPE_CHECKING:
    from PIL import Image as PILImage


def show(host: SyncConnection, prompt: str, **fields: Any) -> "PILImage.Image":
    """Make a picture and show it in the cell's output: previews while it forms, and the picture at last.

    Arguments and errors are those of `generate`.
    """
    shown = _Shown()
    for event in host.generate(prompt, **_with_previews(fields)):
        shown.take(event)
    return shown.picture()


async def show_async(host: Connection, prompt: str, **fields: Any) -> "PILImage.Image":
    """As `show`, for a host of `connect`: `await show_async(host, "tiger face")`."""
    shown = _Shown()
    async with aclosing(host.generate(prompt, **_with_previews(fields))) as events:
        async for event in events:
            shown.take(event)
    return shown.picture()


def _with_previews(fields: dict[str, Any]) -> dict[str, Any]:
    return {"steps": False, "previews": {"max_rate": 10.0}, **fields, "num_images": 1}


class _Shown:
    """A cell's output that is updated in place."""

    def __init__(self) -> None:
        from IPython.display import DisplayHandle

        self._handle = DisplayHandle()
        self._begun = False
        self._picture: PILImage.Image | None = None

    def take(self, event: JobMessage) -> None:
        if isinstance(event, Preview | Image) and event.image is not None:
            picture = event.image.to_pil()
            if self._begun:
                self._handle.update(picture)
            else:
                self._handle.display(picture)
            self._begun = True
            if isinstance(event, Image):
                self._picture = picture

    def picture(self) -> "PILImage.Image":
        if self._picture is None:
            raise ValueError("the host sent no picture; output_type must be png")
        return self._picture
