"""The plugin `graph`: graphs are checked, run, and not run again where nothing has changed."""

import io
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image as PILImage

from latentwire import Host
from latentwire.testing import Events, assert_same_picture, call, generate, running_host

Graph = dict[str, dict[str, Any]]


def text_to_image(**sampler: Any) -> Graph:
    """The graph that every editor begins with."""
    settings = {"seed": 7, "steps": 4, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    sources = {"model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}
    return {
        "3": {"class_type": "KSampler", "inputs": settings | sources | sampler},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "emoji"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "red apple", "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "leaf", "clip": ["4", 1]}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "apple", "images": ["8", 0]}},
    }


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with running_host("graph") as host:
        yield host


def run(host: Host, graph: Graph, events: Events | None = None, **params: Any) -> list[PILImage.Image]:
    """The pictures that a graph shows, node after node."""
    events = Events() if events is None else events
    call(host, "graph.run", {"graph": graph, "mode": "exact"} | params, emit=events)
    files = [image["data"] for event in events.named("node_finished") for image in event.images]
    return [PILImage.open(io.BytesIO(file)) for file in files]


def test_the_graph_that_editors_begin_with_makes_what_generate_makes(host: Host) -> None:
    (picture,) = run(host, text_to_image())
    request = {"negative_prompt": "leaf", "width": 64, "height": 64, "num_inference_steps": 4, "seed": 7}
    assert_same_picture(picture, generate(host, "red apple", **request, guidance_scale=4.0, scheduler="euler").picture)
