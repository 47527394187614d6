"""What a host tells its clients while it works: plain values, the same on both ends of the wire.

Life-cycle events are never lost. Events with `latest_wins` are: a newer one of the same job, picture
and kind replaces one that has not been sent yet, so a slow reader gets fewer of them, never late ones.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture: `data` holds a file of the named format."""

    format: Literal["png", "jpeg", "webp"]
    width: int
    height: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Tensor:
    """A raw tensor: row-major, little-endian."""

    dtype: Literal["float32", "float16"]
    shape: list[int]
    data: bytes


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a command tells its client before its end; plugins derive their own from it.

    A field is a plain value (text, number, boolean, None, bytes, or lists and maps of them), a `Picture` or a
    `Tensor`; none is called `id`, `event` or `seq`, which are the message's own. Its class needs `name`, and
    `latest_wins` where a newer one makes an unsent older one worthless.
    """

    name: ClassVar[str]
    latest_wins: ClassVar[bool] = False

    @property
    def subject(self) -> Hashable:
        """What it tells about; a newer one takes the place only of one about the same."""
        return getattr(self, "index", None)


@dataclass(frozen=True, slots=True)
class Subscribed(Event):
    """A subscription has begun; its command runs until `unsubscribe` names this id, or the session ends."""

    name: ClassVar[str] = "subscribed"

    subscription: str


@dataclass(frozen=True, slots=True)
class StateChanged(Event):
    """What `pipeline.state` gives, as it is now; the first one comes at once."""

    name: ClassVar[str] = "state"
    latest_wins: ClassVar[bool] = True

    state: dict[str, Any]


@dataclass(frozen=True, slots=True)
class PluginsChanged(Event):
    """The rows of `plugins.list` as they are now; the first one comes at once."""

    name: ClassVar[str] = "plugins"
    latest_wins: ClassVar[bool] = True

    plugins: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class JobEvent(Event):
    """What all events of a job share: `job`, the id that the host gave it.

    The host adds `slot` and `revision` where the request has a slot; the messages of others have neither.
    """

    job: str
    slot: str | None = field(default=None, kw_only=True)
    revision: int | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class Accepted(JobEvent):
    """The request is valid and has become a job; `seeds` holds the seed of each of its pictures."""

    name: ClassVar[str] = "accepted"

    seeds: list[int]


@dataclass(frozen=True, slots=True)
class Queued(JobEvent):
    """The job waits for its turn: `position` counts from 1, the next one to start.

    `starts_in` and `ends_in` are estimates in seconds, null until the host knows its own pace.
    """

    name: ClassVar[str] = "queued"
    latest_wins: ClassVar[bool] = True

    position: int
    starts_in: float | None
    ends_in: float | None


@dataclass(frozen=True, slots=True)
class Loading(JobEvent):
    """A part of the model is being read: part `part` of `parts`, called `component`."""

    name: ClassVar[str] = "loading"

    model: str
    component: str
    part: int
    parts: int


@dataclass(frozen=True, slots=True)
class Started(JobEvent):
    """The job's turn has come; `mode` and `scheduler` are the ones in use.

    `ends_in` is an estimate in seconds of the time to the job's first picture, null until the host knows its own pace.
    """

    name: ClassVar[str] = "started"

    model: str
    scheduler: str
    mode: str
    ends_in: float | None = None


@dataclass(frozen=True, slots=True)
class Paused(JobEvent):
    """The job waits before its next step until it is resumed."""

    name: ClassVar[str] = "paused"


@dataclass(frozen=True, slots=True)
class Resumed(JobEvent):
    """The job goes on."""

    name: ClassVar[str] = "resumed"


@dataclass(frozen=True, slots=True)
class Changed(JobEvent):
    """The job goes on with these values from its pictures' next steps on."""

    name: ClassVar[str] = "changed"

    guidance_scale: float | None
    adapters: dict[str, float]
    controlnet_scales: dict[str, float]


@dataclass(frozen=True, slots=True)
class PictureState:
    """Where a picture of a job is: `step` of `steps`, which is null before its first one."""

    index: int
    seed: int
    step: int
    steps: int | None
    done: bool


