"""Random sequences of loading, using, cancelling and unloading: whatever the order, nothing is left behind."""

import asyncio
import gc
import hashlib
import io
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import torch
from PIL import Image as PILImage
from PIL import ImageDraw
from safetensors.torch import save_file

from latentwire import Host
from latentwire.core.errors import InUse, InvalidParams, JobCancelled, ModelLoadError, NotLoaded, UnknownJob
from latentwire.core.events import Event, Image
from latentwire.core.gates import RememberingGate
from latentwire.core.memory import give_back
from latentwire.core.remembered import Remembered
from latentwire.core.run import Run

from .conftest import running_host, wait_for

SEQUENCES = 200
WARM_UP = 100  # more before them, until the process has its working size: pools of threads, the libraries' caches
AVERAGED = 30
OPERATIONS = 6
LONG = 1000  # steps of a job that is cancelled in the end

# What may be loaded, under the name that it always gets.
LORAS = {"pixels": "loras/emoji-pixel-art", "pencil": "loras/emoji-pencil"}
CONTROLNETS = {
    "net": {"path": "controlnets/emoji-outline"},
    "control-lora": {"lora_weights_path": "control-loras/emoji-outline.safetensors"},
}
PICTURE = {
    "prompt": "red apple", "width": 64, "height": 64, "seed": 1, "guidance_scale": 1.0, "output_type": "latent",
}  # fmt: skip


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A warm host that can find broken files, too."""
    layer = "unet.conv_in.lora_{}.weight"
    shapes = {"A": (4, 5, 3, 3), "B": (64, 4, 1, 1)}  # five channels where the model's latents have four
    file = tmp_path / "wrong.safetensors"
    save_file({layer.format(side): torch.zeros(shape) for side, shape in shapes.items()}, file)
    (tmp_path / "truncated.safetensors").write_bytes(file.read_bytes()[:-100])
    with running_host(files={"roots": [tmp_path]}, engine={"device": "cpu", "reproducible_rows": 2}) as host:
        host.warm_up()
        yield host


def outline() -> bytes:
    picture = PILImage.new("RGB", (64, 64))
    ImageDraw.Draw(picture).ellipse((10, 14, 54, 50), outline="white", width=2)
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()


OUTLINE = outline()


class Sequence:
    """Some random operations, several of them at once, and then the end of all that is left."""

    def __init__(self, host: Host, seed: int, drawn: dict[str, bytes], met: Counter[str]) -> None:
        self.host = host
        self.random = random.Random(seed)
        self.drawn = drawn  # pictures of earlier sequences: an equal request must give an equal one
        self.met = met
        self.jobs: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        for number in range(OPERATIONS):
            others = [self.load, self.use, self.use, self.unload, self.unload, self.cancel, self.fail_to_load]
            await self.random.choice(others if number else [self.load])()
        for job in self.host.jobs.all():
            if job.request.num_inference_steps == LONG:
                await self.ask("cancel", may_meet=UnknownJob, job=job.id)
        await asyncio.gather(*self.jobs)
        for command, key in (("lora", "loras"), ("controlnet", "controlnets")):
            for row in (await self.ask(f"{command}.list"))[key]:
                when_free = self.random.random() < 0.5
                assert (await self.ask(f"{command}.unload", name=row["name"], when_free=when_free))["unloaded"]

    async def ask(self, command: str, may_meet: Any = (), **params: Any) -> Any:
        try:
            result = await self.host.dispatch(command, params, "me", lambda _: None)
            self.met[command] += 1
            return result
        except may_meet as error:
            self.met[f"{command}: {error.code}"] += 1

    def names(self) -> tuple[list[str], list[str]]:
        """What an operation may name: mostly what is loaded, now and then what may not be."""
        if self.random.random() < 0.2:
            return list(LORAS), list(CONTROLNETS)
        loaded = [[row["name"] for row in self.host.store.brought(kind)] for kind in ("adapter", "controlnet")]
        return loaded[0], loaded[1]

    async def load(self) -> None:
        name = self.random.choice([*LORAS, *CONTROLNETS])
        if name in LORAS:
            await self.ask("lora.load", may_meet=InvalidParams, path=LORAS[name], name=name)
        else:
            await self.ask("controlnet.load", may_meet=InvalidParams, name=name, **CONTROLNETS[name])

    async def fail_to_load(self) -> None:
        file = self.random.choice(["wrong.safetensors", "truncated.safetensors"])
        command, key = self.random.choice([("lora", "path"), ("controlnet", "lora_weights_path")])
        assert await self.ask(f"{command}.load", may_meet=ModelLoadError, **{key: file, "name": "broken"}) is None

    async def use(self) -> None:
        """Start a job; one in four would last long."""
        loras, nets = self.names()
        loras = self.random.sample(loras, self.random.randint(0, len(loras)))
        nets = self.random.sample(nets, self.random.randint(0, len(nets)))
        steps = self.random.choice([2, 2, 2, LONG])
        fields = {
            "mode": self.random.choice(["exact", "reproducible", "fast"]),
            "num_inference_steps": steps,
            "lora": [{"name": name, "weight": self.random.choice([1.0, 0.5])} for name in sorted(loras)],
            "controlnet": [{"name": name, "image": OUTLINE} for name in sorted(nets)],
        }
        self.jobs.append(asyncio.create_task(self.draw(fields)))
        await asyncio.sleep(0)  # the next operation finds it preparing
        if steps < LONG and self.random.random() < 0.5:
            await self.jobs[-1]  # or even finished

    async def draw(self, fields: dict[str, Any]) -> None:
        events: list[Event] = []
        try:
            await self.host.dispatch("generate", PICTURE | fields, "me", events.append)
        except (InvalidParams, JobCancelled, NotLoaded) as error:
            self.met[f"generate: {error.code}"] += 1
            return
        (latents,) = (event.latents.data for event in events if isinstance(event, Image) and event.latents)
        self.met[f"generate in {fields['mode']}"] += 1
        if fields["mode"] != "fast":
            assert latents == self.drawn.setdefault(repr(fields), latents)

    async def cancel(self) -> None:
        jobs = self.host.jobs.all()
        if jobs:
            await self.ask("cancel", may_meet=UnknownJob, job=self.random.choice(jobs).id)

    async def unload(self) -> None:
        loras, nets = self.names()
        name = self.random.choice([*loras, *nets] or [*LORAS])
        command = "lora.unload" if name in LORAS else "controlnet.unload"
        when_free = self.random.random() < 0.5
        await self.ask(command, may_meet=(InUse, NotLoaded), name=name, when_free=when_free)


def modules_of(host: Host) -> dict[str, Any]:
    """All modules of the base by name."""
    with host.store.leased("emoji") as lease:
        parts = {name: part for name, part in lease.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{part}.{name}": module for part, whole in parts.items() for name, module in whole.named_modules()}


def classes_of(host: Host) -> dict[str, type]:
    """Each module's class; none may have a hook."""
    modules = modules_of(host)
    assert [name for name, module in modules.items() if module._forward_hooks or module._forward_pre_hooks] == []
    return {name: type(module) for name, module in modules.items()}


