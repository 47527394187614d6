"""ControlNets and ControlLoRAs: loading, what is refused, what they draw, and that sharing changes nothing."""

import asyncio
import gc
import io
import json
import re
import shutil
import struct
import sys
import threading
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import init_empty_weights
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image as PILImage
from PIL import ImageChops, ImageDraw, ImageOps
from pydantic import BaseModel
from safetensors.torch import save_file

from latentwire import Host, InvalidParams, LatentwireError, PluginError, testing
from latentwire.core.build import PipelineBuild
from latentwire.core.describe import error_codes
from latentwire.core.errors import InUse, ModelLoadError, NotLoaded, UnknownImage
from latentwire.core.events import Event, to_plain
from latentwire.core.model_store import LOADING
from latentwire.core.run import Run
from latentwire.core.settings import EMBEDDED_MODEL
from latentwire.plugins.controlnet import (
    LoadParams,
    Preprocessing,
    PreprocessParams,
    UnloadParams,
    Use,
)
from latentwire.plugins.controlnet.preprocessors import PREPROCESSORS
from latentwire.testing import Events, Generated, call, running_host, serving
from latentwire.training.controlnet import NAME, make_control_lora
from latentwire.training.finished import load_controlnets
from latentwire.training.measures import overlap, saturation, silhouette_of

from .conftest import Served, wait_for
from .pages import PLUGIN_PAGES, blocks, json_default, section, table
from .small_models import original_names
from .test_docs_protocol import assert_same_shape
from .wire import in_loop, wire

PLUGINS = ("img2img", "controlnet", "lora")
MODELS = EMBEDDED_MODEL.parent
FOLDER = "controlnets/emoji-outline"
CONTROL_LORA = "control-loras/emoji-outline.safetensors"
WEIGHTS = "diffusion_pytorch_model.safetensors"
STEPS = 5
SMALL: dict[str, Any] = {
    "prompt": "red apple on a blue background",
    "width": 64,
    "height": 64,
    "num_inference_steps": STEPS,
    "guidance_scale": 4.0,
    "seed": 1,
    "mode": "exact",
    "output_type": "latent",
}


def outline(size: tuple[int, int] = (64, 64), box: tuple[float, float, float, float] = (0.2, 0.3, 0.7, 0.9)) -> Any:
    """A white ring on black; `box` is left, top, right and bottom in shares of the size."""
    picture = PILImage.new("RGB", size)
    left, top, right, bottom = (share * size[index % 2] for index, share in enumerate(box))
    ImageDraw.Draw(picture).ellipse((left, top, right, bottom), outline="white", width=2)
    return picture


def png(picture: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


OUTLINE = png(outline())


def use(name: str = "outline", image: bytes | str = OUTLINE, **more: Any) -> dict[str, Any]:
    return {"name": name, "image": image, **more}


def ask(host: Host, command: str, **params: Any) -> dict[str, Any]:
    result: dict[str, Any] = call(host, command, params)
    return result


def refused(host: Host, kind: type[LatentwireError], command: str, **params: Any) -> LatentwireError:
    with pytest.raises(LatentwireError) as caught:
        ask(host, command, **params)
    assert type(caught.value) is kind, caught.value
    return caught.value


def generate(host: Host, **params: Any) -> Events:
    """The events of one job."""
    return testing.generate(host, **SMALL | params).events


def result_of(events: Events) -> Any:
    """The one picture of a job: its latents, or its pixels."""
    done = Generated({}, events)
    return np.asarray(done.picture.convert("RGB")) if done.files else torch.from_numpy(done.latents.copy())


def draw(host: Host, **params: Any) -> Any:
    return result_of(generate(host, **params))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # what is waited for happens in other threads
        await asyncio.sleep(0.01)


def draw_together(host: Host, requests: list[dict[str, Any]]) -> list[Any]:
    """The pictures of jobs that all stand before the engine when it begins the first of them."""
    all_events = [Events() for _ in requests]

    async def run() -> None:
        held, begin = threading.Event(), threading.Event()

        def hold() -> None:
            held.set()
            begin.wait()

        host.engine.submit(Run("fast", hold, lambda *_: None))
        held.wait()
        jobs = [
            asyncio.create_task(host.dispatch("generate", SMALL | request, "test", events))
            for request, events in zip(requests, all_events, strict=True)
        ]
        await until(
            lambda: (
                sum(job.state == "running" for job in host.jobs.all()) == len(jobs) or any(job.done() for job in jobs)
            )
        )
        begin.set()
        await asyncio.gather(*jobs)

    asyncio.run(run())
    return [result_of(events) for events in all_events]


def controlnet_of(host: Host, name: str = "outline") -> Any:
    """The module itself."""
    lease = host.store.lease(PipelineBuild("emoji", "ddim", "float32", controlnets=(name,)))
    host.store.release(lease)
    return lease.controlnets[0]


def unet_of(host: Host) -> Any:
    with host.store.leased("emoji") as lease:
        return lease.components["unet"]


@contextmanager
def rows_through(layer: torch.nn.Module) -> Iterator[list[int]]:
    """The rows of each forward of a layer within a module: a gate before the module does not make it run."""
    rows: list[int] = []
    hook = layer.register_forward_hook(lambda _layer, args, _output: rows.append(args[0].shape[0]))
    try:
        yield rows
    finally:
        hook.remove()


def leases_of(host: Host) -> set[int]:
    return {row["leases"] for row in host.store.loaded()}


@pytest.fixture(scope="module")
def loaded() -> Iterator[Host]:
    """A host with a ControlNet and a ControlLoRA, for tests that leave it as it is."""
    with running_host(*PLUGINS, engine={"device": "cpu", "reproducible_rows": 4}) as host:
        ask(host, "controlnet.load", path=FOLDER, name="outline")
        ask(host, "controlnet.load", lora_weights_path=CONTROL_LORA, name="lora")
        yield host


@pytest.fixture
def rooted(tmp_path: Path) -> Iterator[Host]:
    """A host whose clients may name what lies in tmp_path/root."""
    (tmp_path / "root").mkdir()
    with running_host(*PLUGINS, files={"roots": [tmp_path / "root"]}) as host:
        yield host


# Loading, listing, unloading.


def test_a_controlnet_is_loaded_listed_and_unloaded(host: Host) -> None:
    row = ask(host, "controlnet.load", path=FOLDER)
    assert row["name"] == "emoji-outline"
    assert (row["model"], row["dtype"], row["kind"], row["path"]) == ("emoji", "float32", "controlnet", FOLDER)
    assert row["bytes"] == sum(parameter.nbytes for parameter in controlnet_of(host, "emoji-outline").parameters())
    ask(host, "controlnet.load", lora_weights_path=CONTROL_LORA, name="second")
    rows = ask(host, "controlnet.list")["controlnets"]
    assert [(row["name"], row["kind"]) for row in rows] == [("emoji-outline", "controlnet"), ("second", "control-lora")]
    assert ask(host, "pipeline.state")["controlnets"] == rows
    assert ask(host, "controlnet.unload", name="emoji-outline") == {"name": "emoji-outline", "unloaded": True}
    assert [row["name"] for row in ask(host, "controlnet.list")["controlnets"]] == ["second"]


def test_a_name_that_is_taken_is_refused_and_its_owner_stays(host: Host) -> None:
    ask(host, "controlnet.load", path=FOLDER)
    mine = controlnet_of(host, "emoji-outline")
    error = refused(host, InvalidParams, "controlnet.load", path=FOLDER)
    assert "already called 'emoji-outline'" in error.message
    assert error.details[0]["path"] == ["name"]
    assert controlnet_of(host, "emoji-outline") is mine
    assert ask(host, "controlnet.load", path=FOLDER, name="another")["name"] == "another"


@pytest.mark.parametrize(
    "kind", [{"path": FOLDER}, {"lora_weights_path": CONTROL_LORA}], ids=lambda kind: next(iter(kind))
)
def test_unloading_gives_the_memory_back(host: Host, kind: dict[str, str]) -> None:
    ask(host, "controlnet.load", **kind, name="outline")
    module = weakref.ref(controlnet_of(host))
    draw(host, controlnet=[use()])
    gc.collect()
    assert module() is not None
    ask(host, "controlnet.unload", name="outline")
    wait_for(lambda: gc.collect() >= 0 and module() is None, "the module to go")
    assert not [key for key in host.store.shelf.contents() if key.component == "controlnet"]
    assert leases_of(host) == {0}


def test_what_a_job_uses_is_unloaded_only_when_free(host: Host) -> None:
    ask(host, "controlnet.load", path=FOLDER, name="outline")
    module = weakref.ref(controlnet_of(host))

    async def run() -> None:
        begun: list[Event] = []
        request = SMALL | {"num_inference_steps": 1000, "controlnet": [use()]}
        job = asyncio.create_task(host.dispatch("generate", request, "test", begun.append))
        await until(lambda: any(event.name == "step" for event in begun))
        with pytest.raises(InUse, match="in use by 1 job"):
            await host.dispatch("controlnet.unload", {"name": "outline"}, "test", lambda _: None)
        params = {"name": "outline", "when_free": True}
        assert not (await host.dispatch("controlnet.unload", params, "test", lambda _: None))["unloaded"]
        assert module() is not None
        with pytest.raises(InvalidParams, match="loaded for model 'emoji': none"):
            await host.dispatch("generate", SMALL | {"controlnet": [use()]}, "test", lambda _: None)
        await host.dispatch("cancel", {"job": host.jobs.all()[0].id}, "test", lambda _: None)
        with pytest.raises(LatentwireError, match="cancelled"):
            await job

    asyncio.run(run())

    def gone() -> bool:
        gc.collect()
        return module() is None

    wait_for(gone, "the ControlNet to go with its last job")
    assert ask(host, "controlnet.list") == {"controlnets": []}


def test_unloading_what_is_not_loaded_says_what_is(host: Host) -> None:
    assert "loaded: none" in refused(host, NotLoaded, "controlnet.unload", name="nope").message
    ask(host, "controlnet.load", path=FOLDER)
    error = refused(host, NotLoaded, "controlnet.unload", name="nope")
    assert "no controlnet 'nope' is loaded; loaded: emoji-outline" in error.message


def test_neither_path_nor_file_is_refused(host: Host) -> None:
    assert "lora_weights_path" in refused(host, InvalidParams, "controlnet.load", name="outline").message


# What is refused on loading.


def copy_of_folder(root: Path) -> Path:
    return Path(shutil.copytree(MODELS / FOLDER, root / "net"))


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def truncated(root: Path) -> dict[str, str]:
    weights = copy_of_folder(root) / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1000])
    return {"path": "net"}


