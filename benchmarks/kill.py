"""What is left of a busy server's results when it is killed, and how soon the next one is ready.

Each round starts a server on the same folder, looks through it for everything that was acknowledged before, lets
clients draw small pictures as fast as they can, and kills it (SIGKILL) at a random moment. Prints JSON: results that
were acknowledged, of those lost, rows whose file is torn, and the seconds from a start to readiness.

About ten of the starts are `latentwire serve` in a fresh process. The others fork the same server from a process that
has the imports behind it, which leaves time for many more rounds.

    python benchmarks/kill.py [--rounds 20] [--stored 0] [--clients 4] [--seed N]
"""

import argparse
import asyncio
import hashlib
import io
import json
import multiprocessing
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image as PILImage
from prompts import PROMPT

from latentwire.client import Connection, ConnectionLost, Image, connect
from latentwire.core.events import Picture
from latentwire.plugins.results.files import Files
from latentwire.plugins.results.index import NAME
from latentwire.plugins.results.settings import Settings
from latentwire.plugins.results.store import Store

KEY = "of the benchmark's clients"
PRELOADED = [
    "latentwire.core.host",
    "latentwire.server.app",
    "transformers.models.clip.modeling_clip",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
]
SMALL: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 1}
ARGUMENTS = ["serve", "--port", "0", "--device", "cpu"]
LONGEST_S = 1.0  # from the first acknowledged picture to the kill
START_TIMEOUT_S = 120
PICTURE_TIMEOUT_S = 60


@dataclass
class Tally:
    """What has been seen so far; `acknowledged` holds a hash of each picture that a client got, by its result."""

    acknowledged: dict[str, str] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    torn: set[str] = field(default_factory=set)
    rows_checked: int = 0
    integrity: set[str] = field(default_factory=set)
    ready: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})


# Servers.


@contextmanager
def server(folder: Path, fresh: bool, tally: Tally) -> Iterator[tuple[str, int]]:
    """A server that is ready: its socket's address and its process id. It is dead when the block ends."""
    printed = folder / "printed"
    printed.unlink(missing_ok=True)
    begin = time.perf_counter()
    with running(folder, fresh) as pid:
        lines: dict[str, str] = {}
        while "token" not in lines or not is_ready(lines["page"]):
            if time.perf_counter() - begin > START_TIMEOUT_S:
                raise TimeoutError(f"no server is ready after {START_TIMEOUT_S} s, see {folder}/log")
            time.sleep(0.01)
            text = printed.read_text() if printed.exists() else ""
            lines = dict(re.findall(r"^  (page|socket|token) +(\S+)", text, re.M))
        tally.ready[fresh].append(time.perf_counter() - begin)
        yield lines["socket"], pid


@contextmanager
def running(folder: Path, fresh: bool) -> Iterator[int]:
    """The server's process; what it prints goes into files of the folder."""
    if fresh:
        with (folder / "printed").open("w") as printed, (folder / "log").open("a") as log:
            command = [sys.executable, "-m", "latentwire", *ARGUMENTS]
            process = subprocess.Popen(command, cwd=folder, stdout=printed, stderr=log)
        try:
            yield process.pid
        finally:
            process.kill()
            process.wait()
    else:
        forked = multiprocessing.get_context("forkserver").Process(target=serve_here, args=(str(folder),))
        forked.start()
        assert forked.pid is not None
        try:
            yield forked.pid
        finally:
            forked.kill()
            forked.join()


