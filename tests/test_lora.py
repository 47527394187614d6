"""LoRAs: read from every format, bit-identical to peft's, row by row in shared forwards, and gone without a trace."""

import asyncio
import copy
import gc
import hashlib
import io
import json
import re
import tempfile
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from PIL import Image as PILImage
from PIL import ImageDraw
from pydantic import BaseModel
from safetensors.torch import load_file, save_file

from latentwire import Adapter, Host
from latentwire.core.build import PipelineBuild
from latentwire.core.describe import error_codes
from latentwire.core.errors import InUse, InvalidParams, JobCancelled, LatentwireError, ModelLoadError, NotLoaded
from latentwire.core.events import Event, Step
from latentwire.core.run import Run
from latentwire.core.settings import EMBEDDED_MODEL
from latentwire.plugins.lora import DefaultParams, LoadParams, UnloadParams, Use
from latentwire.testing import Events, Generated, call, running_host
from latentwire.training.measures import blockiness, saturation

from . import small_models
from .conftest import Served, wait_for
from .pages import PLUGIN_PAGES, blocks, json_default, section, table
from .wire import in_loop, wire

PLUGINS = ("controlnet", "lora")
PIXELS, PENCIL = "loras/emoji-pixel-art", "loras/emoji-pencil"
PICTURE: dict[str, Any] = {
    "prompt": "red apple on a blue background",
    "width": 64,
    "height": 64,
    "num_inference_steps": 2,
    "seed": 1,
    "mode": "exact",
    "output_type": "latent",
}

# The random LoRA that the tests write in every format; 2, 1 and 4 make scales that multiply without rounding.
RANK, ALPHA, CONV_ALPHA = 4, 2, 1
UNET_LAYERS = (
    "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "conv1", "conv_shortcut",
    "time_emb_proj", "downsamplers.0.conv", "conv_in", "linear_1",
)  # fmt: skip
TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the host may load from."""
    return tmp_path_factory.mktemp("root")


@pytest.fixture
def spot(root: Path) -> Path:
    """A new folder below it; its name is the path that a client gives."""
    return Path(tempfile.mkdtemp(dir=root))


@pytest.fixture(scope="module")
def shared(root: Path) -> Iterator[Host]:
    with running_host(*PLUGINS, files={"roots": [root]}) as host:
        host.warm_up()
        yield host


@pytest.fixture
def host(shared: Host) -> Iterator[Host]:
    """One host for all tests, empty before each."""
    yield shared
    for row in do(shared, "lora.list")["loras"]:
        shared.store.drop("adapter", row["name"], when_free=True)
    for row in shared.store.brought("controlnet"):
        shared.store.drop("controlnet", row["name"], when_free=True)
    do(shared, "lora.default", scope="host", adapters=None)
    for client in ("me", "you"):
        shared.client_left(client)


@pytest.fixture(scope="module")
def plain() -> StableDiffusionPipeline:
    """The model in plain diffusers."""
    return plain_pipeline()


def plain_pipeline() -> StableDiffusionPipeline:
    pipeline: StableDiffusionPipeline = StableDiffusionPipeline.from_pretrained(EMBEDDED_MODEL, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def do(host: Host, command: str, client: str = "me", **params: Any) -> dict[str, Any]:
    """The result of a command."""
    result: dict[str, Any] = call(host, command, params, client)
    return result


async def latents_of(host: Host, client: str = "me", **fields: Any) -> Any:
    """The final latents of one picture."""
    events = Events()
    return Generated(await host.dispatch("generate", PICTURE | fields, client, events), events).latents


def draw(host: Host, client: str = "me", **fields: Any) -> Any:
    return asyncio.run(latents_of(host, client, **fields))


@contextmanager
def held(host: Host) -> Iterator[None]:
    """Nothing steps until the block is left."""
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        go.wait()

    host.engine.submit(Run("fast", hold, lambda *_: None))
    held.wait()
    try:
        yield
    finally:
        go.set()


async def prepared(host: Host, jobs: int, tasks: list[asyncio.Task[Any]]) -> None:
    """Wait until so many jobs have reached the engine, or one has ended already."""

    def ready() -> bool:
        return sum(job.state == "running" for job in host.jobs.all()) == jobs or any(task.done() for task in tasks)

    await asyncio.to_thread(wait_for, ready, "the jobs to be prepared")


class Steps:
    """Listens to a job's steps."""

    def __init__(self) -> None:
        self.seen: list[Step] = []
        self._begun = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Step):
            self.seen.append(event)
            self._loop.call_soon_threadsafe(self._begun.set)

    async def job(self) -> str:
        """The job's id, after its first step."""
        await self._begun.wait()
        return self.seen[0].job


def draw_together(host: Host, *requests: dict[str, Any]) -> list[Any]:
    """Pictures whose first steps begin at once."""

    async def all_at_once() -> list[Any]:
        tasks = [asyncio.create_task(latents_of(host, **fields)) for fields in requests]
        with held(host):
            await prepared(host, len(tasks), tasks)
        return await asyncio.gather(*tasks)

    return asyncio.run(all_at_once())


def uses(*names: str, weight: float = 1.0) -> list[dict[str, Any]]:
    return [{"name": name, "weight": weight} for name in names]


def base_of(host: Host) -> dict[str, Any]:
    """The base to the last bit: each module's class, each tensor's digest; no module may have a hook or a wrapper."""
    found: dict[str, Any] = {}
    with host.store.leased("emoji") as lease:
        parts = {name: part for name, part in lease.components.items() if isinstance(part, torch.nn.Module)}
    for part, whole in parts.items():
        for name, module in whole.named_modules():
            assert not [*module._forward_hooks, *module._forward_pre_hooks], f"{part}.{name}"
            found[f"{part}.{name}"] = type(module)
        for name, tensor in whole.state_dict().items():
            found[f"{part}.{name}"] = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    return found


def on_the_shelf(host: Host) -> dict[Any, tuple[int, int]]:
    """What is loaded: its bytes and users."""
    return {key: (nbytes, users) for key, (_, nbytes, users) in host.store.shelf.contents().items()}


def adapter_of(host: Host, name: str) -> Adapter:
    """A loaded LoRA itself."""
    lease = host.store.lease(PipelineBuild("emoji", "ddim", "float32").with_adapters((name, 1.0)))
    host.store.release(lease)
    ((adapter, _),) = lease.adapters
    return adapter


# A random LoRA, and the formats that it is written in.


