"""Grids of real pictures: each cell is the picture that its request makes, and ends with the others."""

import asyncio
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentwire import Host, InvalidParams, LatentwireError
from latentwire.testing import Events, assert_same_picture, call, fault_in, generate, plugin, running_host

REQUEST = {"prompt": "red apple", "num_inference_steps": 2, "seed": 1, "mode": "exact"}
SCALES = {"field": "guidance_scale", "values": [1, 4.0, 8.0]}
SEEDS = {"field": "seed", "values": [1, 2]}
PROMPTS = {"field": "prompt", "values": ["red apple", "green frog"]}
LONG = REQUEST | {"num_inference_steps": 1000}


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with running_host(plugin("grid", max_cells=6)) as host:
        yield host


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_each_cell_is_the_picture_of_its_request(host: Host) -> None:
    events = Events()
    result = call(host, "grid.run", {"request": REQUEST, "columns": SCALES, "rows": PROMPTS}, emit=events)
    cells = {(event.column, event.row): event for event in events.named("grid_cell")}
    assert sorted(cells) == [(column, row) for column in range(3) for row in range(2)]
    assert result["cells"] == 6
    for (column, row), cell in cells.items():
        fields = {"guidance_scale": SCALES["values"][column]}
        assert_same_picture(opened(cell.image.data), generate(host, PROMPTS["values"][row], **fields).picture)
    assert len({cell.job for cell in cells.values()}) == 6


def test_the_sheet_holds_them_all_in_their_places(host: Host) -> None:
    events = Events()
    result = call(host, "grid.run", {"request": REQUEST, "columns": SCALES, "rows": PROMPTS}, emit=events)
    sheet = opened(result["image"]["data"])
    assert sheet.size == (result["image"]["width"], result["image"]["height"]) == (3 * 128, 2 * (128 + 14))
    for cell in events.named("grid_cell"):
        x, y = cell.column * 128, cell.row * 142
        assert_same_picture(sheet.crop((x, y + 14, x + 128, y + 142)), opened(cell.image.data))
        heading = np.asarray(sheet.crop((x, y, x + 128, y + 14)))
        assert heading.min() < 128  # there are letters
        assert heading.max() == 255
    assert host.images.get(result["image_id"]) == result["image"]["data"]


def test_one_axis_is_one_row_and_all_have_the_seed_that_was_drawn(host: Host) -> None:
    events = Events()
    request = {"prompt": "red apple", "num_inference_steps": 1}
    result = call(
        host, "grid.run", {"request": request, "columns": {"field": "width", "values": [64, 128]}}, emit=events
    )
    assert result["cells"] == 2
    assert {opened(event.image.data).size for event in events.named("grid_cell")} == {(64, 128), (128, 128)}
    assert events.names[0] == "subscribed"
    assert set(events.names) == {"subscribed", "grid_cell"}
    first, second = (opened(host.images.get(event.image_id)).info["latentwire"] for event in events.named("grid_cell"))
    assert first.partition('"seed": ')[2].partition(",")[0] == second.partition('"seed": ')[2].partition(",")[0]


