"""`latentwire bench`: figures of a running host, and of one of its own."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from latentwire.server import cli

from .conftest import Served, wait_for


def figures(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    assert set(found["pictures_per_second"]) == {"1", "2"}
    assert all(value > 0 for value in found["pictures_per_second"].values())
    assert found["first_preview_seconds"] > 0
    return found


QUICK = ["--clients", "1,2", "--rounds", "2", "--steps", "2"]


def test_a_running_host(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--url", served.url, "--json", *QUICK]) == 0
    found = figures(capsys.readouterr().out)
    assert (found["model"], found["mode"], found["rounds"]) == ("emoji", "fast", 2)
    wait_for(lambda: not served.host.jobs.all(), "the previewed jobs to be cancelled")


def test_the_table(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--url", served.url, *QUICK]) == 0
    head, titles, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith(f"{served.url}: latentwire ")
    assert titles.split() == ["median", "of", "2", "median", "least", "most"]
    assert [re.sub(r" +[\d. ]+$", "", row) for row in rows] == [
        "pictures/s, 1 client", "pictures/s, 2 clients", "first preview, ms",
    ]  # fmt: skip


def test_a_host_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LATENTWIRE_URL", raising=False)
    token = "a token of sixteen letters"
    options = ["--set", f"server.token={token}", "--set", "engine.max_batch_rows=8", "--device", "cpu"]
    assert cli.main(["bench", "--json", *options, *QUICK]) == 0
    figures(capsys.readouterr().out)


def test_what_cannot_be_measured_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--set", "engine.devise=cpu"]) == 2
    assert "did you mean engine.device?" in capsys.readouterr().err
    assert cli.main(["bench", "--url", "ws://127.0.0.1:1/ws"]) == 1
    for wrong in ("0", "1,x", "-1"):
        with pytest.raises(SystemExit) as end:
            cli.main(["bench", f"--clients={wrong}"])
        assert end.value.code == 2
        assert "wanted a whole number above 0" in capsys.readouterr().err
