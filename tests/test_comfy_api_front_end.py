"""ComfyUI's own front end, as its package has it, in a real Chromium: it works on this host, unmodified."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from latentwire import PluginError
from latentwire.testing import Served, plugin, running_host

from .browser import browser as browser
from .browser import page as page
from .browser import problems as problems
from .comfy import comfy, http_of
from .conftest import wait_for
from .packages import FRONT_END, fetch

if TYPE_CHECKING:
    from playwright.sync_api import Page

TOKEN = "a token of many letters"
SIZE = {"width": 1400, "height": 900}
ITS_OWN = ("api.comfy.org", "404 (Not Found)")
"""What it says in the console wherever it runs: it asks its makers for news, and for files that nobody has made yet."""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("front_end")
    fetch(folder, FRONT_END, "--no-deps")
    return folder / "comfyui_frontend_package" / "static"


@pytest.fixture(scope="module")
def served(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with comfy(tmp_path_factory.mktemp("comfy"), front_end=str(package)) as served:
        yield served


@pytest.fixture
def editor(served: Served, page: "Page", problems: list[str]) -> Iterator["Page"]:
    """The editor with the graph that the host offers to begin with."""
    with http_of(served) as http:  # it offers graphs the first time alone
        http.post("/settings", json={"Comfy.TutorialCompleted": False}).raise_for_status()
    page.set_viewport_size(SIZE)  # type: ignore[arg-type]
    page.goto(f"{served.http}/comfyui/")
    page.get_by_text("Text to Image").first.click()
    until(page, "window.app?.graph?._nodes?.length === 7")
    yield page
    assert [problem for problem in problems if not any(text in problem for text in ITS_OWN)] == []
    problems.clear()


def jobs(served: Served) -> list[dict[str, Any]]:
    with http_of(served) as http:
        found: list[dict[str, Any]] = http.get("/api/jobs").json()["jobs"]
    return found


def until(page: "Page", condition: str, timeout_s: float = 30) -> None:
    """Until something holds; asked from outside, since the page's policy forbids how Playwright itself would wait."""
    wait_for(lambda: bool(page.evaluate(condition)), condition, timeout_s)


def set_widget(page: "Page", kind: str, name: str, value: Any) -> None:
    page.evaluate(
        """([kind, name, value]) => {
            const node = app.graph._nodes.find((node) => node.type === kind);
            node.widgets.find((widget) => widget.name === name).value = value;
        }""",
        [kind, name, value],
    )


def test_without_the_package_the_plugin_says_what_to_install(tmp_path: Path) -> None:
    for front_end, wanted in (("package", "pip install comfyui-frontend-package"), (str(tmp_path), r"no index\.html")):
        wrong = plugin("comfy_api", folder=str(tmp_path), front_end=front_end)
        with pytest.raises(PluginError, match=wanted), running_host(wrong):
            pass


@pytest.mark.slow
def test_it_shows_the_hosts_nodes(served: Served, editor: "Page") -> None:
    with http_of(served) as http:
        nodes = set(http.get("/object_info").json())
        for path in ("/comfyui/api/prompt", "/comfyui/api/object_info", "/api/prompt", "/prompt"):
            assert http.get(path).status_code == 200, path
        files = http.get("/comfyui/")
        assert "default-src 'self'" in files.headers["content-security-policy"]
        assert http.get("/").headers["content-security-policy"].startswith("default-src 'none'")  # as strict as ever
        assert http.get("/comfyui/..%2f..%2f__init__.py").status_code == 404
    known = set(editor.evaluate("Object.keys(LiteGraph.registered_node_types)"))
    assert nodes <= known
    choices = "app.graph._nodes.find((node) => node.type === 'CheckpointLoaderSimple').widgets[0].options.values"
    assert editor.evaluate(choices) == ["emoji"]
    editor.locator("canvas#graph-canvas").dblclick(position={"x": 300, "y": 700})
    editor.keyboard.type("Canny")
    editor.get_by_text("Canny").first.wait_for()


