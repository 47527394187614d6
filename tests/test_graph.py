"""The plugin `graph`: graphs are checked, run, and not run again where nothing has changed."""

import asyncio
import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from latentwire import (
    Host,
    InvalidGraph,
    InvalidParams,
    LatentwireError,
    OutOfMemory,
    PluginError,
    TooManyJobs,
)
from latentwire.testing import (
    Events,
    assert_same_picture,
    call,
    fault_in,
    generate,
    out_of_memory,
    plugin,
    running_host,
)

from .graphs import Draft, Model, file_of, painted
from .pages import PAGES, blocks, json_default, section, table

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


# What has not changed does not run again.


def cached_and_run(events: Events) -> tuple[set[str], list[str]]:
    cached = {name for event in events.named("node_cached") for name in event.nodes}
    return cached, [event.node for event in events.named("node_started")]


def test_a_graph_that_ran_before_runs_nothing_and_shows_its_pictures_again(host: Host) -> None:
    graph = text_to_image(seed=100)
    (first,) = run(host, graph)
    events = Events()
    (again,) = run(host, graph, events)
    assert_same_picture(again, first)
    assert cached_and_run(events) == (set(graph), [])


def test_a_change_of_the_seed_runs_the_sampler_and_what_follows(host: Host) -> None:
    run(host, text_to_image(seed=101))
    events = Events()
    run(host, text_to_image(seed=102), events)
    assert cached_and_run(events) == ({"4", "5", "6", "7"}, ["3", "8", "9"])


def test_a_change_of_one_prompt_leaves_the_other_as_it_is(host: Host) -> None:
    run(host, text_to_image(seed=103))
    graph = text_to_image(seed=103)
    graph["6"]["inputs"]["text"] = "green frog"
    events = Events()
    run(host, graph, events)
    assert cached_and_run(events) == ({"4", "5", "7"}, ["6", "3", "8", "9"])


def test_ids_and_titles_are_no_change(host: Host) -> None:
    run(host, text_to_image(seed=104))
    events = Events()
    renamed: Graph = {}
    for name, node in text_to_image(seed=104).items():
        inputs = dict(node["inputs"])
        for key, value in inputs.items():
            if isinstance(value, list):
                inputs[key] = [f"n{value[0]}", value[1]]
        renamed[f"n{name}"] = {"class_type": node["class_type"], "inputs": inputs, "_meta": {"title": "mine"}}
    run(host, renamed, events)
    assert cached_and_run(events) == (set(renamed), [])


def test_without_a_seed_each_run_draws_its_own(host: Host) -> None:
    graph = text_to_image()
    del graph["3"]["inputs"]["seed"]
    (first,), events = run(host, graph), Events()
    (second,) = run(host, graph, events)
    assert first.tobytes() != second.tobytes()
    assert cached_and_run(events)[1] == ["3", "8", "9"]


def test_another_mode_is_a_change(host: Host) -> None:
    run(host, text_to_image(seed=105))
    events = Events()
    run(host, text_to_image(seed=105), events, mode="reproducible")
    assert "3" in cached_and_run(events)[1]


def test_what_is_stored_for_one_owner_is_stored_for_another_too(host: Host) -> None:
    run(host, text_to_image(seed=106))
    events = Events()
    call(host, "graph.run", {"graph": text_to_image(seed=106), "mode": "exact"}, client="another", emit=events)
    assert cached_and_run(events)[1] == ["9"]


def test_a_lora_that_applies_by_default_is_a_change_for_the_node_that_takes_it() -> None:
    with running_host("graph", "lora") as host:
        call(host, "lora.load", {"path": "loras/emoji-pencil", "name": "pencil"})
        draft = Draft()
        given: dict[str, Any] = {"prompt": "red apple", "seed": 1, "width": 64, "height": 64, "num_inference_steps": 4}
        draft.add("PreviewImage", 0, images=draft.one("LatentwireGenerate", **given))
        (plain,) = run(host, draft.nodes)
        call(host, "lora.default", {"scope": "host", "adapters": [{"name": "pencil", "weight": 1.0}]})
        (with_lora,) = run(host, draft.nodes)
        assert_same_picture(with_lora, generate(host, **given).picture)
        assert plain.tobytes() != with_lora.tobytes()


