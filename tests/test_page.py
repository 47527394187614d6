"""The page at `/` in a real browser, with a real server and the embedded model."""

import asyncio
import math
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from .browser import ROOT, browser, forgive, page, problems
from .conftest import ENGINE, Served, serving
from .page_parts import (
    PICTURE,
    PROMPT,
    WATCH,
    disclose,
    draw,
    fill,
    generate,
    idle,
    open_page,
    overlap,
    pixels,
    silhouette,
    thumbs,
    until,
)
from .relay import Relay, relay
from .trust.served import OBSERVER, TOKEN

if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = ["browser", "page", "problems"]

TINT = {"name": "tint", "path": ROOT / "examples/plugins/tint.py", "enabled": False}
VIOLATIONS = """addEventListener("securitypolicyviolation", (event) =>
  console.error(`CSP: ${event.violatedDirective} ${event.blockedURI}`));"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A host that keeps results, with a plugin of elsewhere that is not enabled."""
    folder = tmp_path_factory.mktemp("results")
    with serving(plugins=[{"name": "results", "settings": {"folder": folder}}, TINT]) as served:
        yield served


@pytest.fixture
def app(page: "Page", host: Served) -> "Page":
    """The page, ready; what breaks its policy is among the problems."""
    page.add_init_script(VIOLATIONS)
    open_page(page, host.http)
    return page


# Making pictures.


def test_typing_in_live_mode_shows_previews_and_ends_in_the_picture_of_the_last_letter(app: "Page") -> None:
    app.evaluate(WATCH)
    app.get_by_role("switch", name="Live").check(force=True)
    app.locator("#prompt").press_sequentially(PROMPT, delay=30)
    idle(app)
    until(app, lambda: thumbs(app).count() > 0, "the picture")
    idle(app)
    assert thumbs(app).first.get_attribute("aria-label") == f"{PROMPT}, seed {app.locator('#seed').input_value()}"
    assert app.evaluate("window.seen.size") > 5
    assert thumbs(app).count() <= len(PROMPT) // 2  # the others were superseded
    red = pixels(app)[40:90, 40:90].mean(axis=(0, 1))
    assert red[0] > red[2] + 50
    assert pixels(app)[:8].mean(axis=(0, 1))[2] > 100  # blue above it


def test_a_drawn_outline_is_followed(app: "Page") -> None:
    generate(app, PROMPT, seed=5, num_inference_steps=12)
    plain = silhouette(pixels(app))
    app.get_by_role("button", name="Draw").click()
    circle = [(0.4 + 0.28 * math.cos(turn / 20), 0.6 + 0.2 * math.sin(turn / 20)) for turn in range(127)]
    draw(app, circle)
    app.locator(".notice .chip", has_text="emoji-outline").first.click()
    disclose(app, "ControlNet")
    app.get_by_role("switch", name="emoji-outline").wait_for(state="attached")
    assert app.get_by_role("switch", name="Use ControlNet").is_checked()
    generate(app)
    followed = silhouette(pixels(app))
    y, x = np.mgrid[0:128, 0:128] / 128
    wanted = ((x - 0.4) / 0.28) ** 2 + ((y - 0.6) / 0.2) ** 2 < 1
    assert overlap(followed, wanted) > 0.6
    assert overlap(followed, wanted) > overlap(plain, wanted) + 0.15
    app.get_by_role("button", name="Clear").click()
    generate(app)
    assert np.abs(silhouette(pixels(app)) ^ plain).mean() < 0.02  # an empty board is no outline


def test_a_slider_that_is_dragged_fast_ends_on_its_last_position(app: "Page") -> None:
    fill(app, prompt=PROMPT, seed=3)
    app.get_by_role("switch", name="Live").check(force=True)
    slider = app.locator("#guidance_scale-slider")
    box = slider.bounding_box()
    assert box is not None
    app.mouse.move(box["x"] + 10, box["y"] + box["height"] / 2)
    app.mouse.down()
    for step in range(60):
        app.mouse.move(box["x"] + 10 + step * (box["width"] - 40) / 60, box["y"] + box["height"] / 2)
    app.mouse.up()
    last = float(slider.input_value())
    assert last > 10
    until(app, lambda: f"guidance {last:g} " in app.locator("#shown").inner_text(), "the picture of the last position")
    idle(app)
    assert thumbs(app).count() < 20


