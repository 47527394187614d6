"""Command `grid.run`: one picture for each value of a request field, or each pair of values of two, side by side.

{"id": 1, "command": "grid.run", "params": {
    "request": {"prompt": "red apple", "seed": 7},
    "columns": {"field": "guidance_scale", "values": [1, 3, 5, 8]},
    "rows": {"field": "scheduler", "values": ["ddim", "euler", "unipc"]}}}
"""

import asyncio
import io
import secrets
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image, ImageDraw, ImageFont
from pydantic import Field

from latentwire import (
    CommandContext,
    Event,
    GenerateRequest,
    Host,
    InvalidParams,
    Picture,
    PluginRegistry,
    Strict,
    Subscribed,
    encode,
    hookimpl,
    validate,
)

LATENTWIRE_API = "1.0"

HEADING = 14  # pixels above each picture


class Settings(Strict):
    """What plugins.toml may set for this plugin."""

    max_cells: int = Field(64, ge=1, le=1000, description="pictures of one grid")
    at_once: int = Field(4, ge=1, le=64, description="jobs of a grid under way at the same time")
    cell_pixels: int = Field(256, ge=32, le=1024, description="longer side of a picture on the sheet")


class Axis(Strict):
    """A field of generate, and the values that it takes."""

    field: str = Field(max_length=100, description="such as guidance_scale; a field of a plugin's as well")
    values: list[Any] = Field(min_length=1, max_length=1000)


class RunParams(Strict):
    """What to make, and what to vary."""

    request: dict[str, Any] = Field(description="params of generate, for one picture; all have the same seed")
    columns: Axis
    rows: Axis | None = None


@dataclass(frozen=True, slots=True)
class GridCell(Event):
    """A picture of the grid is finished; `column` and `row` count from 0."""

    name: ClassVar[str] = "grid_cell"

    column: int
    row: int
    job: str
    image: Picture
    image_id: str


@dataclass(frozen=True, slots=True)
class Cell:
    """A place in the grid, and the request of its picture."""

    column: int
    row: int
    heading: str
    request: dict[str, Any]


class Plugin:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @hookimpl
    def register(self, registry: PluginRegistry) -> None:
        registry.add_command("grid.run", RunParams, self.run)
        registry.add_event(GridCell)

    async def run(self, context: CommandContext, params: RunParams) -> dict[str, Any]:
        """Make a grid of pictures over the values of one or two request fields."""
        cells = _cells(context.host, params, self.settings.max_cells)
        with context.host.subscriptions.open(context.client) as subscription:
            context.emit(Subscribed(subscription.id))
            making = asyncio.create_task(self._make(context, cells))
            making.add_done_callback(lambda _: subscription.end())
            try:
                await subscription.wait()  # until all is made, or the client has enough of it
            finally:
                making.cancel()
                await asyncio.wait([making])
        if making.cancelled():
            return {"subscription": subscription.id, "cells": None, "image_id": None, "image": None}
        pictures = making.result()
        sheet = await asyncio.to_thread(_sheet, cells, pictures, self.settings.cell_pixels)
        plain = {"format": sheet.format, "width": sheet.width, "height": sheet.height, "data": sheet.data}
        image_id = context.host.images.put(sheet.data)
        return {"subscription": subscription.id, "cells": len(cells), "image_id": image_id, "image": plain}

    async def _make(self, context: CommandContext, cells: list[Cell]) -> list[Picture]:
        """The pictures of all cells; where one fails, or is cancelled, the others end with it."""
        room = asyncio.Semaphore(self.settings.at_once)
        pictures: dict[int, Picture] = {}

        async def make(place: int, cell: Cell) -> None:
            def hear(event: Any) -> None:  # from any thread
                if event.name == "image":
                    pictures[place] = event.image
                    context.emit(GridCell(cell.column, cell.row, event.job, event.image, event.image_id))

            async with room:
                await context.host.dispatch("generate", cell.request, context.caller, hear)

        try:
            async with asyncio.TaskGroup() as tasks:
                for place, cell in enumerate(cells):
                    tasks.create_task(make(place, cell))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        return [pictures[place] for place in range(len(cells))]


def _cells(host: Host, params: RunParams, most: int) -> list[Cell]:
    """All places of the grid, row by row, each request checked before the first one runs.

    Raises:
        InvalidParams: there are too many, or one of them is no request for one picture.
    """
    columns, rows = params.columns, params.rows
    count = len(columns.values) * (len(rows.values) if rows else 1)
    if count > most:
        message = f"the grid has {count} pictures, the limit is {most}"
        raise InvalidParams(message, [{"path": ["columns", "values"], "message": message, "got": count}])
    if rows is not None and rows.field == columns.field:
        message = f"both columns and rows vary {rows.field!r}; name another field"
        raise InvalidParams(message, [{"path": ["rows", "field"], "message": message, "got": rows.field}])
    common = {"seed": secrets.randbits(32), "stream": {"steps": False}} | params.request
    cells = []
    for row in range(count // len(columns.values)):
        for column, value in enumerate(columns.values):
            varied, places = {columns.field: value}, {columns.field: ["columns", "values", column]}
            if rows is not None:
                varied[rows.field], places[rows.field] = rows.values[row], ["rows", "values", row]
            request = common | varied
            _check(host, request, places)
            heading = ", ".join(f"{field} {value}" for field, value in varied.items())
            cells.append(Cell(column, row, heading, request))
    return cells


def _check(host: Host, request: dict[str, Any], places: dict[str, list[Any]]) -> None:
    """Refuse a request with the places of its values in the params of the grid."""
    try:
        checked: GenerateRequest = validate(host.request_model, request, "grid.run")
    except InvalidParams as error:
        for detail in error.details:
            first, *rest = detail["path"] or [""]
            detail["path"] = [*places.get(first, ["request", first]), *rest]
        raise
    many = {"num_images": (checked.num_images or 1) > 1, "seed": isinstance(checked.seed, list)}
    others = {"slot": checked.slot is not None, "output_type": checked.output_type != "png"}
    wrong = [field for field, is_wrong in (many | others).items() if is_wrong]
    if wrong:
        message = f"a cell of the grid is one PNG of its own; leave {wrong[0]} out"
        path = places.get(wrong[0], ["request", wrong[0]])
        raise InvalidParams(message, [{"path": path, "message": message, "got": f"{request[wrong[0]]!r:.80}"}])


def _sheet(cells: list[Cell], pictures: list[Picture], side: int) -> Picture:
    """All pictures on one, each below what was varied for it."""
    small = [Image.open(io.BytesIO(picture.data)) for picture in pictures]
    for image in small:
        image.thumbnail((side, side))
    width, height = max(image.width for image in small), max(image.height for image in small) + HEADING
    last = cells[-1]
    sheet = Image.new("RGB", ((last.column + 1) * width, (last.row + 1) * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(HEADING - 4)
    for cell, image in zip(cells, small, strict=True):
        x, y = cell.column * width, cell.row * height
        heading = cell.heading[:200]
        while font.getlength(heading) > width - 4:
            heading = heading[:-1]
        draw.text((x + 2, y), heading, "black", font)
        sheet.paste(image, (x, y + HEADING))
    return encode(sheet, "png")
