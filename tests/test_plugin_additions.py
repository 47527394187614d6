"""Previewers and tasks that plugins bring; examples/plugins has whole ones."""

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from latentwire import Host, LatentwireError, PluginError
from latentwire.testing import Events, assert_same_latents, call, generate, running_host

SOURCE = """
    from dataclasses import replace
    import numpy as np
    from latentwire import *

    class Small(Strict):
        kind: str = "task"

    def bright(latents):
        if latents.shape[-1] == 9:  # a picture of 72 pixels
            raise ValueError("on purpose")
        if latents.shape[-1] == 10:
            return latents
        return np.full((4, 8, 3), 255, np.uint8)

    def half():
        from diffusers import StableDiffusionPipeline

        class Half(StableDiffusionPipeline):
            def __init__(
                self, vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor,
                image_encoder=None, requires_safety_checker=False, extra=None
            ):
                super().__init__(
                    vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor,
                    image_encoder, requires_safety_checker,
                )
                self.register_modules(extra=extra)

            def __call__(self, *args, **kwargs):
                output = super().__call__(*args, **kwargs)
                output.images = output.images / 2
                return output

        return Half

    @hookimpl
    def register(registry):
        registry.add_field("small", Small)
        registry.add_previewer("bright", bright)
        registry.add_task("half", {"StableDiffusionPipeline": half})
        registry.add_task("odd", {"StableDiffusionPipeline": lambda: 7, "Other": half})

    @hookimpl
    def modify_build(context):
        if context.request.small is None:
            return
        build = replace(context.build, task={"task": "half", "module": "half"}.get(context.request.small.kind, "odd"))
        context.build = build.with_modules(("extra", "extra")) if context.request.small.kind == "module" else build
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    path = tmp_path_factory.mktemp("plugins") / "additions.py"
    path.write_text(dedent(SOURCE))
    with running_host(path) as host:
        yield host


def previews(host: Host, **options: Any) -> list[PILImage.Image]:
    stream = {"previews": {"format": "png", **options}}
    made = generate(host, num_inference_steps=3, stream=stream)
    return [PILImage.open(io.BytesIO(event.image.data)) for event in made.events.named("preview")]


def test_a_request_chooses_its_previewer(host: Host) -> None:
    assert call(host, "describe")["previewers"] == ["bright"]
    painted = previews(host, previewer="bright", size=16)
    assert painted
    assert {picture.size for picture in painted} == {(16, 8)}  # of the shape that was painted
    assert {tuple(picture.getpixel((3, 3))) for picture in painted} == {(255, 255, 255)}  # type: ignore[arg-type]
    assert np.asarray(previews(host, size=16)[0]).min() < 255


def test_watchers_have_their_own_previewers(host: Host) -> None:
    async def run() -> tuple[Events, Events]:
        mine, theirs = Events(), Events()
        request = {"prompt": "x", "num_inference_steps": 30, "stream": {"previews": {"size": 16}}}
        job = asyncio.create_task(host.dispatch("generate", request, "me", mine))
        await asyncio.to_thread(mine.wait_for, "accepted")
        stream = {"previews": {"previewer": "bright", "size": 16}}
        params = {"job": mine.named("accepted")[0].job, "stream": stream}
        await asyncio.gather(job, host.dispatch("jobs.watch", params, "me", theirs))
        return mine, theirs

    mine, theirs = asyncio.run(run())
    assert {(event.image.width, event.image.height) for event in mine.named("preview")} == {(16, 16)}
    assert (16, 8) in {(event.image.width, event.image.height) for event in theirs.named("preview")}


@pytest.mark.parametrize("command", ["generate", "jobs.watch"])
def test_a_previewer_that_is_not_there_is_refused_with_its_place(host: Host, command: str) -> None:
    params = {"prompt": "x"} if command == "generate" else {"job": "none"}
    with pytest.raises(LatentwireError, match="did you mean 'bright'") as caught:
        call(host, command, params | {"stream": {"previews": {"previewer": "brigth"}}})
    assert caught.value.details[0]["path"] == ["stream", "previews", "previewer"]


@pytest.mark.parametrize(("width", "said"), [(72, "ValueError: on purpose"), (80, "wanted \\(h, w, 3\\) of uint8")])
def test_a_previewer_that_fails_fails_its_job_and_is_named(host: Host, width: int, said: str) -> None:
    stream = {"previews": {"previewer": "bright"}}
    with pytest.raises(PluginError, match=f"plugin 'additions' failed in previewer 'bright': .*{said}"):
        generate(host, width=width, num_inference_steps=30, stream=stream)
    assert generate(host, stream=stream).result["images"] == 1


def test_a_task_runs_its_own_pipeline_and_keeps_the_steps(host: Host) -> None:
    plain, half = generate(host, output_type="latent"), generate(host, small={}, output_type="latent")
    assert_same_latents(half.latents, plain.latents / 2)
    assert half.events.names.count("step") == 2
    assert generate(host, small={}).picture.size == (128, 128)


def test_a_task_may_have_modules_of_its_own(host: Host) -> None:
    import torch

    from latentwire import Loaded

    with pytest.raises(LatentwireError, match="no module 'extra' is loaded"):
        generate(host, small={"kind": "module"})
    host.store.bring("module", "extra", "emoji", lambda dtype: Loaded(torch.nn.Linear(2, 2)))
    assert generate(host, small={"kind": "module"}).result["images"] == 1
    host.store.drop("module", "extra")


def test_a_task_that_gives_no_pipeline_fails_its_job_and_is_named(host: Host) -> None:
    with pytest.raises(PluginError, match="plugin 'additions' failed in task 'odd': TypeError: it gave 7"):
        generate(host, small={"kind": "odd"})


def test_names_of_the_host_are_not_to_be_had(tmp_path: Path) -> None:
    (tmp_path / "greedy.py").write_text(
        "from latentwire import hookimpl\n@hookimpl\ndef register(registry): registry.add_task('inpaint', {})\n"
    )
    with pytest.raises(PluginError, match="task 'inpaint' is the host's own"), running_host(tmp_path / "greedy.py"):
        pass
