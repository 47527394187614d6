"""The model store: every component, ControlNet and adapter is loaded once, in the caller's worker thread, and shared.

A lease counts what it holds as in use until it is released. Weights come from safetensors files in the configured
folders and from nowhere else.
"""

import gc
import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple
from weakref import WeakSet

import diffusers
import torch
import transformers

from .adapters import Adapter, Weighted
from .build import PipelineBuild
from .checkpoint import Checkpoint, describe_checkpoint, load_part
from .compiled import compile_denoiser
from .cpu import is_slow
from .errors import InvalidParams, LatentwireError, ModelLoadError, NotLoaded, UnknownModel
from .families import FAMILIES, Family
from .faults import is_device, is_memory
from .gates import RememberingGate, gate_of, gated_parts, install_gate, remove_gates
from .memory import give_back
from .model_folders import check_folder
from .offload import offload
from .previews import Previewer, TinyDecoder, factors_for, preview_dtype
from .settings import ModelSettings
from .shelf import Loaded, Shelf
from .upcast import keep_upcast
from .weights import read_json
from .whole import whole_weights

log = logging.getLogger(__name__)

LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
SKIPPED = {"scheduler", "safety_checker", "feature_extractor", "image_encoder"}
NOTES_FILE = "latentwire.json"
PREVIEWER_FOLDER = "previewer"

LOADING = threading.Lock()
"""Held by whoever makes modules: accelerate, which both libraries load with, swaps a method of nn.Module for the whole
process while it does. Hold nothing else meanwhile, and lease nothing."""

MOST_BROUGHT = 256  # ControlNets, LoRAs and modules

Kind = Literal["controlnet", "adapter", "module"]
"""What can be brought to a model's own components; a module is for a pipeline of a plugin's."""


class Key(NamedTuple):
    """What lies on the shelf: a component of a model, or something brought for it, which has a number from 1."""

    model: str
    component: str
    dtype: str
    number: int = 0


Progress = Callable[[str, int, int], None]
"""Is told a component's name, its place among all, from 1, and how many there are."""


def no_progress(component: str, part: int, parts: int) -> None:
    """For those who wait for nothing."""


@dataclass(frozen=True)
class ModelCard:
    """What can be known of a model without loading its weights."""

    name: str
    path: Path  # a folder, or the file that `checkpoint` describes
    checkpoint: Checkpoint | None
    family: str
    parts: Mapping[str, tuple[str, str]]  # component -> (library, class)
    configs: Mapping[str, Mapping[str, Any]]  # of the denoiser and the autoencoder, by component
    scheduler_config: Mapping[str, Any]
    options: Mapping[str, Any]  # the model's own arguments for the pipeline's class
    defaults: Mapping[str, Any]  # of requests, from latentwire.json
    description: str
    size: int  # pixels of a side, what the model was trained on

    @property
    def row(self) -> Family:
        """The model's family."""
        return FAMILIES[self.family]


@dataclass(frozen=True)
class Brought:
    """Something loaded by name for one model.

    Attributes:
        dtype: None: that of whatever build uses it.
        notes: What lists show of it, plain values.
    """

    kind: Kind
    name: str
    model: str
    dtype: str | None
    notes: Mapping[str, Any]
    load: Callable[[str], Loaded]
    number: int

    def key(self, dtype: str) -> Key:
        """Where it is on the shelf for a build of that dtype."""
        return Key(self.model, self.kind, self.dtype or dtype, self.number)


@dataclass(frozen=True)
class Lease:
    """What a build is made of, loaded and kept until `release`."""

    card: ModelCard
    device: torch.device
    components: Mapping[str, Any]
    previewer: Previewer
    controlnets: tuple[Any, ...]
    adapters: tuple[Weighted, ...]
    modules: Mapping[str, Any]
    keys: tuple[Key, ...]
    shelf: Shelf[Key]  # where all of it lies


