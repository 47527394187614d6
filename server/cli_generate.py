"""The command `latentwire generate`: pictures of one prompt or many, and again when a file changes."""

import argparse
import asyncio
import random
import sys
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import cli_request
from .cli_request import BadInput
from .terminal import CHOICES

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..client import Connection
    from ..client.events import JobMessage
    from .cli_report import JsonReport, TerminalReport

    AddParser = Callable[..., argparse.ArgumentParser]

AT_ONCE = 8  # of many prompts; more share no more forwards
PREVIEW_PIXELS = 256  # of one that a terminal shows
PREVIEWS_A_SECOND = 8.0


def add_generate(add_parser: "AddParser", client: argparse.ArgumentParser) -> None:
    """Add the parser of `latentwire generate`."""
    parser = add_parser("generate", parents=[client], help="make a picture from a prompt")
    parser.add_argument("prompt", nargs="?")
    parser.add_argument(
        "--from", dest="prompts_file", metavar="FILE", help="one prompt a line, - for standard input; numbered outputs"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("latentwire.png"), metavar="FILE", help="PNG (default: %(default)s)"
    )
    parser.add_argument("--previews", type=Path, metavar="DIR", help="also write every preview there")
    parser.add_argument(
        "--preview", choices=CHOICES, default="auto", help="how the terminal shows pictures (default: %(default)s)"
    )
    parser.add_argument("--watch", action="store_true", help="again whenever a file that was named changes")
    parser.add_argument("--json", action="store_true", help="print each event and result as a line of JSON")
    cli_request.add_request(parser)


async def generate(host: "Connection", options: argparse.Namespace) -> int:
    """Make the pictures and write them; the exit status."""
    from .cli_report import JsonReport, TerminalReport

    prompts = cli_request.prompts_of(options)
    several = options.prompts_file is not None
    jobs = None if options.watch else len(prompts)
    report = JsonReport(several) if options.json else TerminalReport(several, jobs, options.preview)
    try:
        drawing = Drawing(host, options, report, len(prompts))
        if options.watch:
            await _watch(drawing, options, prompts)
            return 0
        return await _all(drawing, options, prompts)
    finally:
        report.close()


