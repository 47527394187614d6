"""The server side of ComfyUI's protocol over real HTTP: files, settings, what the host has; and what is refused."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.routing import Route

from latentwire.plugins.comfy_api.asked import MAX_JSON
from latentwire.testing import Served, plugin, running_host, serving

from .comfy import CHECKPOINT, Listener, comfy, http, http_of, picture_of, png, text_to_image

SECRET = "the contents of a file that is none of theirs"
HOSTILE = [
    "../secret",
    "..",
    ".",
    "a/../../secret",
    "/etc/passwd",
    "a//b",
    "..\\secret",
    "C:\\secret",
    "a\x00b",
    "a\nb",
    " a",
    "x" * 300,
    "/".join("abcdefghijklm"),
]


__all__ = ["http"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comfy") / "kept"
    folder.mkdir()
    (folder.parent / "secret").write_text(SECRET)
    return folder


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with comfy(folder, max_upload_mib=1) as served:
        yield served


def upload(http: httpx2.Client, name: str, data: bytes, **fields: str) -> httpx2.Response:
    return http.post("/upload/image", files={"image": (name, data, "image/png")}, data=fields)


def nothing_leaks(answer: httpx2.Response) -> None:
    """A refusal is one of the client's own doing, says why, and holds nothing of the disk."""
    assert 400 <= answer.status_code < 500, answer.text
    assert SECRET not in answer.text
    assert "root:" not in answer.text


# The plugin.


def test_it_is_off_until_it_is_listed(tmp_path: Path) -> None:
    with serving() as served, http_of(served) as http:
        assert http.get("/prompt").status_code == 404
        assert served.host.plugins.is_loaded("comfy_api") is False
    with running_host(plugin("comfy_api", folder=str(tmp_path))) as host:
        assert host.plugins.is_loaded("comfy_api")


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_every_route_is_there_with_and_without_api(http: httpx2.Client, prefix: str) -> None:
    paths = ["/prompt", "/queue", "/history", "/object_info", "/system_stats", "/models", "/models/loras"]
    paths += ["/embeddings", "/extensions", "/settings", "/users", "/userdata?dir=", "/features", "/jobs"]
    for path in paths:
        answer = http.get(prefix + path)
        assert answer.status_code == 200, path
        assert answer.headers["content-type"] == "application/json"


def test_without_the_front_end_the_host_has_its_own_page_and_no_other(http: httpx2.Client) -> None:
    assert "latentwire" in http.get("/").text
    assert http.get("/comfyui/").status_code == 404
    assert http.get("/comfyui/api/prompt").status_code == 404


# What the host has.