def test_a_lora_that_was_loaded_anew_under_its_name_is_a_change() -> None:
    with running_host("graph", "lora") as host:
        graph = text_to_image()
        graph["1"] = {"class_type": "LoraLoaderModelOnly", "inputs": {"model": ["4", 0], "lora_name": "style"}}
        graph["3"]["inputs"]["model"] = ["1", 0]
        pictures = []
        for path in ("loras/emoji-pencil", "loras/emoji-pixel-art"):
            call(host, "lora.load", {"path": path, "name": "style"})
            pictures += run(host, graph)
            call(host, "lora.unload", {"name": "style"})
        assert pictures[0].tobytes() != pictures[1].tobytes()


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("emoji-outline", {"path": "controlnets/emoji-outline"}),
        ("emoji-outline.safetensors", {"lora_weights_path": "control-loras/emoji-outline.safetensors"}),
    ],
    ids=["ControlNet", "ControlLoRA"],
)
def test_what_lies_in_the_hosts_folders_is_loaded_when_a_sampler_needs_it(name: str, load: dict[str, str]) -> None:
    with running_host("graph", "lora", "controlnet") as host:
        nodes = call(host, "describe")["nodes"]
        assert {"emoji-pencil", "emoji-pixel-art"} <= set(choices(nodes, "LoraLoader", "lora_name"))
        assert name in choices(nodes, "ControlNetLoader", "control_net_name")
        outline = call(host, "images.put", {"data": file_of(painted(64))})["image_id"]
        graph = text_to_image()
        lora = {"model": ["4", 0], "clip": ["4", 1], "lora_name": "emoji-pencil"}
        graph["1"] = {"class_type": "LoraLoader", "inputs": lora | {"strength_model": 0.8, "strength_clip": 0.8}}
        graph["2"] = {"class_type": "ControlNetLoader", "inputs": {"control_net_name": name}}
        graph["10"] = {"class_type": "LoadImage", "inputs": {"image": outline}}
        control = {"conditioning": ["6", 0], "control_net": ["2", 0], "image": ["10", 0], "strength": 0.9}
        graph["11"] = {"class_type": "ControlNetApply", "inputs": control}
        for node in ("6", "7"):
            graph[node]["inputs"]["clip"] = ["1", 1]
        graph["3"]["inputs"] |= {"model": ["1", 0], "positive": ["11", 0]}
        call(host, "graph.check", {"graph": graph})
        assert not call(host, "lora.list")["loras"]
        (picture,) = run(host, graph)
        assert [row["name"] for row in call(host, "lora.list")["loras"]] == ["loras/emoji-pencil"]
        graph["3"]["inputs"]["seed"] = 8
        events = Events()
        run(host, graph, events)
        assert cached_and_run(events)[1] == ["3", "8", "9"]
        call(host, "lora.load", {"path": "loras/emoji-pencil", "name": "mine"})
        call(host, "controlnet.load", {**load, "name": "outline"})
        assert "mine" in choices(call(host, "describe")["nodes"], "LoraLoader", "lora_name")
        request = {"negative_prompt": "leaf", "width": 64, "height": 64, "num_inference_steps": 4, "seed": 7}
        request |= {"lora": [{"name": "mine", "weight": 0.8}], "scheduler": "euler", "guidance_scale": 4.0}
        request["controlnet"] = [{"name": "outline", "image": outline, "controlnet_conditioning_scale": 0.9}]
        assert_same_picture(picture, generate(host, "red apple", **request).picture)


def choices(nodes: dict[str, Any], node: str, name: str) -> list[str]:
    (entry,) = (entry for entry in nodes[node]["inputs"] if entry["name"] == name)
    found: list[str] = entry["choices"]
    return found


def test_the_cache_is_bounded() -> None:
    with running_host(plugin("graph", cache_mib=0)) as host:
        for seed in (1, 2):
            run(host, text_to_image(seed=seed))
        events = Events()
        run(host, text_to_image(seed=1), events)
        assert "3" in cached_and_run(events)[1]