def serve_here(folder: str) -> None:
    """In a forked process: what `latentwire serve` does in a fresh one."""
    from latentwire.server.cli import main

    os.chdir(folder)
    for name, stream in (("printed", 1), ("log", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    main(ARGUMENTS)


def is_ready(page: str) -> bool:
    try:
        with urllib.request.urlopen(f"{page}readyz"):
            return True
    except (urllib.error.URLError, ConnectionError):
        return False


# A round.


@dataclass(frozen=True)
class Kill:
    """When to kill: so long after the first acknowledged picture, or at once when the next one after that comes.

    The latter is the moment at which a host that speaks too soon is caught.
    """

    after_s: float
    on_acknowledgement: bool


async def draw_until_killed(socket: str, pid: int, clients: int, kill: Kill, tally: Tally) -> None:
    """Clients draw one picture after the other until the server is killed."""
    acknowledged = asyncio.Event()

    async def draw(seed: int) -> None:
        with suppress(ConnectionLost):
            async with connect(socket, key=KEY, resume=False) as host:
                while True:
                    fields = SMALL | {"num_images": 1 + seed % 2}
                    async for event in host.generate(PROMPT, seed=seed, steps=False, **fields):
                        if isinstance(event, Image) and event.result and event.image:
                            tally.acknowledged[event.result] = hashlib.sha256(event.image.data).hexdigest()
                            acknowledged.set()

    drawing = [asyncio.create_task(draw(seed)) for seed in range(clients)]
    async with asyncio.timeout(PICTURE_TIMEOUT_S):
        await acknowledged.wait()
    await asyncio.sleep(kill.after_s)
    if kill.on_acknowledgement:
        acknowledged.clear()
        async with asyncio.timeout(PICTURE_TIMEOUT_S):
            await acknowledged.wait()
    os.kill(pid, signal.SIGKILL)
    await asyncio.gather(*drawing)


async def ask_for(socket: str, results: list[str], tally: Tally) -> None:
    """Ask a server for results that its predecessors acknowledged."""

    async def one(host: Connection, result: str) -> None:
        try:
            picture = (await host.call("results.get", id=result))["image"]["data"]
        except Exception as error:
            print(f"lost: {error}", file=sys.stderr)
            tally.lost.add(result)
            return
        if hashlib.sha256(picture).hexdigest() != tally.acknowledged[result] or not is_whole(picture):
            tally.lost.add(result)

    async with connect(socket, key=KEY) as host:
        for result in results:
            await one(host, result)


def check_folder(folder: Path, tally: Tally, everything: bool = False) -> None:
    """Look at the rows that came since the last time, or at all of them: whether each has its whole file."""
    files = Files(folder)
    with closing(sqlite3.connect(folder / NAME)) as connection:
        tally.integrity.update(text for (text,) in connection.execute("PRAGMA integrity_check"))
        begin = 0 if everything else tally.rows_checked
        rows = connection.execute("SELECT number, id, bytes FROM results WHERE number > ?", [begin]).fetchall()
    for number, result, size in rows:
        data = files.read(result) if files.path(result).exists() else b""
        if len(data) != size or not is_whole(data):
            tally.torn.add(result)
        elif result in tally.acknowledged and hashlib.sha256(data).hexdigest() != tally.acknowledged[result]:
            tally.lost.add(result)
        tally.rows_checked = max(tally.rows_checked, number)
    if everything:
        tally.lost |= tally.acknowledged.keys() - {result for _, result, _ in rows}


def is_whole(data: bytes) -> bool:
    """Whether a PNG can be read to its last pixel."""
    try:
        with PILImage.open(io.BytesIO(data)) as picture:
            picture.load()
        return data.endswith(b"IEND\xaeB`\x82")
    except Exception:
        return False


# The whole.


def fill(folder: Path, count: int) -> None:
    """Store so many pictures."""
    store = Store(folder, Settings(folder=folder))
    picture = io.BytesIO()
    PILImage.effect_noise((64, 64), 80).convert("RGB").save(picture, "png")
    for number in range(count):
        made = {"prompt": f"{PROMPT} {number}", "negative_prompt": "", "model": "emoji", "seed": number}
        store.keep(Picture("png", 64, 64, picture.getvalue()), made, "filled", 0, "filler")


def startup_ms(folder: Path) -> dict[str, float]:
    """What the plugin does when a host starts: open the index, and look for strays beside the start."""
    begin = time.perf_counter()
    store = Store(folder, Settings(folder=folder))
    opened = time.perf_counter()
    store.tidy()
    swept = time.perf_counter()
    return {"open": round(1000 * (opened - begin), 2), "sweep_in_background": round(1000 * (swept - opened), 2)}


def seconds(times: list[float]) -> dict[str, float | int]:
    if not times:
        return {"starts": 0}
    return {"starts": len(times), "median": round(median(times), 3), "max": round(max(times), 3)}


def run(folder: Path, rounds: int, stored: int, clients: int, seed: int) -> dict[str, Any]:
    """All rounds, and a last look at everything by a fresh server that nobody kills."""
    results = folder / "results"
    (folder / "plugins.toml").write_text('[[plugins]]\nname = "results"\nsettings = { folder = "results" }\n')
    fill(results, stored)
    # what the killed ones leave of a progress bar's lock is swept up at the end; nobody needs to hear of it
    sys.warnoptions.append("ignore::UserWarning:multiprocessing.resource_tracker")
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    moments, tally, new = random.Random(seed), Tally(), list[str]()
    for number in range(rounds):
        with server(folder, number % max(1, rounds // 10) == 0, tally) as (socket, pid):
            asyncio.run(ask_for(socket, new, tally))
            check_folder(results, tally)
            before = set(tally.acknowledged)
            kill = Kill(moments.uniform(0, LONGEST_S), on_acknowledgement=number % 2 == 0)
            asyncio.run(draw_until_killed(socket, pid, clients, kill, tally))
            new = list(tally.acknowledged.keys() - before)
        print(f"round {number + 1}: {len(new)} acknowledged, {len(tally.lost)} lost in all", file=sys.stderr)
    with server(folder, True, tally) as (socket, _):
        asyncio.run(ask_for(socket, new, tally))
        check_folder(results, tally, everything=True)
    with closing(sqlite3.connect(results / NAME)) as connection:
        (rows,) = connection.execute("SELECT count(*) FROM results").fetchone()
    return {
        "benchmark": "kill",
        "rounds": rounds,
        "seed": seed,
        "stored_before": stored,
        "acknowledged": len(tally.acknowledged),
        "lost": len(tally.lost),
        "torn": len(tally.torn),
        "rows": rows,
        "rows_never_acknowledged": rows - stored - len(tally.acknowledged),
        "files_without_a_row": len(list(results.glob("??/*"))) - rows,
        "integrity_check": sorted(tally.integrity),
        "errors_in_the_log": len(re.findall(r"^ERROR|Traceback", (folder / "log").read_text(), re.M)),
        "ready_seconds": seconds(tally.ready[True]),
        "ready_seconds_without_imports": seconds(tally.ready[False]),
        "startup_ms_of_the_plugin": startup_ms(results),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--stored", type=int, default=0, help="pictures that are there before the first round")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the moments")
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(Path(folder), options.rounds, options.stored, options.clients, options.seed), indent=2))


if __name__ == "__main__":
    main()