def a_pickle_by_another_name(root: Path) -> dict[str, str]:
    torch.save({"weight": torch.zeros(1)}, copy_of_folder(root) / WEIGHTS)
    return {"path": "net"}


def only_a_pickle(root: Path) -> dict[str, str]:
    folder = copy_of_folder(root)
    (folder / WEIGHTS).unlink()
    torch.save({"weight": torch.zeros(1)}, folder / "diffusion_pytorch_model.bin")
    return {"path": "net"}


def another_class(root: Path) -> dict[str, str]:
    edit(copy_of_folder(root) / "config.json", _class_name="UNet2DConditionModel")
    return {"path": "net"}


def no_config(root: Path) -> dict[str, str]:
    (copy_of_folder(root) / "config.json").unlink()
    return {"path": "net"}


def a_config_that_is_no_json(root: Path) -> dict[str, str]:
    (copy_of_folder(root) / "config.json").write_text("{")
    return {"path": "net"}


def a_config_without_channels(root: Path) -> dict[str, str]:
    config = copy_of_folder(root) / "config.json"
    config.write_text(json.dumps({"_class_name": "ControlNetModel", "cross_attention_dim": 768}))
    return {"path": "net"}


def a_file_for_a_folder(root: Path) -> dict[str, str]:
    return {"path": f"{FOLDER}/{WEIGHTS}"}


def other_channels(root: Path) -> dict[str, str]:
    small_controlnet(block_out_channels=(32, 64, 96)).save_pretrained(root / "net")
    return {"path": "net"}


def other_attention(root: Path) -> dict[str, str]:
    small_controlnet(cross_attention_dim=64).save_pretrained(root / "net")
    return {"path": "net"}


def more_layers(root: Path) -> dict[str, str]:
    small_controlnet(layers_per_block=2).save_pretrained(root / "net")
    return {"path": "net"}


def small_controlnet(**changes: Any) -> ControlNetModel:
    """A ControlNet that fits the embedded model, but for the changes."""
    config = ControlNetModel.load_config(MODELS / FOLDER)
    return ControlNetModel.from_config(config | {"conditioning_embedding_out_channels": (8, 8, 8, 8)} | changes)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncated, "Unable to load weights|damaged"),
        (a_pickle_by_another_name, "Unable to load weights|no safetensors file"),
        (only_a_pickle, "safetensors"),
        (another_class, "its config.json is of UNet2DConditionModel, wanted a ControlNetModel"),
        (no_config, r"no config\.json"),
        (a_config_that_is_no_json, "Expecting property name"),
        (a_config_without_channels, "its cross_attention_dim is 768, the model's UNet has 128"),
        (a_file_for_a_folder, r"no config\.json"),
        (other_channels, r"its block_out_channels is \[32, 64, 96\], the model's UNet has \[64, 128, 160\]"),
        (other_attention, "its cross_attention_dim is 64, the model's UNet has 128"),
        (more_layers, "its layers_per_block is 2, the model's UNet has 1"),
    ],
)  # fmt: skip
def test_a_bad_controlnet_is_a_clear_error_and_nothing_of_it_stays(
    rooted: Host, tmp_path: Path, damage: Callable[[Path], dict[str, str]], reason: str
) -> None:
    params = damage(tmp_path / "root")
    error = refused(rooted, ModelLoadError, "controlnet.load", **params, name="mine")
    assert re.search(f"cannot load controlnet 'mine': .*({reason})", error.message, re.S), error.message
    assert error.details == [{"path": ["path"], "message": error.message, "got": params["path"]}]
    nothing_stays(rooted)


def nothing_stays(host: Host) -> None:
    """The host has no ControlNet, nothing is in use, and the name that failed is free."""
    assert ask(host, "controlnet.list") == {"controlnets": []}
    assert not [key for key in host.store.shelf.contents() if key.component == "controlnet"]
    assert leases_of(host) <= {0}
    assert not any(parameter.requires_grad for parameter in unet_of(host).parameters())
    assert ask(host, "controlnet.load", path=FOLDER, name="mine")["name"] == "mine"


def saved_control_lora(root: Path, name: str, **changes: Any) -> dict[str, str]:
    """A ControlLoRA made of such a ControlNet, in diffusers' own way."""
    net = small_controlnet(**changes)
    make_control_lora(net)
    net.save_lora_adapter(root, adapter_name=NAME, weight_name=name, safe_serialization=True)
    return {"lora_weights_path": name}


def control_lora_of_other_channels(root: Path) -> dict[str, str]:
    return saved_control_lora(root, "lora.safetensors", block_out_channels=(32, 64, 96))


def control_lora_of_other_attention(root: Path) -> dict[str, str]:
    return saved_control_lora(root, "lora.safetensors", cross_attention_dim=64)


def control_lora_of_a_deeper_model(root: Path) -> dict[str, str]:
    blocks = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
    channels = (64, 128, 160, 160)
    return saved_control_lora(root, "lora.safetensors", block_out_channels=channels, down_block_types=blocks)