class ModelStore:
    """All models of one host.

    Args:
        models: The configured models by name.
        device: Where components live.
        budget: Bytes that everything loaded may take; None: no bound.
        changed: Told, from any thread, when something was loaded, put away, or changed hands.
        most_rows: Of one forward, which a denoiser is compiled for.
    """

    def __init__(
        self,
        models: Mapping[str, ModelSettings],
        device: torch.device,
        budget: int | None = None,
        changed: Callable[[], None] = lambda: None,
        most_rows: int = 64,
    ) -> None:
        self._models = models
        self._device = device
        self._most_rows = most_rows
        self._lock = threading.Lock()
        self._cards: dict[str, ModelCard] = {}
        self._brought: dict[tuple[Kind, str], Brought] = {}
        self._bringing: set[tuple[Kind, str]] = set()
        self._numbers = itertools.count(1)
        self._turns: dict[str, WeakSet[torch.nn.Module]] = {}
        self._budget = budget
        self._changed = changed
        self.shelf: Shelf[Key] = Shelf(budget, changed)
        for name, settings in models.items():
            if device.type == "cpu" and is_slow(settings.dtype):
                message = (
                    "model %s shall be in %s, which this CPU has no instructions for: many times slower than float32"
                )
                log.warning(message, name, settings.dtype)

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
            self._cards[name] = _read_card(name, self._models[name])
        return self._cards[name]

    def dtype_of(self, name: str) -> str:
        """The dtype that the settings give a model on this device."""
        self.card(name)
        dtype = self._models[name].dtype
        return ("float16" if self._device.type == "cuda" else "float32") if dtype == "auto" else dtype

    def lease(self, build: PipelineBuild, progress: Progress = no_progress) -> Lease:
        """Get a build's parts, loading what nobody has loaded yet; blocks, so not on an event loop.

        Raises:
            UnknownModel, ModelLoadError, NotLoaded: nothing stays leased.
            InvalidParams: a ControlNet, adapter or module was made for another model.
        """
        card = self.card(build.model)
        named = [self._find("controlnet", name, build.model) for name in build.controlnets]
        weighted = [(self._find("adapter", name, build.model), weight) for name, weight in build.adapters]
        further = [(part, self._find("module", name, build.model)) for part, name in build.modules]
        keys: list[Key] = []
        shelf = self.shelf
        total = len(card.parts) + len(named) + len(weighted) + len(further)

        def take(key: Key, name: str, load: Callable[[], Loaded]) -> Any:
            load_or_make_room = partial(self._load_or_make_room, load)
            value = shelf.take(key, load_or_make_room, partial(progress, name, len(keys) + 1, total))
            keys.append(key)
            return value

        def take_brought(brought: Brought) -> Any:
            key = brought.key(build.dtype)
            value = take(key, f"{brought.kind} {brought.name}", partial(self._load_brought, brought, build.dtype))
            if self._brought.get((brought.kind, brought.name)) is not brought:  # unloaded since: this was its last use
                shelf.put_away([key], when_free=True)
            return value

        try:
            components = {
                name: take(
                    Key(card.name, name, build.dtype), name, partial(self._load_component, card, name, build.dtype)
                )
                for name in card.parts
            }
            controlnets = tuple(take_brought(net) for net in named)
            adapters = tuple((take_brought(adapter), weight) for adapter, weight in weighted)
            modules = {part: take_brought(module) for part, module in further}
            paint = Key(card.name, PREVIEWER_FOLDER, preview_dtype(self._device))
            previewer = shelf.take(paint, lambda: Loaded(_load_previewer(card, components["vae"])))
            keys.append(paint)
        except BaseException:
            shelf.give_back(keys)
            raise
        optional = dict.fromkeys(SKIPPED - {"scheduler"})
        return Lease(
            card, self._device, optional | components, previewer, controlnets, adapters, modules, tuple(keys), shelf
        )

    def release(self, lease: Lease) -> None:
        """Give a lease back; call it once."""
        lease.shelf.give_back(lease.keys)

    def make_room(self) -> None:
        """Free what can be had again: what nobody uses, and the prompts that text encoders remember."""
        self.shelf.put_away_unused()
        for value, *_ in self.shelf.contents().values():
            for part in gated_parts(value):
                gate = gate_of(part)
                if isinstance(gate, RememberingGate):
                    gate.forget()
        gc.collect()
        give_back()

    def renew(self) -> None:
        """Read everything anew from now on; what is loaded goes with the last lease of it."""
        old, self.shelf = self.shelf, Shelf(self._budget, self._changed)
        self.shelf.loads, self.shelf.hits = old.loads, old.hits
        old.empty()

    def _load_or_make_room(self, load: Callable[[], Loaded]) -> Loaded:
        """What a load gives, tried once more with all the memory that can be had."""
        try:
            return load()
        except Exception as error:
            if not is_memory(error):
                raise
        log.warning("memory ran out while something was loaded; it is tried again")
        self.make_room()
        return load()

    @contextmanager
    def leased(self, model: str, progress: Progress = no_progress) -> Iterator[Lease]:
        """A model's own components, in its own dtype, for as long as the block runs. See `lease`."""
        lease = self.lease(PipelineBuild(model, "", self.dtype_of(model)), progress)
        try:
            yield lease
        finally:
            self.release(lease)

    def bring(
        self,
        kind: Kind,
        name: str,
        model: str,
        load: Callable[[str], Loaded],
        dtype: str | None = None,
        notes: Mapping[str, Any] = {},
    ) -> dict[str, Any]:
        """Load something for a model and keep it under a name that builds may use; blocks.

        It is loaded now, and again whenever it is needed after it had to make room, or in another dtype.

        Args:
            load: Takes a dtype's name and gives a module (a ControlNet) or an `Adapter`, in any dtype, on any device;
                in a worker thread.
            dtype: The one to keep it in; None: that of the build that uses it.
            notes: Plain values that `brought` shows beside the rest.

        Raises:
            InvalidParams: the name is taken.
            UnknownModel: there is no such model.
            Whatever `load` raises; nothing is kept then.
        """
        own = self.dtype_of(model)
        with self._lock:
            brought = Brought(kind, name, model, dtype, dict(notes), load, next(self._numbers))
            if len(self._brought) + len(self._bringing) >= MOST_BROUGHT:
                raise ModelLoadError(f"{MOST_BROUGHT} ControlNets, LoRAs and others are loaded, the limit; unload one")
            if (kind, name) in self._brought or (kind, name) in self._bringing:
                message = f"a {kind} is already called {name!r}; unload it, or choose another name"
                raise InvalidParams(message, [{"path": ["name"], "message": message, "got": name}])
            self._bringing.add((kind, name))
        shelf = self.shelf
        try:
            load = partial(self._load_brought, brought, own)
            shelf.take(brought.key(own), partial(self._load_or_make_room, load))
            with self._lock:
                self._brought[kind, name] = brought
        finally:
            with self._lock:
                self._bringing.discard((kind, name))
        shelf.give_back([brought.key(own)])
        return self._row(brought, self.shelf.contents())

    def drop(self, kind: Kind, name: str, when_free: bool = False) -> bool:
        """Unload what was brought under a name; False where it waits for the last job that uses it.

        Raises:
            NotLoaded: nothing has the name.
            InUse: jobs use it, and `when_free` is false.
        """
        with self._lock:
            brought = self._brought.get((kind, name))
            if brought is not None:
                done = self.shelf.put_away(self._keys_of(brought), when_free)
                del self._brought[kind, name]
                return done
        raise NotLoaded(self._not_loaded(kind, name))

    def brought(self, kind: Kind) -> list[dict[str, Any]]:
        """What was brought, in order: name, model, dtype, bytes, leases, and its notes."""
        with self._lock:
            all_of_kind = [brought for (this, _), brought in self._brought.items() if this == kind]
        contents = self.shelf.contents()
        return [self._row(brought, contents) for brought in all_of_kind]

    def number_of(self, kind: Kind, name: str | None) -> int | None:
        """Which load of its host has the name: another number, another load. None where nothing has it."""
        with self._lock:
            brought = None if name is None else self._brought.get((kind, name))
        return None if brought is None else brought.number

    def _row(self, brought: Brought, contents: Mapping[Key, tuple[Any, int, int]]) -> dict[str, Any]:
        mine = [entry for key, entry in contents.items() if key.number == brought.number]
        return {
            "name": brought.name,
            "model": brought.model,
            "dtype": brought.dtype or self.dtype_of(brought.model),
            "bytes": sum(nbytes for _, nbytes, _ in mine),
            "leases": sum(users for *_, users in mine),
            **brought.notes,
        }

    def _keys_of(self, brought: Brought) -> list[Key]:
        return [key for key in self.shelf.contents() if key.number == brought.number]

    def loaded(self) -> list[dict[str, Any]]:
        """The loaded components of models: model, component, dtype, bytes, leases."""
        return [
            {"model": key.model, "component": key.component, "dtype": key.dtype, "bytes": nbytes, "leases": users}
            for key, (_, nbytes, users) in self.shelf.contents().items()
            if nbytes and not key.number
        ]

    def _find(self, kind: Kind, name: str, model: str) -> Brought:
        with self._lock:
            brought = self._brought.get((kind, name))
        if brought is None:
            raise NotLoaded(self._not_loaded(kind, name))
        if brought.model != model:
            message = f"{kind} {name!r} was loaded for model {brought.model!r}, this request is for {model!r}"
            raise InvalidParams(message, [{"path": [], "message": message, "got": name}])
        return brought

    def _not_loaded(self, kind: Kind, name: str) -> str:
        names = [row["name"] for row in self.brought(kind)]
        return f"no {kind} {name!r:.80} is loaded; loaded: {', '.join(names) or 'none'}"

    def _load_component(self, card: ModelCard, name: str, dtype: str) -> Loaded:
        library, class_name = card.parts[name]
        settings = self._models[card.name]
        upcast = name == "vae" and card.row.upcasts and dtype != "float32"
        kept = "float32" if upcast else dtype
        try:
            component = _read_component(card, name, kept)
            if isinstance(component, torch.nn.Module):
                convolves = name in (card.row.denoiser, "vae")
                place = torch.device("cpu") if settings.cpu_offload else self._device
                to_device(component, place, kept, settings.channels_last and convolves)
            if upcast:
                keep_upcast(component)
        except Exception as error:
            if is_memory(error) or is_device(error):
                raise
            message = f"model {card.name!r}: cannot load {name} ({library}.{class_name}): {error}"
            raise ModelLoadError(message) from error
        if class_name == "CLIPTextModel" and not hasattr(component, "text_model"):
            # transformers 5 dropped this level, and diffusers' clip_skip still goes through it; not as a submodule
            component.__dict__["text_model"] = component
        if name == "vae" and settings.vae_slicing:
            component.enable_slicing()
        if name == "vae" and settings.vae_tiling:
            component.enable_tiling()
        if settings.cpu_offload and isinstance(component, torch.nn.Module):
            offload(component, name, self._device, self._turns.setdefault(card.name, WeakSet()))
        for part in gated_parts(component):
            install_gate(part, name, whole=component if part is not component else None)
        log.info("loaded %s of model %s as %s", name, card.name, dtype)
        if name == card.row.denoiser and settings.compile:
            compile_denoiser(component, self._device, self._most_rows, card.name)
        return Loaded(component, put_away=partial(remove_gates, gated_parts(component)))

    def _load_brought(self, brought: Brought, dtype: str) -> Loaded:
        """A brought thing on the host's device, with a gate where it is a module."""
        dtype = brought.dtype or dtype
        try:
            loaded = brought.load(dtype)
            value = loaded.value
            if isinstance(value, Adapter):
                return replace(loaded, value=value.to(self._device, getattr(torch, dtype)))
            if not isinstance(value, torch.nn.Module):
                raise TypeError(f"it is a {type(value).__name__}, no module or adapter")
            to_device(value, self._device, dtype, self._models[brought.model].channels_last)
            install_gate(value, brought.kind)

            def put_away() -> None:
                remove_gates([value])
                loaded.put_away()

        except LatentwireError:
            raise
        except BaseException as error:  # a plugin's load may raise anything
            if is_memory(error) or is_device(error):
                raise
            raise ModelLoadError(f"cannot load {brought.kind} {brought.name!r}: {error}") from error
        return replace(loaded, put_away=put_away)