def test_values_that_wait_are_bounded() -> None:
    with running_host(plugin("graph", run_mib=16)) as host:
        graph = text_to_image()
        graph["8"]["inputs"]["samples"] = ["3", 0]
        graph["10"] = {"class_type": "ImageScale", "inputs": {"image": ["8", 0], "width": 2048, "height": 2048}}
        graph["9"]["inputs"]["images"] = ["10", 0]
        events = Events()
        with pytest.raises(OutOfMemory, match="run_mib"):
            run(host, graph, events)
        assert [event.node for event in events.named("node_failed")] == ["10"]
        assert run(host, text_to_image())  # what it had taken is given back


# Several at once, and ends before their time.


def long_one(seed: int) -> Graph:
    return text_to_image(seed=seed, steps=1000)


def running(
    host: Host, graph: Graph, client: str = "test", **params: Any
) -> tuple[Thread, Events, list[BaseException]]:
    """A graph on its way, in a thread of its own."""
    events, ends = Events(), list[BaseException]()

    def work() -> None:
        try:
            call(host, "graph.run", {"graph": graph} | params, client=client, emit=events)
        except BaseException as error:
            ends.append(error)

    thread = Thread(target=work)
    thread.start()
    return thread, events, ends


def test_a_run_is_cancelled_by_its_id_and_by_nobody_else(host: Host) -> None:
    thread, events, ends = running(host, long_one(200))
    (accepted,) = events.wait_for("graph_accepted")
    events.wait_for("node_progress")
    with pytest.raises(LatentwireError) as caught:
        call(host, "graph.cancel", {"run": accepted.run}, client="somebody else")
    assert caught.value.code == "unknown_job"
    assert call(host, "graph.cancel", {"run": accepted.run}) == {"run": accepted.run, "cancelled": True}
    thread.join()
    assert [error.code for error in ends] == ["cancelled"]  # type: ignore[attr-defined]
    assert "node_failed" not in events.names
    assert not host.jobs.all()


def test_a_newer_run_of_a_slot_takes_the_older_ones_place(host: Host) -> None:
    thread, events, ends = running(host, long_one(201), slot="canvas")
    events.wait_for("node_progress")
    newer = Events()
    (picture,) = run(host, text_to_image(seed=202), newer, slot="canvas")
    thread.join()
    assert [error.code for error in ends] == ["superseded"]  # type: ignore[attr-defined]
    assert picture.size == (64, 64)
    assert not host.jobs.all()


def test_another_clients_slot_of_that_name_is_another_one(host: Host) -> None:
    thread, events, ends = running(host, text_to_image(seed=203, steps=60), slot="canvas", client="another")
    events.wait_for("node_progress")
    run(host, text_to_image(seed=204), slot="canvas")
    thread.join()
    assert not ends


def test_a_client_that_goes_takes_its_runs_along(host: Host) -> None:
    async def go() -> None:
        events = Events()
        task = asyncio.create_task(host.dispatch("graph.run", {"graph": long_one(205)}, "leaving", events))
        await asyncio.to_thread(events.wait_for, "node_progress")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(go())
    assert not host.jobs.all()


def test_graphs_that_run_at_once_share_forwards(host: Host) -> None:
    async def at_once() -> None:
        graphs = [text_to_image(seed=210 + number, steps=10) for number in range(4)]
        runs = [host.dispatch("graph.run", {"graph": graph, "mode": "fast"}, "test", Events()) for graph in graphs]
        await asyncio.gather(*runs)

    figures = host.engine.figures
    before = (figures.forwards, figures.calls)
    asyncio.run(at_once())
    forwards, calls = figures.forwards - before[0], figures.calls - before[1]
    assert forwards < 0.7 * calls


