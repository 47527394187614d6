"""The model store: every component is loaded once, in the caller's worker thread, and shared.

A lease counts its components as in use until it is released. Weights come from safetensors files in a
model's own folder and from nowhere else.
"""

import json
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from .build import PIPELINES, PipelineBuild
from .errors import ModelLoadError, UnknownModel
from .gates import gated_parts, install_gate
from .previews import Previewer, TinyDecoder, factors_for
from .settings import ModelSettings

log = logging.getLogger(__name__)

LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
SKIPPED = {"scheduler", "safety_checker", "feature_extractor", "image_encoder"}
NOTES_FILE = "latentwire.json"
PREVIEWER_FOLDER = "previewer"

# One load at a time: accelerate, which both libraries load with, swaps a method of nn.Module for the whole process.
LOADING = threading.Lock()

Progress = Callable[[str, int, int], None]
"""Is told a component's name, its place among all, from 1, and how many there are."""


@dataclass(frozen=True)
class ModelCard:
    """What can be known of a model without loading its weights."""

    name: str
    folder: Path
    family: str
    parts: Mapping[str, tuple[str, str]]  # component -> (library, class)
    scheduler_config: Mapping[str, Any]
    defaults: Mapping[str, Any]  # of requests, from latentwire.json
    description: str
    size: int  # pixels of a side, what the model was trained on


@dataclass(frozen=True)
class Lease:
    """A model's components, loaded and kept until `release`."""

    card: ModelCard
    components: Mapping[str, Any]
    previewer: Previewer
    keys: tuple[Any, ...]


@dataclass
class _Slot:
    """One component, loaded or being loaded."""

    loading: Future[Any] = field(default_factory=Future)
    leases: int = 0


class ModelStore:
    """All models of one host.

    Args:
        models: The configured models by name.
        device: Where components live.
    """

    def __init__(self, models: Mapping[str, ModelSettings], device: torch.device) -> None:
        self._models = models
        self._device = device
        self._lock = threading.Lock()
        self._slots: dict[Any, _Slot] = {}
        self._cards: dict[str, ModelCard] = {}

    def names(self) -> list[str]:
        """The configured models."""
        return list(self._models)

    def card(self, name: str) -> ModelCard:
        """Read a model's index; no weights.

        Raises:
            UnknownModel: no configured model has the name.
            ModelLoadError: its folder holds no model that this host can run.
        """
        if name not in self._models:
            raise UnknownModel(f"there is no model {name!r}; models: {', '.join(self._models)}")
        if name not in self._cards:
            self._cards[name] = _read_card(name, self._models[name].path)
        return self._cards[name]

    def dtype_of(self, name: str) -> str:
        """The dtype that the settings give a model on this device."""
        self.card(name)
        dtype = self._models[name].dtype
        return ("float16" if self._device.type == "cuda" else "float32") if dtype == "auto" else dtype

    def lease(self, build: PipelineBuild, progress: Progress = lambda *_: None) -> Lease:
        """Get a build's components, loading what nobody has loaded yet; blocks, so not on an event loop.

        Raises:
            UnknownModel, ModelLoadError: nothing stays leased.
        """
        card = self.card(build.model)
        keys: list[Any] = []
        components: dict[str, Any] = {}
        try:
            for part, (name, (library, class_name)) in enumerate(card.parts.items(), start=1):
                key = (card.name, name, build.dtype)
                components[name] = self._get(
                    key,
                    partial(_load, card, name, library, class_name, build.dtype, self._device),
                    partial(progress, name, part, len(card.parts)),
                )
                keys.append(key)
            key = (card.name, "previewer", build.dtype)
            previewer = self._get(key, lambda: _load_previewer(card, components["vae"]), lambda: None)
            keys.append(key)
        except BaseException:
            self._give_back(keys)
            raise
        optional = dict.fromkeys(SKIPPED - {"scheduler"})
        return Lease(card, components | optional, previewer, tuple(keys))

    def release(self, lease: Lease) -> None:
        """Give a lease back; call it once."""
        self._give_back(lease.keys)

    def loaded(self) -> list[dict[str, Any]]:
        """The loaded components: model, component, dtype, bytes, leases."""
        with self._lock:
            slots = dict(self._slots)
        rows = []
        for (model, name, dtype), slot in slots.items():
            loaded = slot.loading.done() and slot.loading.exception() is None
            if loaded and isinstance(slot.loading.result(), torch.nn.Module):
                size = sum(p.nbytes for p in slot.loading.result().parameters())
                rows.append({"model": model, "component": name, "dtype": dtype, "bytes": size, "leases": slot.leases})
        return rows

    def _get(self, key: Any, load: Callable[[], Any], announce: Callable[[], None]) -> Any:
        """A component, loaded by whoever asks first; the others wait for that one load."""
        with self._lock:
            slot = self._slots.get(key)
            mine = slot is None
            if slot is None:
                slot = self._slots[key] = _Slot()
            slot.leases += 1
        if mine:
            announce()
            try:
                slot.loading.set_result(load())
            except BaseException as error:
                with self._lock:
                    del self._slots[key]  # the next lease tries again
                slot.loading.set_exception(error)
        elif not slot.loading.done():
            announce()
        return slot.loading.result()

    def _give_back(self, keys: list[Any] | tuple[Any, ...]) -> None:
        with self._lock:
            for key in keys:
                self._slots[key].leases -= 1