def random_lora(pipeline: Any, seed: int = 0, rank: int = RANK) -> Tensors:
    """`unet.LAYER.lora_A.weight` and so on, of linear layers and convolutions of UNet and text encoder."""
    generator = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for component, part in pipeline.components.items():
        wanted = UNET_LAYERS if component == "unet" else TEXT_LAYERS if component.startswith("text_encoder") else ()
        for name, layer in part.named_modules() if wanted else ():
            if name.endswith(wanted) and isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
                out, into, *kernel = layer.weight.shape
                shapes = {"lora_A": (rank, into, *kernel), "lora_B": (out, rank, *(1 for _ in kernel))}
                for side, shape in shapes.items():
                    made = torch.randn(shape, generator=generator) * (0.1 if side == "lora_B" else into**-0.5)
                    tensors[f"{component}.{name}.{side}.weight"] = made
    return tensors


def alpha_of(key: str) -> int:
    """What the writers say of a layer: convolutions have another alpha than the rest."""
    return CONV_ALPHA if "conv1" in key else ALPHA


def kohya(tensors: Tensors, spot: Path, text_encoder: str = "lora_te_text_model_") -> Path:
    """The keys of kohya's scripts, an alpha for each layer."""
    made = {}
    for key, value in convert_state_dict_to_kohya(tensors).items():
        named = key.replace("lora_te1_", text_encoder)
        made[named] = torch.tensor(float(alpha_of(key))) if key.endswith(".alpha") else value.contiguous()
    assert any(key.startswith(text_encoder) for key in made)
    return saved(made, spot)


def kohya_of_sdxl_scripts(tensors: Tensors, spot: Path) -> Path:
    return kohya(tensors, spot, "lora_te1_text_model_")


def scaled(tensors: Tensors) -> Tensors:
    """For formats that know no alpha: the scale is in the weights."""
    return {key: value * (alpha_of(key) / RANK if "lora_B" in key else 1) for key, value in tensors.items()}


def down_and_up(key: str) -> str:
    return key.replace("lora_A", "lora.down").replace("lora_B", "lora.up")


def old_diffusers(tensors: Tensors, spot: Path) -> Path:
    """The keys of diffusers' attention processors, and `lora.down` and `lora.up` elsewhere."""
    made = {}
    for key, value in scaled(tensors).items():
        key = down_and_up(key).replace("text_encoder.", "text_encoder.text_model.")
        key = re.sub(r"\.to_([qkv])\.lora\.", r".processor.to_\1_lora.", key)
        key = key.replace(".to_out.0.lora.", ".processor.to_out_lora.")
        key = re.sub(r"\.(q|k|v|out)_proj\.lora\.", r".to_\1_lora.", key)
        made[re.sub(r"\.(fc\d)\.lora\.", r".\1.lora_linear_layer.", key)] = value
    return saved(made, spot)


def converted_diffusers(tensors: Tensors, spot: Path) -> Path:
    """What diffusers' own converter makes of peft's keys; it knows nothing but attention and the text encoder."""
    converted = convert_state_dict_to_diffusers(scaled(tensors))
    return saved({down_and_up(key): value for key, value in converted.items()}, spot)


def peft_keys(tensors: Tensors, spot: Path) -> Path:
    """The keys of today's diffusers, without a word about alpha."""
    return saved(scaled(tensors), spot)


def peft_keys_with_metadata(tensors: Tensors, spot: Path) -> Path:
    """What today's training scripts of diffusers write, by diffusers' own hand."""
    given: dict[str, Any] = {}
    for component in ("unet", "text_encoder"):
        given[f"{component}_lora_layers"] = layers = part_of(tensors, component)
        given[f"{component}_lora_adapter_metadata"] = config_of(layers).to_dict()  # type: ignore[no-untyped-call]
    StableDiffusionPipeline.save_lora_weights(spot, **given)
    return spot / "pytorch_lora_weights.safetensors"


WRITERS = [kohya, kohya_of_sdxl_scripts, old_diffusers, converted_diffusers, peft_keys, peft_keys_with_metadata]


def config_of(layers: Tensors) -> LoraConfig:
    names = sorted({key.rpartition(".lora_")[0] for key in layers})
    return LoraConfig(r=RANK, lora_alpha=ALPHA, alpha_pattern={"conv1": CONV_ALPHA}, target_modules=names)


def part_of(tensors: Tensors, component: str) -> Tensors:
    return {k.removeprefix(f"{component}."): v for k, v in tensors.items() if k.startswith(f"{component}.")}


def saved(tensors: Mapping[str, torch.Tensor], spot: Path, name: str = "lora") -> Path:
    file = spot / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, file, metadata={"format": "pt"})
    return file


def effects(adapter: Adapter) -> Tensors:
    """What an adapter does: its tensors, with the scale where each format may have it."""
    found = {}
    for component, layers in adapter.layers.items():
        for name, part in layers.items():
            found[f"{component}.{name}.lora_A.weight"] = part.down
            found[f"{component}.{name}.lora_B.weight"] = part.up * part.scale
    return found


def assert_same(got: Tensors, wanted: Tensors) -> None:
    assert got.keys() == wanted.keys()
    assert [key for key, value in wanted.items() if not torch.equal(got[key], value)] == []


@pytest.mark.parametrize("write", WRITERS)
def test_one_lora_in_any_keys_is_the_same_adapter(
    host: Host, plain: StableDiffusionPipeline, spot: Path, write: Callable[[Tensors, Path], Path]
) -> None:
    tensors = random_lora(plain)
    file = write(tensors, spot)
    do(host, "lora.load", path=f"{spot.name}/{file.name}", name="it")
    adapter = adapter_of(host, "it")
    assert_same(effects(adapter), scaled(tensors))
    if any("alpha" in key for key in load_file(file)) or "metadata" in write.__name__:
        assert {part.scale for part in adapter.layers["unet"].values()} == {ALPHA / RANK, CONV_ALPHA / RANK}
        assert {part.scale for part in adapter.layers["text_encoder"].values()} == {ALPHA / RANK}


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_a_folder_that_peft_wrote_is_the_same_adapter(
    host: Host, plain: StableDiffusionPipeline, spot: Path, component: str
) -> None:
    tensors = random_lora(plain)
    layers = part_of(tensors, component)
    config = config_of(layers)
    if component == "text_encoder":
        config.alpha_pattern = {}  # peft warns of patterns without a layer
    model = get_peft_model(copy.deepcopy(getattr(plain, component)), config)
    set_peft_model_state_dict(model, {f"base_model.model.{key}": value for key, value in layers.items()})
    model.save_pretrained(str(spot))
    assert (spot / "adapter_config.json").is_file()
    row = do(host, "lora.load", path=spot.name, name="it")
    assert row["file"] == "adapter_model.safetensors"
    wanted = {key: value for key, value in scaled(tensors).items() if key.startswith(f"{component}.")}
    assert_same(effects(adapter_of(host, "it")), wanted)