def test_a_client_may_run_as_many_graphs_as_it_may_have_jobs() -> None:
    with running_host("graph", limits={"jobs_per_client": 2}) as host:
        first, second = running(host, long_one(1)), running(host, long_one(2))
        for _, events, _ in (first, second):
            events.wait_for("graph_accepted")
        with pytest.raises(TooManyJobs):
            run(host, text_to_image())
        for _, events, _ in (first, second):
            call(host, "graph.cancel", {"run": events.named("graph_accepted")[0].run})
        for thread, _, _ in (first, second):
            thread.join()
        many = text_to_image()  # a graph that wants more jobs at once than its client may have
        for number in range(6):
            many[f"s{number}"] = {"class_type": "KSampler", "inputs": many["3"]["inputs"] | {"seed": number}}
            many[f"d{number}"] = {"class_type": "VAEDecode", "inputs": {"samples": [f"s{number}", 0], "vae": ["4", 2]}}
            many[f"p{number}"] = {"class_type": "PreviewImage", "inputs": {"images": [f"d{number}", 0]}}
        assert len(run(host, many)) == 7


# What its owner hears.


def test_events_tell_of_each_node_its_steps_and_previews(host: Host) -> None:
    events = Events()
    run(host, text_to_image(seed=300, steps=5), events, previews={"format": "png", "size": 32})
    assert events.names[0] == "graph_accepted"
    started = [(event.node, event.class_type) for event in events.named("node_started")]
    finished = [event.node for event in events.named("node_finished")]
    assert sorted(started) == sorted((event, text_to_image()[event]["class_type"]) for event in finished)
    steps = [(event.node, event.value, event.maximum) for event in events.named("node_progress")]
    assert steps == [("3", step, 5) for step in range(1, 6)]
    previews = events.named("node_preview")
    assert previews
    assert {event.node for event in previews} == {"3"}
    assert PILImage.open(io.BytesIO(previews[-1].image.data)).size == (32, 32)
    assert len({getattr(event, "run") for event in events}) == 1  # noqa: B009


def test_the_result_names_the_pictures(host: Host) -> None:
    events = Events()
    result = call(host, "graph.run", {"graph": text_to_image(seed=301)}, emit=events)
    (image,) = result["outputs"]["9"]["images"]
    (told,) = events.named("node_finished")[-1].images
    assert image == {name: value for name, value in told.items() if name != "data"}
    assert host.images.get(image["image_id"]) == told["data"]
    assert (image["width"], image["height"], image["format"]) == (64, 64, "png")


def test_a_node_that_fails_ends_the_run_with_its_error(host: Host) -> None:
    graph = text_to_image(seed=302)
    events = Events()
    with fault_in(host, "vae.decoder", out_of_memory()), pytest.raises(OutOfMemory) as caught:
        run(host, graph, events)
    (failed,) = events.named("node_failed")
    assert (failed.node, failed.class_type, failed.code) == ("8", "VAEDecode", "out_of_memory")
    assert caught.value.about["node"] == "8"
    again = Events()
    run(host, graph, again)
    assert cached_and_run(again)[1] == ["8", "9"]


def test_pngs_hold_the_graph_and_what_the_client_gives(host: Host) -> None:
    graph = text_to_image(seed=303)
    (picture,) = run(host, graph, metadata={"workflow": "{}"})
    assert json.loads(picture.info["latentwire_graph"]) == graph
    assert picture.info["workflow"] == "{}"


def test_saved_pictures_are_results_and_previews_are_none(tmp_path: Path) -> None:
    with running_host("graph", plugin("results", folder=str(tmp_path))) as host:
        graph = text_to_image()
        graph["10"] = {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}}
        events = Events()
        run(host, graph, events)
        shown = {event.node: event.images[0] for event in events.named("node_finished") if event.images}
        (kept,) = call(host, "results.list")["results"]
        assert shown["9"]["result"] == kept["id"]
        assert shown["10"]["result"] is None
        assert (kept["prompt"], kept["negative_prompt"], kept["model"], kept["seed"]) == (
            "red apple",
            "leaf",
            "emoji",
            7,
        )


def test_the_outputs_to_run_for_can_be_named(host: Host) -> None:
    graph = text_to_image(seed=304)
    graph["10"] = {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}}
    graph["11"] = {"class_type": "SaveImage", "inputs": {"images": ["nobody", 0]}}  # not needed, so not looked at
    result = call(host, "graph.run", {"graph": graph, "outputs": ["10"]})
    assert list(result["outputs"]) == ["10"]


# Checks.


