"""What a client may ask for: `GenerateRequest`, validated before anything else sees it.

A plugin adds its own field to the request (`PluginRegistry.add_field`); the host then builds a request model
that holds the core's fields and every plugin's.
"""

import secrets
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    create_model,
    field_validator,
    model_validator,
)

from .image_store import image_id

Mode = Literal["exact", "reproducible", "fast"]

Priority = Literal["interactive", "normal", "batch"]
"""From the highest rank to the lowest."""

MAX_IMAGES = 64
SEEDS = 2**63  # from 0 to one less


def _whole(value: Any) -> Any:
    """JavaScript's msgpack may write 20 as 20.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
Seed = Annotated[Whole, Field(ge=0, lt=SEEDS)]


class Strict(BaseModel):
    """A frozen model that refuses unknown fields, guesses no types and takes no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _id_of(image: bytes | str) -> str:
    """What stands for a picture where bytes cannot: its id."""
    return image if isinstance(image, str) else image_id(image)


ImageInput = Annotated[
    bytes | str,
    Field(description="a PNG, JPEG or WebP file, or the id of an uploaded or made picture"),
    PlainSerializer(_id_of, return_type=str, when_used="json"),
]
"""A picture in a request; `Host.picture` gives its pixels."""


class PreviewOptions(Strict):
    """How previews of the predicted picture are streamed."""

    format: Literal["jpeg", "webp", "png"] = "jpeg"
    size: Whole | None = Field(None, ge=16, le=2048, description="longer side in pixels; the picture's own by default")
    quality: Whole = Field(80, ge=1, le=100, description="for jpeg and webp")
    every: Whole = Field(
        1,
        ge=1,
        description="one preview every so many steps, and one of the last step unless the picture itself comes first",
    )
    max_rate: float | None = Field(None, gt=0, description="at most so many previews a second")
    previewer: str | None = Field(
        None,
        max_length=100,
        description="how they are painted, a name that describe lists; the model's own if left out",
    )


class LatentsOptions(Strict):
    """How raw latents are streamed."""

    dtype: Literal["float32", "float16"] = "float16"
    every: Whole = Field(1, ge=1, description="latents every so many steps; the last step always has them")


class StreamOptions(Strict):
    """What streams back while the job runs."""

    steps: bool = Field(True, description="an event for each step")
    previews: PreviewOptions | None = None
    latents: LatentsOptions | None = None


class GenerateRequest(Strict):
    """A picture, or several, from a prompt. What is left out takes the model's or the host's default."""

    prompt: str = Field(max_length=10_000)
    negative_prompt: str = Field("", max_length=10_000)
    model: str | None = Field(
        None, max_length=100, description="a name of models.list; the host's default model if left out"
    )
    scheduler: str | None = Field(
        None, max_length=100, description="a name that describe lists; the host's default if left out"
    )
    num_inference_steps: Whole | None = Field(None, ge=1, le=1000)
    guidance_scale: float | None = Field(None, ge=0, le=100, description="1 or less: no guidance, half the work")
    width: Whole | None = Field(None, ge=64, le=4096, multiple_of=8, description="pixels")
    height: Whole | None = Field(None, ge=64, le=4096, multiple_of=8, description="pixels")
    num_images: Whole | None = Field(
        None, ge=1, le=MAX_IMAGES, description="one, or as many as there are seeds, if left out"
    )
    seed: Seed | list[Seed] | None = Field(
        None, description="of the first picture (the next ones count up), or one for each; random if left out"
    )
    mode: Mode | None = Field(None, description="how the engine may share forwards; the host's default if left out")
    output_type: Literal["png", "latent"] = Field("png", description="what an image event carries")
    slot: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="a newer request of the same slot takes this one's place: a live picture that follows its controls",
    )
    min_steps_shown: Whole = Field(
        0, ge=0, le=1000, description="of a slot's request: a newer one waits until so many steps have been shown"
    )
    priority: Priority | None = Field(None, description="interactive with a slot, else normal, if left out")
    stream: StreamOptions = StreamOptions()

    @field_validator("seed", mode="before")
    @classmethod
    def _seeds_are_seeds(cls, value: Any) -> Any:
        """One error for the field, where the union's branches would give one each; and none of 100,000 entries."""
        seeds = value if isinstance(value, list) else [0 if value is None else value]
        if not 0 < len(seeds) <= MAX_IMAGES or not all(_is_seed(_whole(seed)) for seed in seeds):
            raise ValueError(f"wanted a whole number from 0 to {SEEDS - 1}, or a list of 1 to {MAX_IMAGES} of them")
        return value

    @model_validator(mode="after")
    def _seeds_fit(self) -> Self:
        if isinstance(self.seed, list):
            if self.num_images not in (None, len(self.seed)):
                raise ValueError(f"seed lists {len(self.seed)} seeds, but num_images is {self.num_images}")
        elif self.seed is not None and self.seed + (self.num_images or 1) > SEEDS:
            raise ValueError(f"counting up from seed {self.seed}, {self.num_images} pictures pass {SEEDS - 1}")
        return self

    @model_validator(mode="after")
    def _shown_in_a_slot(self) -> Self:
        if self.min_steps_shown and self.slot is None:
            raise ValueError("min_steps_shown is for requests with a slot; name one, or leave it out")
        return self

    @property
    def rank(self) -> Priority:
        """The priority in use."""
        return self.priority or ("normal" if self.slot is None else "interactive")

    def seeds(self) -> list[int]:
        """The seed of each picture; drawn here when the request names none, so call it once a job."""
        if isinstance(self.seed, list):
            return list(self.seed)
        first = secrets.randbits(32) if self.seed is None else self.seed
        return [first + index for index in range(self.num_images or 1)]


def _is_seed(value: Any) -> bool:
    return type(value) is int and 0 <= value < SEEDS


class UpdateRequest(Strict):
    """New values for a job that runs; what is left out stays."""

    job: str = Field(description="from the accepted event")
    guidance_scale: float | None = Field(None, gt=1, le=100, description="of jobs that began with more than 1")


RequestModel = TypeVar("RequestModel", bound=BaseModel)


def with_fields(model: type[RequestModel], fields: dict[str, type[BaseModel]]) -> type[RequestModel]:
    """A request's model with the plugins' fields: each optional, None when the client leaves it out."""
    extra: dict[str, Any] = {name: (kind | None, None) for name, kind in fields.items()}
    return create_model(model.__name__, __base__=model, __doc__=model.__doc__, **extra)
