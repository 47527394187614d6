"""A disk that is really full: pictures arrive, say that they are not stored, and are again once there is room."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ..conftest import serving
from ..wire import SMALL, Wire, in_loop, wire

SIZE = 512 << 10


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system takes root; test_results.py has a limit of the process in its place")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> Path:
    """Take all the room that there is."""
    file = folder / "filler"
    with file.open("wb", buffering=0) as stream, suppress(OSError):
        while stream.write(b"x" * 4096):
            pass
    assert shutil.disk_usage(folder).free == 0
    return file


async def image(client: Wire, **fields: Any) -> dict[str, Any]:
    await client.send(1, "generate", **SMALL | fields)
    messages = await client.all_of(1)
    assert messages[-1]["event"] == "result", messages[-1]
    (found,) = [message for message in messages if message["event"] == "image"]
    return found


@pytest.mark.parametrize("full_from_the_start", [False, True])
def test_a_full_disk_costs_no_picture_and_storing_resumes(small_disk: Path, full_from_the_start: bool) -> None:
    plugins = [{"name": "results", "settings": {"folder": small_disk / "results"}}]
    filler = fill(small_disk) if full_from_the_start else None
    with serving(plugins=plugins) as served:

        @in_loop
        async def talk() -> None:
            nonlocal filler
            async with wire(served.url) as client:
                kept = []
                if filler is None:
                    before = await image(client)
                    assert before["unstored"] is None
                    kept.append(before["result"])
                    filler = fill(small_disk)
                pictures = [await image(client, seed=seed, mode="exact") for seed in range(4)]
                assert [picture["result"] for picture in pictures] == [None] * 4
                for picture in pictures:
                    assert "No space left" in picture["unstored"] or "full" in picture["unstored"], picture["unstored"]
                    assert str(small_disk) not in picture["unstored"]
                    assert picture["image"]["data"].startswith(b"\x89PNG")
                filler.unlink()
                after = [await image(client, seed=seed, mode="exact") for seed in range(4)]
                assert [picture["unstored"] for picture in after] == [None] * 4
                assert [picture["image"]["data"] for picture in after] == [p["image"]["data"] for p in pictures]
                kept += [picture["result"] for picture in after]
                listed = await client.ask("results.list")
                assert [result["id"] for result in listed["results"]] == kept[::-1]
                plugins_now = {row["name"]: row["state"] for row in (await client.ask("plugins.list"))["plugins"]}
                assert plugins_now["results"] == "loaded"  # the disk's fault, not its own

        talk()
    assert not list(small_disk.rglob("*.part"))
