"""Client libraries that others have published for ComfyUI, unmodified: each makes a picture and remakes one."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage

from latentwire.testing import Served

from .comfy import comfy, http_of, image_to_image, png, text_to_image
from .packages import CLIENTS, fetch

# Each is a program of its own: argv has the host, the graphs, a picture to remake, and where to put what comes of it.

SIMPLIFIED = """
from comfy_api_simplified import ComfyApiWrapper, ComfyWorkflowWrapper

api = ComfyApiWrapper(url)
assert "KSampler" in api.get_object_info()
text = ComfyWorkflowWrapper(graphs[0])
text.set_node_param("KSampler", "seed", 5)
for data in api.queue_and_wait_images(text, "SaveImage").values():
    Path(made).write_bytes(data)
stored = api.upload_image(picture)
again = ComfyWorkflowWrapper(graphs[1])
again.set_node_param("LoadImage", "image", f"{stored['subfolder']}/{stored['name']}")
for data in api.queue_and_wait_images(again, "SaveImage").values():
    Path(remade).write_bytes(data)
"""

API_CLIENT = """
import asyncio
from comfy_api_client import create_client

async def main():
    async with create_client(url, start_state_tracker="http") as client:
        assert (await client.get_system_stats()).devices
        result = await (await client.submit_workflow(graphs[0])).future
        result.output_images[0].image.save(made)
        stored = await client.upload_image("mine.png", picture, subfolder="mine")
        assert (await client.retrieve_image(stored.name, stored.subfolder, stored.type)).image.size == (64, 64)
        graphs[1]["10"]["inputs"]["image"] = f"{stored.subfolder}/{stored.name}"
        result = await (await client.submit_workflow(graphs[1])).future
        result.output_images[0].image.save(remade)

asyncio.run(main())
"""

WORKFLOW_CLIENT = """
import asyncio
from comfyuiclient import ComfyUIClientAsync
from PIL import Image

async def main():
    for index, file in enumerate((made, remade)):
        Path(file).write_text(json.dumps(graphs[index]))
        client = ComfyUIClientAsync(url.removeprefix("http://"), file)
        await client.connect()
        await client.set_data("KSampler", seed=7)
        if index:
            await client.set_data("LoadImage", image=Image.open(picture))
        (await client.generate(["SaveImage"]))["SaveImage"].save(file)
        await client.close()

asyncio.run(main())
"""

PROGRAMS = dict(zip(CLIENTS, (SIMPLIFIED, API_CLIENT, WORKFLOW_CLIENT), strict=True))

HEAD = """
import json, sys
from pathlib import Path

url, file, picture, made, remade = sys.argv[1:]
graphs = json.loads(Path(file).read_text())
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with comfy(tmp_path_factory.mktemp("comfy")) as served:
        yield served


def titled(graph: dict[str, Any]) -> dict[str, Any]:
    """A graph with the titles by which libraries find nodes."""
    return {name: {**node, "_meta": {"title": node["class_type"]}} for name, node in graph.items()}


@pytest.mark.slow
@pytest.mark.parametrize("requirement", CLIENTS)
def test_a_published_client_makes_and_remakes_a_picture(served: Served, requirement: str, tmp_path: Path) -> None:
    packages, program = tmp_path / "packages", tmp_path / "program.py"
    fetch(packages, requirement)
    program.write_text(HEAD + PROGRAMS[requirement])
    graphs = [titled(text_to_image()), titled(image_to_image("nothing yet"))]
    (tmp_path / "graphs.json").write_text(json.dumps(graphs))
    (tmp_path / "mine.png").write_bytes(png())
    files = [tmp_path / name for name in ("graphs.json", "mine.png", "made.png", "remade.png")]
    command = [sys.executable, str(program), served.http, *map(str, files)]
    env = {"PYTHONPATH": str(packages), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    made, remade = (PILImage.open(file).convert("RGB") for file in files[2:])
    assert made.size == remade.size == (64, 64)
    assert made.tobytes() != remade.tobytes()
    with http_of(served) as http:
        rows = list(http.get("/history?max_items=2").json().values())
    assert [row["status"]["status_str"] for row in rows] == ["success", "success"]
    assert ["LoadImage" in json.dumps(row["prompt"][2]) for row in rows] == [False, True]