@pytest.mark.slow
def test_it_makes_a_picture_and_shows_it_in_the_making(served: Served, editor: "Page", tmp_path: Path) -> None:
    frames: list[Any] = []
    editor.on("websocket", lambda socket: socket.on("framereceived", frames.append))
    before = len(jobs(served))
    set_widget(editor, "KSampler", "seed", 20)
    set_widget(editor, "KSampler", "steps", 60)  # time to see something
    editor.get_by_role("button", name="Run").first.click()
    shown = "app.graph._nodes.find((node) => node.type === '%s').imgs?.[0]"
    until(editor, f"{shown % 'KSampler'}?.naturalWidth > 0")
    assert editor.evaluate(f"{shown % 'KSampler'}.src").startswith("blob:")
    assert jobs(served)[0]["status"] == "in_progress"
    editor.screenshot(path=tmp_path / "in_the_making.png")
    until(editor, f"{shown % 'SaveImage'}?.naturalWidth === 128")
    assert "/comfyui/api/view?" in editor.evaluate(f"{shown % 'SaveImage'}.src")
    editor.screenshot(path=tmp_path / "finished.png")
    listed = jobs(served)
    assert (len(listed), listed[0]["status"]) == (before + 1, "completed")
    assert listed[0]["workflow_id"]  # the picture has the editor's own graph in it, to be opened again


@pytest.mark.slow
def test_it_ends_a_graph_that_runs(served: Served, editor: "Page") -> None:
    set_widget(editor, "KSampler", "seed", 21)
    set_widget(editor, "KSampler", "steps", 900)
    editor.get_by_role("button", name="Run").first.click()
    until(editor, "app.graph._nodes.find((node) => node.type === 'KSampler').imgs?.[0]?.naturalWidth > 0")
    (running,) = [job["id"] for job in jobs(served) if job["status"] == "in_progress"]
    editor.get_by_role("button", name="Cancel current run").first.click()
    editor.get_by_text("0 active").wait_for()
    (ended,) = [job for job in jobs(served) if job["id"] == running]
    assert ended["status"] == "cancelled"


@pytest.mark.slow
def test_it_keeps_its_settings_and_workflows_at_the_host(served: Served, editor: "Page") -> None:
    saved = editor.evaluate(
        """async () => {
            const {api} = window.comfyAPI.api;
            await api.storeSetting("Comfy.ColorPalette", "light");
            await api.storeUserData("workflows/mine.json", {a: 1}, {overwrite: false, stringify: true});
            await api.moveUserData("workflows/mine.json", "workflows/yours.json");
            return [await api.getSetting("Comfy.ColorPalette"), await api.listUserDataFullInfo("workflows")];
        }"""
    )
    assert saved[0] == "light"
    assert [row["path"] for row in saved[1]] == ["yours.json"]


@pytest.mark.slow
def test_it_asks_for_the_token_once(package: Path, page: "Page", problems: list[str], tmp_path: Path) -> None:
    with comfy(tmp_path, front_end=str(package), server={"token": TOKEN}) as guarded:
        page.goto(f"{guarded.http}/comfyui/")
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Enter").click()
        page.get_by_text("Text to Image").first.click()
        until(page, "window.app?.graph?._nodes?.length === 7")
        set_widget(page, "KSampler", "steps", 2)
        page.get_by_role("button", name="Run").first.click()
        shown = "app.graph._nodes.find((node) => node.type === 'SaveImage').imgs?.[0]?.naturalWidth === 128"
        until(page, shown)
        page.reload()
        until(page, "window.app?.graph?._nodes?.length === 7")
        page.close()
    ours = ("401 (Unauthorized)",)
    assert [problem for problem in problems if not any(text in problem for text in ITS_OWN + ours)] == []
    problems.clear()
