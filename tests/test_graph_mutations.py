"""Graphs wrong in a hundred ways: an error that names the node, or a picture; and a host that goes on drawing."""

import copy
import math
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from latentwire import Host, LatentwireError
from latentwire.testing import Events, call, generate, running_host

from .graphs import Draft, Graph, Model, file_of, painted
from .test_graph_shared import PLUGINS

REFUSALS = {"invalid_graph", "invalid_params"}
"""Of a graph that does not hold together, and of params that hold no graph at all."""
NODE_FAILURES = REFUSALS | {"out_of_memory", "not_loaded", "unknown_image"}


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with running_host(*PLUGINS, limits={"pixels": 256 * 256, "input_pixels": 512 * 512}) as host:
        call(host, "lora.load", {"path": "loras/emoji-pencil", "name": "pencil"})
        call(host, "controlnet.load", {"path": "controlnets/emoji-outline", "name": "outline"})
        yield host


def whole(host: Host) -> Graph:
    """A graph with a bit of everything."""
    model = Model(Draft(), skip=1, loras=(("pencil", 0.5, 0.4),))
    image, mask = model.draft.add(
        "LoadImage", 2, image=call(host, "images.put", {"data": file_of(painted())})["image_id"]
    )
    model.controlled(image, advanced=True)
    inpainted = {"pixels": image, "vae": model.vae, "mask": mask, "grow_mask_by": 3}
    latent = model.draft.one("VAEEncodeForInpaint", **inpainted)
    first = model.sampled(latent, steps=2, denoise=0.7)
    larger = {"upscale_method": "bislerp", "width": 96, "height": 0, "crop": "center"}
    second = model.sampled_some(model.draft.one("LatentUpscale", samples=first, **larger), steps=2, start_at_step=1)
    return model.saved(second)


Mutation = Callable[[Graph, random.Random], Any]
MUTATIONS: list[tuple[str, Mutation]] = []


def mutation(times: int) -> Callable[[Mutation], Mutation]:
    def add(change: Mutation) -> Mutation:
        MUTATIONS.extend((f"{change.__name__}_{number}", change) for number in range(times))
        return change

    return add


def some(graph: Graph, chance: random.Random) -> tuple[str, dict[str, Any]]:
    """A node, and its inputs."""
    name = chance.choice([name for name, node in graph.items() if node["inputs"]])
    return name, graph[name]["inputs"]


ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**70,
    -(2**70),
    1e308,
    math.nan,
    math.inf,
    0.5,
    "",
    "x" * 200_000,
    b"bytes",
    [],
    {},
    [[]],
    ["1"],
    ["1", 0, 0],
    ["1", "0"],
    ["1", math.nan],
    ["1", -1],
    ["1", 99],
    ["nobody", 0],
    [None, None],
    [[], 0],
    [1, 0],
    [1, 0.0],
    {"a": {"b": {}}},
)


def odd_values(graph: Graph, chance: random.Random, value: Any) -> None:
    for _ in range(2):
        _, inputs = some(graph, chance)
        inputs[chance.choice(list(inputs))] = copy.deepcopy(value)


MUTATIONS.extend((f"odd_value_{number}", partial(odd_values, value=value)) for number, value in enumerate(ODD))


@mutation(12)
def a_number_out_of_range(graph: Graph, chance: random.Random) -> Any:
    numbers = [
        (inputs, name)
        for inputs in (node["inputs"] for node in graph.values())
        for name, value in inputs.items()
        if isinstance(value, int | float)
    ]
    inputs, name = chance.choice(numbers)
    inputs[name] = chance.choice([-1e9, 1e9, 2**64, -5, 4097, 10_001, 0.0001, 1e-300])


@mutation(10)
def a_node_less(graph: Graph, chance: random.Random) -> Any:
    del graph[chance.choice(list(graph))]


@mutation(8)
def an_input_less(graph: Graph, chance: random.Random) -> Any:
    _, inputs = some(graph, chance)
    del inputs[chance.choice(list(inputs))]


@mutation(12)
def a_link_elsewhere(graph: Graph, chance: random.Random) -> Any:
    _, inputs = some(graph, chance)
    inputs[chance.choice(list(inputs))] = [chance.choice(list(graph)), chance.randrange(4)]


@mutation(8)
def a_circle(graph: Graph, chance: random.Random) -> Any:
    linked = [inputs for inputs in (node["inputs"] for node in graph.values()) if "samples" in inputs]
    chance.choice(linked)["samples"] = [chance.choice([name for name, node in graph.items() if node["inputs"]]), 0]


@mutation(6)
def another_class(graph: Graph, chance: random.Random) -> Any:
    kinds = ["Nothing", "", None, 7, ["KSampler"], {}, *(node["class_type"] for node in graph.values())]
    graph[chance.choice(list(graph))]["class_type"] = chance.choice(kinds)