def test_check_tells_what_would_run_and_runs_nothing(host: Host) -> None:
    before = host.engine.figures.forwards
    nodes = call(host, "graph.check", {"graph": text_to_image()})["nodes"]
    assert sorted(nodes) == sorted(text_to_image())
    assert nodes.index("3") < nodes.index("8") < nodes.index("9")
    assert host.engine.figures.forwards == before


@pytest.mark.parametrize(
    ("sampler", "scheduler", "given", "said"),
    [
        ("dpmpp_sde", "normal", "sampler_name", "euler, euler_ancestral"),
        ("euler", "beta", "scheduler", "normal, karras, exponential, sgm_uniform, simple"),
        ("ddim", "karras", "scheduler", "ddim has no karras spacing, but normal, sgm_uniform, simple"),
    ],
)
def test_a_sampler_without_a_match_is_refused_with_those_that_exist(
    host: Host, sampler: str, scheduler: str, given: str, said: str
) -> None:
    with pytest.raises(InvalidGraph) as caught:
        call(host, "graph.check", {"graph": text_to_image(sampler_name=sampler, scheduler=scheduler)})
    (detail,) = caught.value.details
    assert (detail["node"], detail["input"]) == ("3", given)
    assert said in detail["message"]


def test_every_problem_is_told(host: Host) -> None:
    graph = text_to_image(steps=0, model=["6", 0])
    graph["5"]["inputs"]["width"] = "wide"
    with pytest.raises(InvalidGraph) as caught:
        call(host, "graph.check", {"graph": graph})
    found = {(detail["node"], detail["input"]) for detail in caught.value.details}
    assert found == {
        ("3", "steps"),
        ("3", "model"),
        ("5", "width"),
    }


def test_the_field_of_its_own_jobs_is_no_clients(host: Host) -> None:
    with pytest.raises(InvalidParams, match=r"graph\.run"):
        generate(host, graph_part={"key": "guessed"})


# Nodes of other plugins.

TINTED = """
from latentwire import NodeInput, NodeOutput, NodeType, hookimpl

def tint(context, inputs):
    if inputs["strength"] > 1:
        raise ZeroDivisionError("too strong")
    return (inputs["image"] * inputs["strength"],)

async def shout(context, inputs):
    return (inputs["text"].upper(),)

@hookimpl
def register(registry):
    strength = NodeInput("strength", "FLOAT", default=0.5)
    image = NodeOutput("IMAGE", "IMAGE")
    registry.add_node(NodeType("Tint", "Tint", "image", (NodeInput("image", "IMAGE"), strength), (image,), tint))
    text = NodeInput("text", "STRING")
    registry.add_node(NodeType("Shout", "Shout", "text", (text,), (NodeOutput("STRING", "STRING"),), shout))
"""


def test_nodes_of_a_plugin_are_nodes_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "tinted.py").write_text(TINTED)
    with running_host("graph", tmp_path / "tinted.py") as host:
        assert call(host, "describe")["nodes"]["Tint"]["plugin"] == "tinted"
        graph = text_to_image()
        graph["10"] = {"class_type": "Tint", "inputs": {"image": ["8", 0]}}
        graph["11"] = {"class_type": "Shout", "inputs": {"text": "red apple"}}
        graph["6"]["inputs"]["text"] = ["11", 0]
        graph["9"]["inputs"]["images"] = ["10", 0]
        (tinted,) = run(host, graph)
        graph["9"]["inputs"]["images"] = ["8", 0]
        (plain,) = run(host, graph)
        assert np.asarray(tinted, float).mean() == pytest.approx(np.asarray(plain, float).mean() / 2, abs=1)
        graph["10"]["inputs"]["strength"] = 2.0
        graph["9"]["inputs"]["images"] = ["10", 0]
        events = Events()
        with pytest.raises(PluginError, match="'tinted' failed in node Tint: ZeroDivisionError"):
            run(host, graph, events)
        assert events.named("node_failed")[0].node == "10"


