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
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import diffusers
import torch
from engine_thread import on_engine
from figures import show
from made_model import made_model
from PIL import Image as PILImage
from prompts import new_prompts

from latentwire import Host, Settings
from latentwire.core.build import PipelineBuild
from latentwire.core.events import Event, Image, Step
from latentwire.core.threads import compute_alone, workers

SIDES = {"full": 256, "small": 64}  # pixels
STEPS, SEED, WEIGHT = 2, 1, 0.8
REQUESTS = {"plain": "", "controlnet": "controlnet", "lora": "lora", "plain_again": ""}
NOTES = [
    "outside: from the request to the end of its first step, less the time within forwards of text encoder, "
    "ControlNet and UNet; ratio is the reference's over ours",
    "the files lie in the page cache, which is not dropped: reading them from a disk would cost the reference more",
    "the reference's ControlNet is read into memory, as by moving it to a device; left mapped to its file, it would be "
    "read within its first forward, and then the ratio was about 10",
    "memory of the reference's pipelines is collected between requests, off the clock",
]


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

    async def request(self, kind: str, prompt: str, png: bytes) -> torch.Tensor:
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
            "prompt": prompt,
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

    def request(self, kind: str, prompt: str, png: bytes) -> torch.Tensor:
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
            prompt,
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
    asyncio.get_running_loop().set_default_executor(workers(4, "work"))
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
    prompts = new_prompts()
    for number in range(rounds + 1):
        texts = {name: next(prompts) for name in REQUESTS}  # the host may remember what it has made of one
        # one side after the other, and not request by request: the reference's LoRA changes the modules
        row: dict[str, dict[str, dict[str, float]]] = {}
        pictures: dict[str, list[torch.Tensor]] = {name: [] for name in REQUESTS}
        for who in ("ours", "reference") if number % 2 else ("reference", "ours"):
            row[who] = {}
            for name, kind in REQUESTS.items():
                gc.collect()
                png = control_image(side, number)
                if who == "ours":
                    latents = await ours.request(kind, texts[name], png)
                else:
                    work = functools.partial(reference.request, kind, texts[name], png)
                    latents = await asyncio.to_thread(on_engine, host, work)
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
    compute_alone()  # only the engine's thread shall have all cores
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
    show(
        "switching",
        options,
        picture=f"{side}x{side}, {STEPS} steps, float32",
        seconds_to_make_the_model=round(made, 1),
        **figures,
        notes=NOTES,
    )


if __name__ == "__main__":
    main()
