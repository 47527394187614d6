"""The pages of examples/web/ in a real browser, against a real host."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from latentwire import load_settings

from .browser import ROOT, forgive
from .browser import browser as browser
from .browser import page as page
from .browser import problems as problems
from .browser import site as site
from .conftest import Served, serving, wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Page

FOLDER = ROOT / "examples" / "web"


@pytest.fixture(scope="module")
def hosted(site: str) -> Iterator[Served]:
    with serving(server={"allowed_origins": [site]}) as served:
        yield served


def test_the_minimal_page_shows_the_picture_forming_and_finished(page: "Page", site: str, hosted: Served) -> None:
    page.goto(f"{site}/examples/web/minimal.html?host={hosted.url}")
    page.get_by_role("status").filter(has_text="Connected").wait_for()
    page.evaluate(
        """() => {
            globalThis.shown = [];
            const look = () => shown.push(document.querySelector("img").src);
            new MutationObserver(look).observe(document.querySelector("img"), { attributeFilter: ["src"] });
        }"""
    )
    page.get_by_label("Prompt").fill("green leaf")
    page.get_by_role("button", name="Draw").click()
    page.get_by_role("status").filter(has_text="Done in").wait_for()
    picture = page.get_by_alt_text("green leaf")
    assert picture.evaluate("async (image) => (await image.decode(), image.naturalWidth)") == 128
    assert page.evaluate("new Set(shown).size") > 1  # previews came before it
    page.get_by_label("Prompt").fill("x" * 10_001)
    page.get_by_role("button", name="Draw").click()
    page.get_by_role("status").filter(has_text="at most 10000").wait_for()


def test_the_minimal_page_says_so_where_no_host_is(page: "Page", site: str, problems: list[str]) -> None:
    page.goto(f"{site}/examples/web/minimal.html?host=ws://127.0.0.1:9/ws")
    page.get_by_role("status").filter(has_text="is `latentwire serve` running there?").wait_for()
    forgive(problems, "127.0.0.1:9")


def test_the_minimal_page_is_as_short_as_it_is_called() -> None:
    assert (FOLDER / "minimal.html").read_text(encoding="utf-8").count("\n") < 60


def test_the_picture_follows_what_is_drawn(page: "Page", site: str, hosted: Served) -> None:
    page.goto(f"{site}/examples/web/live_loop.html?host={hosted.url}")
    status, picture = page.get_by_role("status"), page.get_by_alt_text("What the host makes of it")
    redness = """async (image) => {
        await image.decode();
        const pen = new OffscreenCanvas(128, 128).getContext("2d");
        pen.drawImage(image, 0, 0);
        const [red, , blue] = pen.getImageData(64, 64, 1, 1).data;
        return red - blue;
    }"""

    def settled() -> None:
        """Until the last thing sent has become a picture."""
        page.wait_for_timeout(200)
        page.wait_for_function(
            """() => document.querySelector("[role=status]").textContent
                .startsWith(`Picture ${document.querySelector("img").dataset.revision} took`)"""
        )

    page.get_by_label("Change").fill("0.3")
    status.filter(has_text="took").wait_for()
    settled()
    plain = picture.evaluate(redness)
    revision = int(picture.get_attribute("data-revision") or 0)
    box = page.get_by_label("Draw here").bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.4)
    page.mouse.down()
    for row in (0.4, 0.5, 0.6):
        page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * row, steps=8)
        page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * row, steps=8)
    page.mouse.up()
    settled()
    assert int(picture.get_attribute("data-revision") or 0) > revision
    assert picture.evaluate(redness) > plain + 50
    wait_for(lambda: not hosted.host.jobs.all(), "the last picture")


def test_a_camera_is_followed_as_well(page: "Page", site: str, hosted: Served) -> None:
    page.goto(f"{site}/examples/web/live_loop.html?host={hosted.url}")
    page.evaluate(  # a camera: a canvas that moves
        """() => {
            const canvas = new OffscreenCanvas(1, 1), real = document.createElement("canvas");
            [real.width, real.height] = [320, 240];
            const pen = real.getContext("2d");
            let at = 0;
            const move = setInterval(() => {
                pen.fillStyle = "#20c020";
                pen.fillRect(0, 0, 320, 240);
                pen.fillStyle = "white";
                pen.fillRect(at++ % 300, 0, 20, 240);
            }, 30);
            navigator.mediaDevices.getUserMedia = async () => real.captureStream(30);
        }"""
    )
    page.get_by_role("button", name="Camera").click()
    page.get_by_role("button", name="Stop").wait_for()
    picture = page.get_by_alt_text("What the host makes of it")
    page.wait_for_function("Number(document.querySelector('img').dataset.revision) > 5")
    page.get_by_role("button", name="Stop").click()
    green = page.evaluate("[...document.querySelector('canvas').getContext('2d').getImageData(5, 5, 1, 1).data]")
    assert green[1] > 150
    assert picture.evaluate("async (image) => (await image.decode(), image.naturalWidth)") == 128
    wait_for(lambda: not hosted.host.jobs.all(), "the last picture")


def test_a_graph_is_laid_out_from_what_the_host_describes_and_run(page: "Page", site: str, hosted: Served) -> None:
    page.goto(f"{site}/examples/web/graph.html?host={hosted.url}")
    status, run = page.get_by_role("status"), page.get_by_role("button", name="Run")
    status.filter(has_text="Connected").wait_for()
    nodes = page.evaluate("[...document.querySelectorAll('article')].map(({ id }) => id)")
    assert sorted(nodes) == ["decoder", "empty", "model", "negative", "picture", "positive", "sampler"]
    assert page.locator("path").count() == 9  # a line for each link
    assert page.locator("#sampler").get_by_label("scheduler").input_value() == "normal"  # as describe says
    run.click()
    page.locator("#sampler img:not([hidden])").wait_for()  # a preview
    status.filter(has_text="Done").wait_for()
    picture = page.locator("#picture img")
    assert picture.evaluate("async (image) => (await image.decode(), image.naturalWidth)") == 128
    assert page.locator("#sampler").get_attribute("data-state") == "finished"

    page.locator("#sampler").get_by_label("seed").fill("2")
    run.click()
    page.locator("#positive[data-state=cached]").wait_for()
    status.filter(has_text="Done").wait_for()
    assert page.locator("#sampler").get_attribute("data-state") == "finished"

    page.locator("#sampler").get_by_label("steps").fill("0")
    run.click()
    status.filter(has_text="node sampler: input steps: it must be at least 1").wait_for()
    assert page.locator("#sampler").get_attribute("data-state") == "failed"

    page.locator("#sampler").get_by_label("steps").fill("500")
    run.click()
    status.filter(has_text="Step").wait_for()
    page.get_by_role("button", name="Cancel").click()
    status.filter(has_text="was cancelled").wait_for()
    wait_for(lambda: not hosted.host.jobs.all(), "the sampler's end")


def test_the_way_to_open_them_is_right() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    port = re.search(r"http\.server (\d+) --bind localhost", text)
    assert port
    assert load_settings(FOLDER / "plugins.toml").server.allowed_origins == [f"http://localhost:{port[1]}"]
    assert "--config examples/web/plugins.toml" in text
    assert sorted(path.name for path in FOLDER.glob("*.html")) == sorted(re.findall(r"\]\((\w+\.html)\)", text))