def test_what_changes_while_a_request_is_on_its_way_is_sent_after_it(app: "Page") -> None:
    script = """async () => {
      const { Live } = await import(document.querySelector("script[type=module]").src.replace("app.js", "live.js"));
      const sent = [];
      let value = 0;
      let arrive;
      const live = new Live(() => (sent.push(value), new Promise((resolve) => (arrive = resolve))));
      const quiet = () => new Promise((wake) => setTimeout(wake, 100));
      for (value = 1; value <= 5; value++) live.poke();
      await quiet();
      for (value = 11; value <= 15; value++) live.poke();
      await quiet();
      const before = [...sent];
      arrive();
      await quiet();
      arrive();
      await quiet();
      return [before, sent];
    }"""
    assert app.evaluate(script) == [[6], [6, 16]]


def test_a_painting_is_followed_to_the_end_of_its_last_stroke(app: "Page") -> None:
    fill(app, prompt=PROMPT, seed=3, num_inference_steps=10)
    disclose(app, "Image to image")
    app.get_by_role("spinbutton", name="Strength").fill("0.1")
    app.get_by_role("button", name="Draw").click()
    app.locator(".tab", has_text="Start picture").click()
    app.get_by_label("Brush colour").fill("#2050d0")
    app.get_by_role("button", name="Fill with the colour").click()
    app.get_by_label("Brush colour").fill("#e02020")
    app.get_by_role("slider", name="Brush size").fill("12")
    app.get_by_role("switch", name="Live").check(force=True)
    for place in (0.2, 0.4, 0.6, 0.8):
        draw(app, [(step / 40, place) for step in range(4, 37)])
    idle(app)
    app.wait_for_timeout(100)
    idle(app)
    red = pixels(app)[:, :, 0] > pixels(app)[:, :, 2]
    for place in (0.2, 0.4, 0.6, 0.8):
        row = red[int(128 * place)]
        assert row[20:112].mean() > 0.9, place
    assert red[[8, 38, 64, 90]].mean() < 0.1  # between the strokes


def test_a_touch_is_a_dot_and_a_second_finger_draws_nothing(app: "Page") -> None:
    app.get_by_role("button", name="Draw").click()
    easel = app.locator(".easel")
    easel.scroll_into_view_if_needed()
    box = easel.bounding_box()
    assert box is not None
    devtools = app.context.new_cdp_session(app)
    devtools.send("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 2})

    def touch(kind: str, *places: float) -> None:
        y = box["y"] + box["height"] / 2
        points = [{"x": box["x"] + x * box["width"], "y": y, "id": finger} for finger, x in enumerate(places)]
        devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 0.25)
    until(app, lambda: bool(pixels(app, ".layer.outline").any()), "a dot")
    touch("touchStart", 0.25, 0.75)
    touch("touchMove", 0.3, 0.7)
    touch("touchMove", 0.3, 0.6)
    touch("touchEnd", 0.3)
    touch("touchMove", 0.35)
    touch("touchEnd")
    until(app, lambda: bool(pixels(app, ".layer.outline")[64, 40:].any()), "the stroke of the first finger")
    assert not pixels(app, ".layer.outline")[64, 52:].any()


def test_a_picture_to_start_from_and_a_mask(app: "Page") -> None:
    generate(app, PROMPT, seed=5, num_inference_steps=8)
    before = pixels(app)
    app.get_by_role("button", name="Start from it").click()
    until(app, app.get_by_role("switch", name="Use image to image").is_checked, "its switch to be on")
    app.get_by_role("button", name="Mask", exact=True).and_(app.locator(".tab")).click()
    app.get_by_role("slider", name="Brush size").fill("32")
    for place in (0.1, 0.3, 0.5, 0.7, 0.9):
        draw(app, [(0.75, place - 0.1), (0.75, place + 0.1), (0.95, place)])
    fill(app, prompt="lemon on a green background", seed=9, num_inference_steps=12)
    generate(app)
    after = pixels(app)
    assert np.abs(after[:, :40] - before[:, :40]).mean() < 12  # kept
    assert np.abs(after[:, 100:] - before[:, 100:]).mean() > 40  # made anew