def test_rank_stabilised_loras_have_their_own_scale(host: Host, plain: StableDiffusionPipeline, spot: Path) -> None:
    layers = part_of(random_lora(plain), "unet")
    saved({f"base_model.model.{key}": value for key, value in layers.items()}, spot)
    (spot / "adapter_config.json").write_text(json.dumps({"lora_alpha": 3, "use_rslora": True, "alpha_pattern": None}))
    do(host, "lora.load", path=spot.name, name="it")
    assert {part.scale for part in adapter_of(host, "it").layers["unet"].values()} == {3 / RANK**0.5}


def test_text_encoder_layers_need_not_be_complete(host: Host, plain: StableDiffusionPipeline, spot: Path) -> None:
    """Attention without its output layer is a usual choice."""
    queries = {key: value for key, value in random_lora(plain).items() if ".q_proj." in key}
    kohya(queries, spot)
    do(host, "lora.load", path=spot.name, name="it")
    assert_same(effects(adapter_of(host, "it")), scaled(queries))


def test_a_loaded_lora_does_not_depend_on_its_file(host: Host, plain: StableDiffusionPipeline, spot: Path) -> None:
    """Trainers write into the same file again, and float32 tensors could well be pages of it."""
    tensors = random_lora(plain)
    file = peft_keys(tensors, spot)
    do(host, "lora.load", path=spot.name, name="it")
    size = file.stat().st_size
    with file.open("r+b") as stream:
        stream.seek(size // 2)
        stream.write(bytes(size - size // 2))
    assert_same(effects(adapter_of(host, "it")), scaled(tensors))


# Which file, and under which name.


@pytest.mark.parametrize(
    ("others", "chosen", "reason"),
    [
        ([], "a", "it is the only one there"),
        (["a-000200", "a-000030"], "a-000400", "400 is the highest training step of 3 files"),
        (["v2-step9"], "v2-step10", "10 is the highest training step of 2 files"),
        (["a"], "a-000200", "200 is the highest training step of 2 files"),
        (["checkpoint-500/lora_v1"], "checkpoint-1000/lora_v1", "1000 is the highest training step of 2 files"),
        (["a-000400"], "checkpoint-500/lora", "500 is the highest training step of 2 files"),
    ],
)
def test_of_a_folder_the_highest_step_is_loaded(
    host: Host, spot: Path, others: list[str], chosen: str, reason: str
) -> None:
    for number, name in enumerate([chosen, *others], start=1):
        (spot / name).parent.mkdir(exist_ok=True)
        saved(one_layer(number), spot, name)
    row = do(host, "lora.load", path=spot.name)
    assert (row["name"], row["file"], row["chosen"]) == (spot.name, f"{chosen}.safetensors", reason)
    assert adapter_of(host, spot.name).layers["unet"]["conv_in"].down.unique().tolist() == [1]


def one_layer(number: float = 1, name: str = "unet.conv_in") -> Tensors:
    """A LoRA that is quickly written, and known by its number."""
    return {
        f"{name}.lora_A.weight": torch.full((1, 4, 3, 3), number),
        f"{name}.lora_B.weight": torch.ones(64, 1, 1, 1),
    }


def test_the_result_says_what_was_loaded_and_the_list_shows_it(host: Host) -> None:
    row = do(host, "lora.load", path=PIXELS)
    assert row == {
        "name": "emoji-pixel-art",
        "model": "emoji",
        "dtype": "float32",
        "bytes": adapter_of(host, "emoji-pixel-art").nbytes,
        "leases": 0,
        "path": PIXELS,
        "file": "emoji-pixel-art-000400.safetensors",
        "chosen": "400 is the highest training step of 2 files",
        "default": None,
    }
    file = do(host, "lora.load", path=f"{PIXELS}/emoji-pixel-art-000200.safetensors", name="early")
    assert (file["name"], file["file"], file["chosen"]) == (
        "early", "emoji-pixel-art-000200.safetensors", "it was named",
    )  # fmt: skip
    unnamed = do(host, "lora.load", path=f"{PIXELS}/emoji-pixel-art-000200.safetensors")
    assert unnamed["name"] == "emoji-pixel-art-000200"
    listed = do(host, "lora.list")
    assert [entry["name"] for entry in listed["loras"]] == ["emoji-pixel-art", "early", "emoji-pixel-art-000200"]
    assert listed["loras"][0] == {key: value for key, value in row.items() if key != "default"}
    assert listed["defaults"] == {"session": None, "host": None}
    assert do(host, "lora.unload", name="early") == {"name": "early", "unloaded": True}
    assert [entry["name"] for entry in do(host, "lora.list")["loras"]] == ["emoji-pixel-art", "emoji-pixel-art-000200"]


def test_a_folders_name_may_have_a_dot(host: Host, spot: Path) -> None:
    folder = spot / "style-1.5"
    folder.mkdir()
    saved(one_layer(), folder)
    assert do(host, "lora.load", path=f"{spot.name}/style-1.5/")["name"] == "style-1.5"


def test_a_name_is_given_once_and_free_again_after_unloading(host: Host) -> None:
    do(host, "lora.load", path=PIXELS, name="style")
    shelf = on_the_shelf(host)
    with pytest.raises(InvalidParams, match="already called 'style'") as caught:
        do(host, "lora.load", path=PENCIL, name="style")
    assert caught.value.details[0]["path"] == ["name"]
    assert on_the_shelf(host) == shelf
    do(host, "lora.unload", name="style")
    with pytest.raises(NotLoaded, match="'style'"):
        do(host, "lora.unload", name="style")
    assert do(host, "lora.load", path=PENCIL, name="style")["file"] == "emoji-pencil-000400.safetensors"


# What cannot be loaded.


def outside(spot: Path) -> Path:
    """A LoRA that would do, but for its place."""
    return saved(one_layer(), spot.parents[1])


def linked(spot: Path) -> str:
    (spot / "link.safetensors").symlink_to(outside(spot))
    return spot.name


def several(*names: str) -> Callable[[Path], str]:
    def make(spot: Path) -> str:
        for name in names:
            saved(one_layer(), spot, name)
        return spot.name

    return make


def pickled(name: str) -> Callable[[Path], str]:
    def make(spot: Path) -> str:
        torch.save(one_layer(), spot / name)
        return f"{spot.name}/{name}"

    return make


def cut_short(bytes_left: int) -> Callable[[Path], str]:
    def make(spot: Path) -> str:
        file = saved(one_layer(), spot)
        file.write_bytes(file.read_bytes()[:bytes_left])
        return spot.name

    return make


def configured(settings: str) -> Callable[[Path], str]:
    def make(spot: Path) -> str:
        (spot / "adapter_config.json").write_text(settings)
        return several("lora")(spot)

    return make


UNREADABLE: dict[str, tuple[Callable[[Path], str], type[LatentwireError], str]] = {
    "nothing": (lambda spot: f"{spot.name}/nothing", InvalidParams, "there is no"),
    "outside": (lambda spot: f"../{outside(spot).name}", InvalidParams, "leads out of the host's folders"),
    "outside, absolute": (lambda spot: str(outside(spot)), InvalidParams, "leads out of the host's folders"),
    "a link that leads out": (lambda spot: f"{linked(spot)}/link.safetensors", InvalidParams, "leads out of"),
    "a folder of links that lead out": (linked, InvalidParams, "leads out of the host's folders"),
    "an empty folder": (lambda spot: spot.name, ModelLoadError, "holds no .safetensors file"),
    "no step": (several("a", "b"), ModelLoadError, "no training step in its name; name one of a.safetensors"),
    "a step twice": (several("a-4", "b-4", "a-2"), ModelLoadError, "the same training step, 4; name one of a-4"),
    "a truncated file": (cut_short(-100), ModelLoadError, "lora.safetensors is damaged"),
    "an empty file": (cut_short(0), ModelLoadError, "no safetensors file"),
    "a pickle by another name": (pickled("it.safetensors"), ModelLoadError, "it.safetensors is no safetensors file"),
    "a pickle": (pickled("it.bin"), ModelLoadError, "it.bin is no .safetensors file"),
    "a folder with a pickle": (lambda spot: str(Path(pickled("it.pt")(spot)).parent), ModelLoadError, "holds no .safe"),
    "broken settings": (configured("{"), ModelLoadError, "Expecting property name"),
    "settings that are no map": (configured("[]"), ModelLoadError, "adapter_config.json holds no map"),
    "settings of a DoRA": (configured('{"use_dora": true}'), ModelLoadError, "lora.safetensors is a DoRA"),
    "a pattern": (configured('{"alpha_pattern": {"(a|b)+": 4}}'), ModelLoadError, "its alpha_pattern '(a|b)+'"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "error", "said"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_is_refused_and_leaves_nothing_behind(
    host: Host, spot: Path, make: Callable[[Path], str], error: type[LatentwireError], said: str
) -> None:
    assert_refused(host, make(spot), error, said)


def in_kohya(name: str) -> Callable[[Tensors], Tensors]:
    """The tensors, and one more for a layer that has no others."""
    return lambda tensors: tensors | {f"lora_unet_conv_norm_out.{name}": torch.ones(64)}


UNFIT: dict[str, tuple[str, Callable[[Tensors], Tensors], str]] = {
    "another width": (
        PENCIL,
        lambda tensors: {k: torch.cat([v, v], 1 if "lora_A" in k else 0) for k, v in tensors.items()},
        "is for another kind of model: this one's unet has another down_blocks.0.resnets.0.conv1 ([128, 8, 1, 1] after",
    ),
    "another kernel": (
        PENCIL,
        lambda tensors: {k: v[..., :1, :1] if v.dim() == 4 else v for k, v in tensors.items()},
        "is for another kind of model: this one's unet has another down_blocks.0.resnets.0.conv1",
    ),
    "a layer that is missing": (
        PENCIL,
        lambda tensors: {k.replace("blocks.2", "blocks.7"): v for k, v in tensors.items()},
        "is for another kind of model: this one's unet has no down_blocks.7",
    ),
    "another component": (
        PENCIL,
        lambda tensors: {k.replace("unet.", "transformer."): v for k, v in tensors.items()},
        "is for another kind of model: it changes transformer, not",
    ),
    "an autoencoder": (
        PENCIL,
        lambda _: one_layer(name="vae.decoder.conv_in"),
        "is for another kind of model: it changes vae, not",
    ),
    "a layer of peft's that is missing": (
        PENCIL,
        lambda _: one_layer(name="base_model.model.conv_inn"),
        "is for another kind of model: this one has no conv_inn",
    ),
    "half a layer": (
        PENCIL,
        lambda tensors: dict(sorted(tensors.items())[1:]),
        "it lacks the tensor unet.down_blocks.0.resnets.0.conv1.lora_A.weight",
    ),
    "half a layer of kohya's": (
        PIXELS,
        lambda tensors: {k: v for k, v in tensors.items() if not k.endswith("resnets_0_conv1.lora_up.weight")},
        "lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight",
    ),
    "no LoRA": (PENCIL, lambda _: {"conv_in.weight": torch.ones(1)}, "holds no LoRA, its first tensor is conv_in.w"),
    "no tensors": (PENCIL, lambda _: {}, "holds no LoRA, its first tensor is missing"),
    "DoRA": (PIXELS, in_kohya("dora_scale"), "lora.safetensors is a DoRA"),
    "DoRA of peft": (PENCIL, lambda tensors: tensors | {"unet.x.lora_magnitude_vector": torch.ones(1)}, "is a DoRA"),
    "LoHa": (PIXELS, in_kohya("hada_w1_a"), "lora.safetensors is a LoHa"),
    "LoKr": (PIXELS, in_kohya("lokr_w1"), "lora.safetensors is a LoKr"),
    "a middle matrix": (PIXELS, in_kohya("lora_mid.weight"), "lora.safetensors is a LoCon with a middle matrix"),
    "whole weights": (PIXELS, in_kohya("diff"), "a tensor 'lora_unet_conv_norm_out.diff', which plain LoRA has not"),
    "a bias": (PENCIL, lambda tensors: tensors | {"unet.x.lora_B.bias": torch.ones(1)}, "a tensor 'unet.x.lora_B."),
    "an alpha too many": (PIXELS, in_kohya("alpha"), "lora_unet_conv_norm_out.alpha"),
    "nothing but alphas": (
        PIXELS,
        lambda tensors: {k: v for k, v in tensors.items() if k.endswith("alpha")},
        "is no LoRA that diffusers understands",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("source", "edit", "said"), UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_is_refused_and_leaves_nothing_behind(
    host: Host, spot: Path, source: str, edit: Callable[[Tensors], Tensors], said: str
) -> None:
    (file,) = (EMBEDDED_MODEL.parent / source).glob("*-000400.safetensors")
    saved(edit(load_file(file)), spot)
    assert_refused(host, spot.name, ModelLoadError, said)


def assert_refused(host: Host, path: str, error: type[LatentwireError], said: str) -> None:
    base, shelf = base_of(host), on_the_shelf(host)
    with pytest.raises(error) as caught:
        do(host, "lora.load", path=path, name="it", default="host")
    assert said in caught.value.message
    assert len(caught.value.message) < 2000
    assert do(host, "lora.list") == {"loras": [], "defaults": {"session": None, "host": None}}
    assert on_the_shelf(host) == shelf
    assert base_of(host) == base
    assert do(host, "lora.load", path=PENCIL, name="it")["name"] == "it"


@pytest.mark.parametrize(
    "lora",
    [
        [{"name": "it", "weight": 11}],
        [{"name": "it", "scale": 1}],
        [{"weight": 1}],
        [{"name": "it"}, {"name": "it"}],
        {"name": "it"},
        uses(*map(str, range(33))),
    ],
)
def test_a_wrong_field_is_refused_before_anything_runs(host: Host, lora: Any) -> None:
    with pytest.raises(InvalidParams, match="lora"):
        draw(host, lora=lora)
    assert not host.jobs.all()


def test_a_lora_that_is_not_loaded_is_refused_by_name(host: Host) -> None:
    do(host, "lora.load", path=PIXELS)
    with pytest.raises(NotLoaded, match="no LoRA 'pixel' is loaded; loaded: emoji-pixel-art"):
        draw(host, lora=uses("pixel"))


# The sums are those of plain diffusers.


@pytest.fixture(scope="module")
def both(plain: StableDiffusionPipeline, root: Path) -> StableDiffusionPipeline:
    """Plain diffusers with two LoRAs: `random`, a file of the root with a text encoder's part, and `pencil`."""
    made = load_file(kohya(random_lora(plain), Path(tempfile.mkdtemp(dir=root))))
    # diffusers itself reads one alpha for all layers only
    made |= {key: torch.tensor(3.0) for key in made if key.endswith(".alpha")}
    pipeline = plain_pipeline()
    pipeline.load_lora_weights(saved(made, root, "random"), adapter_name="random")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        pencil = load_file(EMBEDDED_MODEL.parent / PENCIL / "emoji-pencil-000400.safetensors")
        pipeline.load_lora_weights(pencil, adapter_name="pencil")
    return pipeline


@pytest.mark.parametrize(
    ("scheduler", "weights"),
    [
        ("ddim", {"random": 1.0}),
        ("ddim", {"pencil": 1.0}),
        ("ddim", {"random": 0.5}),
        ("ddim", {"random": -0.7}),
        ("ddim", {"random": 0.8, "pencil": 0.6}),
        ("euler", {"pencil": -0.3, "random": 1.2}),
    ],
)
def test_exact_is_bit_identical_to_plain_diffusers_with_the_same_loras(
    host: Host, both: StableDiffusionPipeline, weights: dict[str, float], scheduler: str
) -> None:
    both.set_adapters(list(weights), list(weights.values()))
    both.scheduler = host.registry.schedulers[scheduler](both.scheduler.config)
    asked = {name: PICTURE[name] for name in ("prompt", "width", "height", "num_inference_steps", "output_type")}
    random_numbers = torch.Generator().manual_seed(PICTURE["seed"])
    wanted = both(**asked, guidance_scale=4.0, generator=random_numbers).images[0].detach().numpy()
    do(host, "lora.load", path="random.safetensors")
    do(host, "lora.load", path=PENCIL, name="pencil")
    mine = [{"name": name, "weight": weight} for name, weight in weights.items()]
    others: list[dict[str, Any]] = [{"seed": 2, "mode": "fast", "lora": uses("pencil")}, {"seed": 3}]
    got, *_ = draw_together(host, {"scheduler": scheduler, "lora": mine}, *others)
    assert np.array_equal(got, wanted)
    assert np.abs(got - draw(host, scheduler=scheduler)).max() > 0.01  # the LoRAs do something


def kohya_of_sdxl(tensors: Tensors, pipeline: Any, folder: Path) -> Path:
    """As kohya's scripts write LoRAs of SDXL: the UNet's layers under the names that Stability AI gave them."""
    made = {key: value for key, value in convert_state_dict_to_kohya(tensors).items() if key.startswith("lora_te")}
    for key, value in part_of(tensors, "unet").items():
        layer, _, side = key.partition(".lora_")
        (name,) = small_models.original_names("sdxl", "unet", {f"{layer}.weight": value}, pipeline.unet.config)
        name = name.removeprefix("model.diffusion_model.").removesuffix(".weight").replace(".", "_")
        made[f"lora_unet_{name}.lora_{'down' if side.startswith('A') else 'up'}.weight"] = value
        made[f"lora_unet_{name}.alpha"] = torch.tensor(0)
    assert any(key.startswith("lora_unet_input_blocks_3_1_transformer_blocks_0") for key in made)
    return saved({key: torch.tensor(3.0) if key.endswith("alpha") else made[key] for key in made}, folder)


def test_loras_of_sdxl_change_both_text_encoders(tmp_path: Path) -> None:
    folder = small_models.sdxl(tmp_path / "sdxl")
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    tensors = random_lora(pipeline)
    file = kohya_of_sdxl(tensors, pipeline, tmp_path)
    pipeline.load_lora_weights(file, adapter_name="it")
    pipeline.set_adapters(["it"], [0.5])
    asked = {name: PICTURE[name] for name in ("prompt", "width", "height", "num_inference_steps", "output_type")}
    wanted = pipeline(**asked, generator=torch.Generator().manual_seed(PICTURE["seed"])).images[0].detach().numpy()
    models = {"sdxl": {"path": folder}}
    with running_host(*PLUGINS, models=models, defaults={"model": "sdxl"}, files={"roots": [tmp_path]}) as host:
        do(host, "lora.load", path=file.name)
        (adapter,) = (value for value, *_ in host.store.shelf.contents().values() if isinstance(value, Adapter))
        asked |= {"scheduler": "euler", "guidance_scale": 5.0, "mode": "exact"}
        got, without = draw(host, lora=uses("lora", weight=0.5), **asked), draw(host, **asked)
    assert adapter.layers.keys() == {"unet", "text_encoder", "text_encoder_2"}
    assert_same(effects(adapter), {key: v * 0.75 if "lora_B" in key else v for key, v in tensors.items()})
    assert np.array_equal(got, wanted)
    assert np.abs(got - without).max() > 0.01


# Rows with different LoRAs share a forward.


def outline() -> bytes:
    """A control image: a white ring on black."""
    picture = PILImage.new("RGB", (64, 64))
    ImageDraw.Draw(picture).ellipse((10, 14, 54, 50), outline="white", width=2)
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()


def mixed_requests(mode: str) -> list[dict[str, Any]]:
    """Plain, two LoRAs, a ControlNet, and both kinds at once; another seed and another number of steps for each."""
    controlnet = [{"image": outline(), "name": "emoji-outline"}]
    requests: list[dict[str, Any]] = [
        {},
        {"lora": uses("emoji-pixel-art")},
        {"lora": uses("emoji-pencil", weight=0.5)},
        {"controlnet": controlnet},
        {"controlnet": controlnet, "lora": uses("emoji-pixel-art")},
    ]
    common = {"mode": mode, "num_inference_steps": 4}
    return [common | request | {"seed": seed} for seed, request in enumerate(requests)]


@pytest.fixture
def mixed(host: Host) -> Host:
    """The host with all that the mixed requests name."""
    for path in (PIXELS, PENCIL):
        do(host, "lora.load", path=path)
    do(host, "controlnet.load", path="controlnets/emoji-outline")
    return host


@contextmanager
def rows_seen(host: Host) -> Iterator[Counter[int]]:
    """How many rows the UNet's forwards have."""
    seen: Counter[int] = Counter()
    with host.store.leased("emoji") as lease:
        first = lease.components["unet"].conv_in
        hook = first.register_forward_pre_hook(lambda _, inputs: seen.update([inputs[0].shape[0]]))
        try:
            yield seen
        finally:
            hook.remove()


def test_rows_with_and_without_loras_and_controlnets_share_forwards_in_fast(mixed: Host) -> None:
    requests = mixed_requests("fast")
    alone = [draw(mixed, **request) for request in requests]
    figures = mixed.engine.figures
    forwards, calls = figures.forwards, figures.calls
    with rows_seen(mixed) as seen:
        got = draw_together(mixed, *requests)
    for result, wanted in zip(got, alone, strict=True):
        assert np.abs(result - wanted).max() < 1e-3 * wanted.std()
    for result, other in pairwise(alone):
        assert np.abs(result - other).max() > 0.01
    # all five pictures in each of the UNet's forwards, guidance included
    assert seen == {10: 4}
    # and the ControlNet's two; what the text encoder gave each alone is remembered
    assert figures.calls - calls == 5 * 4 + 2 * 4
    assert figures.forwards - forwards <= 4 + 4


def test_rows_with_and_without_loras_and_controlnets_are_bit_identical_in_exact(mixed: Host) -> None:
    requests = mixed_requests("exact")
    alone = [draw(mixed, **request) for request in requests]
    for result, wanted in zip(draw_together(mixed, *requests), alone, strict=True):
        assert np.array_equal(result, wanted)


def test_rows_with_and_without_loras_and_controlnets_are_the_same_bytes_in_reproducible(mixed: Host) -> None:
    requests = mixed_requests("reproducible")
    alone = [draw(mixed, **request) for request in requests]
    with rows_seen(mixed) as seen:
        together = draw_together(mixed, *requests)
    assert set(seen) == {8}
    assert sum(seen.values()) < 5 * 4
    backwards = draw_together(mixed, *reversed(requests))[::-1]
    for result, turned, wanted in zip(together, backwards, alone, strict=True):
        assert np.array_equal(result, wanted)
        assert np.array_equal(turned, wanted)


def test_equal_loras_share_the_text_encoders_forward_too(host: Host, both: StableDiffusionPipeline) -> None:
    do(host, "lora.load", path="random.safetensors")
    lists = [uses("random"), []]
    requests: list[dict[str, Any]] = [{"mode": "fast", "seed": seed, "lora": lists[seed % 2]} for seed in range(4)]
    before = host.engine.figures.forwards
    got = draw_together(host, *requests)
    # two steps, and a text encoding for the prompt and one for its opposite
    assert host.engine.figures.forwards - before <= 4
    alone = [draw(host, **request | {"mode": "exact"}) for request in requests]  # to which that is of no use
    for result, wanted in zip(got, alone, strict=True):
        assert np.abs(result - wanted).max() < 1e-3 * wanted.std()


# The base stays what it was.


def test_without_a_lora_nothing_is_changed_by_a_bit(host: Host, both: StableDiffusionPipeline) -> None:
    base = base_of(host)
    before = draw(host)
    for path in ("random.safetensors", PIXELS):
        do(host, "lora.load", path=path)
    names = ("random", "emoji-pixel-art")
    assert np.array_equal(draw(host), before)
    assert np.array_equal(draw(host, lora=uses(*names, weight=0)), before)
    running = [
        {"mode": mode, "lora": uses(*names), "num_inference_steps": 6} for mode in ("fast", "exact", "reproducible")
    ]
    plain, nothing, *changed = draw_together(host, {}, {"lora": uses(*names, weight=0)}, *running)
    assert np.array_equal(plain, before)
    assert np.array_equal(nothing, before)
    assert all(np.abs(result - before).max() > 0.01 for result in changed)
    assert base_of(host) == base
    for name in names:
        do(host, "lora.unload", name=name)
    assert np.array_equal(draw(host), before)
    assert base_of(host) == base


def test_a_cancelled_job_leaves_no_hook_behind(host: Host) -> None:
    base = base_of(host)
    do(host, "lora.load", path=PIXELS)

    async def cancel_midway() -> None:
        steps = Steps()
        request = PICTURE | {"num_inference_steps": 1000, "lora": uses("emoji-pixel-art")}
        job = asyncio.create_task(host.dispatch("generate", request, "me", steps))
        await host.dispatch("cancel", {"job": await steps.job()}, "me", steps)
        with pytest.raises(JobCancelled):
            await job

    asyncio.run(cancel_midway())
    assert draw(host).shape == (4, 8, 8)  # so the engine has left the cancelled job's forward
    assert base_of(host) == base
    assert do(host, "lora.unload", name="emoji-pixel-art")["unloaded"]


# Defaults.


@pytest.fixture
def looks(host: Host) -> dict[str, Any]:
    """The picture without a LoRA, with one, and with the other; both are loaded."""
    do(host, "lora.load", path=PIXELS, name="pixels")
    do(host, "lora.load", path=PENCIL, name="pencil")
    found = {"none": draw(host, lora=[])}
    for name in ("pixels", "pencil"):
        found[name] = draw(host, lora=uses(name))
    found["half"] = draw(host, lora=uses("pencil", weight=0.5))
    found["both"] = draw(host, lora=uses("pixels", "pencil"))
    return found


def look(host: Host, looks: dict[str, Any], client: str = "me", **fields: Any) -> str:
    """Which of the pictures a request gives."""
    got = draw(host, client, **fields)
    return next((name for name, picture in looks.items() if np.array_equal(got, picture)), "another")


def test_a_sessions_default_goes_before_the_hosts_and_a_request_before_both(host: Host, looks: dict[str, Any]) -> None:
    assert look(host, looks) == "none"
    assert do(host, "lora.default", scope="host", adapters=uses("pixels")) == {
        "scope": "host",
        "adapters": uses("pixels"),
    }
    assert look(host, looks, "me") == look(host, looks, "you") == "pixels"
    do(host, "lora.default", scope="session", adapters=uses("pencil", weight=0.5))
    assert look(host, looks, "me") == "half"
    assert look(host, looks, "you") == "pixels"
    defaults = do(host, "lora.list")["defaults"]
    assert defaults == {"session": uses("pencil", weight=0.5), "host": uses("pixels")}
    assert do(host, "lora.list", "you")["defaults"] == {"session": None, "host": uses("pixels")}
    assert look(host, looks, "me", lora=uses("pencil")) == "pencil"
    assert look(host, looks, "me", lora=[]) == look(host, looks, "you", lora=[]) == "none"
    assert look(host, looks, "me", lora=None) == "half"


def test_an_empty_default_means_none_and_null_takes_a_default_back(host: Host, looks: dict[str, Any]) -> None:
    do(host, "lora.default", scope="host", adapters=uses("pixels"))
    do(host, "lora.default", scope="session", adapters=[])
    assert look(host, looks) == "none"
    do(host, "lora.default", scope="session", adapters=None)
    assert look(host, looks) == "pixels"
    do(host, "lora.default", scope="host")
    assert look(host, looks) == "none"
    assert do(host, "lora.list")["defaults"] == {"session": None, "host": None}


def test_loading_may_make_a_default_and_adds_to_those_before(host: Host, looks: dict[str, Any]) -> None:
    for name in ("pixels", "pencil"):
        do(host, "lora.unload", name=name)
    row = do(host, "lora.load", path=PENCIL, name="pencil", default="session", lora_scale=0.5)
    assert row["default"] == "session"
    assert look(host, looks, "me") == "half"
    assert look(host, looks, "you") == "none"
    do(host, "lora.default", scope="session")
    do(host, "lora.load", path=PIXELS, name="pixels", default="host")
    do(host, "lora.unload", name="pencil")
    do(host, "lora.load", path=PENCIL, name="pencil", default="host")
    assert do(host, "lora.list", "you")["defaults"]["host"] == uses("pixels", "pencil")
    assert look(host, looks, "you") == "both"


def test_a_picture_made_with_a_default_says_so_in_its_metadata(host: Host) -> None:
    do(host, "lora.load", path="loras/emoji-pencil", default="session", lora_scale=0.5)

    def png(client: str, **fields: Any) -> PILImage.Image:
        events = Events()
        result = call(host, "generate", PICTURE | {"output_type": "png"} | fields, client, events)
        return Generated(result, events).picture

    first = png("me")
    request = json.loads(first.info["latentwire"])
    assert request["lora"] == [{"name": "emoji-pencil", "weight": 0.5}]
    assert png("somebody else", **request).tobytes() == first.tobytes() != png("somebody else").tobytes()


def test_unloading_takes_a_lora_out_of_every_default(host: Host, looks: dict[str, Any]) -> None:
    do(host, "lora.default", scope="host", adapters=uses("pencil", "pixels"))
    for client in ("me", "you"):
        do(host, "lora.default", client, scope="session", adapters=uses("pixels"))
    do(host, "lora.unload", "you", name="pixels")
    assert do(host, "lora.list")["defaults"] == {"session": [], "host": uses("pencil")}
    assert look(host, looks, "me") == "none"
    assert look(host, looks, "somebody else") == "pencil"
    do(host, "lora.load", path=PIXELS, name="pixels")
    assert look(host, looks, "me") == "none"  # the old default does not come back


def test_a_client_that_left_is_forgotten(host: Host, looks: dict[str, Any]) -> None:
    for client in ("me", "you"):
        do(host, "lora.default", client, scope="session", adapters=uses("pixels"))
    host.client_left("me")
    assert look(host, looks, "me") == "none"
    assert look(host, looks, "you") == "pixels"


def test_a_default_must_be_loaded(host: Host) -> None:
    with pytest.raises(NotLoaded, match="no LoRA 'pixels' is loaded; loaded: none"):
        do(host, "lora.default", scope="host", adapters=uses("pixels"))
    assert do(host, "lora.list")["defaults"]["host"] is None


# Loading and unloading while others work.


def test_jobs_go_on_while_loras_are_loaded() -> None:
    """Each load takes a while, since it is for a model that has to be loaded, too."""
    twins = [f"twin{number}" for number in range(6)]

    async def load_beside_a_job(host: Host) -> None:
        steps = Steps()
        request = PICTURE | {"num_inference_steps": 1000}
        job = asyncio.create_task(host.dispatch("generate", request, "me", steps))
        await steps.job()
        during, turns, loads = 0, 0, 0
        # Were a load one of the engine's own tasks, a step could slip in before it, but none while it lasts.
        while during <= loads + 2 and loads < len(twins):
            before = len(steps.seen)
            params = {"path": PIXELS, "name": twins[loads], "model": twins[loads]}
            load = asyncio.create_task(host.dispatch("lora.load", params, "me", steps))
            while not load.done():
                turns += 1
                await asyncio.sleep(0.001)
            await load
            during += len(steps.seen) - before
            loads += 1
        assert during > loads + 2
        assert turns > 2 * loads  # nor does the event loop wait
        await host.dispatch("cancel", {"job": await steps.job()}, "me", steps)
        with pytest.raises(JobCancelled):
            await job

    with running_host(*PLUGINS, models={twin: {"path": EMBEDDED_MODEL} for twin in twins}) as host:
        asyncio.run(load_beside_a_job(host))


def test_what_is_in_use_is_unloaded_after_its_last_job(host: Host) -> None:
    do(host, "lora.load", path=PIXELS, name="it")
    wanted = draw(host, lora=uses("it"))
    shelf = on_the_shelf(host)
    gone = weakref.ref(adapter_of(host, "it"))

    async def unload_meanwhile() -> Any:
        job = asyncio.create_task(latents_of(host, lora=uses("it")))
        with held(host):
            await prepared(host, 1, [job])
            with pytest.raises(InUse, match=r"in use by 1 job\(s\)") as caught:
                await host.dispatch("lora.unload", {"name": "it"}, "me", print)
            assert caught.value.code == "in_use"
            (row,) = (await host.dispatch("lora.list", {}, "me", print))["loras"]
            assert (row["name"], row["leases"]) == ("it", 1)
            answer = await host.dispatch("lora.unload", {"name": "it", "when_free": True}, "me", print)
            assert answer == {"name": "it", "unloaded": False}
            assert (await host.dispatch("lora.list", {}, "me", print))["loras"] == []
            with pytest.raises(NotLoaded):
                await latents_of(host, lora=uses("it"))
            assert gone() is not None
        return await job

    assert np.array_equal(asyncio.run(unload_meanwhile()), wanted)
    assert on_the_shelf(host) == {key: entry for key, entry in shelf.items() if key[1] != "adapter"}
    gc.collect()
    assert gone() is None


def test_the_same_name_may_be_loaded_again_while_the_old_one_is_leaving(host: Host) -> None:
    do(host, "lora.load", path=PIXELS, name="it")
    old = draw(host, lora=uses("it"))

    async def replace() -> tuple[Any, Any]:
        first = asyncio.create_task(latents_of(host, lora=uses("it")))
        with held(host):
            await prepared(host, 1, [first])
            await host.dispatch("lora.unload", {"name": "it", "when_free": True}, "me", print)
            await host.dispatch("lora.load", {"path": PENCIL, "name": "it"}, "me", print)
            second = asyncio.create_task(latents_of(host, lora=uses("it")))
            await prepared(host, 2, [first, second])
        return await first, await second

    before, after = asyncio.run(replace())
    assert np.array_equal(before, old)
    assert np.array_equal(after, draw(host, lora=uses("it")))
    assert not np.array_equal(after, before)
    assert [key[1] for key in on_the_shelf(host)].count("adapter") == 1


def test_a_lora_belongs_to_the_model_that_it_was_loaded_for() -> None:
    with running_host(*PLUGINS, models={"twin": {"path": EMBEDDED_MODEL}}) as host:
        row = do(host, "lora.load", path=PIXELS, model="twin", default="host")
        assert row["model"] == "twin"
        with pytest.raises(InvalidParams, match="was loaded for model 'twin', this request is for 'emoji'"):
            draw(host, lora=uses("emoji-pixel-art"))
        without = draw(host, lora=[])
        assert np.array_equal(draw(host), without)  # the default is not for this model
        assert np.array_equal(draw(host, model="twin", lora=[]), without)
        assert not np.array_equal(draw(host, model="twin"), without)
        with pytest.raises(LatentwireError, match="there is no model 'triplet'"):
            do(host, "lora.load", path=PIXELS, model="triplet")


# Through a real server.


@pytest.mark.slow
@in_loop
async def test_a_style_grows_with_its_weight(served: Served) -> None:
    """Pixel art has its changes on the borders of blocks, pencil drawings have no colours; both together have both."""
    prompts = ["red apple on a blue background", "frog on a yellow background"]
    styles = [("pixels", weight) for weight in (0, 0.5, 1)] + [("pencil", weight) for weight in (0, 0.5, 1)]
    asked = {"plain": uses(), "both": uses("pixels", "pencil")}
    asked |= {f"{name} {weight}": uses(name, weight=weight) for name, weight in styles}
    drawn: dict[str, list[Any]] = {name: [] for name in asked}
    async with wire(served.url) as client:
        await client.ask("lora.load", path=PIXELS, name="pixels")
        await client.ask("lora.load", path=PENCIL, name="pencil")
        try:
            for name, lora in asked.items():
                await client.send(name, "generate", prompt=prompts[0], seed=0, lora=lora)
                await client.send(name + " again", "generate", prompt=prompts[1], seed=1, lora=lora)
            while sum(map(len, drawn.values())) < len(asked) * len(prompts):
                message = await client.receive()
                assert message["event"] != "error", message
                if message["event"] == "image":
                    picture = np.asarray(PILImage.open(io.BytesIO(message["image"]["data"])))
                    drawn[message["id"].removesuffix(" again")].append(picture)
        finally:
            for name in ("pixels", "pencil"):
                await client.ask("lora.unload", name=name, when_free=True)
    blocky = {name: np.mean([blockiness(picture) for picture in pictures]) for name, pictures in drawn.items()}
    colourful = {name: np.mean([saturation(picture) for picture in pictures]) for name, pictures in drawn.items()}
    assert blocky["pixels 0"] < blocky["pixels 0.5"] < blocky["pixels 1"], blocky
    assert colourful["pencil 0"] > colourful["pencil 0.5"] > colourful["pencil 1"], colourful
    assert blocky["both"] > blocky["plain"], blocky
    assert colourful["both"] < 0.5 * colourful["plain"], colourful
    for measured in (blocky, colourful):
        for name in ("pixels 0", "pencil 0"):
            assert measured[name] == pytest.approx(measured["plain"], rel=1e-3)


# Its page.

PAGE = PLUGIN_PAGES["lora"]
MESSAGES: list[dict[str, Any]] = [json.loads(block) for block in blocks(PAGE, "json")]


def test_the_examples_of_the_page_run_in_their_order() -> None:
    """On a new host; what they answer is word for word what the page says."""
    answers = {message["id"]: message for message in MESSAGES if "event" in message}
    with running_host(*PLUGINS) as host:
        for message in (message for message in MESSAGES if "command" in message):
            documented = answers.pop(message["id"], None)
            try:
                result = do(host, message["command"], **message["params"])
            except LatentwireError as error:
                assert documented is not None
                got = {"code": error.code, "message": error.message, "details": error.details}
                assert got == {key: documented[key] for key in got}
            else:
                assert message["command"] == "generate" or (documented is not None and result == documented["result"])
    assert answers == {}


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("`lora.load`", LoadParams),
        ("`lora.unload`", UnloadParams),
        ("`lora.default`", DefaultParams),
        ("Request field `lora`", Use),
    ],
)
def test_the_keys_on_the_page_are_those_of_the_program(heading: str, model: type[BaseModel]) -> None:
    documented = {name: json_default(row[0]) for name, row in table(section(PAGE, heading)).items()}
    assert documented == {name: field.default for name, field in model.model_fields.items()}


def test_the_error_codes_on_the_page_exist() -> None:
    documented = table(section(PAGE, "Errors")).keys()
    assert documented <= error_codes().keys()
    assert documented >= {error.code for error in (InUse, InvalidParams, ModelLoadError, NotLoaded)}
