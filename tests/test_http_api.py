"""The HTTP endpoints, over real HTTP: what they answer, how they fail, and that their page says so."""

import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image as PILImage
from PIL import ImageDraw
from starlette.routing import Mount, Route

from latentwire import LatentwireError
from latentwire.core import errors as core_errors
from latentwire.core.jobs import Job
from latentwire.plugins.http_api import errors
from latentwire.testing import Served, plugin, serving

from .conftest import wait_for
from .pages import ROOT, blocks, section, subheadings, table

PAGE = (ROOT / "docs" / "plugins" / "http_api.md").read_text(encoding="utf-8")
SMALL = {"prompt": "red apple", "width": "64", "height": "64", "num_inference_steps": "2", "seed": "7"}
PLUGINS = ("controlnet", "lora", "stats", "http_api")
CONTROLNET = "controlnets/emoji-outline"
LORA = "loras/emoji-pixel-art"


def client_of(served: Served, **kwargs: Any) -> httpx2.Client:
    return httpx2.Client(base_url=served.http, timeout=60, trust_env=False, **kwargs)


@pytest.fixture
def http(served: Served) -> Iterator[httpx2.Client]:
    """For requests that change nothing."""
    with client_of(served) as client:
        yield client


@pytest.fixture
def own() -> Iterator[tuple[Served, httpx2.Client]]:
    """A host that a test may load things into."""
    with serving(*PLUGINS) as served, client_of(served) as client:
        yield served, client


def outline() -> bytes:
    """A control image: a white ring on black."""
    picture = PILImage.new("RGB", (64, 64))
    ImageDraw.Draw(picture).ellipse((12, 12, 52, 52), outline="white", width=2)
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def picture_of(answer: httpx2.Response) -> Any:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    picture = PILImage.open(BytesIO(answer.content))
    picture.load()
    return picture


def refused(answer: httpx2.Response, status: int, code: str) -> str:
    """The sentence of an error, which must have the one shape of all errors."""
    assert answer.status_code == status, answer.text
    error = answer.json()
    assert list(error) == ["detail", "code", "details"]
    assert error["code"] == code
    assert isinstance(error["detail"], str)
    return error["detail"]


def load(http: httpx2.Client, path: str, place: str, params: dict[str, str]) -> httpx2.Response:
    """Ask with the parameters in the query or in a JSON body."""
    return http.post(path, params=params) if place == "query" else http.post(path, json=params)


def begin(served: Served, steps: int) -> socket.socket:
    """A connection that has asked for a picture, and waits for it as long as it is open."""
    body = f"prompt=red+apple&num_inference_steps={steps}"
    head = f"POST /generate-image/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    head += "Content-Type: application/x-www-form-urlencoded\r\n\r\n"
    address, port = served.http.removeprefix("http://").split(":")
    connection = socket.create_connection((address, int(port)))
    connection.sendall((head + body).encode())
    return connection


# Pictures.


@pytest.mark.parametrize("kind", ["urlencoded", "multipart"])
def test_a_form_becomes_a_picture(http: httpx2.Client, kind: str) -> None:
    form: Any = {"data": SMALL} if kind == "urlencoded" else {"files": {n: (None, v) for n, v in SMALL.items()}}
    answer = http.post("/generate-image/", **form)
    picture = picture_of(answer)
    assert picture.size == (64, 64)
    assert answer.headers["x-seed"] == "7"
    assert re.fullmatch(r"[0-9a-f]{16}", answer.headers["x-job"])
    assert '"num_inference_steps": 2' in picture.text["latentwire"]


def test_only_the_prompt_is_needed_and_the_seed_drawn_is_told(http: httpx2.Client) -> None:
    answer = http.post("/generate-image/", data={"prompt": "red apple", "seed": "", "negative_prompt": ""})
    assert picture_of(answer).size == (128, 128)
    again = http.post("/generate-image/", data={"prompt": "red apple", "seed": answer.headers["x-seed"]})
    assert '"seed": ' + answer.headers["x-seed"] in picture_of(again).text["latentwire"]


def test_an_empty_file_field_is_no_control_image(http: httpx2.Client) -> None:
    empty = {"control_image": ("", b"", "application/octet-stream")}
    assert picture_of(http.post("/generate-image/", data=SMALL, files=empty))


