"""Graphs by ComfyUI's protocol: sent, followed on a WebSocket, found in the history, ended; on the embedded model."""

import copy
import json
import random
import shlex
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image as PILImage

from latentwire.plugins.comfy_api.clients import MOST_WAITING, Clients, Preview
from latentwire.plugins.comfy_api.history import Entry, History
from latentwire.plugins.comfy_api.pictures import Stored
from latentwire.testing import Served, generate

from .comfy import (
    Listener,
    comfy,
    http,
    http_of,
    image_to_image,
    picture_of,
    png,
    queue,
    text_to_image,
    wait_for_history,
)
from .conftest import wait_for
from .pages import PAGES, blocks
from .raw_socket import RawClient

METADATA = {"supports_preview_metadata": True}


__all__ = ["http"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("comfy")


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with comfy(folder, max_running=2) as served:
        yield served


FORM = {"Content-Type": "application/x-www-form-urlencoded"}
"""What curl says of whatever it sends."""


def long(seed: int = 1) -> dict[str, Any]:
    """A graph that is not done before it is told to end."""
    return text_to_image(seed, steps=900)


# A graph's life.


def test_a_graph_is_followed_from_its_start_to_its_picture(served: Served, http: httpx2.Client) -> None:
    with Listener(served, "follower") as listener:
        prompt = queue(http, text_to_image(seed=11), client_id="follower")
        assert listener.wait_for_end(prompt) == "execution_success"
    kinds = listener.kinds(prompt)
    assert kinds[:2] == ["execution_start", "execution_cached"]
    assert kinds[-2:] == ["execution_success", "executing"]
    nodes = [data["node"] for data in listener.of("executing", prompt)]
    assert set(nodes[:-1]) >= {"3", "8"}
    assert nodes.index("3") < nodes.index("8")
    values = [(data["node"], data["value"], data["max"]) for data in listener.of("progress", prompt)]
    assert ("3", 3, 3) in values
    last = listener.of("progress_state", prompt)[-1]["nodes"]
    assert (last["3"]["state"], last["3"]["display_node_id"]) == ("finished", "3")
    (executed,) = listener.of("executed", prompt)
    (image,) = executed["output"]["images"]
    assert image == {"filename": "made_00001_.png", "subfolder": "", "type": "output"}
    picture = picture_of(http.get("/view", params=image))
    assert picture.size == (64, 64)
    assert json.loads(picture.text["prompt"]) == text_to_image(seed=11)
    assert listener.of("status")[-1]["status"]["exec_info"]["queue_remaining"] == 0


def test_the_guides_first_steps_make_a_picture(http: httpx2.Client) -> None:
    graph = json.loads(blocks(PAGES["graphs"], "json")[0])["params"]["graph"]
    steps = next(block for block in blocks(PAGES["comfyui"], "sh") if "curl" in block).replace(
        "http://127.0.0.1:8000", ""
    )
    send, history, view = (shlex.split(line)[1] for line in steps.splitlines())
    answer = http.post(send, content=f'{{"prompt": {json.dumps(graph)}}}', headers=FORM)
    wait_for_history(http, answer.json()["prompt_id"])
    assert answer.json()["prompt_id"] in http.get(history).json()
    assert picture_of(http.get(view)).size == (128, 128)


def test_a_graphs_number_stays_a_whole_one(http: httpx2.Client) -> None:
    number = http.post("/prompt", json={"prompt": text_to_image(seed=18), "prompt_id": "numbered"}).json()["number"]
    wait_for_history(http, "numbered")
    assert f'"prompt":[{number},"numbered"' in http.get("/history/numbered").text  # as strict clients read it


def test_the_picture_is_what_generate_makes(served: Served, http: httpx2.Client) -> None:
    prompt = queue(http, text_to_image(seed=12, steps=4))
    (image,) = wait_for_history(http, prompt)["outputs"]["9"]["images"]
    made = picture_of(http.get("/view", params=image))
    events = generate(
        served.host,
        prompt="red apple",
        negative_prompt="blurry",
        seed=12,
        num_inference_steps=4,
        guidance_scale=4.0,
        width=64,
        height=64,
        scheduler="euler",
    )
    assert made.tobytes() == events.pictures[0].tobytes()


def test_an_uploaded_picture_is_remade(http: httpx2.Client) -> None:
    stored = http.post("/upload/image", files={"image": ("mine.png", png(), "image/png")}, data={"subfolder": "a"})
    name = f"{stored.json()['subfolder']}/{stored.json()['name']}"
    row = wait_for_history(http, queue(http, image_to_image(name)))
    assert row["status"]["status_str"] == "success", row
    assert row["prompt"][2]["10"]["inputs"]["image"] == name  # the name that the client knows, not the host's own
    image = row["outputs"]["9"]["images"][0]
    assert picture_of(http.get("/view", params=image)).size == (64, 64)
    of_output = image_to_image(f"{image['filename']} [output]", seed=2)
    assert wait_for_history(http, queue(http, of_output))["status"]["status_str"] == "success"


def test_a_picture_to_look_at_is_of_temp(http: httpx2.Client) -> None:
    graph = text_to_image(seed=13)
    graph["9"] = {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}}
    (image,) = wait_for_history(http, queue(http, graph))["outputs"]["9"]["images"]
    assert image["type"] == "temp"
    assert picture_of(http.get("/view", params=image)).size == (64, 64)


