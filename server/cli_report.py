"""What `latentwire generate` says while it draws: a bar and previews for a person, or a line of JSON for each event."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..client import Accepted, Image, Preview, RemoteError, Result
from ..client.events import JobMessage, PluginEvent
from ..client.progress import Progress
from ..core.events import to_plain
from .terminal import Screen, kind_of, printable, sheet

if TYPE_CHECKING:
    from PIL import Image as PILImage


def json_line(values: dict[str, Any]) -> None:
    """Print an object as one line; of binary data it has only how much there is."""
    print(json.dumps(values, default=lambda data: {"bytes": len(data)}), flush=True)


class JsonReport:
    """A line of JSON for each event, result and error; with several prompts each has its `number`, from 0."""

    shows_previews = False

    def __init__(self, several: bool) -> None:
        self._several = several

    def take(self, number: int, event: JobMessage, path: Path | None) -> None:
        """Tell of an event; `path` is where its picture was written."""
        if isinstance(event, PluginEvent):
            values = {"event": event.name, **event.values}
        elif isinstance(event, Result):
            known = {name: getattr(event, name) for name in event.__dataclass_fields__}
            values = {"event": "result", **{name: value for name, value in known.items() if value is not None}}
        else:
            values = {"event": event.name, **to_plain(event)}
        self._print(number, values | ({"path": str(path)} if path else {}))

    def failed(self, number: int, error: Exception) -> None:
        """Tell of an error."""
        values: dict[str, Any] = {"event": "error", "code": getattr(error, "code", "bad_input"), "message": str(error)}
        if isinstance(error, RemoteError):
            values |= {"message": error.message, "details": error.details}
        self._print(number, values)

    def close(self) -> None:
        """All is told."""

    def _print(self, number: int, values: dict[str, Any]) -> None:
        json_line({"number": number, **values} if self._several else values)


class TerminalReport:
    """A bar over all steps, and pictures where the terminal can show them: previews too, of a prompt that is alone.

    Args:
        jobs: How many there are for the bar; None for no bar.
    """

    def __init__(self, several: bool, jobs: int | None, preview: str) -> None:
        kind = kind_of(preview, sys.stderr, os.environ)
        self._screen = Screen(kind, sys.stderr) if kind else None
        self._several = several
        self._progress = Progress(jobs) if jobs else None
        self._pictures: dict[int, PILImage.Image] = {}  # of the prompt that is alone
        self._lines: list[str] = []  # below its pictures, when they are finished

    @property
    def shows_previews(self) -> bool:
        """Whether previews are of use."""
        return self._screen is not None and not self._several

    def take(self, number: int, event: JobMessage, path: Path | None) -> None:
        """Tell of an event; `path` is where its picture was written."""
        if self._progress is not None:
            self._progress.take(event)
        if isinstance(event, Accepted):
            self._pictures = {}
        if isinstance(event, Preview | Image) and event.image is not None:
            self._show(event.index, event)
        if isinstance(event, Image):
            self._lines.append(f"{path}  seed {event.seed}")
        if isinstance(event, Result) or self._several or self._screen is None:
            self._say_lines()

    def failed(self, number: int, error: Exception) -> None:
        """Tell of an error of one prompt among several."""
        text = f"{error.message} ({error.code})" if isinstance(error, RemoteError) else str(error)
        self._lines.append(f"latentwire: {f'prompt {number}: ' if self._several else ''}{text}")
        self._say_lines()

    def close(self) -> None:
        """All is told."""
        self._say_lines()
        if self._progress is not None:
            self._progress.__exit__()

    def _show(self, index: int, event: Preview | Image) -> None:
        if self._screen is None or event.image is None or (self._several and isinstance(event, Preview)):
            return
        if self._several:
            self._pictures = {}
        self._pictures[index] = event.image.to_pil()
        picture = sheet([self._pictures[key] for key in sorted(self._pictures)])
        with self._bar_away():
            self._screen.show(picture)

    def _say_lines(self) -> None:
        if self._lines:
            with self._bar_away():
                print(printable("\n".join(self._lines)), file=sys.stderr, flush=True)
            self._lines = []
            self._pictures = {}
            if self._screen is not None:
                self._screen.keep()

    def _bar_away(self) -> Any:
        from tqdm import tqdm

        return tqdm.external_write_mode(file=sys.stderr)