def test_an_upload_becomes_an_outline(app: "Page") -> None:
    app.get_by_role("button", name="Draw").click()
    app.get_by_label("Picture file").set_input_files(ROOT / "README.md")
    app.locator("#problem", has_text="no picture").wait_for()
    app.get_by_label("Picture file").set_input_files(ROOT / "docs/images/emoji.png")
    app.get_by_role("button", name="Undo").and_(app.locator(":enabled")).wait_for()
    assert app.locator("#problem").is_hidden()
    assert len(np.unique(pixels(app, ".layer.outline").reshape(-1, 3), axis=0)) > 100
    app.get_by_role("button", name="Make outline").click()
    until(app, lambda: len(np.unique(pixels(app, ".layer.outline"))) == 2, "white lines on black")
    lines = pixels(app, ".layer.outline")
    app.locator("#width").press_sequentially("640")  # which is 6, 64 and 640
    assert pixels(app, ".layer.outline").shape == (128, 640, 3)
    fill(app, width="")
    assert (pixels(app, ".layer.outline") == lines).all()
    app.get_by_role("button", name="Undo").click()
    assert len(np.unique(pixels(app, ".layer.outline").reshape(-1, 3), axis=0)) > 100


def test_a_lora_with_a_weight(app: "Page") -> None:
    generate(app, PROMPT, seed=5, num_inference_steps=8)
    plain = pixels(app)
    disclose(app, "LoRAs")
    app.locator("#sections .chip", has_text="emoji-pencil").click()
    app.get_by_role("switch", name="emoji-pencil").wait_for(state="attached")
    app.get_by_role("spinbutton", name="emoji-pencil weight").fill("1.5")
    generate(app)
    drawn = pixels(app)
    assert np.ptp(drawn, axis=-1).mean() < np.ptp(plain, axis=-1).mean() - 10  # a pencil has no colours


def test_several_pictures_and_their_latents(app: "Page") -> None:
    app.get_by_role("button", name="Latents").click()
    fill(app, prompt=PROMPT, num_images=3, num_inference_steps=6)
    app.get_by_role("button", name="Generate").click()
    until(app, lambda: thumbs(app).count() == 3, "three pictures")
    idle(app)
    assert app.locator(PICTURE).count() == 3
    assert app.locator("#latents canvas").count() == 4
    assert len(np.unique(pixels(app, "#latents canvas"))) > 20


def test_the_keyboard_generates_and_cancels(app: "Page") -> None:
    fill(app, prompt=PROMPT, num_inference_steps=1000)
    app.get_by_role("button", name="About this host").click()
    app.keyboard.press("Control+Enter")
    app.keyboard.press("Escape")
    app.get_by_role("dialog").wait_for(state="hidden")
    assert app.evaluate("document.documentElement.dataset.sent") is None
    app.keyboard.press("Control+Enter")
    app.locator("#progress-text", has_text="Step ").wait_for()
    app.keyboard.press("Escape")
    app.locator("#progress-text", has_text="Cancelled").wait_for()
    idle(app)
    assert thumbs(app).count() == 0


def test_who_waits_is_told_the_place_in_the_queue(page: "Page") -> None:
    with serving(engine=ENGINE | {"max_running": 1}) as busy:
        open_page(page, busy.http)
        fill(page, prompt=PROMPT, num_inference_steps=1000)
        for text in ("Step ", "Place 1 in the queue"):
            page.get_by_role("button", name="Generate").click()
            page.locator("#progress-text", has_text=text).wait_for()
        page.get_by_role("button", name="Cancel").click()
        idle(page)
        page.close()  # before the host goes


def test_a_seed_is_new_each_time_unless_it_is_kept(app: "Page") -> None:
    seed = app.locator("#seed")
    generate(app, PROMPT, num_inference_steps=2)
    first = seed.input_value()
    generate(app)
    assert (second := seed.input_value()) != first
    app.get_by_role("button", name="Keep this seed").click()
    generate(app)
    assert seed.input_value() == second


# What is wrong.