def test_what_ran_before_is_told_as_cached_and_its_picture_is_there_all_the_same(
    served: Served, http: httpx2.Client
) -> None:
    graph = text_to_image(seed=14)
    wait_for_history(http, queue(http, graph))
    with Listener(served, "again") as listener:
        prompt = queue(http, graph, client_id="again")
        listener.wait_for_end(prompt)
    assert "3" in listener.of("execution_cached", prompt)[0]["nodes"]
    assert "3" not in [data["node"] for data in listener.of("executing", prompt)]
    assert listener.of("executed", prompt)[0]["output"]["images"]
    assert wait_for_history(http, prompt)["outputs"]["9"]["images"]


def test_several_graphs_run_at_once_and_others_wait_in_their_order(served: Served, http: httpx2.Client) -> None:
    prompts = [queue(http, long(seed)) for seed in (1, 2, 3)]
    first = queue(http, long(4), front=True)
    listed = http.get("/queue").json()
    assert [row[1] for row in listed["queue_running"]] == prompts[:2]
    assert [row[1] for row in listed["queue_pending"]] == [first, prompts[2]]
    assert http.get("/prompt").json() == {"exec_info": {"queue_remaining": 4}}
    assert http.post("/queue", json={"delete": [prompts[2], "nothing"]}).status_code == 200
    assert http.post("/queue", json={"clear": True}).status_code == 200
    assert http.get("/queue").json()["queue_pending"] == []
    assert http.post("/interrupt", json={"prompt_id": 7}).status_code == 400  # which is not "all of them"
    http.post("/interrupt", json={"prompt_id": "nothing"})
    assert len(http.get("/queue").json()["queue_running"]) == 2
    http.post("/interrupt", json={"prompt_id": prompts[0]})
    row = wait_for_history(http, prompts[0])
    assert row["status"]["messages"][-1][0] == "execution_interrupted"
    assert [row[1] for row in http.get("/queue").json()["queue_running"]] == [prompts[1]]
    http.post("/api/interrupt")
    wait_for_history(http, prompts[1])
    assert http.get("/queue").json()["queue_running"] == []
    assert served.host.jobs.all() == []