class Drawing:
    """Makes pictures of single prompts, and writes them to the files that the options say."""

    def __init__(
        self, host: "Connection", options: argparse.Namespace, report: "JsonReport | TerminalReport", count: int
    ) -> None:
        self.host = host
        self.report = report
        self._options = options
        self._digits = len(str(count - 1))
        for folder in (options.output.parent, options.previews):
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)

    async def draw(self, number: int, prompt: str, fields: dict[str, Any]) -> None:
        """Make the pictures of one prompt.

        Raises:
            RemoteError: the host refused it, or it failed.
        """
        async with aclosing(self.host.generate(prompt, **self._streaming(fields))) as events:
            async for event in events:
                self.report.take(number, event, self._write(number, event))

    def _streaming(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields, and what streams back: what `--field stream...` says, and what is of use here."""
        stream = dict(fields.get("stream") or {})
        previews = stream.get("previews") or {}
        if not isinstance(previews, dict) or not isinstance(fields.get("stream", {}), dict):
            raise BadInput("--field stream.previews: wanted its options, such as stream.previews.every=5")
        wanted = stream.get("previews") is not None
        if self._options.previews is not None:
            wanted = True
        elif self.report.shows_previews:
            wanted = True
            previews = {"size": PREVIEW_PIXELS, "max_rate": PREVIEWS_A_SECOND, **previews}
        stream["previews"] = previews if wanted else False
        return {name: value for name, value in fields.items() if name != "stream"} | stream

    def _write(self, number: int, event: "JobMessage") -> Path | None:
        """Write what an event brings to its file."""
        from ..client import Image, Preview

        if isinstance(event, Preview) and self._options.previews is not None:
            name = f"{event.index}-{event.step:03d}.{event.image.format}"
            path = _within(self._options.previews, f"{number:0{self._digits}}-{name}" if self._numbered else name)
            path.write_bytes(event.image.data)
            return path
        if isinstance(event, Image):
            path = self._output(number, event.index)
            if event.image is not None:
                path.write_bytes(event.image.data)
            elif event.latents is not None:
                import numpy as np

                path = path.with_suffix(".npy")
                tensor = event.latents
                np.save(path, np.frombuffer(tensor.data, np.dtype(tensor.dtype)).reshape(tensor.shape))
            return path
        return None

    @property
    def _numbered(self) -> bool:
        return self._options.prompts_file is not None

    def _output(self, number: int, index: int) -> Path:
        stem = self._options.output.stem
        if self._numbered:
            stem += f"-{number:0{self._digits}}"
        seeds = self._options.seed
        count = self._options.num_images or (len(seeds) if isinstance(seeds, list) else 1)
        if count > 1:
            stem += f"-{index}"
        return _within(self._options.output.parent, stem + self._options.output.suffix)


def _within(folder: Path, name: str) -> Path:
    """A file of the folder itself: parts of its name come from the host.

    Raises:
        RuntimeError: the name leads elsewhere.
    """
    if Path(name).name != name:
        raise RuntimeError(f"the host numbers a picture such that its file would be {name!r:.80}")
    return folder / name


async def _all(drawing: Drawing, options: argparse.Namespace, prompts: list[str]) -> int:
    """Each prompt once. One alone raises what went wrong; of several each tells, and the others go on."""
    from ..client import RemoteError

    if options.slot is not None and len(prompts) > 1:
        raise BadInput(
            "with --slot each prompt would take the place of the one before; leave it out, or name one prompt"
        )
    fields = await cli_request.fields_of(drawing.host, options)
    places = asyncio.Semaphore(min(AT_ONCE, drawing.host.hello["limits"]["jobs"]))
    failed = 0

    async def one(number: int, prompt: str) -> None:
        nonlocal failed
        async with places:
            try:
                await drawing.draw(number, prompt, fields)
            except RemoteError as error:
                if options.json or len(prompts) > 1:
                    drawing.report.failed(number, error)
                if len(prompts) == 1:
                    raise
                failed += 1

    await asyncio.gather(*(one(number, prompt) for number, prompt in enumerate(prompts)))
    return 1 if failed else 0


async def _watch(drawing: Drawing, options: argparse.Namespace, prompts: list[str]) -> None:
    """Each prompt now, and again whenever a file changes, in a live slot: the newest takes the older one's place."""
    from watchfiles import awatch

    from ..client import RemoteError

    files, rereads = _watched(options)
    if options.seed is None:
        options.seed = random.randrange(2**32)  # the change alone is what should be seen
    sent: dict[int, tuple[str, dict[str, Any]]] = {}

    async def one(number: int, prompt: str, fields: dict[str, Any]) -> None:
        try:
            await drawing.draw(number, prompt, fields)
        except RemoteError as error:
            if error.code != "superseded":
                drawing.report.failed(number, error)

    async def again(tasks: asyncio.TaskGroup) -> None:
        try:
            fields = await cli_request.fields_of(drawing.host, options)
            for number, prompt in enumerate(cli_request.prompts_of(options) if rereads else prompts):
                wanted = (prompt, {**fields, "slot": f"{options.slot or 'watch'}-{number}"})
                if sent.get(number) != wanted:
                    sent[number] = wanted
                    tasks.create_task(one(number, *wanted))
        except (BadInput, RemoteError) as error:  # half saved, say; the next change tries again
            drawing.report.failed(0, error)

    try:
        async with asyncio.TaskGroup() as tasks:
            folders = {file.parent for file in files}
            changes = awatch(*folders, watch_filter=lambda _, file: Path(file) in files, recursive=False, step=20)
            first_change = asyncio.ensure_future(anext(changes))
            await asyncio.sleep(0)  # from here on no change is missed
            await again(tasks)
            if not options.json:
                print("watching; Ctrl-C ends", file=sys.stderr)
            await first_change
            await again(tasks)
            async for _ in changes:
                await again(tasks)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


def _watched(options: argparse.Namespace) -> tuple[set[Path], bool]:
    """The files to watch, and whether the prompts' is one of them.

    Raises:
        BadInput: there is none.
    """
    files = {file.resolve() for file in cli_request.picture_files(options)}
    rereads = options.prompts_file not in (None, "-")
    if rereads:
        files.add(Path(options.prompts_file).resolve())
    if not files:
        raise BadInput("--watch needs a file to watch: --from, --control, --init, --mask or --field NAME=@FILE")
    return files, rereads