def test_errors_stand_at_the_fields_that_they_concern(app: "Page") -> None:
    fill(app, prompt=PROMPT, num_inference_steps=5000)
    app.get_by_role("button", name="Generate").click()
    wrong = app.locator("[data-field=num_inference_steps] .wrong")
    wrong.wait_for()
    assert "less than or equal to 1000" in wrong.inner_text()
    steps = app.locator("#num_inference_steps")
    assert steps.get_attribute("aria-invalid") == "true"
    assert steps.get_attribute("aria-describedby") == wrong.get_attribute("id")
    assert app.evaluate("document.activeElement.id") == "num_inference_steps"
    fill(app, num_inference_steps=2, seed="none")
    disclose(app, "Clip skip")
    app.get_by_role("switch", name="Use Clip skip").check(force=True)
    app.get_by_role("spinbutton", name="Layers").fill("99")
    app.get_by_role("button", name="Generate").click()
    app.locator("[data-field=clip_skip] .wrong", has_text="11").wait_for()
    app.locator("[data-field=seed] .wrong", has_text="whole number").wait_for()
    assert not wrong.is_visible()
    fill(app, seed=2**64 + 1, prompt="red apple " * 2000)
    app.get_by_role("button", name="Generate").click()
    app.locator("[data-field=prompt] .wrong", has_text="at most 10000 characters").wait_for()
    app.locator("[data-field=seed] .wrong", has_text="whole number").wait_for()
    assert app.get_by_role("button", name="Generate").is_visible()
    assert app.locator("#prompt").evaluate("(area) => area.clientHeight < innerHeight / 2")
    fill(app, seed=1, prompt=PROMPT)
    app.get_by_role("spinbutton", name="Layers").fill("1")
    generate(app)
    assert app.locator(".wrong:visible, #problem:visible").count() == 0


def test_a_path_that_cannot_be_loaded_is_said_where_it_was_written(app: "Page") -> None:
    disclose(app, "LoRAs")
    app.get_by_label("Load a LoRA").fill("loras/nothing")
    app.get_by_label("Load a LoRA").press("Enter")
    app.locator("[data-field=lora] .wrong", has_text="loras/nothing").wait_for()


# Plugins.


def test_the_form_follows_plugins_as_they_are_switched(app: "Page") -> None:
    app.evaluate("window.stays = true")
    app.locator("[data-field=clip_skip]").wait_for()
    assert app.locator("[data-field=tint]").count() == 0
    fill(app, prompt=PROMPT, seed=5, num_inference_steps=8)
    generate(app)
    plain = pixels(app)
    disclose(app, "Plugins")
    app.get_by_role("switch", name="Plugin tint").check(force=True)
    app.locator("[data-field=tint]").wait_for()
    assert app.locator("#prompt").input_value() == PROMPT
    disclose(app, "Tint")
    app.get_by_role("switch", name="Use Tint").check(force=True)
    app.get_by_label("Color").fill("#00ff00")
    app.get_by_role("spinbutton", name="Strength").fill("0.9")
    generate(app)
    assert np.abs(pixels(app) - (plain * 0.1 + np.array([0, 255, 0]) * 0.9)).max() < 3
    app.get_by_role("switch", name="Plugin tint").uncheck(force=True)
    app.locator("[data-field=tint]").wait_for(state="detached")
    generate(app)
    assert np.abs(pixels(app) - plain).max() < 3
    assert app.evaluate("window.stays")
    app.reload()  # it is disabled when the page comes
    app.locator("[data-field=clip_skip]").wait_for()
    app.locator("[data-field=tint]").wait_for(state="detached")


def test_figures_arrive(app: "Page") -> None:
    app.locator("#stats").wait_for()
    assert {"CPU", "Memory", "Engine", "Batch size"} <= set(app.locator("#tiles dt").all_inner_texts())
    until(app, lambda: app.locator("#tiles .figure").first.inner_text().endswith("%"), "a figure")


# History.


def test_the_history_gives_pictures_back(app: "Page", host: Served) -> None:
    generate(app, "tiger on a white background", seed=11, num_inference_steps=4, guidance_scale=3)
    tiger = pixels(app)
    generate(app, "panda on a pink background", seed=12, num_inference_steps=6)
    app.reload()  # the browser has its key: they are still its own
    app.locator("html[data-ready]").wait_for()
    until(app, lambda: thumbs(app).count() == 2, "the history")
    thumbs(app).first.click()
    assert "panda" in app.locator("#shown").inner_text()
    app.keyboard.press("ArrowRight")
    app.locator("#shown", has_text="tiger").wait_for()
    until(app, lambda: pixels(app).shape == tiger.shape and bool((pixels(app) == tiger).all()), "the very picture")
    app.get_by_role("button", name="Reuse").click()
    values = {name: app.locator(f"#{name}").input_value() for name in ("prompt", "seed", "num_inference_steps")}
    assert values == {"prompt": "tiger on a white background", "seed": "11", "num_inference_steps": "4"}
    generate(app)
    assert np.abs(pixels(app) - tiger).max() <= 2  # mode fast rounds

    app.get_by_role("button", name="Compare").click()
    thumbs(app).nth(1).click()
    slider = app.get_by_role("slider", name="Show more of the left")
    for place, split in (("0", "0%"), ("100", "100%")):
        slider.fill(place)
        assert app.locator(".compare").evaluate("(e) => e.style.getPropertyValue('--split')") == split
    assert app.locator(".compare canvas").count() == 2
    app.get_by_role("button", name="End comparing").click()
    assert app.locator(".compare").count() == 0

    with app.expect_download() as download:
        app.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "panda-on-a-pink-background-12.png"
    assert download.value.path().read_bytes().startswith(b"\x89PNG")

    app.get_by_role("button", name="Delete").click()
    app.get_by_role("button", name="Delete for good?").click()
    until(app, lambda: thumbs(app).count() == 2, "it to be gone")
    app.reload()
    app.locator("html[data-ready]").wait_for()
    until(app, lambda: thumbs(app).count() == 2, "the history")
    assert all("tiger" in str(thumb.get_attribute("aria-label")) for thumb in thumbs(app).all())
    app.get_by_role("searchbox").fill("panda")
    app.locator("#history-note", has_text="No prompt has these words").wait_for()


