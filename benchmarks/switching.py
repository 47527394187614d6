"""What changing a request's parts costs: the time from a request to its first step, outside of the models' forwards.

Each round sends the same four requests (plain, with a ControlNet, with a LoRA, plain again) twice: to the host, where
ControlNet and LoRA were loaded once, and to a script that makes its pipeline anew for each, as many do: it reads the
ControlNet with `from_pretrained` where one is asked for, builds a pipeline of the base's parts, loads and unloads the
LoRA. Both use the very same modules of the base, whose forwards one stopwatch times. Prints JSON.

The model is Stable Diffusion 1.5 in shape and size (5.8 GB on disk with its ControlNet, about 9 GB of memory), with
random weights that are made for the run.

    python benchmarks/switching.py [--rounds 5] [--size full|small] [--keep FOLDER]
"""

import argparse
import asyncio
import functools
import gc
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import diffusers
import torch
import transformers
from PIL import Image as PILImage
from safetensors.torch import save_file
from serving import PROMPT

from latentwire import Host, Settings
from latentwire.core.build import PipelineBuild
from latentwire.core.checkpoint import LAYOUTS, clip_tokenizer
from latentwire.core.events import Event, Image, Step

SIDES = {"full": 256, "small": 64}  # pixels
STEPS, SEED, RANK, WEIGHT = 2, 1, 16, 0.8
REQUESTS = {"plain": "", "controlnet": "controlnet", "lora": "lora", "plain_again": ""}
NOTES = [
    "outside: from the request to the end of its first step, less the time within forwards of text encoder, "
    "ControlNet and UNet; ratio is the reference's over ours",
    "the files lie in the page cache, which is not dropped: reading them from a disk would cost the reference more",
    "the reference's ControlNet is read into memory, as by moving it to a device; left mapped to its file, it would be "
    "read within its first forward, and then the ratio was about 10",
    "memory of the reference's pipelines is collected between requests, off the clock",
]

SMALL: dict[str, dict[str, Any]] = {
    "unet": {"block_out_channels": [32, 64, 64, 64], "cross_attention_dim": 32},
    "vae": {"block_out_channels": [32, 32, 32, 32]},
    "text_encoder": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
}


# The model, made of noise.


@contextmanager
def made_model(size: str, keep: Path | None = None) -> Iterator[Path]:
    """A folder with `model`, `controlnet`, `a.safetensors` and `b.safetensors` (LoRAs)."""
    if keep is not None:
        if not (keep / "b.safetensors").exists():  # it is written last
            make_model(keep, size)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="latentwire-") as folder:
        make_model(Path(folder), size)
        yield Path(folder)


def make_model(folder: Path, size: str) -> None:
    """Write the configs of Stable Diffusion 1.5, or smaller ones, and random weights for them."""
    torch.manual_seed(0)
    model = folder / "model"
    shutil.copytree(LAYOUTS / "sd1", model, dirs_exist_ok=True)
    clip_tokenizer().save_pretrained(model / "tokenizer")
    for name, kind in (("unet", diffusers.UNet2DConditionModel), ("vae", diffusers.AutoencoderKL)):
        config = kind.load_config(model / name) | (SMALL[name] if size == "small" else {})
        with torch.device("meta"):
            module = kind.from_config(config)
        _save(module, model / name, "diffusion_pytorch_model.safetensors")
        if name == "unet":
            unet = module
    changes = SMALL["text_encoder"] if size == "small" else {}
    config = transformers.CLIPTextConfig.from_json_file(model / "text_encoder" / "config.json").to_dict()
    with torch.device("meta"):
        encoder = transformers.CLIPTextModel(transformers.CLIPTextConfig.from_dict(config | changes))
        net = diffusers.ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    _save(encoder, model / "text_encoder", "model.safetensors")
    _save(net, folder / "controlnet", "diffusion_pytorch_model.safetensors")
    for name in ("a", "b"):
        save_file(_lora(unet), folder / f"{name}.safetensors", metadata={"format": "pt"})


def _save(module: Any, folder: Path, file: str) -> None:
    if isinstance(module, diffusers.ModelMixin):
        module.save_config(folder)
    else:
        module.config.save_pretrained(folder)
    tensors = {name: _noise(name, tensor.shape) for name, tensor in module.state_dict().items()}
    save_file(tensors, folder / file, metadata={"format": "pt"})


def _noise(name: str, shape: torch.Size) -> torch.Tensor:
    """Weights that keep the size of what goes through them, so that everything stays finite."""
    if len(shape) < 2:
        return torch.full(shape, float(name.endswith("weight")))  # of a norm; a bias is 0
    return torch.empty(shape).normal_(std=shape[1:].numel() ** -0.5)


