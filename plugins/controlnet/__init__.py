"""ControlNets: loaded once, then one or several of them in any request, each with its control image."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from PIL.Image import Image
from pydantic import BaseModel, Field, RootModel, model_validator

from latentwire import (
    BuildContext,
    CallContext,
    CommandContext,
    Host,
    ImageInput,
    InvalidParams,
    JobEvent,
    ModelLoadError,
    NoParams,
    Picture,
    PluginRegistry,
    Remembered,
    Resize,
    Strict,
    UpdateContext,
    control_image_argument,
    encode,
    hookimpl,
    validate,
)

from .images import prepare, to_array
from .preprocessors import PREPROCESSORS


class Preprocessing(Strict):
    """How to make a control image of a picture."""

    name: str = Field(max_length=100, description="a preprocessor that describe lists")
    options: dict[str, Any] = Field({}, description="of that preprocessor")
    show: bool = Field(False, description="send the control image back as an event control_image")


class Use(Strict):
    """One ControlNet in a request; the names are those of diffusers."""

    image: ImageInput
    name: str | None = Field(
        None, max_length=200, description="a name of controlnet.list; may be left out where one is loaded"
    )
    controlnet_conditioning_scale: float = Field(1.0, ge=0, le=10)
    control_guidance_start: float = Field(0.0, ge=0, le=1, description="from this part of the steps on")
    control_guidance_end: float = Field(1.0, ge=0, le=1, description="up to this part of the steps")
    guess_mode: bool = Field(False, description="recognise the image without the prompt's help")
    resize: Resize = Field("fill", description="fit: all of it, black borders; fill: cropped; stretch: ratio ignored")
    preprocess: Preprocessing | None = None

    @model_validator(mode="after")
    def _window_is_open(self) -> "Use":
        if self.control_guidance_start >= self.control_guidance_end:
            raise ValueError("control_guidance_start must be below control_guidance_end")
        return self


class Uses(RootModel[list[Use]]):
    """The ControlNets of a picture."""

    root: list[Use] = Field(max_length=8)

    @model_validator(mode="after")
    def _all_guess_or_none(self) -> "Uses":
        if len({use.guess_mode for use in self.root}) > 1:
            raise ValueError("guess_mode must be the same for all ControlNets of a request")
        return self


class Scale(Strict):
    """A new scale for a ControlNet of a job that runs."""

    name: str = Field(max_length=200, description="a ControlNet that the job began with")
    controlnet_conditioning_scale: float = Field(ge=0, le=10)


class Scales(RootModel[list[Scale]]):
    """New scales for ControlNets of a job that runs."""

    root: list[Scale] = Field(max_length=8)


class LoadParams(Strict):
    """Which ControlNet to load, or what to make a ControlLoRA of."""

    path: str | None = Field(None, max_length=1000, description="a folder below files.roots, or a hub id where allowed")
    lora_weights_path: str | None = Field(
        None, max_length=1000, description="a ControlLoRA's file, below files.roots or in the folder that path names"
    )
    name: str | None = Field(None, min_length=1, max_length=200, description="the folder's or file's own if left out")
    model: str | None = Field(None, max_length=100, description="for which model; the host's default model if left out")
    dtype: Literal["float16", "bfloat16", "float32"] | None = Field(None, description="the model's if left out")

    @model_validator(mode="after")
    def _something_is_named(self) -> "LoadParams":
        if self.path is None and self.lora_weights_path is None:
            raise ValueError("wanted path, or lora_weights_path for a ControlLoRA")
        return self


class UnloadParams(Strict):
    """Which ControlNet to unload."""

    name: str = Field(max_length=200)
    when_free: bool = Field(False, description="where jobs use it: unload it after them, in place of an error")


class PreprocessParams(Strict):
    """A picture to make a control image of."""

    image: ImageInput
    name: str = Field(max_length=100, description="a preprocessor that describe lists")
    options: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class ControlImage(JobEvent):
    """A control image as the ControlNet sees it; number `place` of the request, from 0."""

    name: ClassVar[str] = "control_image"

    place: int
    controlnet: str
    image: Picture


class Plugin:
    """The commands, and the control images in use."""

    def __init__(self) -> None:
        # live requests repeat their control images, and all pictures of a job share them
        self._images = Remembered(256 << 20, lambda prepared: prepared[1].nbytes)

    @hookimpl
    def register(self, registry: PluginRegistry) -> None:
        registry.add_field("controlnet", Uses)
        registry.add_update("controlnet", Scales)
        registry.add_event(ControlImage)
        for name, (options, apply) in PREPROCESSORS.items():
            registry.add_preprocessor(name, options, apply)
        registry.add_command("controlnet.load", LoadParams, self.load)
        registry.add_command("controlnet.list", NoParams, self.list_all)
        registry.add_command("controlnet.unload", UnloadParams, self.unload)
        registry.add_command("controlnet.preprocess", PreprocessParams, self.preprocess)

    @hookimpl
    def modify_build(self, context: BuildContext) -> None:
        uses = _uses(context.request)
        names = [_name_of(context.host, place, use, context.build.model) for place, use in enumerate(uses)]
        for place, use in enumerate(uses):
            _options_of(context.host, use.preprocess, ["controlnet", place, "preprocess"])
        if uses:  # the picture's metadata shall say which ones were used
            named = [use.model_copy(update={"name": name}) for use, name in zip(uses, names, strict=True)]
            context.request = context.request.model_copy(update={"controlnet": Uses.model_construct(root=named)})
        context.build = context.build.with_controlnets(*names)

    @hookimpl
    def modify_call(self, context: CallContext) -> None:
        uses = _uses(context.request)
        if not uses:
            return
        names = context.build.controlnets[-len(uses) :]
        prepared = [self._prepared(context, place, use) for place, use in enumerate(uses)]
        if context.index == 0:
            for place, (use, name, (image, _)) in enumerate(zip(uses, names, prepared, strict=True)):
                if use.preprocess is not None and use.preprocess.show:
                    context.emit(ControlImage(context.job, place, name, encode(image, "png")))
        import torch

        # one ControlNet takes plain values, several take lists
        many: Any = list if len(uses) > 1 else lambda values: values[0]
        context.call = context.call.with_extra(
            **{
                control_image_argument(context.build.task): many([torch.from_numpy(array) for _, array in prepared]),
                "controlnet_conditioning_scale": many([use.controlnet_conditioning_scale for use in uses]),
                "control_guidance_start": many([use.control_guidance_start for use in uses]),
                "control_guidance_end": many([use.control_guidance_end for use in uses]),
                "guess_mode": uses[0].guess_mode,
            }
        )

    @hookimpl
    def update_job(self, context: UpdateContext) -> None:
        section: Scales | None = getattr(context.update, "controlnet", None)
        if section is None:
            return
        began = [use.name for use in _uses(context.request) if use.controlnet_conditioning_scale]
        scales: dict[str, float] = {}
        for place, change in enumerate(section.root):
            if began.count(change.name) > 1:
                message = f"the job uses ControlNet {change.name!r} more than once; such a one cannot be changed"
                path = ["controlnet", place, "name"]
                raise InvalidParams(message, [{"path": path, "message": message, "got": change.name}])
            if change.name not in began:  # at scale 0 nothing of it runs
                known = ", ".join(map(str, began)) or "none"
                message = f"the job did not begin with ControlNet {change.name!r} at a scale above 0; those: {known}"
                path = ["controlnet", place, "name"]
                raise InvalidParams(message, [{"path": path, "message": message, "got": change.name}])
            scales[change.name] = change.controlnet_conditioning_scale
        changed = tuple((name, scales.get(name, scale)) for name, scale in context.tuning.controlnet_scales)
        context.tuning = replace(context.tuning, controlnet_scales=changed)

    async def load(self, context: CommandContext, params: LoadParams) -> dict[str, Any]:
        """Load a ControlNet, or make a ControlLoRA of the model's own weights and a LoRA file."""
        return await asyncio.to_thread(_load, context.host, params)

    async def list_all(self, context: CommandContext, params: NoParams) -> dict[str, Any]:
        """List the loaded ControlNets, in the order of their loading."""
        return {"controlnets": context.host.store.brought("controlnet")}

    async def unload(self, context: CommandContext, params: UnloadParams) -> dict[str, Any]:
        """Unload a ControlNet and give its memory back."""
        done = await asyncio.to_thread(context.host.store.drop, "controlnet", params.name, params.when_free)
        return {"name": params.name, "unloaded": done}

    async def preprocess(self, context: CommandContext, params: PreprocessParams) -> dict[str, Any]:
        """Make a control image of a picture, to look at or to use by its id."""
        host = context.host
        wanted = Preprocessing(name=params.name, options=params.options)
        options = _options_of(host, wanted, [])

        def make() -> dict[str, Any]:
            given = host.picture(params.image, ["image"])
            most = host.settings.limits.pixels
            if given.width * given.height > most:
                message = f"the picture is {given.width}x{given.height} pixels; wanted at most {most} to preprocess"
                raise InvalidParams(message, [{"path": ["image"], "message": message, "got": f"{given.size}"}])
            picture = encode(host.registry.preprocess(params.name, given, options), "png")
            plain = {"format": picture.format, "width": picture.width, "height": picture.height, "data": picture.data}
            return {"image_id": host.images.put(picture.data), "image": plain}

        return await host.with_pixels(make)

    def _prepared(self, context: CallContext, place: int, use: Use) -> tuple[Image, npt.NDArray[np.float32]]:
        """The control image at the picture's size, and as the pipeline takes it."""
        host, width, height = context.host, context.call.width, context.call.height

        def preprocess(picture: Image) -> Image:
            if use.preprocess is None:
                return picture
            options = _options_of(host, use.preprocess, ["controlnet", place, "preprocess"])
            return host.registry.preprocess(use.preprocess.name, picture, options)

        def make() -> tuple[Image, npt.NDArray[np.float32]]:
            picture = host.picture(use.image, ["controlnet", place, "image"])
            image = prepare(picture, width, height, use.resize, preprocess)
            return image, to_array(image)

        wanted = use.model_dump_json(include={"image", "resize", "preprocess"}, exclude={"preprocess": {"show"}})
        prepared: tuple[Image, npt.NDArray[np.float32]] = self._images.get((wanted, width, height), make)
        return prepared