def test_nodes_are_told_in_the_form_that_editors_want(http: httpx2.Client) -> None:
    nodes = http.get("/object_info").json()
    sampler = nodes["KSampler"]
    assert sampler["input"]["required"]["seed"][0] == "INT"
    assert sampler["input"]["required"]["seed"][1]["control_after_generate"] is True
    assert sampler["input"]["required"]["denoise"][1]["max"] == 1.0
    assert "euler" in sampler["input"]["required"]["sampler_name"][0]
    assert sampler["input"]["required"]["model"] == ["MODEL", {}]
    assert (sampler["output"], sampler["output_is_list"]) == (["LATENT"], [False])
    assert list(sampler["input"]["required"]) == sampler["input_order"]["required"]
    assert nodes["SaveImage"]["output_node"] is True
    assert CHECKPOINT in nodes["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0]
    assert http.get("/object_info/KSampler").json() == {"KSampler": sampler}
    assert http.get("/object_info/Nothing").json() == {}


def test_an_uploaded_picture_is_a_choice_of_the_node_that_loads_it(http: httpx2.Client) -> None:
    assert upload(http, "choice.png", png()).status_code == 200
    names, options = http.get("/object_info/LoadImage").json()["LoadImage"]["input"]["required"]["image"]
    assert "choice.png" in names
    assert options["image_upload"] is True
    assert "choice.png" in http.get("/internal/files/input").json()
    nothing_leaks(http.get("/internal/files/other"))


def test_models_by_folder(http: httpx2.Client) -> None:
    assert set(http.get("/models").json()) >= {"checkpoints", "loras", "controlnet", "vae", "embeddings"}
    assert CHECKPOINT in http.get("/models/checkpoints").json()
    assert http.get("/models/nothing").status_code == 404
    assert CHECKPOINT in [row["name"] for row in http.get("/api/experiment/models/checkpoints").json()]


def test_figures_of_the_machine(http: httpx2.Client) -> None:
    stats = http.get("/system_stats").json()
    assert stats["system"]["ram_total"] > stats["system"]["ram_free"] > 0
    assert stats["devices"][0]["type"] == "cpu"
    assert stats["system"]["argv"] == []  # how it was started is nobody's business


# Pictures.


def test_a_picture_is_uploaded_and_seen_again(http: httpx2.Client) -> None:
    stored = upload(http, "apple.png", png(), subfolder="fruit").json()
    assert stored == {"name": "apple.png", "subfolder": "fruit", "type": "input"}
    answer = http.get("/view", params={"filename": "apple.png", "subfolder": "fruit", "type": "input"})
    assert answer.content == png()
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"] == 'filename="apple.png"'


def test_another_picture_of_the_same_name_gets_another_one_unless_it_is_to_replace_it(http: httpx2.Client) -> None:
    assert upload(http, "same.png", png()).json()["name"] == "same.png"
    assert upload(http, "same.png", png()).json()["name"] == "same.png"
    assert upload(http, "same.png", png(color="red")).json()["name"] == "same (1).png"
    assert upload(http, "same.png", png(color="blue"), overwrite="true").json()["name"] == "same.png"
    assert http.get("/view", params={"filename": "same.png", "type": "input"}).content == png(color="blue")


def test_a_mask_becomes_what_is_transparent(http: httpx2.Client) -> None:
    upload(http, "plain.png", png())
    original = json.dumps({"filename": "plain.png", "subfolder": "", "type": "input"})
    files = {"image": ("mask.png", png(mode="RGBA"), "image/png")}
    stored = http.post("/upload/mask", files=files, data={"original_ref": original, "subfolder": "clipspace"}).json()
    where = {"filename": stored["name"], "subfolder": stored["subfolder"], "type": stored["type"]}
    masked = picture_of(http.get("/view", params=where))
    assert (masked.getpixel((0, 0))[3], masked.getpixel((32, 32))) == (0, (255, 165, 0, 255))
    assert picture_of(http.get("/view", params={**where, "channel": "rgb"})).mode == "RGB"
    small = http.get("/view", params={**where, "preview": "webp;50"})
    assert small.headers["content-type"] == "image/webp"
    assert picture_of(small).size == (64, 64)
    nothing_leaks(http.post("/upload/mask", files={"image": ("", png(), "image/png")}, data={"original_ref": original}))
    for wrong in ("", "[]", "{", json.dumps({"filename": "../secret"}), json.dumps({"filename": 7})):
        nothing_leaks(http.post("/upload/mask", files=files, data={"original_ref": wrong}))


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_leads_out_of_the_folders(http: httpx2.Client, folder: Path, name: str) -> None:
    before = sorted(str(path) for path in folder.parent.rglob("*") if path.is_dir() or "history" not in path.name)
    nothing_leaks(http.get("/view", params={"filename": name, "type": "input"}))
    nothing_leaks(http.get("/view", params={"filename": "apple.png", "subfolder": name}))
    nothing_leaks(http.get("/view", params={"filename": f"{name} [input]"}))
    nothing_leaks(http.get("/view", params={"filename": "apple.png", "type": name}))
    nothing_leaks(upload(http, "x.png", png(), subfolder=name))
    if "\x00" not in name and "\n" not in name:
        nothing_leaks(upload(http, f"{name}.png/..", png()))
    quoted = "".join(f"%{byte:02x}" for byte in name.encode())
    nothing_leaks(http.get(f"/userdata/{quoted}"))
    nothing_leaks(http.post(f"/userdata/{quoted}", content=b"x"))
    nothing_leaks(http.delete(f"/userdata/{quoted}"))
    nothing_leaks(http.post(f"/userdata/{quoted}/move/x", content=b""))
    after = sorted(str(path) for path in folder.parent.rglob("*") if path.is_dir() or "history" not in path.name)
    assert before == after


@pytest.mark.parametrize("name", HOSTILE)
def test_no_graph_writes_elsewhere(http: httpx2.Client, name: str) -> None:
    answer = http.post("/prompt", json={"prompt": text_to_image(prefix=name)})
    nothing_leaks(answer)
    (error,) = answer.json()["node_errors"]["9"]["errors"]
    assert error["extra_info"]["input_name"] == "filename_prefix"


def test_a_link_leads_nowhere(http: httpx2.Client, folder: Path) -> None:
    (folder / "input").mkdir(exist_ok=True)
    os.symlink(folder.parent / "secret", folder / "input" / "link.png")
    nothing_leaks(http.get("/view", params={"filename": "link.png", "type": "input"}))


def test_only_pictures_are_taken_and_shown(http: httpx2.Client, folder: Path) -> None:
    page = b"<html><script>alert(1)</script>"
    nothing_leaks(upload(http, "page.png", page))
    nothing_leaks(upload(http, "page.html", png()))
    nothing_leaks(upload(http, "", png()))
    nothing_leaks(http.post("/upload/image", data={"image": "text"}))
    nothing_leaks(http.post("/upload/image", content=b"x", headers={"Content-Type": "multipart/form-data"}))
    (folder / "output").mkdir(exist_ok=True)
    (folder / "output" / "page.png").write_bytes(page)
    nothing_leaks(http.get("/view", params={"filename": "page.png"}))


def test_a_full_disk_is_no_fault_of_the_plugins(
    served: Served, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "/a/path/of/the/host")

    monkeypatch.setattr(Path, "write_bytes", full)
    for _ in range(5):
        answer = upload(http, "full.png", png())
        assert (answer.status_code, answer.json()["error"]) == (
            503,
            "the disk gives no answer: No space left on device",
        )
        assert http.post("/userdata/full", content=b"x").status_code == 503
        assert http.post("/settings/full", content=b"1").status_code == 503
    assert served.host.guard.strikes.reason("comfy_api") is None
    monkeypatch.undo()
    assert upload(http, "full.png", png()).status_code == 200


def test_there_is_a_limit_to_what_is_uploaded(tmp_path: Path) -> None:
    with comfy(tmp_path, max_input_mib=1, max_user_mib=1) as served, http_of(served) as http:
        noise = [png_of_noise(index) for index in range(3)]
        assert [upload(http, f"{index}.png", data).status_code for index, data in enumerate(noise)] == [200, 200, 507]
        texts = [http.post(f"/userdata/{index}.json", content=b"x" * 600_000).status_code for index in range(2)]
        assert texts == [200, 507]


def png_of_noise(seed: int) -> bytes:
    from io import BytesIO

    from PIL import Image as PILImage

    file = BytesIO()
    PILImage.frombytes("RGB", (380, 380), os.urandom(380 * 380 * 3)).save(file, "PNG")
    return file.getvalue()


# What the front end keeps.


def test_settings_stay(http: httpx2.Client, folder: Path) -> None:
    assert http.get("/settings/Comfy.Nothing").json() is None
    assert http.post("/settings/Comfy.One", content=b"true").status_code == 200
    assert http.post("/settings", content=b'{"Comfy.Two": [1, 2]}').status_code == 200
    assert http.get("/settings/Comfy.Two").json() == [1, 2]
    settings = http.get("/api/settings").json()
    assert (settings["Comfy.One"], settings["Comfy.Two"]) == (True, [1, 2])
    assert json.loads((folder / "user" / "default" / "comfy.settings.json").read_text())["Comfy.One"] is True


@pytest.mark.parametrize("text", [b'{"a": NaN}', b'{"a": "\\ud800"}', b"{"])
def test_settings_that_could_not_be_told_take_nothing_down(http: httpx2.Client, folder: Path, text: bytes) -> None:
    kept = http.get("/settings").json()
    assert http.post("/userdata/comfy.settings.json", content=text).status_code == 409
    http.post("/userdata/broken.json", content=text)
    assert http.post("/userdata/broken.json/move/comfy.settings.json?overwrite=true").status_code == 409
    assert http.get("/settings").json() == kept
    file = folder / "user" / "default" / "comfy.settings.json"
    before = file.read_bytes() if file.exists() else b"{}"
    file.write_bytes(text)  # as somebody may do by hand
    try:
        assert "damaged" in http.get("/settings").json()["error"]
    finally:
        file.write_bytes(before)
    assert http.get("/settings").json() == kept


def test_files_are_kept_listed_moved_and_deleted(http: httpx2.Client) -> None:
    name = "workflows%2Fmine.json"
    assert http.get(f"/userdata/{name}").status_code == 404
    assert http.post(f"/userdata/{name}?overwrite=false", content=b'{"a": 1}').json() == "workflows/mine.json"
    assert http.post(f"/userdata/{name}?overwrite=false", content=b"{}").status_code == 409
    info = http.post(f"/userdata/{name}?overwrite=true&full_info=true", content=b'{"a": 2}').json()
    assert (info["path"], info["size"]) == ("workflows/mine.json", 8)
    answer = http.get(f"/api/userdata/{name}")
    assert (answer.json(), answer.headers["content-type"]) == ({"a": 2}, "application/json")
    assert http.get("/userdata?dir=workflows").json() == ["mine.json"]
    assert http.get("/userdata?dir=&recurse=true&split=true").json()[-1][:2] == ["workflows/mine.json", "workflows"]
    assert http.get("/userdata?dir=workflows&full_info=true").json()[0]["modified"] > 1e12
    assert http.post(f"/userdata/{name}/move/workflows%2Fyours.json").json() == "workflows/yours.json"
    assert http.get(f"/userdata/{name}").status_code == 404
    assert http.delete("/userdata/workflows%2Fyours.json").status_code == 204
    assert http.get("/userdata?dir=workflows").json() == []


def test_a_file_of_the_front_ends_is_never_a_page(http: httpx2.Client) -> None:
    http.post("/userdata/page.html", content=b"<script>alert(1)</script>")
    answer = http.get("/userdata/page.html")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_name_is_a_files_or_a_folders(http: httpx2.Client) -> None:
    assert upload(http, "inner.png", png(), subfolder="both.png").status_code == 200
    assert upload(http, "both.png", png()).json()["name"] == "both (1).png"
    assert upload(http, "both.png", png(), overwrite="true").json()["name"] == "both (1).png"
    assert upload(http, "deeper.png", png(), subfolder="both.png/inner.png").status_code == 409
    assert upload(http, "deeper.png", png(), subfolder="both.png/inner.png/more").status_code == 409
    assert http.post("/userdata/file", content=b"1").status_code == 200
    assert http.post("/userdata/file/move/file%2Fbelow").status_code == 409
    assert http.post("/userdata/file%2Fbelow", content=b"1").status_code == 409


# What is refused.

BODIES = [b"", b"{", b"[]", b"7", b'"x"', b"null", b"\xff", b"[" * 100_000, b'{"a":' * 500 + b"1" + b"}" * 500, b"NaN"]
BODIES += [b'{"a": 1e999}', b'{"a": "\\ud800"}', b'{"\\udfff": 1}', b'{"a": -Infinity}']


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:8]))
def test_a_body_that_is_none_is_refused_with_a_sentence(http: httpx2.Client, body: bytes) -> None:
    for path in ("/prompt", "/queue", "/history", "/api/jobs/cancel", "/settings"):
        answer = http.post(path, content=body)
        assert answer.status_code == 400, path
        assert answer.json()["error"]


