"""The JavaScript client in a real browser, against a real host."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from .browser import browser as browser
from .browser import page as page
from .browser import problems as problems
from .browser import site as site
from .conftest import Served, serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

SMALL: dict[str, Any] = {"prompt": "red apple", "width": 64, "height": 64, "num_inference_steps": 3, "seed": 1}
LONG: dict[str, Any] = SMALL | {"num_inference_steps": 1000}

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def hosted(site: str) -> Iterator[Served]:
    """A host that the site's pages may use."""
    with serving(server={"allowed_origins": [site]}) as served:
        yield served


@pytest.fixture
def run(page: "Page", site: str) -> Run:
    """Run the body of an async function with the client's names and the given values, and give what it returns."""
    page.goto(f"{site}/tests/blank.html")

    def run(body: str, **values: Any) -> Any:
        return page.evaluate(f"async ({{{', '.join(values)}}}) => {{{body}}}", values)

    return run


def test_a_picture_forms_with_previews_and_latents(run: Run, hosted: Served) -> None:
    events = run(
        """
        const host = await connect(url);
        const job = host.generate({ ...SMALL, stream: { previews: { format: "png" }, latents: {} } });
        const events = [];
        for await (const event of job) {
            const { image, latents } = event;
            events.push({ ...event, image: image && Array.from(image.data), latents: latents && Array.from(latents.data) });
        }
        host.close();
        return events;
        """,
        url=hosted.url,
        SMALL=SMALL,
    )
    names = [event["event"] for event in events]
    assert names[0] == "accepted"
    assert names[-2:] == ["image", "result"]