def unet_of_two_layers() -> UNet2DConditionModel:
    """A random UNet of the shape that Stability AI's ControlLoRAs are for, but small."""
    torch.manual_seed(1)
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=2,
        norm_num_groups=8,
    )


def stability_control_lora(unet: UNet2DConditionModel, file: Path) -> ControlNetModel:
    """Write a random ControlLoRA in the keys of those that Stability AI published; gives what it makes of the UNet.

    Such a file holds low-rank changes to the weights of linear layers and convolutions, and all else whole: biases,
    norms, and the layers that the UNet does not have.
    """
    torch.manual_seed(0)
    wanted = ControlNetModel.from_unet(unet)
    low: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, parameter in wanted.named_parameters():
            if name.startswith("controlnet_") or parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
            else:
                rank = 2 if "attn" in name else 4
                down = 0.2 * torch.randn(rank, *parameter.shape[1:])
                up = 0.2 * torch.randn(len(parameter), rank, *[1] * (parameter.ndim - 2))
                parameter.add_((up.flatten(1) @ down.flatten(1)).view_as(parameter))
                low |= {name.replace(".weight", ".down"): down, name.replace(".weight", ".up"): up}
    whole = {name: tensor for name, tensor in wanted.state_dict().items() if name.replace(".weight", ".up") not in low}
    own = {name: whole.pop(name) for name in list(whole) if name.startswith("controlnet_")}
    named = original_names("sd1", "unet", whole | low, unet.config)
    tensors = {name.removeprefix("model.diffusion_model."): tensor for name, tensor in named.items()}
    for name, tensor in own.items():
        for pattern, theirs in {
            r"controlnet_down_blocks\.(\d+)": lambda found: f"zero_convs.{found[1]}.0",
            r"controlnet_mid_block": lambda _: "middle_block_out.0",
            r"controlnet_cond_embedding\.conv_in": lambda _: "input_hint_block.0",
            r"controlnet_cond_embedding\.blocks\.(\d+)": lambda found: f"input_hint_block.{2 * int(found[1]) + 2}",
            r"controlnet_cond_embedding\.conv_out": lambda _: "input_hint_block.14",
        }.items():
            name = re.sub(pattern, theirs, name)
        tensors[name] = tensor
    tensors["lora_controlnet"] = torch.zeros(0)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return wanted


def stability_ais_of_another_model(root: Path) -> dict[str, str]:
    stability_control_lora(unet_of_two_layers(), root / "lora.safetensors")
    return {"lora_weights_path": "lora.safetensors"}


def a_lora(root: Path) -> dict[str, str]:
    return {"lora_weights_path": "loras/emoji-pixel-art/emoji-pixel-art-000400.safetensors"}


def a_whole_controlnet(root: Path) -> dict[str, str]:
    return {"lora_weights_path": f"{FOLDER}/{WEIGHTS}"}


def truncated_control_lora(root: Path) -> dict[str, str]:
    (root / "lora.safetensors").write_bytes((MODELS / CONTROL_LORA).read_bytes()[:-1000])
    return {"lora_weights_path": "lora.safetensors"}


def pickled_control_lora(root: Path) -> dict[str, str]:
    torch.save({"controlnet_mid_block.weight": torch.zeros(1)}, root / "lora.safetensors")
    return {"lora_weights_path": "lora.safetensors"}