@dataclass(frozen=True, slots=True)
class JobState(JobEvent):
    """Where a job is that somebody begins to watch; its finished pictures and latest previews follow.

    `seconds` count from the host's acceptance, `position` is its place in the queue, null where it does not wait there.
    """

    name: ClassVar[str] = "job_state"

    state: str
    prompt: str
    seconds: float
    position: int | None
    pictures: list[PictureState]


@dataclass(frozen=True, slots=True)
class Step(JobEvent):
    """A denoising step is done.

    `index` is the picture within the job, from 0. `step` counts from 1 to `steps`, the scheduler's own
    number of model calls (Heun makes 2n - 1 of them for n steps, PNDM n + 1). `sigma` is the noise level
    where the scheduler has one. `seconds` is the time since the picture's previous step.
    """

    name: ClassVar[str] = "step"

    index: int
    step: int
    steps: int
    timestep: float
    sigma: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Preview(JobEvent):
    """The picture as the model predicts it at this step."""

    name: ClassVar[str] = "preview"
    latest_wins: ClassVar[bool] = True

    index: int
    step: int
    steps: int
    image: Picture


@dataclass(frozen=True, slots=True)
class Latents(JobEvent):
    """The noisy latents after this step, `(channels, height / 8, width / 8)`."""

    name: ClassVar[str] = "latents"
    latest_wins: ClassVar[bool] = True

    index: int
    step: int
    steps: int
    latents: Tensor


@dataclass(frozen=True, slots=True)
class Image(JobEvent):
    """A picture of the job is finished, as a PNG or as final latents: whichever was asked for.

    `image_id` is the picture's in the host's image store, for requests that take it as an input; null for latents.
    `result` is the id under which a plugin has stored the picture for good; null where none has. `unstored` says why it
    could not be stored, where it should have been.
    """

    name: ClassVar[str] = "image"

    index: int
    seed: int
    image: Picture | None
    latents: Tensor | None
    image_id: str | None = None
    result: str | None = None
    unstored: str | None = None


@dataclass(frozen=True, slots=True)
class Closing(Event):
    """The host is shutting down: it takes no more jobs, and those under way have so many seconds to finish."""

    name: ClassVar[str] = "closing"

    seconds: float


EVENTS: dict[str, type[Event]] = {
    event.name: event
    for event in (
        Accepted,
        Loading,
        Queued,
        Started,
        Step,
        Preview,
        Latents,
        Image,
        Paused,
        Resumed,
        Changed,
        JobState,
        Subscribed,
        StateChanged,
        PluginsChanged,
        Closing,
    )
}
"""The host's own; plugins may add theirs."""


_names: dict[type, tuple[str, ...]] = {}


def _names_of(kind: Any) -> tuple[str, ...]:
    """The fields of a dataclass, looked up once: this is done for every message."""
    if kind not in _names:
        _names[kind] = tuple(field.name for field in fields(kind))
    return _names[kind]


def to_plain(event: Event) -> dict[str, Any]:
    """An event as a map of plain values, without its name."""
    plain = {name: _plain(getattr(event, name)) for name in _names_of(type(event))}
    if isinstance(event, JobEvent) and event.slot is None:
        del plain["slot"], plain["revision"]
    return plain


def from_plain(name: str, values: dict[str, Any]) -> Event:
    """The event that `to_plain` turned into `values`; fields that this version does not know are left out.

    Raises:
        KeyError: `name` is no event of this version.
    """
    kind = EVENTS[name]
    known = {key: value for key, value in values.items() if key in _names_of(kind)}
    if known.get("image"):
        known["image"] = Picture(**known["image"])
    if known.get("latents"):
        known["latents"] = Tensor(**known["latents"])
    if kind is JobState:
        known["pictures"] = [PictureState(**picture) for picture in known["pictures"]]
    return kind(**known)


def _plain(value: Any) -> Any:
    if isinstance(value, Picture | Tensor | PictureState):
        return {name: getattr(value, name) for name in _names_of(type(value))}
    return [_plain(entry) for entry in value] if isinstance(value, list) else value
