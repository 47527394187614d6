"""Whoever knows nothing but docs/protocol.md: a page with a bare WebSocket and the npm package @msgpack/msgpack."""

from typing import TYPE_CHECKING

from .browser import ROOT
from .browser import browser as browser
from .browser import page as page
from .browser import problems as problems
from .browser import site as site
from .conftest import serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

FILE = ROOT / "examples" / "web" / "stranger.html"


def test_a_stranger_drives_the_host(page: "Page", site: str) -> None:
    with serving(server={"allowed_origins": [site]}) as served:
        page.goto(f"{site}/examples/web/stranger.html?host={served.url}")
        page.get_by_role("log").filter(has_text="done").wait_for()
        log = page.get_by_role("log").inner_text().splitlines()
        assert served.host.jobs.all() == []
    commands = len(served.host.registry.commands)
    assert log[:2] == ["hello latentwire.v1.msgpack", f"describe {commands} commands"]
    pictures = [line for line in log if line.startswith(("preview", "image"))]
    assert log[2:] == [
        *pictures,
        "result 1 emoji",
        "error invalid_params num_inference_steps",
        "error cancelled",
        "done",
    ]
    assert len(pictures) > 1
    assert pictures[-1].split() == ["image", "PNG", "128", "128"]
    for number, line in enumerate(pictures[:-1], 1):
        assert line.split()[0] == "preview"
        assert int(line.split()[1]) >= number
        assert line.split()[2:] == ["PNG", "128", "128"]
    assert page.evaluate("document.images[0].naturalWidth") == 128


def test_the_page_is_short_and_uses_nothing_of_ours() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert text.count("\n") <= 60
    assert text.count("import ") == 1
    assert 'from "../../client/js/vendor/msgpack.js"' in text
