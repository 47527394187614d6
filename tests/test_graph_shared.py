"""Graphs of the kinds that people share: each runs, and makes what the same request makes of `generate`."""

import asyncio
import io
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image as PILImage

from latentwire import Host
from latentwire.testing import Events, assert_same_picture, call, generate, running_host

from .graphs import REQUEST, SHARED, Graph, file_of, painted

PLUGINS = ("graph", "img2img", "controlnet", "lora", "clip_skip")


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with running_host(*PLUGINS) as host:
        call(host, "lora.load", {"path": "loras/emoji-pencil", "name": "pencil"})
        call(host, "lora.load", {"path": "loras/emoji-pencil", "name": "again"})
        call(host, "controlnet.load", {"path": "controlnets/emoji-outline", "name": "outline"})
        yield host


def put(host: Host, picture: PILImage.Image) -> str:
    name: str = call(host, "images.put", {"data": file_of(picture)})["image_id"]
    return name


def shown(events: Events) -> list[PILImage.Image]:
    """The pictures that a run has shown."""
    files = [image["data"] for event in events.named("node_finished") for image in event.images]
    return [PILImage.open(io.BytesIO(file)) for file in files]


def run(host: Host, graph: Graph, **params: Any) -> list[PILImage.Image]:
    events = Events()
    call(host, "graph.run", {"graph": graph, "mode": "exact"} | params, emit=events)
    return shown(events)


def picture_named(host: Host, name: str) -> str:
    """Pictures that a request cannot name before others are made."""
    if name.startswith("canny of "):
        options = {"low": 102, "high": 204}
        wanted = {"image": file_of(painted(96)), "name": "canny", "options": options}
        made: str = call(host, "controlnet.preprocess", wanted)["image_id"]
        return made
    if name.startswith("first picture"):
        first = generate(host, **REQUEST).picture
        return put(host, first.resize((96, 96), PILImage.Resampling.BICUBIC))
    return name


def request_of(host: Host, request: dict[str, Any]) -> dict[str, Any]:
    """A request with all its pictures' ids."""
    request = REQUEST | request
    for section in (request.get("img2img"), *request.get("controlnet", ())):
        if section is not None:
            section["image"] = picture_named(host, section["image"])
    return request


def test_there_are_as_many_as_promised() -> None:
    assert len(SHARED) >= 30


@pytest.mark.parametrize("name", SHARED)
def test_a_graph_makes_what_generate_makes(host: Host, name: str) -> None:
    wanted = SHARED[name](lambda picture: put(host, picture))
    got = run(host, wanted.graph)
    assert got
    if wanted.request is None:
        plain = generate(host, **REQUEST).picture
        assert all(picture.size != plain.size or picture.tobytes() != plain.tobytes() for picture in got)
        return
    pictures = generate(host, **request_of(host, wanted.request)).pictures
    assert len(got) == len(pictures)
    for one, other in zip(got, pictures, strict=True):
        assert_same_picture(one, other, within=wanted.within)


def test_in_mode_reproducible_it_is_the_same_picture_whatever_else_runs(host: Host) -> None:
    graphs = [SHARED[name](lambda picture: put(host, picture)).graph for name in ("a_lora", "a_batch", "a_controlnet")]
    alone = generate(host, **REQUEST, lora=[{"name": "pencil", "weight": 0.8}], mode="reproducible").picture

    async def at_once() -> list[Events]:
        every = [Events() for _ in graphs]
        runs = [
            host.dispatch("graph.run", {"graph": graph, "mode": "reproducible"}, "test", events)
            for graph, events in zip(graphs, every, strict=True)
        ]
        await asyncio.gather(*runs)
        return every

    (picture,) = shown(asyncio.run(at_once())[0])
    assert_same_picture(picture, alone)