def test_large_bodies_are_refused_before_they_fill_anything(http: httpx2.Client) -> None:
    for path in ("/prompt", "/settings/x", "/queue"):
        assert http.post(path, content=b" " * (MAX_JSON + 1)).status_code == 413
    assert http.post("/userdata/large", content=b"x" * ((1 << 20) + 1)).status_code == 413
    assert upload(http, "large.png", b"x" * ((1 << 20) + 1)).status_code == 413


@pytest.mark.parametrize("query", ["limit=x", "limit=-1", "offset=1e9", "status=done", "limit=" + "9" * 50])
def test_a_list_says_what_it_cannot_be_asked(http: httpx2.Client, query: str) -> None:
    assert http.get(f"/api/jobs?{query}").status_code == 400


# Who may.

TOKEN = "a token of many letters"


def test_the_token_is_asked_for_everywhere_and_may_come_as_a_password(tmp_path: Path) -> None:
    with comfy(tmp_path, server={"token": TOKEN}) as served:
        with http_of(served) as http:
            routes = [route for route in routes_of(served) if "{" not in route.path]
            assert len(routes) > 30
            for route in routes:
                for method in route.methods or ():
                    assert http.request(method, route.path).status_code == 401, route.path
            for name, value in (("Authorization", "Basic x"), ("Authorization", "Basic dXNlcjp4"), ("Cookie", "a=b")):
                assert http.get("/prompt", headers={name: value}).status_code == 401
            for odd in (b"Basic \xff", b"Basic /w==", b"Bearer \xff"):
                assert http.get("/prompt", headers={b"Authorization": odd}).status_code == 401
            assert http.get("/prompt", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
        with http_of(served, auth=("anybody", TOKEN)) as http:
            assert http.get("/prompt").status_code == 200
        with pytest.raises(Exception, match="401"):
            Listener(served, "x")
        with Listener(served, "x", additional_headers={"Authorization": f"Bearer {TOKEN}"}) as listener:
            listener.wait(lambda: listener.of("status"), "the status")


def test_a_cookie_of_the_login_is_for_what_is_below_its_path_alone(tmp_path: Path) -> None:
    with comfy(tmp_path, server={"token": TOKEN}) as served, http_of(served) as http:
        shown = {"Authorization": f"Bearer {TOKEN}"}
        assert http.post("/login?path=/comfyui/").status_code == 401
        for wrong in ("", "/", "comfyui/", "//x/", "/a;b/", "/comfyui", "/a b/"):
            assert http.post("/login", params={"path": wrong}, headers=shown).status_code == 400, wrong
        answer = http.post("/login?path=/api/", headers=shown)
        cookie = answer.headers["set-cookie"]
        assert TOKEN not in cookie
        for wanted in ("Path=/api/", "HttpOnly", "SameSite=strict"):
            assert wanted in cookie
        assert http.get("/api/prompt").status_code == 200  # the client has kept it
        assert http.get("/prompt").status_code == 401
        value = cookie.partition("=")[2].partition(";")[0]
        name = cookie.partition("=")[0]
        http.cookies.clear()
        assert http.get("/api/prompt", headers={"Cookie": f"{name}={value[:-1]}0"}).status_code == 401
        assert http.get("/api/prompt", headers={"Cookie": f"{name}={value}"}).status_code == 200
        evil = {"Cookie": f"{name}={value}", "Origin": "http://evil.example"}
        assert http.get("/api/prompt", headers=evil).status_code == 403
        assert http.post("/ticket", headers={"Cookie": f"{name}={value}"}).status_code == 403
        odd = {"Cookie": f"{name}={value}", "Host": "localhost:99999"}  # another port's cookie is another one
        assert http.get("/api/prompt", headers=odd).status_code == 401


def routes_of(served: Served) -> list[Route]:
    from latentwire.plugins.comfy_api.graph_routes import GraphRoutes
    from latentwire.plugins.comfy_api.host_routes import HostRoutes
    from latentwire.plugins.comfy_api.picture_routes import PictureRoutes
    from latentwire.plugins.comfy_api.user_routes import UserRoutes

    service: Any = None
    kinds = (GraphRoutes, PictureRoutes, HostRoutes, UserRoutes)
    rows = [row for kind in kinds for row in kind(service).handlers()]
    return [
        Route(prefix + path, handler, methods=[method]) for prefix in ("", "/api") for path, method, handler in rows
    ]


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}])
def test_foreign_pages_and_names_are_refused(http: httpx2.Client, headers: dict[str, str]) -> None:
    assert http.get("/api/history", headers=headers).status_code == 403
    assert http.post("/api/interrupt", headers=headers).status_code == 403


@pytest.mark.parametrize("client", ["", " ", "a b", "\n", "x" * 101, "ä"])
def test_a_websocket_needs_a_good_client_id(served: Served, client: str) -> None:
    from urllib.parse import quote

    if client == "":  # as the front end does it the first time; it is told the one that it has been given
        with Listener(served, client) as listener:
            listener.wait(lambda: listener.of("status"), "the status")
            assert len(listener.of("status")[0]["sid"]) == 32
        return
    with pytest.raises(Exception, match="400"):
        Listener(served, quote(client))