def _read_card(name: str, folder: Path) -> ModelCard:
    def read(file: str) -> dict[str, Any]:
        content = json.loads((folder / file).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{file} holds no map")
        return content

    try:
        index = read("model_index.json")
        scheduler_config = read("scheduler/scheduler_config.json")
        unet, vae = read("unet/config.json"), read("vae/config.json")
        notes: dict[str, Any] = {}
        with suppress(FileNotFoundError):
            notes = read(NOTES_FILE)
        family = index["_class_name"]
        if family not in PIPELINES:
            raise ValueError(f"it is a {family}; this host runs {', '.join(PIPELINES)}")
        parts = {
            key: (value[0], value[1])
            for key, value in index.items()
            if isinstance(value, list) and key not in SKIPPED and value[1] is not None
        }
        return ModelCard(
            name=name,
            folder=folder,
            family=family,
            parts=parts,
            scheduler_config=scheduler_config,
            defaults=notes.get("defaults", {}),
            description=notes.get("description", ""),
            size=unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1),
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        problem = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
        raise ModelLoadError(f"model {name!r} cannot be used: {problem}") from error


def _load(card: ModelCard, name: str, library: str, class_name: str, dtype: str, device: torch.device) -> Any:
    """Load one component and put gates before its forwards."""
    try:
        kind = getattr(LIBRARIES[library], class_name)
        folder = card.folder / name
        if issubclass(kind, transformers.PreTrainedTokenizerBase):
            return kind.from_pretrained(folder, local_files_only=True)
        if not issubclass(kind, diffusers.ModelMixin | transformers.PreTrainedModel):
            raise ValueError(f"{class_name} is no model class")
        module = _read_module(kind, folder)
        torch.nn.Module.to(module, device=device, dtype=getattr(torch, dtype))  # diffusers' own `to` warns of nothing
        module.eval().requires_grad_(False)
    except Exception as error:
        message = f"model {card.name!r}: cannot load {name} ({library}.{class_name}): {error}"
        raise ModelLoadError(message) from error
    if class_name == "CLIPTextModel" and not hasattr(module, "text_model"):
        # transformers 5 dropped this level, and diffusers' clip_skip still goes through it; not as a submodule
        module.__dict__["text_model"] = module
    for part in gated_parts(module):
        install_gate(part)
    log.info("loaded %s of model %s as %s", name, card.name, dtype)
    return module


def _load_previewer(card: ModelCard, vae: Any) -> Previewer:
    """The tiny decoder that the model brings, or else a linear map."""
    folder = card.folder / PREVIEWER_FOLDER
    if not folder.is_dir():
        return factors_for(vae)
    try:
        tiny = _read_module(diffusers.AutoencoderTiny, folder)
        theirs, ours = tiny.config.latent_channels, vae.config.latent_channels
        if theirs != ours:
            raise ValueError(f"it decodes latents of {theirs} channels, and the model's have {ours}")
    except Exception as error:
        raise ModelLoadError(f"model {card.name!r}: cannot load its {PREVIEWER_FOLDER}: {error}") from error
    return TinyDecoder(tiny.to(vae.device).eval().requires_grad_(False))


def _read_module(kind: Any, folder: Path) -> Any:
    """A module as its folder has it, in float32.

    For another dtype both libraries change torch's default dtype, which is the whole process's, under the feet of the
    engine's thread.
    """
    with LOADING:
        module, report = kind.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    if report["missing_keys"] or report["mismatched_keys"]:  # both libraries would fill them with noise
        lacking = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise ValueError(f"{len(lacking)} tensors are missing or misshapen, the first is {lacking[0]}")
    return module