def digest_of(host: Host) -> str:
    """The base's tensors to the last bit."""
    digest = hashlib.sha256()
    for name, module in modules_of(host).items():
        for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            digest.update(f"{name}.{key}".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def tensor_bytes() -> int:
    """What all tensors of the process take, but for those that are older than the freeze."""
    gc.collect()  # a cancelled call leaves reference cycles
    give_back()
    sizes = {}
    for tensor in (thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)):
        with suppress(NotImplementedError):  # another thread is just about to drop it: it has no storage any more
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(sizes.values())


def forget_prompts(host: Host) -> None:
    """What the text encoder has been asked before is kept on purpose, within a bound."""
    with host.store.leased("emoji") as lease:
        gate = lease.components["text_encoder"].forward.__wrapped_gate__
    assert isinstance(gate, RememberingGate)
    gate._remembered = Remembered(1 << 20, lambda remark: remark.nbytes)


def come_to_rest(host: Host) -> None:
    """Wait for what goes on after its command has ended: a cancelled job's last forward, or its loading."""
    told: Future[None] = Future()
    host.engine.submit(Run("fast", lambda: None, lambda *_: told.set_result(None)))  # after all that came before
    told.result()
    wait_for(lambda: not host.engine.running, "the engine to rest")
    wait_for(lambda: not any(users for *_, users in host.store.shelf.contents().values()), "all leases to end")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_sequence_of_commands_leaves_anything_behind(host: Host) -> None:
    classes, digest, shelf = classes_of(host), digest_of(host), host.store.shelf.contents().keys()
    drawn: dict[str, bytes] = {}
    met: Counter[str] = Counter()
    # Every unloading collects garbage. What is here now, a million objects of the libraries, need not be looked at.
    gc.collect()
    gc.freeze()
    process, memory, left = psutil.Process(), list[int](), list[int]()
    try:
        with asyncio.Runner() as runner:  # one event loop for all, as in a server
            for seed in range(WARM_UP + SEQUENCES):
                runner.run(Sequence(host, seed, drawn, met).run())
                come_to_rest(host)
                assert host.store.shelf.contents().keys() == shelf, f"sequence {seed}"
                assert classes_of(host) == classes, f"sequence {seed}"
                forget_prompts(host)
                if seed == 0:
                    left.append(tensor_bytes())
                wait_for(lambda: tensor_bytes() <= left[0], f"the tensors of sequence {seed} to go")
                memory.append(process.memory_info().rss)
    finally:
        gc.unfreeze()
    assert digest_of(host) == digest
    # The tensors told to the byte. The process's size tells of all else, but moves by a percent or two at any time.
    before, after = mean(memory[WARM_UP : WARM_UP + AVERAGED]), mean(memory[-AVERAGED:])
    assert after < 1.02 * before, [size >> 20 for size in memory]
    # and each of these has been met on the way
    for mode in ("exact", "reproducible", "fast"):
        assert met[f"generate in {mode}"] >= SEQUENCES / 10, met
    for command in ("lora", "controlnet"):
        assert min(met[f"{command}.{what}"] for what in ("load", "unload")) >= SEQUENCES / 5, met
        assert min(met[f"{command}.{end}"] for end in ("load: model_load_failed", "unload: not_loaded")) >= 5, met
    assert min(met[end] for end in ("cancel", "generate: cancelled", "generate: not_loaded")) >= 5, met
    assert met["lora.unload: in_use"] + met["controlnet.unload: in_use"] >= 5, met
