"""`latentwire doctor`, as a process: what it finds well, and what it finds broken and says to do."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latentwire.core.settings import EMBEDDED_MODEL
from latentwire.server import cli, cli_doctor

from .conftest import Served

Doctor = Callable[..., tuple[int, list[dict[str, Any]]]]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, settings: str = "") -> tuple[int, list[dict[str, Any]]]:
        if settings:
            Path("plugins.toml").write_text(f"discover = false\n{settings}")
        status = cli.main(["doctor", "--json", "--device", "cpu", "--port", "0", *arguments])
        return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def broken(findings: list[dict[str, Any]]) -> list[str]:
    """What is broken; each says what to do."""
    assert all(finding["advice"] for finding in findings if not finding["ok"])
    return [finding["check"] for finding in findings if not finding["ok"]]


def test_all_is_well_and_nothing_is_left_behind(doctor: Doctor, tmp_path: Path) -> None:
    settings = '[[plugins]]\nname = "results"\nsettings = { folder = "results" }\n'
    status, findings = doctor(settings=settings)
    assert (status, broken(findings)) == (0, [])
    found = {finding["check"]: finding["found"] for finding in findings}
    assert found.keys() >= {"python", "torch", "diffusers", "cpu", "settings", "port", "root", "model", "picture"}
    assert str(tmp_path / "plugins.toml") in found["settings"]
    assert "controlnets, emoji, loras" in found["root"]
    assert found["picture"].startswith("128x128 of emoji in ")
    assert {row["found"].split()[0] for row in findings if row["check"] == "plugin"} >= {"lora", "results"}
    assert [file.name for file in tmp_path.iterdir()] == ["plugins.toml"]


def test_what_is_broken_is_told_with_what_to_do(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "tint.py").write_text("raise ValueError('no tint today')\n")
    shutil.copytree(EMBEDDED_MODEL, tmp_path / "half")
    (tmp_path / "half" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    settings = """
[files]
roots = ["none"]
[models.half]
path = "half"
[models.gone]
path = "gone.safetensors"
[[plugins]]
name = "tint"
path = "tint.py"
"""
    status, findings = doctor(settings=settings)
    assert (status, broken(findings)) == (1, ["root", "model", "model", "plugin"])
    texts = [finding["found"] for finding in findings if not finding["ok"]]
    assert texts[0] == f"{tmp_path}/none is no folder"
    assert texts[1] == f"gone: there is no {tmp_path}/gone.safetensors"
    assert texts[2] == f"half: unet holds no .safetensors weights, in {tmp_path}/half"
    assert "ValueError: no tint today" in texts[3]
    assert findings[-1]["check"] == "picture"  # the default model is well


def test_wrong_settings_are_told(doctor: Doctor) -> None:
    status, findings = doctor(settings="[server]\nprot = 1")
    assert (status, broken(findings)) == (1, ["settings"])
    assert "unknown key 'server.prot', did you mean 'port'?" in findings[-1]["found"]
    status, findings = doctor(settings='[engine]\nmode = "x"')
    assert status == 1


def test_a_model_that_cannot_draw_is_told(doctor: Doctor, tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED_MODEL, tmp_path / "broken")
    (tmp_path / "broken" / "unet" / "config.json").write_text("{")
    settings = '[defaults]\nmodel = "broken"\n[models.broken]\npath = "broken"\n'
    status, findings = doctor(settings=settings)
    assert (status, broken(findings)) == (1, ["picture"])
    assert "(model_load_failed)" in findings[-1]["found"]


def test_the_port(served: Served) -> None:
    settings = cli_doctor_settings(int(served.http.rpartition(":")[2]))
    finding = cli_doctor._port(settings)
    assert (finding.ok, finding.found.partition(" is ")[2]) == (True, "in use: a host is running there")
    with socket.create_server(("127.0.0.1", 0)) as other:
        finding = cli_doctor._port(cli_doctor_settings(other.getsockname()[1]))
    assert not finding.ok
    assert "Address already in use" in finding.found


def cli_doctor_settings(port: int) -> Any:
    from latentwire import Settings

    return Settings.model_validate({"server": {"port": port}})


def test_for_a_person_it_is_a_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plugins.toml").write_text("[server")
    assert cli.main(["doctor"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("ok    latentwire")
    assert printed[-3].startswith("FAIL  settings   cannot read plugins.toml")
    assert printed[-2].startswith("                 -> correct it")
    assert printed[-1] == "1 of these must be mended"