@mutation(6)
def a_node_that_is_none(graph: Graph, chance: random.Random) -> Any:
    odd: list[Any] = [None, [], "node", 7, {}, {"inputs": {}}]
    graph[chance.choice(list(graph))] = chance.choice(odd)


@mutation(4)
def inputs_that_are_none(graph: Graph, chance: random.Random) -> Any:
    graph[chance.choice(list(graph))]["inputs"] = chance.choice([None, [], "inputs", 7])


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@mutation(2)
def deep_nesting(graph: Graph, chance: random.Random) -> Any:
    _, inputs = some(graph, chance)
    inputs[chance.choice(list(inputs))] = nested(10_000)


@mutation(1)
def ten_thousand_nodes(graph: Graph, chance: random.Random) -> Any:
    graph |= {f"more {number}": copy.deepcopy(graph["1"]) for number in range(10_000)}


@mutation(1)
def a_chain_as_long_as_may_be(graph: Graph, chance: random.Random) -> Any:
    source = next(name for name, node in graph.items() if node["class_type"] == "VAEDecode")
    save = next(node for node in graph.values() if node["class_type"] == "SaveImage")
    for number in range(1500):
        graph[f"more {number}"] = {"class_type": "ImageInvert", "inputs": {"image": [source, 0]}}
        source = f"more {number}"
    save["inputs"]["images"] = [source, 0]


@mutation(1)
def a_thousand_pictures_that_wait(graph: Graph, chance: random.Random) -> Any:
    source = next(name for name, node in graph.items() if node["class_type"] == "LoadImage")
    for number in range(300):
        scaled = {"image": [source, 0], "upscale_method": "area", "width": 512, "height": 512, "crop": "disabled"}
        graph[f"large {number}"] = {"class_type": "ImageScale", "inputs": scaled}
        graph[f"seen {number}"] = {"class_type": "PreviewImage", "inputs": {"images": [f"large {number}", 0]}}


@mutation(1)
def a_combination_of_billions(graph: Graph, chance: random.Random) -> Any:
    source = next(name for name, node in graph.items() if node["class_type"] == "CLIPTextEncode")
    sampler = next(node for node in graph.values() if node["class_type"] == "KSampler")
    for number in range(32):
        both = {"conditioning_1": [source, 0], "conditioning_2": [source, 0]}
        graph[f"more {number}"] = {"class_type": "ConditioningCombine", "inputs": both}
        source = f"more {number}"
    sampler["inputs"]["positive"] = [source, 0]


@mutation(1)
def a_huge_batch(graph: Graph, chance: random.Random) -> Any:
    source = next(name for name, node in graph.items() if node["class_type"] == "VAEDecode")
    empty = {"class_type": "EmptyLatentImage", "inputs": {"width": 256, "height": 256, "batch_size": 64}}
    graph["more"] = empty
    graph[source]["inputs"]["samples"] = ["more", 0]


@mutation(1)
def nothing_at_all(graph: Graph, chance: random.Random) -> Any:
    graph.clear()


@mutation(1)
def no_graph(graph: Graph, chance: random.Random) -> Any:
    return ["no", "graph"]


def run(host: Host, graph: Any, events: Events) -> LatentwireError | None:
    """How a graph's run ends."""
    try:
        call(host, "graph.run", {"graph": graph}, emit=events)
    except LatentwireError as error:
        return error
    return None


def test_there_are_a_hundred() -> None:
    assert len(MUTATIONS) >= 100


@pytest.mark.parametrize(("name", "change"), MUTATIONS, ids=[name for name, _ in MUTATIONS])
def test_a_wrong_graph_is_refused_by_node_or_runs(host: Host, name: str, change: Mutation) -> None:
    graph: Any = whole(host)
    changed = change(graph, random.Random(name))
    graph = graph if changed is None else changed
    events = Events()
    error = run(host, graph, events)
    if error is None:
        assert events.named("node_finished")
        return
    failed = events.named("node_failed")
    if failed:
        assert error.code in NODE_FAILURES, error
        assert (failed[0].code, failed[0].node) == (error.code, error.about["node"])
        assert failed[0].node in graph
        return
    assert error.code in REFUSALS, error
    assert not events
    assert error.message
    assert error.details
    if error.code == "invalid_graph":
        assert all(set(detail) == {"node", "input", "message", "got"} for detail in error.details)


def test_the_graph_that_is_changed_runs(host: Host) -> None:
    graph, events = whole(host), Events()
    next(node for node in graph.values() if node["class_type"] == "KSampler")["inputs"]["seed"] += 1
    assert run(host, graph, events) is None
    assert "node_progress" in events.names


def test_the_host_draws_afterwards(host: Host) -> None:
    assert generate(host).picture
    assert not [report for report in host.plugins.reports if report.error]
    assert not host.jobs.all()