def a_folder_for_a_file(root: Path) -> dict[str, str]:
    return {"lora_weights_path": "control-loras"}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (control_lora_of_other_channels, "lora.safetensors is for another kind of model: size mismatch for "),
        (control_lora_of_other_attention, "lora.safetensors is for another kind of model: size mismatch for .*attn2"),
        (control_lora_of_a_deeper_model, r"for another kind of model: the model has no layer down_blocks\.3\."),
        (stability_ais_of_another_model, r"the model has no layer down_blocks\.0\.attentions"),
        (a_lora, "is no ControlLoRA: it has no layers for a control image"),
        (a_whole_controlnet, "is no ControlLoRA: it has no low-rank layers"),
        (truncated_control_lora, r"lora\.safetensors is (damaged|truncated)"),
        (pickled_control_lora, "is no safetensors file"),
        (a_folder_for_a_file, r"a ControlLoRA is a \.safetensors file"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:There are modules in ControlNetModel")
def test_a_bad_control_lora_is_a_clear_error_and_nothing_of_it_stays(
    rooted: Host, tmp_path: Path, damage: Callable[[Path], dict[str, str]], reason: str
) -> None:
    params = damage(tmp_path / "root")
    error = refused(rooted, ModelLoadError, "controlnet.load", **params, name="mine")
    assert re.search(f"cannot load controlnet 'mine': .*({reason})", error.message, re.S), error.message
    assert error.details[0]["path"] == ["lora_weights_path"]
    nothing_stays(rooted)


@pytest.mark.parametrize("field", ["path", "lora_weights_path"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("controlnets/emoji-outlin", "did you mean 'controlnets/emoji-outline'"),
        ("../outside", "leads out of the host's folders"),
        ("controlnets/../../../outside", "leads out of the host's folders"),
        ("OUTSIDE", "leads out of the host's folders"),
        ("link", "leads out of the host's folders"),
        ("", "must not be empty"),
        ("net\0", "NUL"),
        ("x" * 1001, "at most 1000"),
    ],
)
def test_a_path_that_is_not_there_or_leads_out_is_refused(
    rooted: Host, tmp_path: Path, field: str, name: str, reason: str
) -> None:
    shutil.copytree(MODELS / FOLDER, tmp_path / "outside")
    (tmp_path / "root/link").symlink_to(tmp_path / "outside")
    error = refused(rooted, InvalidParams, "controlnet.load", **{field: name.replace("OUTSIDE", f"{tmp_path}/outside")})
    assert reason in error.message
    assert error.details[0]["path"] == [field]
    assert ask(rooted, "controlnet.list") == {"controlnets": []}


def test_an_absolute_path_within_the_roots_is_taken(rooted: Host, tmp_path: Path) -> None:
    folder = copy_of_folder(tmp_path / "root").rename(tmp_path / "root/v1.5")
    assert ask(rooted, "controlnet.load", path=str(folder))["name"] == "v1.5"


def test_a_control_lora_may_lie_in_the_folder_that_path_names(host: Host) -> None:
    file = Path(CONTROL_LORA)
    row = ask(host, "controlnet.load", path=str(file.parent), lora_weights_path=file.name)
    assert (row["name"], row["kind"]) == ("emoji-outline", "control-lora")
    row = ask(host, "controlnet.load", path=FOLDER, lora_weights_path=CONTROL_LORA, name="by itself")
    assert row["kind"] == "control-lora"


def test_a_model_that_has_no_controlnets_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "sd3"
    shutil.copytree(EMBEDDED_MODEL, folder)
    (folder / "unet").rename(folder / "transformer")
    denoiser = ["diffusers", "UNet2DConditionModel"]
    edit(folder / "model_index.json", _class_name="StableDiffusion3Pipeline", unet=[None, None], transformer=denoiser)
    with running_host(*PLUGINS, models={"sd3": {"path": folder}}) as host:
        error = refused(host, ModelLoadError, "controlnet.load", path=FOLDER, model="sd3")
        assert "StableDiffusion3Pipeline, for which this host has no ControlNets" in error.message


# What is refused in a request.


def bomb() -> bytes:
    """A small PNG file that claims 60,000 x 60,000 pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


BAD_USES: dict[str, tuple[Any, list[Any], str]] = {
    "no picture": (use(image=b"hello"), [0, "image"], "PNG, JPEG or WebP"),
    "an empty file": (use(image=b""), [0, "image"], "empty file"),
    "half a picture": (use(image=OUTLINE[: len(OUTLINE) // 2]), [0, "image"], "PNG, JPEG or WebP"),
    "a bomb": (use(image=bomb()), [0, "image"], "wanted at most"),
    "an unknown name": (use("nope"), [0, "name"], "'nope' is loaded; loaded for model 'emoji': outline, lora"),
    "no name of two": ({"image": OUTLINE}, [0, "name"], "names none; loaded for model 'emoji': outline, lora"),
    "no image": ({"name": "outline"}, [0, "image"], "Field required"),
    "an unknown key": (use(scale=1.0), [0, "scale"], "unknown key"),
    "a scale below 0": (use(controlnet_conditioning_scale=-1.0), [0, "controlnet_conditioning_scale"], "greater than"),
    "a window that ends first": (
        use(control_guidance_start=0.7, control_guidance_end=0.2), [0], "control_guidance_start must be below",
    ),
    "an empty window": (use(control_guidance_start=0.5, control_guidance_end=0.5), [0], "must be below"),
    "an unknown resize": (use(resize="tile"), [0, "resize"], "'fit', 'fill' or 'stretch'"),
    "an unknown preprocessor": (
        use(preprocess={"name": "hed"}), [0, "preprocess", "name"], "no preprocessor 'hed'; preprocessors: canny",
    ),
    "an unknown option": (
        use(preprocess={"name": "canny", "options": {"lo": 1}}), [0, "preprocess", "options", "lo"], "canny: lo: ",
    ),
    "a wrong option": (
        use(preprocess={"name": "canny", "options": {"low": "x"}}), [0, "preprocess", "options", "low"], "canny: low: ",
    ),
    "options that do not fit one another": (
        use(preprocess={"name": "canny", "options": {"low": 9, "high": 8}}), [0, "preprocess", "options"], "canny: p",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_USES)
def test_a_bad_use_is_refused_with_a_path_that_leads_to_it(loaded: Host, case: str) -> None:
    bad, path, reason = BAD_USES[case]
    error = refused(loaded, InvalidParams, "generate", **SMALL, controlnet=[bad])
    assert reason in error.message
    assert error.details[0]["path"] == ["controlnet", *path]
    assert leases_of(loaded) == {1}  # the ControlLoRA's own


def test_the_path_of_an_error_counts_the_uses(loaded: Host) -> None:
    error = refused(loaded, InvalidParams, "generate", **SMALL, controlnet=[use(), use(image=b"hello")])
    assert error.details[0]["path"] == ["controlnet", 1, "image"]


def test_an_unknown_image_id_is_refused(loaded: Host) -> None:
    error = refused(loaded, UnknownImage, "generate", **SMALL, controlnet=[use(image="0" * 32)])
    assert error.details == [{"path": ["controlnet", 0, "image"], "message": error.message, "got": "0" * 32}]


def test_guess_mode_for_some_of_the_controlnets_is_refused(loaded: Host) -> None:
    uses = [use(guess_mode=True), use()]
    error = refused(loaded, InvalidParams, "generate", **SMALL, controlnet=uses)
    assert "guess_mode must be the same for all ControlNets" in error.message
    assert error.details[0]["path"] == ["controlnet"]


def test_more_than_eight_controlnets_are_refused(loaded: Host) -> None:
    assert "at most 8" in refused(loaded, InvalidParams, "generate", **SMALL, controlnet=[use()] * 9).message


def test_a_control_image_without_a_loaded_controlnet_is_refused(host: Host) -> None:
    error = refused(host, InvalidParams, "generate", **SMALL, controlnet=[{"image": OUTLINE}])
    assert "the request names none; loaded for model 'emoji': none; controlnet.load loads one" in error.message
    assert error.details[0]["path"] == ["controlnet", 0, "name"]


def test_a_control_image_of_too_many_pixels_is_refused() -> None:
    with running_host(*PLUGINS, limits={"input_pixels": 64 * 64}) as host:
        ask(host, "controlnet.load", path=FOLDER, name="outline")
        large = png(outline((65, 64)))
        error = refused(host, InvalidParams, "generate", **SMALL, controlnet=[use(image=large)])
        assert error.details[0]["path"] == ["controlnet", 0, "image"]
        error = refused(host, InvalidParams, "controlnet.preprocess", name="canny", image=large)
        assert error.details[0]["path"] == ["image"]
        draw(host, controlnet=[use()])


# Bit for bit what plain diffusers makes.


@pytest.fixture(scope="module")
def plain() -> StableDiffusionPipeline:
    """Modules that never had a gate; `nets` are the ControlNets for them."""
    pipeline = StableDiffusionPipeline.from_pretrained(EMBEDDED_MODEL, torch_dtype=torch.float32, safety_checker=None)
    whole, lora = load_controlnets(MODELS, pipeline.unet).values()
    pipeline.nets = {"outline": whole, "lora": lora}
    return pipeline


PIPELINES = {
    "text2img": StableDiffusionControlNetPipeline,
    "img2img": StableDiffusionControlNetImg2ImgPipeline,
    "inpaint": StableDiffusionControlNetInpaintPipeline,
}
PICTURE = PILImage.merge(
    "RGB", [PILImage.radial_gradient("L").resize((64, 64))] * 2 + [PILImage.new("L", (64, 64), 90)]
)
MASK = PILImage.new("L", (64, 64))
MASK.paste(255, (32, 0, 64, 64))
WINDOW: dict[str, Any] = {"control_guidance_start": 0.2, "control_guidance_end": 0.7}

EXACT: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any]]] = {
    "scale 1": ("text2img", [use()], {}),
    "scale 0.6": ("text2img", [use(controlnet_conditioning_scale=0.6)], {}),
    "a window": ("text2img", [use(**WINDOW)], {}),
    "a window, odd sizes": ("text2img", [use(image=png(outline((72, 104))), **WINDOW)], {"width": 72, "height": 104}),
    "guess mode": ("text2img", [use(guess_mode=True, controlnet_conditioning_scale=0.8)], {}),
    "guess mode in a window": ("text2img", [use(guess_mode=True, **WINDOW)], {}),
    "without guidance": ("text2img", [use()], {"guidance_scale": 1.0}),
    "a ControlLoRA": ("text2img", [use("lora", controlnet_conditioning_scale=0.8)], {}),
    "two together": (
        "text2img", [use(controlnet_conditioning_scale=0.7, **WINDOW), use("lora", png(outline(box=(0, 0, 1, 1))))], {},
    ),
    "two together in guess mode": ("text2img", [use(guess_mode=True), use("lora", guess_mode=True)], {}),
    "image to image": ("img2img", [use()], {"strength": 0.6}),
    "image to image, two in a window": ("img2img", [use(**WINDOW), use("lora")], {"strength": 0.8}),
    "inpainting": ("inpaint", [use()], {"strength": 1.0}),
    "inpainting in a window": ("inpaint", [use(controlnet_conditioning_scale=0.5, **WINDOW)], {"strength": 0.7}),
}  # fmt: skip


def as_plain(plain: StableDiffusionPipeline, task: str, uses: list[dict[str, Any]], scheduler: Any, **more: Any) -> Any:
    """What diffusers makes of the same request."""
    nets = [plain.nets[one["name"]] for one in uses]
    parts = plain.components | {"scheduler": scheduler}
    pipeline = PIPELINES[task](**parts, controlnet=nets if len(nets) > 1 else nets[0], requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)

    def many(values: list[Any]) -> Any:
        return values if len(uses) > 1 else values[0]

    arguments = {
        "image" if task == "text2img" else "control_image": many([PILImage.open(io.BytesIO(u["image"])) for u in uses]),
        "controlnet_conditioning_scale": many([one.get("controlnet_conditioning_scale", 1.0) for one in uses]),
        "control_guidance_start": many([one.get("control_guidance_start", 0.0) for one in uses]),
        "control_guidance_end": many([one.get("control_guidance_end", 1.0) for one in uses]),
        "guess_mode": uses[0].get("guess_mode", False),
    }
    if task != "text2img":
        arguments |= {"image": PICTURE, "strength": more["strength"]}
    if task == "inpaint":
        arguments["mask_image"] = MASK
    return pipeline(
        SMALL["prompt"],
        num_inference_steps=STEPS,
        guidance_scale=more.get("guidance_scale", 4.0),
        width=more.get("width", 64),
        height=more.get("height", 64),
        generator=torch.Generator().manual_seed(SMALL["seed"]),
        output_type="latent",
        **arguments,
    ).images[0]


@pytest.mark.parametrize("case", EXACT)
def test_mode_exact_gives_the_very_latents_of_plain_diffusers(
    loaded: Host, plain: StableDiffusionPipeline, case: str
) -> None:
    task, uses, more = EXACT[case]
    scheduler = loaded.registry.schedulers["ddim"](plain.scheduler.config)
    wanted = as_plain(plain, task, uses, scheduler, **more)
    request = {key: value for key, value in more.items() if key != "strength"} | {"controlnet": uses}
    if task != "text2img":
        request["img2img"] = {"image": png(PICTURE), "strength": more["strength"]}
    if task == "inpaint":
        request["img2img"]["mask"] = png(MASK)
    # others run beside it, with and without ControlNets
    others: list[dict[str, Any]] = [
        {"mode": "fast", "controlnet": [use()]},
        {"seed": 2, "controlnet": [use("lora")]},
        {"seed": 3},
    ]
    got = draw_together(loaded, [request, *others])[0]
    assert torch.equal(got, wanted)
    assert not torch.equal(got, draw(loaded, **{key: value for key, value in request.items() if key != "controlnet"}))


# How often what runs.


def test_the_hint_is_embedded_once_a_picture_and_the_controlnet_runs_once_a_step(loaded: Host) -> None:
    net = controlnet_of(loaded)
    with rows_through(net.controlnet_cond_embedding.conv_in) as hints, rows_through(net.conv_in) as forwards:
        generate(loaded, num_images=2, controlnet=[use()])
    assert hints == [2, 2]  # one for each half of the guidance
    assert forwards == [2] * 2 * STEPS


@pytest.mark.parametrize(
    ("more", "steps"), [(WINDOW, 2), ({"control_guidance_end": 0.4}, 2), ({"controlnet_conditioning_scale": 0.0}, 0)]
)
def test_the_controlnet_runs_only_within_its_window(loaded: Host, more: dict[str, Any], steps: int) -> None:
    net = controlnet_of(loaded)
    with rows_through(net.controlnet_cond_embedding.conv_in) as hints, rows_through(net.conv_in) as forwards:
        draw(loaded, controlnet=[use(**more)])
    assert forwards == [2] * steps
    assert len(hints) == (1 if steps else 0)


def test_outside_of_its_window_a_controlled_picture_shares_the_forwards_of_plain_ones(loaded: Host) -> None:
    unet = unet_of(loaded)
    fast: dict[str, Any] = {"mode": "fast"}
    controlled = fast | {"controlnet": [use(control_guidance_end=0.2)]}
    requests = [controlled, fast | {"seed": 2}]
    alone = [draw(loaded, **request) for request in requests]
    with rows_through(unet.conv_in) as rows:
        together = draw_together(loaded, requests)
    assert sum(rows) == 2 * 2 * STEPS
    assert rows.count(4) >= STEPS - 1
    for got, wanted in zip(together, alone, strict=True):
        assert (got - wanted).abs().max() < 1e-3 * wanted.std()


def test_different_scales_share_a_forward_of_the_controlnet(loaded: Host) -> None:
    scales = [0.3, 0.6, 1.0]
    requests: list[dict[str, Any]] = [
        {"controlnet": [use(controlnet_conditioning_scale=scale)], "mode": "fast"} for scale in scales
    ]
    alone = [draw(loaded, **request | {"mode": "exact"}) for request in requests]
    with rows_through(controlnet_of(loaded).conv_in) as rows, rows_through(unet_of(loaded).conv_in) as unet_rows:
        together = draw_together(loaded, requests)
    assert sum(rows) == sum(unet_rows) == 3 * 2 * STEPS
    assert rows.count(6) >= STEPS - 1
    assert unet_rows.count(6) >= STEPS - 1
    for got, wanted in zip(together, alone, strict=True):
        assert (got - wanted).abs().max() < 1e-3 * wanted.std()
    assert (alone[0] - alone[2]).abs().max() > 0.1 * alone[0].std()


def test_reproducible_gives_the_same_latents_alone_and_among_others(loaded: Host) -> None:
    request: dict[str, Any] = {"controlnet": [use(controlnet_conditioning_scale=0.6)], "mode": "reproducible"}
    others: list[dict[str, Any]] = [
        request | {"seed": 2},
        {"mode": "reproducible", "seed": 3},
        {"mode": "reproducible", "seed": 4, "controlnet": [use(controlnet_conditioning_scale=0.9), use("lora")]},
    ]
    alone = draw(loaded, **request)
    assert torch.equal(draw_together(loaded, [request, *others])[0], alone)
    assert torch.equal(draw_together(loaded, [*others, request])[3], alone)


# Other dtypes.


def test_a_controlnet_may_have_another_dtype_than_the_base(host: Host) -> None:
    whole = ask(host, "controlnet.load", path=FOLDER, name="outline")
    half = ask(host, "controlnet.load", path=FOLDER, name="half", dtype="bfloat16")
    lora = ask(host, "controlnet.load", lora_weights_path=CONTROL_LORA, name="half lora", dtype="bfloat16")
    assert half["dtype"] == lora["dtype"] == "bfloat16"
    assert half["bytes"] == whole["bytes"] / 2
    assert {parameter.dtype for parameter in controlnet_of(host, "half").parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in unet_of(host).parameters()} == {torch.float32}
    without, wanted = draw(host), draw(host, controlnet=[use()])
    for name in ("half", "half lora"):
        got = draw(host, controlnet=[use(name)])
        assert torch.isfinite(got).all()
        assert (got - wanted).norm() < 0.5 * (without - wanted).norm()
    assert 0 < (draw(host, controlnet=[use("half")]) - wanted).norm() < 0.05 * (without - wanted).norm()


def test_hints_of_controlnets_of_several_dtypes_are_embedded_once_each(host: Host) -> None:
    """diffusers prepares all control images in one dtype, and those for the others are converted at each step."""
    ask(host, "controlnet.load", path=FOLDER, name="outline")
    ask(host, "controlnet.load", path=FOLDER, name="half", dtype="bfloat16")
    layers = [controlnet_of(host, name).controlnet_cond_embedding.conv_in for name in ("outline", "half")]
    with rows_through(layers[0]) as whole, rows_through(layers[1]) as half:
        draw(host, controlnet=[use(), use("half")])
        draw(host, controlnet=[use("half"), use()])
    assert whole == half == [2, 2]


# ControlLoRAs.


def test_a_control_lora_shares_the_weights_of_the_base(loaded: Host) -> None:
    unet, net = unet_of(loaded), controlnet_of(loaded, "lora")
    mine = {parameter.data_ptr() for parameter in net.parameters()}
    names = ControlNetModel.from_config(ControlNetModel.load_config(MODELS / FOLDER)).state_dict().keys()
    common = {name: tensor for name, tensor in unet.state_dict().items() if name in names}
    assert len(common) > 100
    assert {name for name, tensor in common.items() if tensor.data_ptr() not in mine} == set()
    theirs = {parameter.data_ptr() for parameter in unet.parameters()}
    own = sum(parameter.nbytes for parameter in net.parameters() if parameter.data_ptr() not in theirs)
    rows = {row["name"]: row["bytes"] for row in ask(loaded, "controlnet.list")["controlnets"]}
    assert rows["lora"] == own < rows["outline"] / 2


def test_the_base_is_bit_identical_after_a_control_lora_and_free_again(host: Host) -> None:
    before = {name: tensor.clone() for name, tensor in unet_of(host).state_dict().items()}
    picture = draw(host)
    ask(host, "controlnet.load", lora_weights_path=CONTROL_LORA, name="lora")
    assert leases_of(host) == {1}  # it stays as long as the ControlLoRA does
    assert not torch.equal(draw(host, controlnet=[use("lora")]), picture)
    assert torch.equal(draw(host), picture)
    ask(host, "controlnet.unload", name="lora")
    after = unet_of(host).state_dict()
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert not any(parameter.requires_grad for parameter in unet_of(host).parameters())
    assert torch.equal(draw(host), picture)
    base = weakref.ref(unet_of(host))
    assert host.store.shelf.put_away([key for key in host.store.shelf.contents() if not key.number])
    gc.collect()
    assert base() is None


def heavy(host: Host) -> set[str]:
    """What is in memory of the things that take more than a mebibyte."""
    return {key.component for key, (_, nbytes, _) in host.store.shelf.contents().items() if nbytes > 1 << 20}


def test_what_had_to_make_room_comes_back_when_it_is_used(loaded: Host) -> None:
    uses = [use(), use("lora")]
    with running_host(*PLUGINS, engine={"device": "cpu", "memory_mib": 1}) as host:
        ask(host, "controlnet.load", path=FOLDER, name="outline")
        ask(host, "controlnet.load", lora_weights_path=CONTROL_LORA, name="lora")
        assert heavy(host) == set()  # the base, which a ControlLoRA holds, went with it
        assert [row["bytes"] for row in ask(host, "controlnet.list")["controlnets"]] == [0, 0]
        assert torch.equal(draw(host, controlnet=uses), draw(loaded, controlnet=uses))
        wait_for(lambda: not heavy(host), "the last job's parts to be put away")


def test_a_control_lora_of_a_base_that_moves_about_has_its_own_weights(loaded: Host) -> None:
    with running_host(*PLUGINS, models={"emoji": {"path": EMBEDDED_MODEL, "cpu_offload": True}}) as host:
        ask(host, "controlnet.load", lora_weights_path=CONTROL_LORA, name="lora")
        base = {parameter.data_ptr() for parameter in unet_of(host).parameters()}
        assert not base & {parameter.data_ptr() for parameter in controlnet_of(host, "lora").parameters()}
        assert leases_of(host) == {0}
        assert torch.equal(draw(host, controlnet=[use("lora")]), draw(loaded, controlnet=[use("lora")]))


def test_a_control_lora_in_stability_ais_keys_is_read_and_leaves_the_base_alone(tmp_path: Path) -> None:
    """Its biases and norms are whole, and must not come into the base's, which others use."""
    unet = unet_of_two_layers()
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED_MODEL, folder, ignore=shutil.ignore_patterns("unet"))
    unet.save_pretrained(folder / "unet")
    wanted = stability_control_lora(unet, tmp_path / "control.safetensors")
    with running_host(*PLUGINS, models={"emoji": {"path": folder}}, files={"roots": [tmp_path]}) as host:
        before = {name: tensor.clone() for name, tensor in unet_of(host).state_dict().items()}
        without = draw(host)
        row = ask(host, "controlnet.load", lora_weights_path="control.safetensors", name="lora")
        got = draw(host, controlnet=[use("lora")])
        with host.store.leased("emoji") as lease:
            parts = {**lease.components, "scheduler": host.registry.schedulers["ddim"](lease.card.scheduler_config)}
            pipeline = StableDiffusionControlNetPipeline(**parts, controlnet=wanted, requires_safety_checker=False)
        pipeline.set_progress_bar_config(disable=True)
        merged = pipeline(
            SMALL["prompt"],
            image=outline(),
            num_inference_steps=STEPS,
            guidance_scale=4.0,
            generator=torch.Generator().manual_seed(SMALL["seed"]),
            output_type="latent",
        ).images[0]
        assert (got - merged).abs().max() < 1e-3 * merged.std()
        assert (got - without).abs().max() > 0.1 * without.std()
        assert torch.equal(draw(host), without)
        after = unet_of(host).state_dict()
        assert [name for name in before if not torch.equal(before[name], after[name])] == []
        assert row["bytes"] < sum(parameter.nbytes for parameter in wanted.parameters())