def _read_card(name: str, settings: ModelSettings) -> ModelCard:
    assert settings.path is not None, "a model from the hub is a local folder by now"
    try:
        if settings.path.is_file():
            return _card_of_file(name, settings, settings.path)
        return _card_of_folder(name, settings.path)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        problem = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
        problem = problem.replace(str(settings.path.parent), "...")  # none of a client's business
        raise ModelLoadError(f"model {name!r} cannot be used: {problem}") from error


def _card_of_file(name: str, settings: ModelSettings, file: Path) -> ModelCard:
    checkpoint = describe_checkpoint(file, settings.config, settings.prediction_type)
    return ModelCard(
        name=name,
        path=file,
        checkpoint=checkpoint,
        family=checkpoint.family,
        parts=checkpoint.parts,
        configs=checkpoint.configs,
        scheduler_config=checkpoint.scheduler_config,
        options=checkpoint.options,
        defaults={},
        description=f"{file.name} ({checkpoint.layout})",
        size=checkpoint.size,
    )


def _card_of_folder(name: str, folder: Path) -> ModelCard:
    def read(file: str) -> dict[str, Any]:
        return read_json(folder / file)

    index = read("model_index.json")
    notes: dict[str, Any] = {}
    with suppress(FileNotFoundError):
        notes = read(NOTES_FILE)
    family = index["_class_name"]
    if family not in FAMILIES:
        raise ValueError(f"it is a {family}; this host runs {', '.join(FAMILIES)}")
    denoiser = FAMILIES[family].denoiser
    parts = {
        key: (value[0], value[1])
        for key, value in index.items()
        if isinstance(value, list) and key not in SKIPPED and value[1] is not None
    }
    for part, (_, class_name) in parts.items():
        if "Tokenizer" in class_name:
            if not (folder / part).is_dir():
                raise ValueError(f"there is no folder {part}")
        else:
            whole_weights(folder / part)  # or a download under way would be a model that fails with its first picture
    configs = {part: read(f"{part}/config.json") for part in (denoiser, "vae")}
    return ModelCard(
        name=name,
        path=folder,
        checkpoint=None,
        family=family,
        parts=parts,
        configs=configs,
        scheduler_config=read("scheduler/scheduler_config.json"),
        options={k: value for k, value in index.items() if not k.startswith("_") and not isinstance(value, list)},
        defaults=notes.get("defaults", {}),
        description=notes.get("description", ""),
        size=configs[denoiser]["sample_size"] * 2 ** (len(configs["vae"]["block_out_channels"]) - 1),
    )