def _uses(request: Any) -> list[Use]:
    section: Uses | None = getattr(request, "controlnet", None)
    return section.root if section else []


def _name_of(host: Host, place: int, use: Use, model: str) -> str:
    """The ControlNet that a request means: the named one, or the only one."""
    rows = [row for row in host.store.brought("controlnet") if row["model"] == model]
    names = [row["name"] for row in rows]
    if use.name in names:
        return str(use.name)
    if use.name is None and len(names) == 1:
        return str(names[0])
    loaded = f"loaded for model {model!r}: {', '.join(names) or 'none; controlnet.load loads one'}"
    if use.name is None:
        message = f"a control image needs a ControlNet, and the request names none; {loaded}"
    else:
        message = f"no ControlNet {use.name!r} is loaded; {loaded}"
    raise InvalidParams(message, [{"path": ["controlnet", place, "name"], "message": message, "got": use.name}])


def _options_of(host: Host, preprocess: Preprocessing | None, path: list[Any]) -> BaseModel | None:
    """A preprocessor's validated options."""
    if preprocess is None:
        return None
    entry = host.registry.preprocessors.get(preprocess.name)
    if entry is None:
        known = ", ".join(sorted(host.registry.preprocessors))
        message = f"there is no preprocessor {preprocess.name!r}; preprocessors: {known}"
        raise InvalidParams(message, [{"path": [*path, "name"], "message": message, "got": preprocess.name}])
    try:
        return validate(entry.options, preprocess.options, preprocess.name)
    except InvalidParams as error:
        for detail in error.details:
            detail["path"] = [*path, "options", *detail["path"]]
        raise