# Ways to give a control image, and what becomes of it.


def test_a_control_image_may_be_bytes_an_uploaded_picture_or_one_that_was_made(loaded: Host) -> None:
    wanted = draw(loaded, controlnet=[use()])
    uploaded = ask(loaded, "images.put", data=OUTLINE)["image_id"]
    assert torch.equal(draw(loaded, controlnet=[use(image=uploaded)]), wanted)
    (made,) = generate(loaded, output_type="png").named("image")
    assert made.image is not None
    assert made.image_id is not None
    by_id, by_bytes = (draw(loaded, controlnet=[use(image=image)]) for image in (made.image_id, made.image.data))
    assert torch.equal(by_id, by_bytes)
    assert not torch.equal(by_id, wanted)


def test_the_name_may_be_left_out_where_one_is_loaded(host: Host) -> None:
    ask(host, "controlnet.load", path=FOLDER, name="outline")
    assert torch.equal(draw(host, controlnet=[{"image": OUTLINE}]), draw(host, controlnet=[use()]))


def test_no_uses_are_the_same_as_no_field(loaded: Host) -> None:
    assert torch.equal(draw(loaded, controlnet=[]), draw(loaded))


def test_a_control_image_of_the_same_lines_in_another_format_counts_the_same(loaded: Host) -> None:
    buffer = io.BytesIO()
    outline().save(buffer, "webp", lossless=True)
    gray = png(outline().convert("L"))
    wanted = draw(loaded, controlnet=[use()])
    for image in (buffer.getvalue(), gray):
        assert torch.equal(draw(loaded, controlnet=[use(image=image)]), wanted)


