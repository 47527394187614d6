"""What the tests of the page do with it, and how they look at its pictures."""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

PICTURE = "#pictures canvas"
PROMPT = "red apple on a blue background"

# Notes the content of the first picture in each frame; `seen` is how many different ones there have been.
WATCH = """() => {
  const small = document.createElement("canvas");
  small.width = small.height = 8;
  const drawing = small.getContext("2d", { willReadFrequently: true });
  window.seen = new Set();
  const look = () => {
    const canvas = document.querySelector("#pictures canvas");
    if (canvas) {
      drawing.drawImage(canvas, 0, 0, 8, 8);
      window.seen.add(drawing.getImageData(0, 0, 8, 8).data.join());
    }
    requestAnimationFrame(look);
  };
  look();
}"""

# The pixels of a canvas as a PNG, in letters.
PIXELS = """async (canvas) => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height);
  copy.getContext("2d").drawImage(canvas, 0, 0);
  return [...new Uint8Array(await (await copy.convertToBlob()).arrayBuffer())];
}"""


def open_page(page: "Page", address: str) -> None:
    """Go to the page of a host, and wait until it can be used."""
    page.goto(address)
    page.locator("html[data-ready]").wait_for()


def generate(page: "Page", prompt: str | None = None, **fields: Any) -> None:
    """Fill in the core of the form, press Generate and wait for the picture."""
    fill(page, **({"prompt": prompt} if prompt else {}), **fields)
    before = thumbs(page).count()
    page.get_by_role("button", name="Generate").click()
    until(page, lambda: thumbs(page).count() > before, "a picture in the history")
    idle(page)


def fill(page: "Page", **fields: Any) -> None:
    for name, value in fields.items():
        page.locator(f"#{name}").fill(str(value))


def idle(page: "Page") -> None:
    """Until no picture is in the making."""
    page.locator("html[data-making='0']").wait_for()


def thumbs(page: "Page") -> "Locator":
    return page.locator("#history-list .thumb")


def until(page: "Page", condition: Callable[[], bool], what: str, timeout_s: float = 30) -> None:
    """Look again until something holds; the page goes on meanwhile."""
    for _ in range(int(timeout_s * 50)):
        if condition():
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"waited {timeout_s} s for {what}")


def pixels(page: "Page", canvas: str = PICTURE) -> npt.NDArray[np.int16]:
    """What a canvas shows."""
    file = bytes(page.locator(canvas).first.evaluate(PIXELS))
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"), np.int16)


def silhouette(picture: npt.NDArray[np.int16]) -> npt.NDArray[np.bool_]:
    """Where a picture is not its background, which is what its edges have most of."""
    edges = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    far: npt.NDArray[np.bool_] = np.abs(picture - np.median(edges, axis=0)).max(axis=-1) > 60
    return far


def overlap(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    """Intersection over union."""
    return float((one & other).sum() / max(1, (one | other).sum()))


def draw(page: "Page", points: list[tuple[float, float]]) -> None:
    """One stroke on the board; from 0 to 1 in both directions."""
    easel = page.locator(".easel")
    easel.scroll_into_view_if_needed()
    box = easel.bounding_box()
    assert box is not None
    where = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*where[0])
    page.mouse.down()
    for x, y in where[1:]:
        page.mouse.move(x, y)
    page.mouse.up()


def disclose(page: "Page", name: str) -> None:
    """Open a part of the page by its title, if it is not open."""
    button = page.get_by_role("button", name=name, exact=True).and_(page.locator(".disclosure"))
    if button.get_attribute("aria-expanded") == "false":
        button.click()