def _load(host: Host, params: LoadParams) -> dict[str, Any]:
    """In a worker thread."""
    from .loading import load_control_lora, load_folder  # which imports diffusers' ControlNets

    model = params.model or host.settings.defaults.model
    card = host.store.card(model)
    unet_config = card.configs.get("unet")
    if unet_config is None or not card.row.controlnet_pipelines:
        raise ModelLoadError(f"model {model!r} is a {card.family}, for which this host has no ControlNets")
    notes: dict[str, Any] = {"path": params.path, "lora_weights_path": params.lora_weights_path}
    if params.lora_weights_path is not None:
        field, name, notes["kind"] = "lora_weights_path", Path(params.lora_weights_path).stem, "control-lora"
        load = partial(load_control_lora, host, model, _control_lora_file(host, params))
    else:
        assert params.path is not None
        field, name, notes["kind"] = "path", Path(params.path).name, "controlnet"
        load = partial(load_folder, host, host.find_file(params.path), unet_config)
    try:
        return host.store.bring("controlnet", params.name or name, model, load, params.dtype, notes)
    except ModelLoadError as error:
        error.details = [{"path": [field], "message": error.message, "got": notes[field]}]
        raise


def _control_lora_file(host: Host, params: LoadParams) -> Path:
    """The file that lora_weights_path names: within the folder of path, or by itself."""
    assert params.lora_weights_path is not None
    if params.path is not None:
        with suppress(InvalidParams, OSError):  # a name that is too long, say
            file = host.find_file(params.path) / params.lora_weights_path
            if file.exists():
                host.check_inside(file)
                return file
    return host.find_file(params.lora_weights_path, "lora_weights_path")