SHOUTING = """
import numpy as np
from latentwire import NodeInput, NodeOutput, NodeType, hookimpl

async def say(context, inputs):
    return (inputs["text"],)

def draw(context, inputs):
    return (np.zeros((2, 2)),)

@hookimpl
def register(registry):
    text = (NodeInput("text", "STRING"),)
    registry.add_node(NodeType("Say", "Say", "text", text, (NodeOutput("STRING", "STRING"),), say))
    registry.add_node(NodeType("Draw", "Draw", "image", (), (NodeOutput("IMAGE", "IMAGE"),), draw))
"""


BROKEN = """
from latentwire import NodeInput, NodeType, hookimpl

def fail(*_):
    raise RuntimeError("broken")

@hookimpl
def register(registry):
    registry.add_node(NodeType("Choices", "", "", (NodeInput("a", "COMBO", choices=fail),), (), fail, output=True))
    registry.add_node(NodeType("Inputs", "", "", fail, (), fail, output=True))
    registry.add_node(NodeType("Odd", "", "", lambda host: ["a"], (), fail, output=True))
    registry.add_node(NodeType("Check", "", "", (), (), fail, output=True, check=fail))
    registry.add_node(NodeType("State", "", "", (), (), fail, output=True, state=fail))
"""


def test_a_node_that_cannot_say_what_it_takes_is_its_own_plugins_fault(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    with running_host("graph", tmp_path / "broken.py") as host:
        described = call(host, "describe")["nodes"]
        assert "KSampler" in described
        assert not {"Choices", "Inputs", "Odd"} & described.keys()
        for kind in ("Choices", "Inputs", "Odd", "Check", "State"):
            for _ in range(3):
                with pytest.raises(LatentwireError, match="broken") as caught:
                    run(host, {"1": {"class_type": kind, "inputs": {"a": "b"}}})
                assert caught.value.code in ("plugin_failed", "invalid_graph")
        assert host.guard.strikes.reason("graph") is None
        assert host.guard.strikes.reason("broken")
        assert run(host, text_to_image(seed=150))


def test_what_nodes_give_is_looked_at_before_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "shouting.py").write_text(SHOUTING)
    with running_host("graph", "lora", tmp_path / "shouting.py") as host:
        for class_type, given in (
            ("KSampler", "sampler_name"),
            ("KSampler", "scheduler"),
            ("CheckpointLoaderSimple", "ckpt_name"),
        ):
            graph = text_to_image()
            graph["10"] = {"class_type": "Say", "inputs": {"text": "nothing like it"}}
            node = next(node for node in graph.values() if node["class_type"] == class_type)
            node["inputs"][given] = ["10", 0]
            with pytest.raises(InvalidParams, match="none of its choices") as caught:
                run(host, graph)
            assert caught.value.details[0]["path"] == [given]
            graph["10"]["inputs"]["text"] = {"ckpt_name": "emoji", "sampler_name": "ddim", "scheduler": "normal"}[given]
            assert run(host, graph)
        graph["11"] = {"class_type": "ControlNetLoader", "inputs": {"control_net_name": ["10", 0]}}
        control = {"conditioning": ["6", 0], "control_net": ["11", 0], "image": ["13", 0], "strength": 1.0}
        graph["12"] = {"class_type": "ControlNetApply", "inputs": control}
        graph["3"]["inputs"]["positive"] = ["12", 0]
        graph["13"] = {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["4", 2]}}
        with pytest.raises(InvalidParams, match="it has none just now"):  # without the plugin that loads them
            run(host, graph)
        drawn: Graph = {
            "1": {"class_type": "Draw"},
            "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        }
        with pytest.raises(PluginError, match=r"'shouting' failed in node Draw: .*shape \[2, 2\], wanted batch"):
            run(host, drawn)


# What nodes do at the edges.


def test_noise_is_not_handed_to_a_sampler_that_measures_it_otherwise(host: Host) -> None:
    model = Model(Draft())
    first = model.sampled_some(model.empty(), end_at_step=2, return_with_leftover_noise="enable")
    second = model.sampled_some(first, start_at_step=2, add_noise="disable", sampler_name="ddim")
    with pytest.raises(InvalidParams, match="go on with: euler, euler_ancestral, heun"):
        run(host, model.saved(second))


def test_a_sampler_that_cannot_stop_cleanly_says_which_can(host: Host) -> None:
    for sampler, stops in (("euler", True), ("dpmpp_2m", True), ("heun", False)):
        model = Model(Draft())
        graph = model.saved(model.sampled_some(model.empty(), end_at_step=2, sampler_name=sampler))
        if stops:
            assert run(host, graph)
        else:
            with pytest.raises(InvalidParams, match="samplers that can: euler"):
                run(host, graph)


def test_a_picture_of_any_ratio_is_cropped(host: Host) -> None:
    draft = Draft()
    image = draft.one("LoadImage", image=call(host, "images.put", {"data": file_of(painted())})["image_id"])
    for width, height in ((8, 4096), (4096, 8), (1, 1)):
        scale = {"upscale_method": "area", "width": width, "height": height, "crop": "center"}
        draft.add("PreviewImage", 0, images=draft.one("ImageScale", image=image, **scale))
    assert sorted(picture.size for picture in run(host, draft.nodes)) == [(1, 1), (8, 4096), (4096, 8)]


def test_what_is_no_part_of_a_graph_does_no_harm(host: Host) -> None:
    graph = text_to_image(seed=400)
    graph["3"]["_meta"] = {"title": b"bytes", "more": [[[]]]}
    graph["3"]["inputs"]["unknown"] = b"bytes"
    (picture,) = run(host, graph)
    assert json.loads(picture.info["latentwire_graph"]) == text_to_image(seed=400)


# Over the wire.


def test_a_client_runs_a_graph_over_its_connection(latentwire_client: Any) -> None:
    client = latentwire_client("graph")
    result = client.call("graph.run", graph=text_to_image())
    assert result["outputs"]["9"]["images"][0]["width"] == 64


# The guide.


def test_the_guides_example_runs_and_its_events_are_those_that_come(host: Host) -> None:
    examples = [json.loads(block) for block in blocks(PAGES["graphs"], "json")]
    (asked,) = [example for example in examples if example.get("command") == "graph.run"]
    events = Events()
    result = call(host, "graph.run", asked["params"], emit=events)
    shown = {example["event"]: example for example in examples if "event" in example}
    assert set(events.names) | {"node_cached", "result", "error"} == set(shown)
    for event in events:
        fields = dataclasses.asdict(event)
        assert set(shown[event.name]) == {"id", "event", "seq"} | set(fields)
    told = events.named("node_finished")[-1].images[0]
    assert set(shown["node_finished"]["images"][0]) == set(told)
    assert set(result) == set(shown["result"]["result"])
    assert set(shown["result"]["result"]["outputs"]["7"]["images"][0]) == set(told) - {"data"}


def test_the_guide_says_what_can_be_asked_for(host: Host) -> None:
    run = host.registry.commands["graph.run"].params
    documented = table(section(PAGES["graphs"], "Running one"))
    assert {name: json_default(row[0]) for name, row in documented.items()} == {
        name: field.get_default() for name, field in run.model_fields.items()
    }
    samplers = table(section(PAGES["graphs"], "Samplers and schedulers"))
    choices = next(given for given in host.registry.nodes["KSampler"].inputs_on(host) if given.name == "sampler_name")
    assert set(samplers) - {"lms"} == set(choices.choices_on(host) or ()) - {"lms"}
    for name, (_, spaced) in samplers.items():
        if name in (choices.choices_on(host) or ()):
            graph = text_to_image(sampler_name=name, scheduler="karras")
            problem = host.registry.nodes["KSampler"].check(host, graph["3"]["inputs"])  # type: ignore[misc]
            assert bool(problem) == (spaced == "no"), name


def test_links_of_inputs_that_the_type_does_not_know_lead_nowhere(host: Host) -> None:
    graph = text_to_image(seed=140)
    graph["4"]["inputs"]["unknown"] = ["9", 0]  # a circle, if it counted
    graph["3"]["inputs"]["unknown"] = ["10", 0]
    graph["10"] = {"class_type": "LoadImage", "inputs": {}}
    assert len(run(host, graph)) == 1
    assert "10" not in call(host, "graph.check", {"graph": graph})["nodes"]
