"""A real Chromium for tests, and a server of plain files for the pages that it opens.

The fixtures: import `browser`, `site`, `problems` and `page` into the test module. Playwright keeps an event loop
running in the thread, so the tests of such a module run no other one there.
"""

import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

ROOT = Path(__file__).parents[1]
NAMES = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT_MS = 30_000


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Chromium; of the module, since no test after it could run an event loop while Playwright's runs."""
    chromium = next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


class _Files(SimpleHTTPRequestHandler):
    """The repository's files, without a log."""

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of a site with this repository's files: an origin that hosts must allow."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, directory=str(ROOT))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def problems() -> list[str]:
    """What the page's console has shown as errors, and exceptions that nobody caught; `forgive` what a test causes."""
    return []


@pytest.fixture
def page(browser: "Browser", problems: list[str]) -> Iterator["Page"]:
    """A new page, with nothing of the others' storage; at its end there are no problems."""

    def note(message: "ConsoleMessage") -> None:
        if message.type == "error":
            problems.append(message.text)

    context = browser.new_context()
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    page.on("console", note)
    page.on("pageerror", lambda error: problems.append(f"uncaught: {error}"))
    yield page
    context.close()
    assert problems == []


def forgive(problems: list[str], text: str) -> None:
    """Take those of a text out of the problems: what a test must or may cause."""
    problems[:] = [problem for problem in problems if text not in problem]
