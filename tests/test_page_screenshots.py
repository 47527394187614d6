"""The README's pictures of the page; `make screenshots` makes them anew."""

import io
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from .browser import browser, problems
from .conftest import serving
from .page_parts import disclose, draw, fill, generate, idle, open_page, thumbs
from .pages import README, ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = ["browser", "problems"]

pytestmark = pytest.mark.slow

PLACE = "LATENTWIRE_SCREENSHOTS"
MOST_BYTES = 250_000
DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}
THINGS = [
    "tiger face on a green background",
    "hot air balloon on a blue background",
    "octopus on a yellow background",
    "cactus on an orange background",
    "rocket on a purple background",
    "panda on a pink background",
    "pizza on a gray background",
    "sunflower on a white background",
]


def save(page: "Page", folder: Path, name: str) -> None:
    """256 colours are enough, and a fifth of the bytes."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3).save(folder / name, optimize=True)
    assert (folder / name).stat().st_size < MOST_BYTES


def pear() -> list[tuple[float, float]]:
    """An outline that nobody takes for a round one."""
    turns = [turn * math.tau / 90 for turn in range(93)]
    return [(0.47 + (0.25 + 0.08 * math.cos(t)) * math.sin(t), 0.56 - 0.33 * math.cos(t)) for t in turns]


def light(page: "Page", folder: Path) -> None:
    page.get_by_role("button", name="Draw").click()
    draw(page, pear())
    page.locator(".notice .chip", has_text="emoji-outline").first.click()
    disclose(page, "ControlNet")
    page.get_by_role("switch", name="emoji-outline").wait_for(state="attached")
    disclose(page, "ControlNet")
    page.get_by_role("switch", name="Live").check(force=True)
    fill(page, prompt="red apple on a yellow background", seed=2, num_inference_steps=20)
    page.locator("#shown", has_text="red apple on a yellow background").wait_for()
    idle(page)
    page.mouse.move(5, 5)
    save(page, folder, "page-light.png")


def dark(page: "Page", folder: Path) -> None:
    for place in (6, 2):
        thumbs(page).nth(place).click()
        if place == 6:
            page.get_by_role("button", name="Compare").click()
    disclose(page, "LoRAs")
    page.locator("#sections .chip", has_text="emoji-pencil").click()
    page.get_by_role("switch", name="emoji-pencil").wait_for(state="attached")
    page.wait_for_timeout(1500)  # figures
    save(page, folder, "page-dark.png")


def phone(page: "Page", folder: Path) -> None:
    generate(page, "turtle on a blue background", seed=7, num_inference_steps=20)
    page.evaluate("scrollTo(0, 0)")
    save(page, folder, "page-phone.png")


@pytest.mark.parametrize(
    ("scene", "scheme", "size"), [(light, "light", DESKTOP), (dark, "dark", DESKTOP), (phone, "light", PHONE)]
)
def test_screenshots(browser: Any, tmp_path: Path, scene: Any, scheme: Any, size: Any) -> None:
    folder = Path(os.environ.get(PLACE, tmp_path))
    settings: Any = {"plugins": [{"name": "results", "settings": {"folder": tmp_path / "results"}}]}
    with serving(**settings) as host:
        context = browser.new_context(color_scheme=scheme, viewport=size, device_scale_factor=2 if size is PHONE else 1)
        context.set_default_timeout(120_000)
        page = context.new_page()
        open_page(page, host.http)
        for seed, thing in enumerate(THINGS):
            generate(page, thing, seed=seed, num_inference_steps=20)
        scene(page, folder)
        context.close()


def test_the_readme_shows_them() -> None:
    for name in ("page-light.png", "page-dark.png", "page-phone.png"):
        assert f"docs/images/{name}" in README
        assert (ROOT / "docs/images" / name).stat().st_size < MOST_BYTES
