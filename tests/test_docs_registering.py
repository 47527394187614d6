"""docs/plugins/registering.md: each example adds something that a client of a host sees, as its first line says."""

import asyncio
import io
import json
import re
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image as PILImage

from latentwire import Caller, Host, NodeContext
from latentwire.testing import assert_same_picture, call, difference, generate, running_host
from latentwire.testing.hosts import served as serve

from .pages import GUIDES, blocks, section, subheadings

EXAMPLES = {
    method: blocks(section(GUIDES["registering"], f"`{method}`"), "python")
    for method in subheadings(section(GUIDES["registering"], "Methods"))
}


@pytest.mark.parametrize("method", [method for method, found in EXAMPLES.items() if found])
def test_what_an_example_adds_is_there(method: str, tmp_path: Path) -> None:
    (source,) = EXAMPLES[method]
    assert f"registry.{method}(" in source
    (tmp_path / f"{method}.py").write_text(source, encoding="utf-8")
    with running_host(tmp_path / f"{method}.py") as host:
        globals()[f"used_{method}"](host)


@pytest.mark.parametrize("method", [method for method, found in EXAMPLES.items() if not found])
def test_a_method_without_an_example_links_to_the_hook_that_has_it(method: str) -> None:
    (hook,) = re.findall(r"\[`\w+`\]\(hooks.md#(\w+)\)", section(GUIDES["registering"], f"`{method}`"))
    (source,) = blocks(section(GUIDES["hooks"], f"`{hook}`"), "python")
    assert f"registry.{method}(" in source


def used_add_field(host: Host) -> None:
    wanted = generate(host, "red apple, pencil drawing").picture
    assert_same_picture(generate(host, style={"name": "pencil"}).picture, wanted)


def used_add_event(host: Host) -> None:
    (event,) = generate(host, "green frog").events.named("prompt_seen")
    assert event.prompt == "green frog"


def used_add_preprocessor(host: Host) -> None:
    options = host.registry.preprocessors["posterize"].options()
    made = host.registry.preprocess("posterize", PILImage.new("RGB", (8, 8), (100, 200, 255)), options)
    assert made.getpixel((0, 0)) == (64, 192, 192)


def used_add_previewer(host: Host) -> None:
    stream = {"previews": {"previewer": "shape", "format": "png"}}
    preview = generate(host, stream=stream).events.named("preview")[-1]
    red, green, blue = PILImage.open(io.BytesIO(preview.image.data)).convert("RGB").split()
    assert red.tobytes() == green.tobytes() == blue.tobytes()
    assert len(set(red.tobytes())) > 10


def used_add_routes(host: Host) -> None:
    with serve(host) as served, urlopen(f"{served.http}/prompts", timeout=30) as answer:
        assert json.load(answer) == []


def used_add_scheduler(host: Host) -> None:
    own = generate(host, scheduler="euler_exponential", num_inference_steps=6)
    assert own.result["scheduler"] == "euler_exponential"
    assert difference(own.picture, generate(host, scheduler="euler", num_inference_steps=6).picture) > 0


def used_add_task(host: Host) -> None:
    mirrored = generate(host, mirrored={}, output_type="latent").latents
    assert difference(mirrored, generate(host, output_type="latent").latents) > 0.1


def used_add_node(host: Host) -> None:
    node = host.registry.nodes["Posterize"]
    picture = np.linspace(0, 1, 48, dtype=np.float32).reshape(1, 4, 4, 3)
    nobody = NodeContext(host, Caller("me", "me"), "run", "1", None, None, None, *[lambda *_: None] * 3)
    (made,) = asyncio.run(host.registry.run_node("Posterize", nobody, {"image": picture, "levels": 2}))
    assert made.dtype == np.float32
    assert set(made.ravel()) == {0, 1}
    described = call(host, "describe")["nodes"]["Posterize"]
    assert (described["plugin"], described["title"]) == ("add_node", node.title)
    bounds = {"default": 4, "minimum": 2, "maximum": 256}
    assert described["inputs"][1] == {"name": "levels", "type": "INT", "required": True, **bounds}
