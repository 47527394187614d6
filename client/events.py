"""What a client gets beside the host's own events: their pictures as PIL images, plugins' events, and results."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from ..core.events import EVENTS, Event, JobEvent, from_plain
from ..core.events import Image as HostImage
from ..core.events import Picture as HostPicture
from ..core.events import Preview as HostPreview

if TYPE_CHECKING:
    from PIL import Image as PILImage


@dataclass(frozen=True, slots=True)
class Picture(HostPicture):
    """An encoded picture: `data` holds a file of the named format."""

    def to_pil(self) -> "PILImage.Image":
        """The picture in Pillow's hands, its pixels read; Pillow is imported here."""
        from io import BytesIO

        from PIL import Image as PILImage

        image = PILImage.open(BytesIO(self.data))
        image.load()
        return image


@dataclass(frozen=True, slots=True)
class Preview(HostPreview):
    """The picture as the model predicts it at this step."""

    image: Picture


@dataclass(frozen=True, slots=True)
class Image(HostImage):
    """A picture of the job is finished, as a PNG or as final latents: see `latentwire.core.events.Image`."""

    image: Picture | None


@dataclass(frozen=True, slots=True)
class PluginEvent:
    """An event that a plugin of the host brought: its name and its values."""

    name: str
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """How a generate command ended well; `seconds` counts from the host's acceptance."""

    job: str
    images: int
    seeds: list[int]
    model: str
    scheduler: str
    mode: str
    seconds: float
    slot: str | None = None
    revision: int | None = None

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Self:
        """From a host's message; what this version does not know is left out."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


JobMessage = JobEvent | PluginEvent | Result
"""What a generate command yields."""


def event_of(message: dict[str, Any]) -> Event | PluginEvent:
    """A message that is neither result nor error, as the event that it tells of."""
    name = message["event"]
    if name not in EVENTS:
        return PluginEvent(name, {key: value for key, value in message.items() if key not in ("id", "event", "seq")})
    event = from_plain(name, message)
    if isinstance(event, HostPreview):
        return _with_picture(Preview, event, event.image)
    if isinstance(event, HostImage):
        return _with_picture(Image, event, event.image)
    return event


def _with_picture(kind: type[Event], event: HostPreview | HostImage, picture: HostPicture | None) -> Event:
    values = {field.name: getattr(event, field.name) for field in fields(event)}
    if picture is not None:
        values["image"] = Picture(picture.format, picture.width, picture.height, picture.data)
    return kind(**values)