def test_a_graph_that_fails_says_where_and_why(
    served: Served, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentwire.plugins.comfy_api.pictures import Pictures

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device", "/a/path/of/the/host")

    monkeypatch.setattr(Pictures, "save", full)
    with Listener(served, "unlucky") as listener:
        prompt = queue(http, text_to_image(seed=15), client_id="unlucky")
        assert listener.wait_for_end(prompt) == "execution_error"
    (error,) = listener.of("execution_error", prompt)
    assert error["exception_message"] == "No space left on device"
    row = wait_for_history(http, prompt)
    assert (row["status"]["status_str"], row["status"]["completed"]) == ("error", False)


# What is refused.


def test_what_does_not_fit_into_a_png_is_left_out(http: httpx2.Client) -> None:
    notes = {"workflow": {"a": 1}, "large": "x" * (1 << 20), "n\u00e4me": 1} | {str(number): 1 for number in range(30)}
    prompt = queue(http, text_to_image(seed=16), extra_data={"extra_pnginfo": notes})
    (image,) = wait_for_history(http, prompt)["outputs"]["9"]["images"]
    texts = picture_of(http.get("/view", params=image)).text
    assert (json.loads(texts["workflow"]), "large" in texts) == ({"a": 1}, False)
    assert wait_for_history(http, queue(http, text_to_image(seed=17), extra_data={"extra_pnginfo": 7}))


def test_what_is_wrong_is_told_by_node(http: httpx2.Client) -> None:
    graph = text_to_image()
    graph["3"]["inputs"]["steps"] = 0
    graph["4"]["inputs"]["ckpt_name"] = "nothing.safetensors"
    graph["3"]["inputs"]["latent_image"] = ["4", 1]
    del graph["6"]["inputs"]["text"]
    answer = http.post("/prompt", json={"prompt": graph})
    assert answer.status_code == 400
    refusal = answer.json()
    assert refusal["error"]["type"] == "prompt_outputs_failed_validation"
    errors = {node: {error["type"] for error in row["errors"]} for node, row in refusal["node_errors"].items()}
    assert errors == {
        "3": {"value_smaller_than_min", "return_type_mismatch"},
        "4": {"value_not_in_list"},
        "6": {"required_input_missing"},
    }
    row = refusal["node_errors"]["4"]
    assert (row["class_type"], row["dependent_outputs"]) == ("CheckpointLoaderSimple", ["9"])
    error = row["errors"][0]
    assert error["extra_info"]["input_name"] == "ckpt_name"
    assert "emoji" in error["extra_info"]["input_config"][0]
    assert set(error) == {"type", "message", "details", "extra_info"}


def test_a_node_that_is_not_there_is_named(http: httpx2.Client) -> None:
    graph = text_to_image() | {"20": {"class_type": "Nothing", "inputs": {"images": ["8", 0]}}}
    refusal = http.post("/prompt", json={"prompt": graph}).json()
    assert refusal["error"]["type"] == "missing_node_type"
    assert list(refusal["node_errors"]) == ["20"]


@pytest.mark.parametrize(
    "more",
    [
        {"client_id": 7},
        {"client_id": "a b"},
        {"prompt_id": "x" * 101},
        {"number": "first"},
        {"number": True},
        {"number": 1e300},
        {"extra_data": []},
        {"partial_execution_targets": "9"},
        {"partial_execution_targets": [9]},
    ],
    ids=repr,
)
def test_what_comes_with_a_graph_is_checked(http: httpx2.Client, more: dict[str, Any]) -> None:
    answer = http.post("/prompt", json={"prompt": text_to_image(), **more})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_prompt")
    assert next(iter(more)) in answer.json()["error"]["message"]


def mutated(graph: dict[str, Any], chance: random.Random) -> Any:
    """A graph with one thing wrong, somewhere."""
    graph = copy.deepcopy(graph)
    odd: list[Any] = [
        None,
        [],
        {},
        "",
        -1,
        1e308,
        2**70,
        True,
        ["3"],
        ["3", 7],
        ["nothing", 0],
        ["9", 0],
        "x" * 200_000,
    ]
    odd += [[["3", 0]], {"a": [1]}, ["3", -1], ["3", "0"], [3, 0]]
    name = chance.choice(list(graph))
    place = chance.choice(["node", "class", "inputs", "input", "extra", "drop"])
    if place == "node":
        graph[name] = chance.choice(odd)
    elif place == "class":
        graph[name]["class_type"] = chance.choice([*odd, "Nothing", "VAEEncode"])
    elif place == "inputs":
        graph[name]["inputs"] = chance.choice(odd)
    elif place == "input":
        graph[name]["inputs"][chance.choice(list(graph[name]["inputs"]))] = chance.choice(odd)
    elif place == "extra":
        graph[chance.choice(["", "x" * 500, "é", "9"])] = chance.choice(odd)
    else:
        del graph[name]
    return graph


def test_a_hundred_malformed_graphs_are_refused_by_node_or_run(served: Served, http: httpx2.Client) -> None:
    chance = random.Random(9)
    refused = 0
    for _ in range(100):
        answer = http.post("/prompt", json={"prompt": mutated(text_to_image(steps=1), chance)})
        assert answer.status_code in (200, 400), answer.text
        if answer.status_code == 400:
            refused += 1
            assert answer.json()["error"]["message"]
            for row in answer.json()["node_errors"].values():
                assert row["errors"][0]["message"]
    assert refused > 60
    wait_for(lambda: http.get("/prompt").json()["exec_info"]["queue_remaining"] == 0, "those that were none")
    assert wait_for_history(http, queue(http, text_to_image(seed=99)))["status"]["completed"]
    assert served.host.plugins.is_loaded("comfy_api")
    assert served.host.guard.strikes.reason("comfy_api") is None


def test_there_is_a_limit_to_what_waits(tmp_path: Path) -> None:
    with comfy(tmp_path, max_queued=2) as served, http_of(served) as http:
        prompts = [queue(http, long(seed)) for seed in (1, 2)]
        answer = http.post("/prompt", json={"prompt": long(3)})
        assert (answer.status_code, answer.json()["error"]["type"]) == (429, "too_many_jobs")
        again = http.post("/prompt", json={"prompt": text_to_image(), "prompt_id": prompts[0]})
        assert again.status_code in (400, 429)
        http.post("/api/jobs/cancel", json={"job_ids": prompts})
        wait_for_history(http, prompts[1])


# Previews.


def plain_preview(message: bytes) -> bool:
    return struct.unpack(">I", message[:4]) == (1,)


def test_previews_go_to_the_graphs_owner_and_to_nobody_else(served: Served, http: httpx2.Client) -> None:
    with (
        Listener(served, "owner", METADATA) as owner,
        Listener(served, "other", METADATA) as other,
        Listener(served, "simple", {}) as simple,
        Listener(served, "silent") as silent,
        ExitStack() as opened,
    ):
        mine = queue(http, text_to_image(seed=21, steps=6), client_id="owner")
        simples = queue(http, text_to_image(seed=22, steps=6), client_id="simple")
        silents = queue(http, text_to_image(seed=23, steps=6), client_id="silent")
        nobodys = queue(http, text_to_image(seed=24, steps=6))
        asked = queue(http, text_to_image(seed=25, steps=60), client_id="asks", extra_data={"preview_method": "auto"})
        lates = queue(http, text_to_image(seed=27, steps=60), client_id="late")
        asks = opened.enter_context(Listener(served, "asks"))
        late = opened.enter_context(Listener(served, "late"))
        none = queue(http, text_to_image(seed=26), client_id="owner", extra_data={"preview_method": "none"})
        for listener, prompt in (
            (owner, mine),
            (simple, simples),
            (silent, silents),
            (asks, asked),
            (late, lates),
            (owner, none),
        ):
            assert listener.wait_for_end(prompt) == "execution_success"
        wait_for_history(http, nobodys)
    assert owner.of("feature_flags")[0]["supports_preview_metadata"] is True
    assert owner.binary
    for message in owner.binary:
        kind, length = struct.unpack(">II", message[:8])
        notes = json.loads(message[8 : 8 + length])
        assert (kind, notes["node_id"], notes["prompt_id"]) == (4, "3", mine)
        assert notes["image_type"] == "image/jpeg"
        assert PILImage.open(BytesIO(message[8 + length :])).format == "JPEG"
    assert other.binary == []
    assert not other.kinds(mine)
    for listener in (simple, silent, asks):
        assert listener.binary
        assert all(map(plain_preview, listener.binary))
    assert late.binary == []  # who connects after it has sent a graph may take whatever is binary for a result
    assert PILImage.open(BytesIO(simple.binary[0][8:])).format == "JPEG"


def test_a_slow_client_gets_the_latest_preview_and_every_message_that_counts() -> None:
    clients = Clients()
    outbox = clients.connect("slow")
    outbox.features = METADATA
    for step in range(500):
        clients.show("slow", ("run", "3"), Preview("jpeg", str(step).encode(), {"step": step}), asked=False)
        clients.tell_latest("slow", "run", "progress", value=step)
        if step % 100 == 0:
            clients.tell("slow", "executed", node=str(step))
    waiting = list(outbox._waiting.values())
    assert next(message for message in waiting if isinstance(message, bytes)).endswith(b"499")
    texts = [json.loads(message) for message in waiting if isinstance(message, str)]
    assert [text["data"]["node"] for text in texts if text["type"] == "executed"] == ["0", "100", "200", "300", "400"]
    assert [text["data"]["value"] for text in texts if text["type"] == "progress"] == [499]
    assert len(waiting) == 7


def test_over_a_real_socket_a_client_that_does_not_read_gets_few_previews_and_all_that_counts(
    served: Served, http: httpx2.Client
) -> None:
    with slow_socket(served, "slow") as stream:
        prompt = queue(http, text_to_image(seed=27, steps=80, size=128), client_id="slow")
        wait_for_history(http, prompt)  # others are not held up
        frames = frames_of(stream, lambda text: text["type"] == "executing" and text["data"]["node"] is None)
    texts = [frame for frame in frames if isinstance(frame, dict) and frame["data"].get("prompt_id") == prompt]
    kinds = [text["type"] for text in texts]
    assert kinds[:2] == ["execution_start", "execution_cached"]
    assert kinds[-2:] == ["execution_success", "executing"]
    assert kinds.count("executed") == 1
    assert [text["data"] for text in texts if text["type"] == "progress"][-1]["value"] == 80
    previews = [frame for frame in frames if isinstance(frame, bytes)]
    assert 0 < len(previews) < 40


@contextmanager
def slow_socket(served: Served, client: str) -> Iterator[socket.socket]:
    """A WebSocket whose client reads when it likes, and whose machine takes little until then."""
    host, _, port = served.http.removeprefix("http://").partition(":")
    with socket.socket() as stream:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stream.connect((host, int(port)))
        stream.sendall(
            f"GET /ws?clientId={client} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += stream.recv(1)
        said = json.dumps({"type": "feature_flags", "data": METADATA}).encode()
        stream.sendall(bytes([0x81, 0x80 | len(said)]) + bytes(4) + said)
        yield stream


def frames_of(stream: socket.socket, is_last: Callable[[dict[str, Any]], bool]) -> list[Any]:
    """What comes on a socket, until a text is the last one."""
    client, frames = RawClient(stream), list[Any]()
    while True:
        while (frame := client.take()) is not None:
            frames.append(json.loads(frame[1]) if frame[0] == 1 else frame[1])
            if isinstance(frames[-1], dict) and is_last(frames[-1]):
                return frames
        client._unread += stream.recv(1 << 16)


def test_what_waits_for_a_client_is_bounded() -> None:
    clients = Clients()
    for number in range(1000):
        clients.tell("away", "executed", number=number)
        clients.tell(f"client {number}", "executed", number=number)
    assert len(clients._clients) <= 201
    outbox = clients.connect("client 999")
    for number in range(MOST_WAITING + 10):
        clients.tell("client 999", "executed", number=number)
    assert outbox._closed
    assert len(outbox._waiting) == MOST_WAITING  # though whoever sends it is still at the first one


def test_a_large_graph_is_not_told_of_as_a_whole_for_each_node(served: Served, http: httpx2.Client) -> None:
    graph = text_to_image(seed=77)
    nodes = [f"invert {number}" for number in range(500)]
    for node, source in zip(nodes, ["8", *nodes[:-1]], strict=True):
        graph[node] = {"class_type": "ImageInvert", "inputs": {"image": [source, 0]}}
    graph["9"]["inputs"]["images"] = [nodes[-1], 0]
    with Listener(served, "patient") as listener:
        prompt = queue(http, graph, client_id="patient")
        assert listener.wait_for_end(prompt) == "execution_success"
        told = listener.of("progress_state", prompt)
    assert len(told) < len(nodes) / 2
    assert {row["state"] for row in told[-1]["nodes"].values()} == {"finished"}
    assert told[-1]["nodes"].keys() == graph.keys()


def test_what_is_kept_for_a_client_is_bounded_in_size() -> None:
    clients = Clients()
    large = "x" * (1 << 18)
    for number in range(10):
        clients.tell("away", "executed", number=number, text=large)
    kept = [json.loads(text)["data"]["number"] for text in clients._clients["away"].kept]
    assert kept == [7, 8, 9]
    outbox = clients.connect("away")
    for _ in range(300):
        clients.tell("away", "executed", text=large)
    assert outbox._closed
    assert sum(map(len, outbox._waiting.values())) <= 64 << 20
    clients.disconnect("away", outbox)
    assert len(clients._clients["away"].kept) == 3


@pytest.mark.parametrize("targets", [["3"], ["nowhere"]])
def test_a_graph_that_is_wanted_for_nothing_that_it_shows_is_refused(http: httpx2.Client, targets: list[str]) -> None:
    answer = http.post("/prompt", json={"prompt": text_to_image(), "partial_execution_targets": targets})
    assert answer.status_code == 400
    assert "no output node" in answer.json()["error"]["message"]


# Coming back.


def test_a_client_that_comes_back_gets_what_it_missed_and_how_things_stand(served: Served, http: httpx2.Client) -> None:
    with Listener(served, "leaver") as listener:
        done = queue(http, text_to_image(seed=31, steps=30), client_id="leaver")
        listener.wait(lambda: listener.of("executing", done), "its begin")
    wait_for_history(http, done)
    running = queue(http, long(32), client_id="leaver")
    wait_for(lambda: http.get(f"/api/jobs/{running}").json()["execution_start_time"], "the other one's begin")
    time.sleep(0.3)  # a step or two
    with Listener(served, "leaver") as back:
        back.wait(lambda: back.of("progress_state", running), "how it stands")
        assert back.of("executed", done)[0]["output"]["images"]
        assert back.of("execution_success", done)
        assert back.of("status")[0]["sid"] == "leaver"
        back.wait(lambda: back.of("executing", running), "which node runs")
        http.post("/interrupt", json={"prompt_id": running})
        assert back.wait_for_end(running) == "execution_interrupted"
    with Listener(served, "leaver") as again:
        again.wait(lambda: again.of("status"), "the status")
        assert again.kinds(done) == []  # once is enough


def test_two_windows_of_one_client_are_told_the_same(served: Served, http: httpx2.Client) -> None:
    with Listener(served, "twice") as one, Listener(served, "twice") as two:
        prompt = queue(http, text_to_image(seed=33), client_id="twice")
        assert one.wait_for_end(prompt) == two.wait_for_end(prompt) == "execution_success"


def test_the_hosts_own_clients_are_not_disturbed(served: Served) -> None:
    from latentwire import connect_sync

    with connect_sync(served.url) as client:
        assert client.call("ping") is not None


# The history.


def test_the_history_survives_a_restart(tmp_path: Path) -> None:
    with comfy(tmp_path) as served, http_of(served) as http:
        workflow = {"nodes": [], "id": "a workflow"}
        extra = {"extra_pnginfo": {"workflow": workflow}, "api_key_comfy_org": "secret"}
        prompt = queue(http, text_to_image(seed=41), client_id="x", extra_data=extra)
        before = wait_for_history(http, prompt)
        failed = queue(http, long(), client_id="x")
        http.post(f"/api/jobs/{failed}/cancel")
        wait_for_history(http, failed)
    with comfy(tmp_path) as served, http_of(served) as http:
        assert http.get(f"/history/{prompt}").json()[prompt] == before
        assert list(http.get("/history").json()) == [prompt, failed]
        assert list(http.get("/history?max_items=1").json()) == [failed]
        (image,) = before["outputs"]["9"]["images"]
        picture = picture_of(http.get("/view", params=image))
        assert json.loads(picture.text["workflow"]) == workflow
        assert "secret" not in json.dumps(before)
        assert before["prompt"][3]["client_id"] == "x"
        jobs = http.get("/api/jobs?status=completed,failed,cancelled&limit=1&offset=0").json()
        assert [(job["id"], job["status"]) for job in jobs["jobs"]] == [(failed, "cancelled")]
        assert jobs["pagination"] == {"offset": 0, "limit": 1, "total": 2, "has_more": True}
        (job,) = http.get("/api/jobs?status=completed").json()["jobs"]
        assert (job["preview_output"]["filename"], job["preview_output"]["nodeId"]) == (image["filename"], "9")
        assert job["workflow_id"] == "a workflow"
        whole = http.get(f"/api/jobs/{prompt}").json()
        assert whole["workflow"]["extra_data"]["extra_pnginfo"]["workflow"] == workflow
        assert whole["outputs"] == before["outputs"]
        assert http.get(f"/api/jobs/{prompt}/assets").json()["assets"][0]["name"] == image["filename"]
        assert http.get("/api/jobs/nothing").status_code == 404
        again = http.post("/prompt", json={"prompt": text_to_image(), "prompt_id": prompt})
        assert again.status_code == 400
        later = wait_for_history(http, queue(http, text_to_image(seed=42)))
        assert later["prompt"][0] > before["prompt"][0]
        assert later["outputs"]["9"]["images"][0]["filename"] == "made_00002_.png"
        http.post("/history", json={"delete": [prompt]})
        assert prompt not in http.get("/history").json()
        assert http.get("/view", params=image).status_code == 200  # its picture is not what was deleted
        http.post("/history", json={"clear": True})
        assert http.get("/history").json() == {}


def test_the_plugin_is_loaded_anew_and_switched_off_and_on_while_the_host_runs(tmp_path: Path) -> None:
    from latentwire import connect_sync

    with comfy(tmp_path) as served, http_of(served) as http, connect_sync(served.url) as client:
        prompt = queue(http, text_to_image(seed=43))
        before = wait_for_history(http, prompt)
        client.call("plugins.reload", name="comfy_api")
        assert http.get(f"/history/{prompt}").json()[prompt] == before
        client.call("plugins.disable", name="comfy_api")
        assert http.get("/history").status_code == 503
        with pytest.raises(Exception, match="503"):
            Listener(served, "x")
        client.call("plugins.enable", name="comfy_api")
        assert wait_for_history(http, queue(http, text_to_image(seed=44)))["status"]["completed"]


def entry(name: str, size: int = 1) -> Entry:
    images = [Stored(f"{name}.png", "", "output").plain()]
    return Entry(name, "completed", 1, 1, 1, 1, size, {}, {}, [], {"9": {"images": images}}, [], None)


def test_the_history_is_bounded_and_takes_its_pictures_along(tmp_path: Path) -> None:
    gone: list[str] = []
    file = tmp_path / "history.sqlite3"
    history = History(file, 3, 600, lambda picture: gone.append(picture.filename))
    for name in "abcd":
        history.add(entry(name))
    assert gone == ["a.png"]
    history.unlist(None)
    history.add(entry("large", 500))
    assert gone == ["a.png", "b.png", "c.png", "d.png"]
    history.add(entry("larger", 5000))  # the newest stays, whatever its size is
    assert [row.id for row in history.newest(10)] == ["larger"]
    history.close()
    again = History(file, 3, 600, lambda picture: gone.append(picture.filename))
    again.add(entry("last"))
    assert gone[-1] == "larger.png"
    again.close()
