"""What is written of real jobs, and that a disk that hangs holds nobody up."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentwire import Host, InvalidParams
from latentwire.testing import Generated, assert_same_picture, call, generate, plugin

StartHost = Callable[..., Host]


def rows(folder: Path, made: Generated) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{made.result['job']}.jsonl").read_text().splitlines()]


def counts(host: Host, steps: int) -> dict[str, int]:
    """The counts once they tell of so many steps."""
    deadline = time.monotonic() + 30
    while sum((told := call(host, "latents_log.counts")).values()) < steps:
        assert time.monotonic() < deadline, told
        time.sleep(0.01)
    return dict(told)


def test_each_step_has_its_line(latentwire_host: StartHost, tmp_path: Path) -> None:
    host = latentwire_host(plugin("latents_log", folder=str(tmp_path / "new" / "latents")))
    stream = {"latents": {"dtype": "float32"}}
    made = generate(host, num_inference_steps=3, num_images=2, latents_log={}, stream=stream)
    assert counts(host, 6) == {"written": 6, "left_out": 0, "failed": 0}
    events = made.events.named("latents")
    assert len(events) == 6
    written = {(row["index"], row["step"]): row for row in rows(tmp_path / "new" / "latents", made)}
    for event in events:
        row = written[event.index, event.step]
        channels = np.frombuffer(event.latents.data, "<f4").reshape(4, -1)
        for name in ("mean", "std", "min", "max"):
            assert row[name] == pytest.approx(getattr(channels, name)(axis=1), abs=1e-5)
    steps = {(event.index, event.step): event for event in made.events.named("step")}
    assert {key: row["timestep"] for key, row in written.items()} == {key: step.timestep for key, step in steps.items()}


@pytest.mark.parametrize(("every", "steps"), [(2, [2, 4, 5]), (5, [5]), (9, [5])])
def test_every_so_many_steps_and_the_last(
    latentwire_host: StartHost, tmp_path: Path, every: int, steps: list[int]
) -> None:
    host = latentwire_host(plugin("latents_log", folder=str(tmp_path)))
    made = generate(host, num_inference_steps=5, latents_log={"every": every})
    counts(host, len(steps))
    assert [row["step"] for row in rows(tmp_path, made)] == steps


def test_nothing_is_written_of_a_job_that_does_not_ask(latentwire_host: StartHost, tmp_path: Path) -> None:
    host = latentwire_host(plugin("latents_log", folder=str(tmp_path)))
    plain = generate(host)
    logged = generate(host, latents_log={})
    counts(host, 2)
    assert [file.stem for file in tmp_path.iterdir()] == [logged.result["job"]]
    assert_same_picture(logged.picture, plain.picture)


def test_a_disk_that_hangs_holds_no_job_up_and_what_does_not_fit_is_counted(
    latentwire_host: StartHost, tmp_path: Path
) -> None:
    host = latentwire_host(plugin("latents_log", folder=str(tmp_path), waiting=2))
    instance: Any = host.registry.commands["latents_log.counts"].handler.__self__  # type: ignore[attr-defined]
    awake = threading.Event()
    instance._thread.submit(awake.wait)
    try:
        made = generate(host, num_inference_steps=6, latents_log={})  # it comes to its end meanwhile
        assert call(host, "latents_log.counts") == {"written": 0, "left_out": 4, "failed": 0}
    finally:
        awake.set()
    assert counts(host, 6) == {"written": 2, "left_out": 4, "failed": 0}
    assert [row["step"] for row in rows(tmp_path, made)] == [1, 2]
    generate(host, num_inference_steps=2, latents_log={})  # there is room again
    assert counts(host, 8)["written"] == 4


def test_the_files_keep_below_their_bound(latentwire_host: StartHost, tmp_path: Path) -> None:
    (tmp_path / "earlier.jsonl").write_bytes(bytes((1 << 20) - 600))  # room for one line or two
    host = latentwire_host(plugin("latents_log", folder=str(tmp_path), max_mib=1))
    generate(host, num_inference_steps=6, latents_log={})
    told = counts(host, 6)
    assert told["written"] + told["left_out"] == 6
    assert 1 <= told["written"] <= 2
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 1 << 20


def test_a_folder_that_is_gone_fails_no_job(latentwire_host: StartHost, tmp_path: Path) -> None:
    folder = tmp_path / "latents"
    host = latentwire_host(plugin("latents_log", folder=str(folder)))
    shutil.rmtree(folder)
    assert generate(host, latents_log={}).result["images"] == 1
    assert counts(host, 2) == {"written": 0, "left_out": 0, "failed": 2}


def test_without_a_folder_the_field_is_refused_with_its_place(latentwire_host: StartHost) -> None:
    host = latentwire_host("latents_log")
    with pytest.raises(InvalidParams, match="no folder") as caught:
        generate(host, latents_log={})
    assert caught.value.details[0]["path"] == ["latents_log"]
    assert generate(host).result["images"] == 1
