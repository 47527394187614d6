"""T2I-Adapters (Mou et al. 2023): small modules that lead a picture by another one, a sketch say.

{"id": 1, "command": "t2i_adapter.load", "params": {"path": "adapters/sketch"}}
{"prompt": "red apple", "t2i_adapter": {"name": "sketch", "image": ..., "scale": 0.8}}
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL.Image import Image
from pydantic import Field

from latentwire import (
    LOADING,
    BuildContext,
    CallContext,
    CommandContext,
    Host,
    ImageInput,
    InvalidParams,
    Loaded,
    ModelLoadError,
    NoParams,
    NotLoaded,
    PluginRegistry,
    Strict,
    hookimpl,
    read_json,
    read_module,
    resized,
)

if TYPE_CHECKING:
    import torch

LATENTWIRE_API = "1.0"

KIND = "t2i_adapter"
FAMILY = "StableDiffusionPipeline"


class T2IAdapter(Strict):
    """The T2I-Adapter of a picture."""

    name: str = Field(max_length=200, description="a name of t2i_adapter.list")
    image: ImageInput
    scale: float = Field(1.0, ge=0, le=10, description="0: as without it")


class LoadParams(Strict):
    """Which T2I-Adapter to load."""

    path: str = Field(max_length=1000, description="a folder below files.roots, or a hub id where allowed")
    name: str | None = Field(None, min_length=1, max_length=200, description="the folder's own if left out")
    model: str | None = Field(None, max_length=100, description="for which model; the host's default model if left out")


class UnloadParams(Strict):
    """Which T2I-Adapter to unload."""

    name: str = Field(max_length=200)
    when_free: bool = Field(False, description="where jobs use it: unload it after them, in place of an error")


@hookimpl
def register(registry: PluginRegistry) -> None:
    registry.add_field("t2i_adapter", T2IAdapter)
    registry.add_task(KIND, {FAMILY: pipeline_class})
    registry.add_command("t2i_adapter.load", LoadParams, load)
    registry.add_command("t2i_adapter.list", NoParams, list_all)
    registry.add_command("t2i_adapter.unload", UnloadParams, unload)


@hookimpl
def modify_build(context: BuildContext) -> None:
    use: T2IAdapter | None = getattr(context.request, "t2i_adapter", None)
    if use is None:
        return
    names = [row["name"] for row in _loaded(context.host) if row["model"] == context.build.model]
    if use.name not in names:
        loaded = ", ".join(names) or "none; t2i_adapter.load loads one"
        raise _refused(
            f"no T2I-Adapter {use.name!r} is loaded for model {context.build.model!r}; loaded: {loaded}",
            ["t2i_adapter", "name"],
            use.name,
        )
    if use.scale:
        _check_task(context.build.task, "text2img")
        context.build = replace(context.build, task=KIND).with_modules(("adapter", use.name))


@hookimpl
def modify_call(context: CallContext) -> None:
    use: T2IAdapter | None = getattr(context.request, "t2i_adapter", None)
    if use is None or not use.scale:
        return
    _check_task(context.build.task, KIND)  # a plugin further down may have changed it
    for field, side in (("width", context.call.width), ("height", context.call.height)):
        factor = next(row["factor"] for row in _loaded(context.host) if row["name"] == use.name)
        if side % factor:
            raise _refused(f"{field} must be a multiple of {factor} for T2I-Adapter {use.name!r}", [field], side)
    picture = context.host.picture(use.image, ["t2i_adapter", "image"])
    picture = resized(picture, context.call.width, context.call.height, "fill")
    context.call = context.call.with_extra(adapter_image=picture, adapter_conditioning_scale=use.scale)


async def load(context: CommandContext, params: LoadParams) -> dict[str, Any]:
    """Load a T2I-Adapter for requests to name."""
    return await asyncio.to_thread(_load, context.host, params)


async def list_all(context: CommandContext, params: NoParams) -> dict[str, Any]:
    """List the loaded T2I-Adapters, in the order of their loading."""
    return {"t2i_adapters": _loaded(context.host)}


async def unload(context: CommandContext, params: UnloadParams) -> dict[str, Any]:
    """Unload a T2I-Adapter and give its memory back."""
    names = [row["name"] for row in _loaded(context.host)]
    if params.name not in names:  # or another plugin's module would go
        raise NotLoaded(f"no T2I-Adapter {params.name!r} is loaded; loaded: {', '.join(names) or 'none'}")
    done = await asyncio.to_thread(context.host.store.drop, "module", params.name, params.when_free)
    return {"name": params.name, "unloaded": done}


def _loaded(host: Host) -> list[dict[str, Any]]:
    """The modules that this plugin has brought; others may bring theirs."""
    return [row for row in host.store.brought("module") if row.get("kind") == KIND]


def _load(host: Host, params: LoadParams) -> dict[str, Any]:
    """In a worker thread."""
    model = params.model or host.settings.defaults.model
    card = host.store.card(model)
    if card.family != FAMILY:
        raise ModelLoadError(f"model {model!r} is a {card.family}; T2I-Adapters here are for {FAMILY}")
    folder = host.find_file(params.path)
    name = params.name or folder.name
    try:
        for file in folder.glob("*"):
            host.check_inside(file)
        factor = _check(read_json(folder / "config.json"), card.configs["unet"], card.size)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        # an OSError's own text names the whole path, which is none of a client's business
        problem = f"its config.json: {error.strerror}" if isinstance(error, OSError) else error
        message = f"{params.path!r} is no T2I-Adapter for model {model!r}: {problem}"
        raise ModelLoadError(message, [{"path": ["path"], "message": message, "got": params.path}]) from error
    notes = {"kind": KIND, "path": params.path, "factor": factor}
    return host.store.bring("module", name, model, partial(_read, folder), notes=notes)


def _check(config: Mapping[str, Any], unet: Mapping[str, Any], size: int) -> int:
    """Compare what an adapter gives with what a UNet adds after each of its blocks.

    Returns:
        What a picture's sides must be multiples of.

    Raises:
        ValueError: it is no T2I-Adapter, or for a UNet of other channels or blocks.
    """
    import torch
    from diffusers import T2IAdapter as Module

    if config.get("_class_name") != "T2IAdapter":
        raise ValueError(f"its config.json is of {config.get('_class_name') or 'no model'}")
    with LOADING, torch.device("meta"):  # shapes alone, in no time
        module = Module.from_config(dict(config))
        given = [list(feature.shape[1:3]) for feature in module(torch.empty(1, module.config.in_channels, size, size))]
    side: int = unet["sample_size"]
    wanted: list[list[int]] = []
    for kind, channels in zip(unet["down_block_types"], unet["block_out_channels"], strict=True):
        below = side if len(wanted) == len(unet["block_out_channels"]) - 1 else side // 2
        wanted.append([channels, side if "CrossAttn" in kind else below])
        side = below
    if given[: len(wanted)] != wanted:
        raise ValueError(f"it gives channels and sizes {given}, and the UNet takes {wanted}")
    factor: int = module.downscale_factor
    return factor


def _read(folder: Path, dtype: str) -> Loaded:
    """The adapter as its folder has it; the host brings it to its device and dtype."""
    from diffusers import T2IAdapter as Module

    return Loaded(read_module(Module, folder))


@cache
def pipeline_class() -> type[Any]:
    """Stable Diffusion with a component `adapter`; made when first needed, since diffusers takes long to import.

    diffusers' own StableDiffusionAdapterPipeline knows no `callback_on_step_end`, without which nobody sees its steps.
    """
    import torch
    from diffusers import StableDiffusionPipeline

    class StableDiffusionT2IAdapterPipeline(StableDiffusionPipeline):  # type: ignore[misc]  # diffusers has no types
        unet: Any

        def __init__(  # by name, for the host gives a pipeline what its constructor names
            self,
            vae: Any,
            text_encoder: Any,
            tokenizer: Any,
            unet: Any,
            scheduler: Any,
            adapter: Any,
            safety_checker: Any = None,
            feature_extractor: Any = None,
            image_encoder: Any = None,
            requires_safety_checker: bool = False,
        ) -> None:
            super().__init__(
                vae,
                text_encoder,
                tokenizer,
                unet,
                scheduler,
                safety_checker,
                feature_extractor,
                image_encoder,
                requires_safety_checker=requires_safety_checker,
            )
            self.register_modules(adapter=adapter)

        @torch.no_grad()
        def __call__(
            self, *, adapter_image: Image, adapter_conditioning_scale: float, width: int, height: int, **call: Any
        ) -> Any:
            given = _to_tensor(adapter_image, self.adapter.config.in_channels)
            features = self.adapter(given.to(self._execution_device, self.adapter.dtype))
            features = [feature * adapter_conditioning_scale for feature in features]
            self.unet = Led(self.unet, features)  # this pipeline's alone: the UNet itself is everybody's
            return super().__call__(width=width, height=height, **call)

    return StableDiffusionT2IAdapterPipeline


class Led:
    """A UNet whose every call is given the adapter's features; all else is the UNet's own."""

    def __init__(self, unet: Any, features: "list[torch.Tensor]") -> None:
        self._unet = unet
        self._features = features

    def __getattr__(self, name: str) -> Any:
        return getattr(self._unet, name)

    def __call__(self, sample: "torch.Tensor", *args: Any, **kwargs: Any) -> Any:
        # guidance doubles the rows; a new list each time, since the UNet takes it apart
        rows = [feature.repeat(len(sample) // len(feature), 1, 1, 1) for feature in self._features]
        return self._unet(sample, *args, down_intrablock_additional_residuals=rows, **kwargs)


def _to_tensor(picture: Image, channels: int) -> "torch.Tensor":
    """`(1, channels, h, w)` in 0..1; adapters for sketches have one channel."""
    import torch

    pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"), np.float32) / 255
    return torch.from_numpy(pixels.reshape(picture.height, picture.width, channels).transpose(2, 0, 1)[None].copy())


def _check_task(task: str, wanted: str) -> None:
    if task != wanted:
        raise _refused(f"a T2I-Adapter works with text2img alone, and this request is for {task}", [KIND], task)


def _refused(message: str, path: list[str | int], got: str | int) -> InvalidParams:
    return InvalidParams(message, [{"path": path, "message": message, "got": got}])