def _read_component(card: ModelCard, name: str, dtype: str) -> Any:
    """A tokenizer, or a module on the CPU in that dtype or float32, as the model's files have it."""
    if card.checkpoint is not None:
        with LOADING:
            return load_part(card.checkpoint, name, getattr(torch, dtype))
    library, class_name = card.parts[name]
    kind = getattr(LIBRARIES[library], class_name)
    folder = card.path / name
    if issubclass(kind, transformers.PreTrainedTokenizerBase):
        check_folder(folder)
        return kind.from_pretrained(folder, local_files_only=True)
    if not issubclass(kind, diffusers.ModelMixin | transformers.PreTrainedModel):
        raise ValueError(f"{class_name} is no model class")
    return read_module(kind, folder)


def to_device(module: torch.nn.Module, device: torch.device, dtype: str, channels_last: bool = False) -> None:
    """Make a module ready to be shared; diffusers' own `to` would warn of some dtypes."""
    torch.nn.Module.to(module, device=device, dtype=getattr(torch, dtype))
    if channels_last:
        torch.nn.Module.to(module, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch omits it
    module.eval().requires_grad_(False)


def _load_previewer(card: ModelCard, vae: Any) -> Previewer:
    """The tiny decoder that the model brings, or else a linear map."""
    folder = card.path / PREVIEWER_FOLDER
    if not folder.is_dir():  # nor has a checkpoint file one
        return factors_for(card.row, vae)
    try:
        tiny = read_module(diffusers.AutoencoderTiny, folder)
        theirs, ours = tiny.config.latent_channels, vae.config.latent_channels
        if theirs != ours:
            raise ValueError(f"it decodes latents of {theirs} channels, and the model's have {ours}")
    except Exception as error:
        if is_memory(error) or is_device(error):
            raise
        raise ModelLoadError(f"model {card.name!r}: cannot load its {PREVIEWER_FOLDER}: {error}") from error
    to_device(tiny, vae.device, preview_dtype(vae.device), channels_last=True)
    return TinyDecoder(tiny)


def read_module(kind: Any, folder: Path) -> Any:
    """A module as its folder has it, in float32.

    For another dtype both libraries change torch's default dtype, which is the whole process's, under the feet of the
    engine's thread.

    Raises:
        ValueError, OSError: the files are missing, damaged or of another shape.
    """
    whole_weights(folder)  # says better what is wrong than the libraries do
    check_folder(folder)
    try:
        with LOADING:
            module, report = kind.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
    except OSError as error:  # names the whole path, which is none of a client's business
        raise OSError(str(error).replace(str(folder), folder.name)) from error
    if report["missing_keys"] or report["mismatched_keys"]:  # both libraries would fill them with noise
        lacking = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise ValueError(f"{len(lacking)} tensors are missing or misshapen, the first is {lacking[0]}")
    return module