# The connection.


class Line:
    """A line to a host that can be cut, by a loop in a thread of its own."""

    def __init__(self, relay: Relay, loop: asyncio.AbstractEventLoop) -> None:
        self._relay = relay
        self._loop = loop
        self.http = relay.url.replace("ws://", "http://").removesuffix("/ws")

    def cut(self, down: bool) -> None:
        """End all connections; while it is down there are no new ones."""
        self._relay.down = down
        self._loop.call_soon_threadsafe(self._relay.cut)

    def mend(self) -> None:
        self._relay.down = False


@contextmanager
def line_to(host: Served) -> Iterator[Line]:
    made: queue.Queue[tuple[Relay, asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()

    async def run() -> None:
        over = asyncio.Event()
        async with relay(host.url) as line:
            made.put((line, asyncio.get_running_loop(), over))
            await over.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    line, loop, over = made.get(timeout=30)
    try:
        yield Line(line, loop)
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()


def test_a_lost_connection_comes_back_and_the_picture_with_it(page: "Page", host: Served, problems: list[str]) -> None:
    with line_to(host) as line:
        open_page(page, line.http)
        fill(page, prompt=PROMPT, num_inference_steps=80)
        page.get_by_role("button", name="Generate").click()
        page.locator("#progress-text", has_text="Step ").wait_for()
        line.cut(down=True)
        page.locator("#connection[data-state=lost]", has_text="Connection lost").wait_for()
        assert page.get_by_role("button", name="Generate").is_disabled()
        until(page, lambda: bool(problems), "a try to come back")
        line.mend()
        page.locator("#connection[data-state=open]").wait_for()
        until(page, lambda: thumbs(page).count() == 1, "the picture")
        assert page.locator("#problem").is_hidden()
        forgive(problems, "WebSocket connection to")
        generate(page, num_inference_steps=2)

        page.get_by_role("switch", name="Live").check(force=True)
        idle(page)
        line.cut(down=True)
        page.locator("#connection[data-state=lost]").wait_for()
        fill(page, prompt="panda on a pink background")
        line.mend()
        until(page, lambda: "panda" in str(thumbs(page).first.get_attribute("aria-label")), "what was typed meanwhile")
        idle(page)
        forgive(problems, "WebSocket connection to")


def test_a_picture_that_the_host_does_not_give_is_said_so(app: "Page") -> None:
    script = """async () => {
      const web = document.querySelector("script[type=module]").src;
      const { Entry } = await import(web.replace("app.js", "entry.js"));
      const { showEntry } = await import(web.replace("app.js", "stage.js"));
      showEntry(new Entry({ id: "0".repeat(32), prompt: "", seed: 1, width: 64, height: 64, created: 0, request: {} }));
    }"""
    app.evaluate(script)
    problem = app.locator("#problem", has_text="result")
    problem.wait_for()
    for name in ("Download", "Start from it", "To the board"):
        problem.evaluate("(box) => { box.hidden = true; }")
        app.get_by_role("button", name=name).click()
        problem.wait_for()


def test_a_host_that_has_forgotten_the_session_is_asked_again_for_the_live_picture(page: "Page") -> None:
    with serving(server={"resume_grace_s": 0}) as forgetful, line_to(forgetful) as line:
        open_page(page, line.http)
        page.get_by_role("switch", name="Live").check(force=True)
        fill(page, prompt=PROMPT, num_inference_steps=60)
        page.locator("#progress-text", has_text="of 60").wait_for()
        line.cut(down=False)
        until(page, lambda: thumbs(page).count() > 0, "the live picture, asked for again")
        assert page.locator("#problem").is_hidden()
        page.locator("#history-note", has_text="keeps no results").wait_for()
        page.close()  # before the host goes


def test_the_token_is_asked_for_once(page: "Page", problems: list[str]) -> None:
    with serving(server={"token": TOKEN, "observer_token": OBSERVER}) as guarded:
        page.add_init_script(VIOLATIONS)
        page.goto(guarded.http)
        page.get_by_label("Token").fill("this is another token")
        page.get_by_role("button", name="Enter").click()
        page.locator("[role=alert]", has_text="That is not its token").wait_for()
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Enter").click()
        page.locator("html[data-ready]").wait_for()
        assert "ticket" not in page.url
        generate(page, PROMPT, num_inference_steps=2)
        page.reload()
        page.locator("html[data-ready]").wait_for()
        generate(page, PROMPT, num_inference_steps=2)
        disclose(page, "Plugins")
        page.locator("#plugins-note", has_text="Only an operator").wait_for()
        assert page.get_by_role("switch", name="Plugin lora").count() == 0
        page.get_by_role("button", name="About this host").click()
        with page.context.expect_page() as other:
            page.get_by_role("link", name="plugins/lora").click()
        other.value.get_by_text("LoRAs: small files").wait_for()
        page.close()  # before the host goes
        forgive(problems, "401 (Unauthorized)")


# For everybody.


SCHEMES = [("light", 1440), ("dark", 1440), ("light", 360), ("dark", 360)]


@pytest.mark.parametrize(("scheme", "width"), SCHEMES)
def test_axe_finds_nothing_serious(browser: Any, host: Served, scheme: Any, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    context = browser.new_context(
        color_scheme=scheme, viewport={"width": width, "height": 900}, reduced_motion="reduce"
    )
    page = context.new_page()
    open_page(page, host.http)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    generate(page, PROMPT, seed=4, num_inference_steps=2)
    page.get_by_role("button", name="Draw").click()
    page.get_by_role("button", name="Latents").click()
    while (closed := page.locator(".disclosure[aria-expanded=false]")).count():
        closed.first.click()
    page.locator("#sections .chip", has_text="emoji-pencil").click()
    page.get_by_role("switch", name="emoji-pencil").wait_for(state="attached")
    fill(page, num_inference_steps=5000)
    page.get_by_role("button", name="Generate").click()
    page.locator("[data-field=num_inference_steps] .wrong").wait_for()
    serious = [found for found in axe.run(page).response["violations"] if found["impact"] in ("serious", "critical")]
    page.get_by_role("button", name="About this host").click()
    serious += [found for found in axe.run(page).response["violations"] if found["impact"] in ("serious", "critical")]
    assert [(found["id"], [node["target"] for node in found["nodes"]]) for found in serious] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing leads out of a small screen
    context.close()


def test_the_theme_is_remembered(app: "Page") -> None:
    theme = "document.documentElement.dataset.theme"
    assert app.evaluate(theme) == "light"
    app.get_by_role("button", name="Switch between light and dark").click()
    assert app.evaluate(theme) == "dark"
    app.reload()
    assert app.evaluate(theme) == "dark"


def test_the_pages_policy_is_strict_and_its_files_are_kept_by_the_browser(app: "Page", problems: list[str]) -> None:
    answers: dict[str, Any] = {}
    app.on("response", lambda answer: answers.update({answer.url.rsplit("/", 1)[-1]: answer.headers}))
    app.reload()
    app.locator("html[data-ready]").wait_for()
    policy = answers[""]["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self' 'sha256-")
    assert "unsafe" not in policy
    assert "immutable" in answers["app.js"]["cache-control"]
    assert answers["app.js"]["content-type"].startswith("text/javascript")
    script = "document.createElement('script')"
    app.evaluate(f"try {{ const s = {script}; s.text = 'window.bad = 1'; document.body.append(s); }} catch {{}}")
    assert app.evaluate("window.bad === undefined")
    forgive(problems, "CSP: require-trusted-types-for")
    problems.clear()  # the browser says it in its own words, too