def test_a_client_that_hangs_up_takes_its_job_with_it(served: Served) -> None:
    jobs: list[Job] = []

    def begun() -> bool:
        jobs[:] = served.host.jobs.all("http")
        return bool(jobs) and jobs[0].steps_done > 0

    with begin(served, steps=1000):
        wait_for(begun, "the job to begin")
    wait_for(lambda: not served.host.jobs.all("http"), "the job to end")
    assert jobs[0].state == "cancelled"


def test_a_control_image_goes_to_the_controlnet_loaded_last(own: tuple[Served, httpx2.Client]) -> None:
    _, http = own
    file = {"control_image": ("outline.png", outline(), "image/png")}
    message = refused(http.post("/generate-image/", data=SMALL, files=file), 422, "invalid_params")
    assert "a control image needs a ControlNet" in message
    for name in ("first", "second"):
        loaded = http.post("/load-controlnet/", json={"controlnet_path": CONTROLNET, "adapter_name": name})
        assert loaded.json()["model_key"] == name
    guided = picture_of(http.post("/generate-image/", data=SMALL, files=file))
    assert '"name": "second"' in guided.text["latentwire"]
    plain = picture_of(http.post("/generate-image/", data=SMALL))
    assert "controlnet" not in plain.text["latentwire"]
    assert guided.tobytes() != plain.tobytes()
    broken = {"control_image": ("outline.png", b"no picture", "image/png")}
    refused(http.post("/generate-image/", data=SMALL, files=broken), 422, "invalid_params")


# ControlNets and LoRAs.


@pytest.mark.parametrize("place", ["query", "body"])
def test_controlnets_are_loaded_listed_and_unloaded(own: tuple[Served, httpx2.Client], place: str) -> None:
    _, http = own
    wanted = {"controlnet_path": CONTROLNET, "torch_dtype": "torch.float32"}
    answer = load(http, "/load-controlnet/", place, wanted)
    assert answer.status_code == 200, answer.text
    loaded = answer.json()
    assert (loaded["model_key"], loaded["dtype"], loaded["kind"]) == ("emoji-outline", "float32", "controlnet")
    listed = http.get("/active-controlnets/").json()
    assert listed["active_controlnets"] == ["emoji-outline"]
    assert listed["details"][0]["path"] == CONTROLNET
    unloaded = http.delete("/unload-controlnet/", params={"model_key": "emoji-outline"})
    assert unloaded.json()["message"]
    assert http.get("/active-controlnets/").json() == {"active_controlnets": [], "details": []}
    again = http.delete("/unload-controlnet/", params={"model_key": "emoji-outline"})
    assert "emoji-outline" in refused(again, 404, "not_loaded")


def test_a_controllora_is_loaded_by_its_file(own: tuple[Served, httpx2.Client]) -> None:
    _, http = own
    wanted = {"lora_weights_path": "control-loras/emoji-outline.safetensors", "adapter_name": "thin"}
    loaded = http.post("/load-controlnet/", json=wanted).json()
    assert (loaded["model_key"], loaded["kind"]) == ("thin", "control-lora")