PAINTER = """
from PIL import ImageDraw
from latentwire import Strict, Whole, hookimpl

class Options(Strict):
    broken: bool = False
    small: bool = False

CALLS = []

def apply(picture, options):
    CALLS.append(picture.size)
    if options.broken:
        raise ValueError("on purpose")
    if options.small:
        return picture.resize((8, 8))
    drawn = picture.copy()
    ImageDraw.Draw(drawn).rectangle((0, 0, drawn.width - 1, drawn.height - 1), outline="red")
    return drawn

@hookimpl
def register(registry):
    registry.add_preprocessor("framed", Options, apply)
"""


@pytest.fixture(scope="module")
def with_painter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with a plugin that brings a preprocessor, and a ControlNet."""
    file = tmp_path_factory.mktemp("plugins") / "painter.py"
    file.write_text(PAINTER)
    with running_host(*PLUGINS, file) as host:
        ask(host, "controlnet.load", path=FOLDER, name="outline")
        yield host


def shown(events: Events) -> list[Any]:
    """The control images that a job sent back."""
    pictures = [event.image for event in events.named("control_image")]
    return [PILImage.open(io.BytesIO(picture.data)) for picture in pictures]


def framed(size: tuple[int, int], colour: str = "blue") -> Any:
    """One colour, in a red frame of a pixel."""
    picture = PILImage.new("RGB", size, colour)
    ImageDraw.Draw(picture).rectangle((0, 0, size[0] - 1, size[1] - 1), outline="red")
    return picture


@pytest.mark.parametrize("resize", ["fit", "fill", "stretch", None])
def test_a_control_image_is_brought_to_the_pictures_size(with_painter: Host, resize: str | None) -> None:
    """And a preprocessor sees no border that was added: its frame is around the picture itself."""
    wide = PILImage.new("RGB", (256, 128), "blue")
    wide.paste("lime", (0, 0, 64, 128))  # a quarter, which `fill` cuts off
    wanted = {"fit": PILImage.new("RGB", (64, 64)), "stretch": framed((64, 64)), "fill": framed((64, 64))}
    wanted["fit"].paste(framed((64, 32)), (0, 16))
    preprocess: dict[str, Any] = {"preprocess": {"name": "framed", "show": True}} | (
        {} if resize is None else {"resize": resize}
    )
    (got,) = shown(generate(with_painter, controlnet=[use(image=png(wide), **preprocess)]))
    blue = ImageChops.difference(got, wanted[resize or "fill"])
    is_lime = np.asarray(got)[..., 1] > 128
    assert is_lime.any() == (resize in ("fit", "stretch"))
    right = blue.crop((32, 0, 64, 64))  # that half is blue however it is resized
    assert right.getbbox() is None


def test_another_plugins_preprocessor_is_used_and_described(with_painter: Host) -> None:
    described = ask(with_painter, "describe")["preprocessors"]
    assert described["framed"]["properties"].keys() == {"broken", "small"}
    got = draw(with_painter, controlnet=[use(preprocess={"name": "framed"})])
    by_hand = outline()
    ImageDraw.Draw(by_hand).rectangle((0, 0, 63, 63), outline="red")
    assert torch.equal(got, draw(with_painter, controlnet=[use(image=png(by_hand))]))
    assert not torch.equal(got, draw(with_painter, controlnet=[use()]))


@pytest.mark.parametrize(("option", "reason"), [("broken", "ValueError: on purpose"), ("small", r"it made \(8, 8\)")])
def test_a_preprocessor_that_fails_names_the_plugin_that_brought_it(
    with_painter: Host, option: str, reason: str
) -> None:
    for command, params in (
        ("generate", SMALL | {"controlnet": [use(preprocess={"name": "framed", "options": {option: True}})]}),
        ("controlnet.preprocess", {"image": OUTLINE, "name": "framed", "options": {option: True}}),
    ):
        error = refused(with_painter, PluginError, command, **params)
        assert re.search(rf"plugin 'painter' failed in preprocessor 'framed': .*{reason}", error.message)
        assert error.details[0]["plugin"] == "painter"
    draw(with_painter)  # that works: else three failures in a row would disable it for the tests that follow


def test_show_sends_each_control_image_once_a_job(loaded: Host) -> None:
    canny = {"name": "canny", "options": {"low": 50, "high": 100}, "show": True}
    uses = [
        use("lora"),
        use(preprocess=canny),
        use(preprocess={"name": "invert"}),
        use(preprocess={"name": "invert", "show": True}),
    ]
    events = generate(loaded, num_images=3, controlnet=uses)
    found = events.named("control_image")
    assert [(event.place, event.controlnet) for event in found] == [(1, "outline"), (3, "outline")]
    assert ImageChops.difference(shown(events)[1], ImageOps.invert(outline())).getbbox() is None
    names = events.names
    assert names.index("control_image") < names.index("started")


def test_a_control_image_made_by_command_gives_the_same_picture(loaded: Host) -> None:
    photo = png(PICTURE)
    made = ask(loaded, "controlnet.preprocess", image=photo, name="canny", options={"low": 20})
    assert (made["image"]["format"], made["image"]["width"], made["image"]["height"]) == ("png", 64, 64)
    assert loaded.images.get(made["image_id"]) == made["image"]["data"]
    asked = {"name": "canny", "options": {"low": 20}}
    by_request = draw(loaded, controlnet=[use(image=photo, preprocess=asked)])
    assert torch.equal(draw(loaded, controlnet=[use(image=made["image_id"])]), by_request)


def test_a_bad_request_to_preprocess_says_where(loaded: Host) -> None:
    command = "controlnet.preprocess"
    assert refused(loaded, InvalidParams, command, name="canny", image=b"x").details[0]["path"] == ["image"]
    assert refused(loaded, UnknownImage, command, name="canny", image="0" * 32).details[0]["path"] == ["image"]
    assert refused(loaded, InvalidParams, command, name="hed", image=OUTLINE).details[0]["path"] == ["name"]
    error = refused(loaded, InvalidParams, command, name="canny", image=OUTLINE, options={"low": -1})
    assert error.details[0]["path"] == ["options", "low"]


def test_a_live_client_that_repeats_its_control_image_has_it_prepared_once(with_painter: Host) -> None:
    """Moving a slider changes the prompt or the scale, seldom the control image."""
    calls = sys.modules["latentwire_plugin_painter"].CALLS
    calls.clear()
    asked = use(image=png(PILImage.new("RGB", (64, 64), "navy")), preprocess={"name": "framed"})
    for scale in (0.2, 0.4):
        draw(with_painter, controlnet=[asked | {"controlnet_conditioning_scale": scale}])
    assert calls == [(64, 64)]
    draw(with_painter, width=128, controlnet=[asked])
    assert calls == [(64, 64), (128, 64)]


# On the real server.


BOXES = [(0.05, 0.1, 0.5, 0.55), (0.45, 0.4, 0.95, 0.95), (0.1, 0.45, 0.6, 0.9), (0.4, 0.05, 0.95, 0.6)]
ROUND_THINGS = ["red apple on a white", "tangerine on a blue", "basketball on a white", "lemon on a blue"]


@pytest.fixture(scope="module")
def wired() -> Iterator[Served]:
    """A server with a ControlNet, a ControlLoRA and a LoRA, all loaded over its socket."""
    with serving(*PLUGINS) as served:

        async def load() -> None:
            async with wire(served.url) as client:
                await client.ask("controlnet.load", path=FOLDER, name="outline")
                await client.ask("controlnet.load", lora_weights_path=CONTROL_LORA, name="lora")
                await client.ask("lora.load", path="loras/emoji-pencil", name="pencil")

        asyncio.run(load())
        yield served


def drawn(served: Served, *names: str, scale: float = 1.0, **more: Any) -> tuple[float, float]:
    """Draw a round thing in each box: how well the silhouettes follow, and how colourful the pictures are."""

    async def run() -> list[Any]:
        async with wire(served.url) as client:
            for number, (box, thing) in enumerate(zip(BOXES, ROUND_THINGS, strict=True)):
                image = png(outline((128, 128), box))
                uses = [use(name, image, controlnet_conditioning_scale=scale) for name in names]
                prompt = f"{thing} background"
                request = {"prompt": prompt, "seed": number, "num_inference_steps": 8, "controlnet": uses, **more}
                await client.send(number, "generate", **request)
            pictures: dict[int, bytes] = {}
            while len(pictures) < len(BOXES):
                message = await client.until("image")
                pictures[message["id"]] = message["image"]["data"]
            return [np.asarray(PILImage.open(io.BytesIO(pictures[number]))) for number in sorted(pictures)]

    pictures = asyncio.run(run())
    overlaps = []
    for box, picture in zip(BOXES, pictures, strict=True):
        ring = outline((128, 128), box)
        ImageDraw.floodfill(ring, (round(64 * (box[0] + box[2])), round(64 * (box[1] + box[3]))), (255, 255, 255))
        overlaps.append(overlap(silhouette_of(picture), np.asarray(ring.convert("L")) > 0))
    return float(np.mean(overlaps)), float(np.mean([saturation(picture) for picture in pictures]))


@pytest.mark.slow
def test_silhouettes_follow_the_outline(wired: Served) -> None:
    without, colourful = drawn(wired)
    assert without < 0.4
    assert drawn(wired, "outline")[0] > 0.8
    assert drawn(wired, "lora")[0] > 0.65
    assert drawn(wired, "outline", "lora", scale=0.6)[0] > 0.8
    followed, gray = drawn(wired, "outline", lora=[{"name": "pencil"}])
    assert followed > without + 0.15  # a pencil drawing's silhouette is its lines alone
    assert gray < 0.2 * colourful


@in_loop
async def test_the_control_image_comes_over_the_wire_once_a_job(wired: Served) -> None:
    preprocess = {"name": "invert", "show": True}
    request = SMALL | {"num_images": 2, "output_type": "png", "controlnet": [use(preprocess=preprocess)]}
    async with wire(wired.url) as client:
        await client.send(1, "generate", **request)
        messages = await client.all_of(1)
    (message,) = (message for message in messages if message["event"] == "control_image")
    assert (message["place"], message["controlnet"]) == (0, "outline")
    assert message["job"] == messages[0]["job"]
    picture = PILImage.open(io.BytesIO(message["image"]["data"]))
    assert ImageChops.difference(picture, ImageOps.invert(outline())).getbbox() is None
    assert [message["event"] for message in messages].count("image") == 2


@in_loop
async def test_the_request_in_a_png_names_its_control_image_and_makes_the_picture_again(wired: Served) -> None:
    asked = use(preprocess={"name": "invert"}, controlnet_conditioning_scale=0.7)
    async with wire(wired.url) as client:

        async def make(**params: Any) -> Any:
            await client.send(1, "generate", **params)
            (message,) = (message for message in await client.all_of(1) if message["event"] == "image")
            return PILImage.open(io.BytesIO(message["image"]["data"]))

        first = await make(**SMALL | {"output_type": "png", "controlnet": [asked]})
        request = json.loads(first.info["latentwire"])
        (again,) = request["controlnet"]
        assert again["image"] == (await client.ask("images.put", data=OUTLINE))["image_id"]
        assert again["controlnet_conditioning_scale"] == 0.7
        assert (await make(**request)).tobytes() == first.tobytes()


@in_loop
async def test_an_upload_that_is_too_large_is_refused_and_the_connection_lives_on(wired: Served) -> None:
    async with wire(wired.url) as client:
        most = client.hello["limits"]["message_bytes"]
        await client.send(1, "generate", **SMALL | {"controlnet": [use(image=bytes(most))]})
        answer = await client.receive()
        assert (answer["event"], answer["code"]) == ("error", "message_too_large")
        assert str(most) in answer["message"]
        assert (await client.ask("controlnet.list"))["controlnets"]


@in_loop
async def test_errors_of_a_control_image_come_over_the_wire_with_their_path(wired: Served) -> None:
    async with wire(wired.url) as client:
        error = await client.error(1, "generate", **SMALL | {"controlnet": [use(), use(image=b"x")]})
        assert (error["code"], error["details"][0]["path"]) == ("invalid_params", ["controlnet", 1, "image"])
        error = await client.error(2, "controlnet.load", path="../controlnets")
        assert (error["code"], error["details"][0]["path"]) == ("invalid_params", ["path"])


# Loads that meet other loads.


def test_a_name_counts_once_its_controlnet_is_loaded_and_is_taken_before(host: Host) -> None:
    params = {"path": FOLDER, "name": "outline"}

    async def dispatch(command: str, params: dict[str, Any]) -> dict[str, Any]:
        return await host.dispatch(command, params, "test", lambda _: None)

    async def run() -> dict[str, Any]:
        loads = host.store.shelf.loads
        with LOADING:  # so that it waits in the middle of its load
            load = asyncio.create_task(dispatch("controlnet.load", params))
            await until(lambda: host.store.shelf.loads > loads)
            assert await dispatch("controlnet.list", {}) == {"controlnets": []}
            with pytest.raises(InvalidParams, match="already called 'outline'"):
                await dispatch("controlnet.load", params)
            with pytest.raises(NotLoaded):
                await dispatch("controlnet.unload", {"name": "outline", "when_free": True})
            with pytest.raises(InvalidParams, match="no ControlNet 'outline' is loaded"):
                await dispatch("generate", SMALL | {"controlnet": [use()]})
        return await load

    assert asyncio.run(run())["name"] == "outline"
    assert [row["name"] for row in ask(host, "controlnet.list")["controlnets"]] == ["outline"]
    assert ask(host, "controlnet.unload", name="outline")["unloaded"]
    assert not [key for key in host.store.shelf.contents() if key.component == "controlnet"]


def test_a_control_lora_may_be_loaded_while_another_model_is(host: Host) -> None:
    """While a model is loaded, accelerate makes every new parameter of the whole process one without data."""
    unet_of(host)

    async def run() -> dict[str, Any]:
        with LOADING, init_empty_weights():
            params = {"lora_weights_path": CONTROL_LORA, "name": "lora"}
            load = asyncio.create_task(host.dispatch("controlnet.load", params, "test", lambda _: None))
            await asyncio.wait({load}, timeout=0.5)
        return await load

    assert asyncio.run(run())["name"] == "lora"
    assert torch.isfinite(draw(host, controlnet=[use("lora")])).all()


# The page.

PAGE = PLUGIN_PAGES["controlnet"]
MESSAGES: list[dict[str, Any]] = [json.loads(block) for block in blocks(PAGE, "json")]


def test_the_commands_on_the_page_run_in_order_and_give_what_it_says(host: Host) -> None:
    """Ids in the examples stand for those that the real results gave."""
    ids: dict[str, str] = {}
    picture = png(outline((128, 128)))
    for message in (message for message in MESSAGES if "command" in message):
        events = Events()
        params = real(message["params"], picture, ids)
        result = call(host, message["command"], params, emit=events)
        answers = [other for other in MESSAGES if other["id"] == message["id"] and "event" in other]
        for answer in answers:
            if answer["event"] == "result":
                assert_same_shape(answer["result"], result, message["command"])
                ids |= {value: result[key] for key, value in answer["result"].items() if key in ("id", "image_id")}
            else:
                event = next(event for event in events if event.name == answer["event"])
                documented = {key: value for key, value in answer.items() if key not in ("id", "event", "seq")}
                assert_same_shape(documented, to_plain(event), answer["event"])
        assert answers or message["command"] == "generate"


def real(value: Any, picture: bytes, ids: dict[str, str]) -> Any:
    """An example's params with a real picture for each count of bytes, and real ids for those in the examples."""
    if isinstance(value, dict):
        return picture if "$bytes" in value else {key: real(entry, picture, ids) for key, entry in value.items()}
    if isinstance(value, list):
        return [real(entry, picture, ids) for entry in value]
    return ids.get(value, value) if isinstance(value, str) else value