def _lora(unet: torch.nn.Module) -> dict[str, torch.Tensor]:
    """For every attention layer, in the keys of diffusers."""
    tensors = {}
    for name, layer in unet.named_modules():
        if isinstance(layer, torch.nn.Linear) and (".attn1." in name or ".attn2." in name):
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn(RANK, layer.in_features) * layer.in_features**-0.5
            tensors[f"unet.{name}.lora_B.weight"] = torch.randn(layer.out_features, RANK) * 0.05
    return tensors


# The two sides.


class Stopwatch:
    """Times one request up to its first step, and within it the forwards that it was put around."""

    def __init__(self) -> None:
        self.start()
        self._within = False

    def start(self) -> None:
        self.inside = self.total = 0.0
        self._begin = perf_counter()

    def first_step(self) -> None:
        """Say that a step is over; the first one counts."""
        if not self.total:
            self.total = perf_counter() - self._begin
            self.row = {"outside": self.total - self.inside, "forwards": self.inside, "first_step": self.total}

    def around(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._within:
                return forward(*args, **kwargs)
            self._within = True
            begin = perf_counter()
            try:
                return forward(*args, **kwargs)
            finally:
                self.inside += perf_counter() - begin
                self._within = False

        return timed

    def around_gate(self, module: Any) -> None:
        """Time the forward behind a gate: what the engine does before and after it is outside."""
        gate = module.forward.__wrapped_gate__
        gate.forward = self.around(gate.forward)
        if hasattr(gate, "_embed"):  # the part of a ControlNet's forward that its gate does once
            gate._embed = self.around(gate._embed)


class Ours:
    """The host, called in process."""

    def __init__(self, host: Host, side: int, watch: Stopwatch) -> None:
        self._host, self._side, self._watch = host, side, watch

    async def request(self, kind: str, png: bytes) -> torch.Tensor:
        latents = torch.empty(0)

        def emit(event: Event) -> None:
            nonlocal latents
            if isinstance(event, Step):
                self._watch.first_step()
            elif isinstance(event, Image) and event.latents is not None:
                values = torch.frombuffer(bytearray(event.latents.data), dtype=torch.float32)
                latents = values.reshape(event.latents.shape)

        extra: dict[str, Any] = {}
        if kind == "controlnet":
            extra = {"controlnet": [{"image": png, "name": "controlnet"}]}
        elif kind == "lora":
            extra = {"lora": [{"name": "a", "weight": WEIGHT}]}
        request = {
            "prompt": PROMPT,
            "width": self._side,
            "height": self._side,
            "num_inference_steps": STEPS,
            "seed": SEED,
            "mode": "exact",
            "output_type": "latent",
        }
        self._watch.start()
        await self._host.dispatch("generate", request | extra, "bench", emit)
        return latents


class Reference:
    """A script that makes its pipeline anew for each request, of modules that it keeps."""

    def __init__(
        self, folder: Path, parts: dict[str, Any], new_scheduler: Callable[[], Any], side: int, watch: Stopwatch
    ) -> None:
        self._folder, self._parts, self._new_scheduler = folder, parts, new_scheduler
        self._side, self._watch = side, watch
        self._has_lora = False

    def request(self, kind: str, png: bytes) -> torch.Tensor:
        self._watch.start()
        parts = self._parts | {"scheduler": self._new_scheduler(), "requires_safety_checker": False}
        extra: dict[str, Any] = {}
        if kind == "controlnet":
            net = read_controlnet(self._folder)
            net.forward = self._watch.around(net.forward)
            pipeline = diffusers.StableDiffusionControlNetPipeline(**parts, controlnet=net)
            extra = {"image": PILImage.open(io.BytesIO(png)).convert("RGB")}
        else:
            pipeline = diffusers.StableDiffusionPipeline(**parts)
        if kind == "lora":
            pipeline.load_lora_weights(self._folder, weight_name="a.safetensors", adapter_name="a")
            pipeline.set_adapters(["a"], [WEIGHT])
        elif self._has_lora:
            pipeline.unload_lora_weights()
        self._has_lora = kind == "lora"
        pipeline.set_progress_bar_config(disable=True)

        def callback(_pipeline: Any, _index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            self._watch.first_step()
            return tensors

        latents: torch.Tensor = pipeline(
            PROMPT,
            width=self._side,
            height=self._side,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(SEED),
            output_type="latent",
            callback_on_step_end=callback,
            **extra,
        ).images[0]
        return latents


def read_controlnet(folder: Path) -> Any:
    """The ControlNet as a script would read it, in memory, as it is once it was moved to a device."""
    net = diffusers.ControlNetModel.from_pretrained(
        folder / "controlnet", torch_dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    for parameter in net.parameters():  # else they are pages of the file, read in the first forward
        parameter.data = parameter.data.clone()
    return net


def control_image(side: int, number: int) -> bytes:
    """A PNG of some bars, another one for each number: the host remembers control images."""
    image = PILImage.new("RGB", (side, side))
    for bar in range(8):
        left, top = 13 * (number + 3 * bar) % (side // 2), bar * side // 8
        image.paste((255, 255, 255), (left, top, left + side // 3, top + side // 12))
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


async def measure(host: Host, folder: Path, side: int, rounds: int) -> dict[str, Any]:
    build = PipelineBuild("made", "ddim", "float32")
    times = [perf_counter()]
    host.store.release(host.store.lease(build))
    times.append(perf_counter())
    await host.dispatch("controlnet.load", {"path": str(folder / "controlnet")}, "bench", lambda event: None)
    times.append(perf_counter())
    await host.dispatch("lora.load", {"path": str(folder / "a.safetensors")}, "bench", lambda event: None)
    times.append(perf_counter())

    watch = Stopwatch()
    lease = host.store.lease(build.with_controlnets("controlnet"))
    for module in (lease.components["text_encoder"], lease.components["unet"], *lease.controlnets):
        watch.around_gate(module)

    def new_scheduler() -> Any:
        return host.registry.new_scheduler("ddim", lease.card.scheduler_config)

    ours = Ours(host, side, watch)
    reference = Reference(folder, dict(lease.components), new_scheduler, side, watch)
    results: list[dict[str, dict[str, dict[str, float]]]] = []
    apart = 0.0
    for number in range(rounds + 1):
        # one side after the other, and not request by request: the reference's LoRA changes the modules
        row: dict[str, dict[str, dict[str, float]]] = {}
        pictures: dict[str, list[torch.Tensor]] = {name: [] for name in REQUESTS}
        for who in ("ours", "reference") if number % 2 else ("reference", "ours"):
            row[who] = {}
            for name, kind in REQUESTS.items():
                gc.collect()
                png = control_image(side, number)
                if who == "ours":
                    latents = await ours.request(kind, png)
                else:  # in a thread as well: forwards in a process's first one have other costs
                    latents = await asyncio.to_thread(reference.request, kind, png)
                pictures[name].append(latents)
                row[who][name] = watch.row
        if number:  # the first one warms up
            results.append(row)
        apart = max(apart, *(float((one - other).abs().max()) for one, other in pictures.values()))
    host.store.release(lease)
    return {
        "load_seconds": {
            name: round(end - begin, 3)
            for name, begin, end in zip(("model", "controlnet", "lora"), times, times[1:], strict=False)
        },
        "requests": [{"request": name, **_figures(results, [name])} for name in REQUESTS],
        "overall": _figures(results, list(REQUESTS)),
        "largest_difference_of_latents": apart,
    }


def _figures(results: list[dict[str, dict[str, dict[str, float]]]], names: list[str]) -> dict[str, float]:
    """Medians over the rounds; of several requests their sum."""

    def summed(what: str, who: str) -> list[float]:
        return [sum(row[who][name][what] for name in names) for row in results]

    def ratio(what: str) -> float:
        pairs = zip(summed(what, "reference"), summed(what, "ours"), strict=True)
        return round(median(theirs / mine for theirs, mine in pairs), 2)

    seconds = {
        f"{who}_{what}_s": round(median(summed(what, who)), 4)
        for what in ("outside", "forwards", "first_step")
        for who in ("ours", "reference")
    }
    return seconds | {"ratio": ratio("outside"), "ratio_to_first_step": ratio("first_step")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", default="full", choices=("full", "small"))
    parser.add_argument("--keep", type=Path, help="make the model here, use it if it is here, and leave it here")
    options = parser.parse_args()
    side = SIDES[options.size]
    begin = perf_counter()
    with made_model(options.size, options.keep and options.keep.resolve()) as folder:
        made = perf_counter() - begin
        settings = {
            "discover": False,
            "engine": {"device": "cpu"},
            "models": {"made": {"path": folder / "model", "dtype": "float32"}},
            "defaults": {"model": "made"},
            "files": {"roots": [folder]},
        }
        host = Host(Settings.model_validate(settings))
        try:
            figures = asyncio.run(measure(host, folder, side, options.rounds))
        finally:
            host.close()
    result = {
        "benchmark": "switching",
        "size": options.size,
        "picture": f"{side}x{side}, {STEPS} steps, float32",
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "seconds_to_make_the_model": round(made, 1),
        **figures,
        "notes": NOTES,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