@pytest.mark.parametrize("place", ["query", "body"])
def test_a_lora_applies_to_every_picture_from_then_on(own: tuple[Served, httpx2.Client], place: str) -> None:
    _, http = own
    plain = picture_of(http.post("/generate-image/", data=SMALL))
    answer = load(http, "/load-lora/", place, {"lora_path": LORA, "adapter_name": "pixels"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["adapter_name"] == "pixels"
    assert "highest training step" in answer.json()["chosen"]
    assert picture_of(http.post("/generate-image/", data=SMALL)).tobytes() != plain.tobytes()


def test_the_body_wins_over_the_query(own: tuple[Served, httpx2.Client]) -> None:
    _, http = own
    query = {"lora_path": LORA, "adapter_name": "query", "lora_scale": "0.5"}
    loaded = http.post("/load-lora/", params=query, json={"adapter_name": "body"}).json()
    assert loaded["name"] == "body"


# Figures.


def test_the_state_of_the_pipeline(served: Served, http: httpx2.Client) -> None:
    state = http.get("/pipeline-state/").json()
    assert state["model"] == "emoji"
    assert state["device"] == "cpu"


def test_figures(http: httpx2.Client) -> None:
    answer = http.get("/stats")
    assert answer.status_code == 200, answer.text
    assert isinstance(answer.json(), dict)


# Errors.

BAD_FORMS = [
    ({}, "generate-image: prompt: Field required, got nothing"),
    ({"prompt": ""}, "generate-image: prompt"),
    ({"prompt": "x", "height": "tall"}, "generate-image: height"),
    ({"prompt": "x", "guidance_scale": "nan"}, "guidance_scale"),
    ({"prompt": "x", "num_inference_steps": "0"}, "num_inference_steps"),
    ({"prompt": "x", "num_inference_steps": "9" * 5000}, "num_inference_steps"),
    ({"prompt": "x", "seed": "-1"}, "seed"),
    ({"prompt": "x", "width": "65"}, "width"),
    ({"prompt": "x" * 10_001}, "prompt"),
    ({"prompt": "x", "control_image": "a text"}, "control_image"),
]


@pytest.mark.parametrize(("form", "message"), BAD_FORMS, ids=range(len(BAD_FORMS)))
def test_a_form_that_does_not_fit_is_refused(http: httpx2.Client, form: dict[str, str], message: str) -> None:
    answer = http.post("/generate-image/", data=form)
    assert message in refused(answer, 422, "invalid_params")
    assert answer.json()["details"]


@pytest.mark.parametrize("path", ["/load-controlnet/", "/load-lora/"])
def test_a_load_that_does_not_say_what_is_refused(http: httpx2.Client, path: str) -> None:
    missing = "is missing; give it in the query or in a JSON body"
    empty = {"lora_path": "", "controlnet_path": ""}
    requests: list[dict[str, Any]] = [{}, {"params": empty}, {"json": empty}, {"json": {"adapter_name": "x"}}]
    requests += [{"content": b"null"}]  # a body of no stated kind is taken for JSON
    for request in requests:
        assert missing in refused(http.post(path, **request), 422, "invalid_params")


BAD_BODIES = [
    (b"{", 422, "the body: it is no JSON"),
    (b"\xff\xfe", 422, "the body: it is no JSON"),
    (b"[1]", 422, "valid dictionary"),
    (b'{"lora_path": 5}', 422, "lora_path"),
    (b'{"lora_path": "x", "lora_scale": "heavy"}', 422, "lora_scale"),
    (b'{"lora_path": "x", "lora_scale": NaN}', 422, "lora_scale"),
    (b'{"lora_path": "x", "lora_scale": 1e300}', 422, "lora_scale"),
    (b'{"lora_path": "\\ud800"}', 422, ""),
    (b'{"lora_path": "a\\u0000b"}', 422, "NUL"),
    (b'{"lora_path": "../../../etc/passwd"}', 422, "leads out of the host's folders"),
    (b'{"lora_path": "loras/none"}', 422, "there is no"),
    (b"[" * 100_000, 400, "parsing the body"),
]


@pytest.mark.parametrize(("body", "status", "message"), BAD_BODIES, ids=range(len(BAD_BODIES)))
def test_a_body_that_does_not_fit_is_refused(http: httpx2.Client, body: bytes, status: int, message: str) -> None:
    answer = http.post("/load-lora/", content=body, headers={"Content-Type": "application/json"})
    assert message in refused(answer, status, "invalid_params" if status == 422 else "bad_message")


def test_a_body_of_another_kind_or_a_broken_one_is_refused(http: httpx2.Client) -> None:
    answer = http.post("/load-lora/", data={"lora_path": LORA})
    assert "not sent as application/json" in refused(answer, 422, "invalid_params")
    for kind in ("multipart/form-data", "multipart/form-data; boundary=y"):
        answer = http.post("/generate-image/", content=b"--x\r\n", headers={"Content-Type": kind})
        refused(answer, 400, "bad_message")


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_large_is_refused(announced: bool) -> None:
    form = b"prompt=red+apple&negative_prompt=" + b"x" * (1 << 20)
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    with serving(plugin("http_api", max_upload_mib=1)) as served, client_of(served, headers=kind) as http:
        answer = http.post("/generate-image/", content=form if announced else iter([form[:100], form[100:]]))
        assert "1048576 bytes" in refused(answer, 413, "message_too_large")


def test_another_method_or_path_is_refused(http: httpx2.Client) -> None:
    answer = http.post("/stats")
    assert answer.headers["allow"] == "GET"
    refused(answer, 405, "bad_message")
    assert http.get("/nothing-here").status_code == 404


def test_too_many_jobs() -> None:
    with serving("http_api", limits={"jobs": 1}) as served, client_of(served) as http, begin(served, steps=1000):
        wait_for(lambda: bool(served.host.jobs.all()), "the job to begin")
        refused(http.post("/generate-image/", data=SMALL), 429, "too_many_jobs")


def test_a_host_that_closes_says_so(own: tuple[Served, httpx2.Client]) -> None:
    served, http = own
    served.host.close()
    refused(http.get("/pipeline-state/"), 503, "host_closing")


def test_every_error_code_has_its_status() -> None:
    kinds = [kind for kind in vars(core_errors).values() if isinstance(kind, type)]
    of_core = {kind.code for kind in kinds if issubclass(kind, LatentwireError)}
    cannot_happen = {
        "bad_settings",
        "duplicate_id",
        "unknown_subscription",
        "unknown_session",
        "superseded",  # no slots
    }
    assert of_core - cannot_happen == set(errors.STATUS)


# Who may use them.


def test_a_token_is_asked_for() -> None:
    token = "a long secret text"
    with serving("http_api", server={"token": token}) as served, client_of(served) as http:
        for path in ("/pipeline-state/", "/docs", "/openapi.json", "/swagger-ui/swagger-ui.css"):
            assert http.get(path).status_code == 401
            assert http.get(path, headers={"Authorization": f"Bearer {token}"}).status_code == 200


def test_a_page_of_an_allowed_origin_can_read_the_seed() -> None:
    page = "https://pictures.example"
    allowed = {"allowed_origins": [page]}
    with serving("http_api", server=allowed) as served, client_of(served, headers={"Origin": page}) as http:
        asks = {"Access-Control-Request-Method": "DELETE"}
        assert http.options("/unload-controlnet/", headers=asks).headers["access-control-allow-origin"] == page
        answer = http.post("/generate-image/", data=SMALL)
        assert picture_of(answer)
        assert answer.headers["access-control-allow-origin"] == page
        assert answer.headers["access-control-expose-headers"] == "X-Seed, X-Job"
        other = http.post("/generate-image/", data=SMALL, headers={"Origin": "https://else.example"})
        assert other.status_code == 403


def test_they_go_with_the_plugin() -> None:
    with serving() as served, client_of(served) as http:
        assert http.get("/pipeline-state/").status_code == 404
        assert http.get("/docs", follow_redirects=True).status_code == 404
        assert http.get("/docs/protocol").status_code == 200


def test_no_route_hides_those_of_another_plugin(served: Served) -> None:
    routes = served.host.registry.routes["http_api"](served.host)
    assert not [route for route in routes if isinstance(route, Mount)]
    assert all(isinstance(route, Route) and not route.path.startswith("/{") for route in routes)


# The documentation.


def test_the_docs_page_loads_nothing_from_elsewhere(http: httpx2.Client) -> None:
    page = http.get("/docs").text
    assert "://" not in page
    links = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert len(links) == 3
    for link in links:
        answer = http.get(link)
        assert answer.status_code == 200
        assert len(answer.content) > 1000
    assert "url: '/openapi.json'" in page
    assert http.get("/docs/protocol").headers["content-type"].startswith("text/plain")


def test_the_page_names_every_endpoint_with_its_parameters(http: httpx2.Client) -> None:
    document = http.get("/openapi.json").json()
    endpoints = {
        f"{verb.upper()} {path}": entry for path, verbs in document["paths"].items() for verb, entry in verbs.items()
    }
    assert subheadings(section(PAGE, "Endpoints")) == list(endpoints)
    for name, entry in endpoints.items():
        parameters = [parameter["name"] for parameter in entry.get("parameters", [])]
        for content in entry.get("requestBody", {}).get("content", {}).values():
            schema = content["schema"]
            (reference,) = re.findall(r"schemas/(\w+)", str(schema))
            parameters += document["components"]["schemas"][reference]["properties"]
        assert list(table(section(PAGE, f"`{name}`"))) == list(dict.fromkeys(parameters)), name


def test_the_page_names_every_status() -> None:
    documented = {code: int(row[0]) for code, row in table(section(PAGE, "Errors")).items()}
    assert documented == errors.STATUS


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_examples_run(own: tuple[Served, httpx2.Client], tmp_path: Path) -> None:
    served, _ = own
    (tmp_path / "outline.png").write_bytes(outline())
    examples = blocks(section(PAGE, "Endpoints"), "sh")
    assert len(examples) == len(subheadings(section(PAGE, "Endpoints")))
    for example in examples:
        words = shlex.split(example.replace("\\\n", " ").replace("http://127.0.0.1:8000", served.http))
        assert words[0] == "curl"
        command = ["curl", "--fail-with-body", "--silent", "--noproxy", "*", *words[1:]]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 0, f"{example}\n{ran.stdout}"
    with PILImage.open(tmp_path / "apple.png") as picture:
        assert picture.size == (128, 128)