@pytest.mark.parametrize(
    ("params", "path", "says"),
    [
        ({"columns": SCALES | {"values": [1] * 7}}, ["columns", "values"], "7 pictures, the limit is 6"),
        ({"columns": SEEDS, "rows": SEEDS}, ["rows", "field"], "both columns and rows"),
        ({"columns": SCALES | {"values": [1, -1]}}, ["columns", "values", 1], "greater than or equal"),
        ({"columns": {"field": "guidance", "values": [1]}}, ["columns", "values", 0], "did you mean"),
        ({"columns": PROMPTS, "rows": SCALES | {"values": ["x"]}}, ["rows", "values", 0], "valid number"),
        ({"columns": SCALES, "request": {}}, ["request", "prompt"], "required"),
        ({"columns": SCALES, "request": REQUEST | {"num_images": 2}}, ["request", "num_images"], "one PNG"),
        ({"columns": SCALES, "request": REQUEST | {"slot": "a"}}, ["request", "slot"], "one PNG"),
        ({"columns": {"field": "seed", "values": [[1, 2]]}}, ["columns", "values", 0], "one PNG"),
        ({"columns": {"field": "output_type", "values": ["png", "latent"]}}, ["columns", "values", 1], "one PNG"),
        ({"columns": {"field": "seed", "values": []}}, ["columns", "values"], "at least 1"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_runs(
    host: Host, params: dict[str, Any], path: list[Any], says: str
) -> None:
    events = Events()
    with pytest.raises(InvalidParams) as caught:
        call(host, "grid.run", {"request": REQUEST} | params, emit=events)
    assert caught.value.details[0]["path"] == path
    assert says in caught.value.message
    assert events.names == []
    assert call(host, "jobs") == {"jobs": []}


def started(host: Host, params: dict[str, Any], then: Callable[[Events], Any]) -> tuple[Any, list[Any]]:
    """Begin a grid, do something once its jobs are there; its end, and the jobs that are left."""

    async def run() -> tuple[Any, list[Any]]:
        events = Events()
        running = asyncio.create_task(host.dispatch("grid.run", params, "test", events))
        while len(host.jobs.all("test")) < 2:
            assert not running.done()
            await asyncio.sleep(0.01)
        doing = then(events)
        if doing == "leave":
            running.cancel()
        else:
            await host.dispatch(*doing, "test", events)
        (outcome,) = await asyncio.gather(running, return_exceptions=True)
        return outcome, host.jobs.all("test")

    return asyncio.run(run())


LONG_GRID = {"request": LONG, "columns": SCALES}


def test_it_ends_with_all_its_jobs_when_the_client_has_enough(host: Host) -> None:
    result, jobs = started(
        host,
        LONG_GRID,
        lambda events: ("unsubscribe", {"subscription": events.named("subscribed")[0].subscription}),
    )
    assert result["image"] is None
    assert jobs == []


def test_it_ends_with_all_its_jobs_when_one_of_them_is_cancelled(host: Host) -> None:
    job = lambda _: ("cancel", {"job": host.jobs.all("test")[0].id})  # noqa: E731
    error, jobs = started(host, LONG_GRID, job)
    assert isinstance(error, LatentwireError)
    assert error.code == "cancelled"
    assert jobs == []


def test_it_ends_with_all_its_jobs_when_the_client_goes_away(host: Host) -> None:
    error, jobs = started(host, LONG_GRID, lambda _: "leave")
    assert isinstance(error, asyncio.CancelledError)
    assert jobs == []


def test_one_that_fails_ends_the_grid_with_its_own_error(host: Host) -> None:
    with fault_in(host, "unet", ValueError("on purpose"), at=3), pytest.raises(LatentwireError) as caught:
        call(host, "grid.run", {"request": REQUEST, "columns": SCALES})
    assert caught.value.code == "job_failed"
    assert call(host, "jobs") == {"jobs": []}
    assert call(host, "grid.run", {"request": REQUEST, "columns": SCALES})["cells"] == 3


def test_no_more_run_at_once_than_the_settings_say(latentwire_host: Callable[..., Host]) -> None:
    host = latentwire_host(plugin("grid", at_once=1))
    most = 0

    async def run() -> None:
        nonlocal most
        running = asyncio.create_task(
            host.dispatch("grid.run", {"request": REQUEST, "columns": SCALES}, "test", Events())
        )
        while not running.done():
            most = max(most, len(host.jobs.all("test")))
            await asyncio.sleep(0.001)

    asyncio.run(run())
    assert most == 1


def test_a_client_gets_the_cells_as_they_come(latentwire_client: Callable[..., Any]) -> None:
    client = latentwire_client("grid")
    events = list(client.subscribe("grid.run", request=REQUEST, columns=SCALES))
    assert [event.name for event in events] == ["grid_cell"] * 3
    assert sorted(event.values["column"] for event in events) == [0, 1, 2]
    assert opened(events[0].values["image"]["data"]).size == (128, 128)
    assert client.call("grid.run", request=REQUEST, columns=SCALES)["image"]["format"] == "png"
    assert "grid_cell" in client.call("describe")["events"]