@pytest.mark.parametrize(
    ("title", "model"),
    [
        ("`controlnet.load`", LoadParams),
        ("`controlnet.unload`", UnloadParams),
        ("`controlnet.preprocess`", PreprocessParams),
        ("Request field `controlnet`", Use),
    ],
)
def test_the_keys_are_on_the_page_with_their_defaults(title: str, model: type[BaseModel]) -> None:
    documented = {name: json_default(row[0]) for name, row in table(section(PAGE, title)).items()}
    known = {name: field.default for name, field in model.model_fields.items()}
    if model is Use:
        known |= {f"preprocess.{name}": field.default for name, field in Preprocessing.model_fields.items()}
    assert documented == known


def test_the_preprocessors_are_on_the_page_with_their_options() -> None:
    rows = re.findall(r"^\| (?:`(\w+)`)? ?\| (?:`(\w+)`)? ?\| (?:`([^`]+)`)? ?\|", section(PAGE, "Preprocessors"), re.M)
    documented: dict[str, dict[str, Any]] = {}
    for name, option, default in rows:
        if name:
            documented[name] = {}
        elif option:
            documented[[*documented][-1]][option] = json.loads(default)
    assert documented == {
        name: {option: field.default for option, field in options.model_fields.items()}
        for name, (options, _) in PREPROCESSORS.items()
    }


def test_the_error_codes_on_the_page_are_codes_of_the_host() -> None:
    assert table(section(PAGE, "Errors")).keys() < error_codes().keys()
