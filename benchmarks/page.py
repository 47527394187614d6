"""The page in Chromium: until it can be used, from a key stroke to its first preview, and the longest task.

Needs Playwright and Chromium: `pip install playwright`, and Debian's package chromium.

    python benchmarks/page.py [--loads 10] [--strokes 30]
"""

import argparse
import shutil
from typing import Any

from figures import show, summary
from playwright.sync_api import Browser, Page, sync_playwright
from serving import served

NAMES = ("chromium", "chromium-browser", "google-chrome")
PROMPT = "red apple on a blue background"
FAST_TYPING_MS = 150
PATIENCE_MS = 120_000

# In the page: from each key stroke to the first picture of a request that has it, and what kept the page busy.
WATCH = """() => {
  window.figures = { delays: [], pictures: 0, tasks: [] };
  const root = document.documentElement;
  let strokes = [];
  document.getElementById("prompt").addEventListener("input", () => {
    strokes.push({ at: performance.now(), request: Number(root.dataset.sent ?? 0) + 1 });
  }, true);
  new MutationObserver((changes) => {
    for (const { target } of changes) {
      figures.pictures++;
      const shown = strokes.filter(({ request }) => request <= Number(target.dataset.of));
      figures.delays.push(...shown.map(({ at }) => performance.now() - at));
      strokes = strokes.filter((stroke) => !shown.includes(stroke));
    }
  }).observe(document.getElementById("pictures"), { subtree: true, attributeFilter: ["data-of"] });
  new PerformanceObserver((list) => figures.tasks.push(...list.getEntries().map(({ duration }) => duration)))
    .observe({ type: "longtask" });
}"""


def ready(page: Page) -> float:
    """Milliseconds from the beginning of the navigation until all of the form is there."""
    return float(page.locator("html[data-ready]").get_attribute("data-ready") or "nan")


def loads(browser: Browser, address: str, rounds: int) -> tuple[list[float], list[float]]:
    """For browsers that have never seen the page, and for the same ones again."""
    first, again = [], []
    for _ in range(rounds + 1):
        context = browser.new_context()
        page = context.new_page()
        page.goto(address)
        first.append(ready(page))
        page.reload()
        again.append(ready(page))
        context.close()
    return first[1:], again[1:]  # the first one warms up


def idle(page: Page) -> None:
    page.locator("html[data-making='0']").wait_for()


def typing(page: Page, strokes: int, is_busy: bool) -> dict[str, Any]:
    """Type; each stroke while the picture of the one before is still in the making, or when it is finished."""
    page.evaluate(WATCH)
    prompt = page.locator("#prompt")
    for number in range(strokes):
        prompt.press("End")
        prompt.press("Backspace" if number % 2 else "s")
        page.wait_for_timeout(FAST_TYPING_MS if is_busy else 50)
        if not is_busy:
            idle(page)
    idle(page)
    return dict(page.evaluate("window.figures"))


def measure(browser: Browser, address: str, options: argparse.Namespace) -> dict[str, Any]:
    first, again = loads(browser, address, options.loads)
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(address)
    ready(page)
    page.locator("#prompt").fill(PROMPT)
    page.get_by_role("switch", name="Live").check(force=True)
    page.locator("#prompt").press("End")
    page.keyboard.press("Control+Enter")
    page.locator("#shown:not([hidden])").wait_for()
    alone = typing(page, options.strokes, is_busy=False)
    page.reload()
    ready(page)
    page.get_by_role("switch", name="Live").check(force=True)
    page.locator("#prompt").fill(PROMPT)
    page.locator("#shown:not([hidden])").wait_for()
    busy = typing(page, options.strokes, is_busy=True)
    return {
        "ready_ms": summary(first, 0),
        "ready_again_ms": summary(again, 0),
        "first_preview_ms": summary(alone["delays"], 0),
        "first_preview_while_typing_ms": summary(busy["delays"], 0),
        "pictures_shown": alone["pictures"] + busy["pictures"],
        "longest_task_ms": round(max([0.0, *alone["tasks"], *busy["tasks"]])),  # 0: none of over 50 ms
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", type=int, default=10)
    parser.add_argument("--strokes", type=int, default=30)
    options = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, NAMES)), None)
    with served() as host, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        show("page", options, **measure(browser, host.page, options))
        browser.close()


if __name__ == "__main__":
    main()
