"""docs/plugins/first.md, done as a newcomer does it: its commands run, its changes made, in a fresh environment."""

import os
import re
import signal
import site
import subprocess
import time
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

from .conftest import wait_for
from .pages import ROOT, blocks

PAGE = (ROOT / "docs" / "plugins" / "first.md").read_text(encoding="utf-8")

UPLOAD = ["pip install build twine", "twine upload dist/*"]  # these need the network


@dataclass
class Terminal:
    """A shell in an environment of its own, in which what this Python has is installed, too."""

    folder: Path
    environment: dict[str, str]
    begun: float

    def start(self, line: str) -> "subprocess.Popen[str]":
        command = ["sh", "-ec", f"exec {line}"]
        with (self.folder / "log").open("w") as log:
            return subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def run(self, lines: str) -> str:
        done = subprocess.run(
            ["sh", "-ec", lines], cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def change(self, file: str, block: str) -> None:
        """Do what a block of the page marks with `+` and `-`."""
        lines = block.splitlines(keepends=True)
        old, new = ("".join(line[1:] for line in lines if line[0] in kind) for kind in (" -", " +"))
        text = (self.folder / file).read_text()
        assert text.count(old) == 1
        (self.folder / file).write_text(text.replace(old, new))


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    venv.create(tmp_path / "env", symlinks=True)
    (packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    adding = "; ".join(f"site.addsitedir({folder!r})" for folder in site.getsitepackages())
    (packages / "outer.pth").write_text(f"import site; {adding}\n")
    programs = tmp_path / "env" / "bin"
    for name, command in {"latentwire": "-m latentwire", "pip": "-m pip"}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{programs}/python" {command} "$@"\n')
        (programs / name).chmod(0o755)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LATENTWIRE_")}
    return Terminal(
        tmp_path,
        {
            **inherited,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # pip means by this that there is to be none
            "LATENTWIRE_SERVER_PORT": "0",
            "LATENTWIRE_ENGINE_DEVICE": "cpu",
        },
        time.monotonic(),
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_page_leads_from_nothing_to_a_package(terminal: Terminal) -> None:
    write, serve, look, test, check, publish = blocks(PAGE, "sh")
    in_hook, in_test = blocks(PAGE, "diff")
    (script,) = blocks(PAGE, "py")

    assert "3 passed" in terminal.run(write)
    print(f"\nfrom new-plugin to a green test run: {time.monotonic() - terminal.begun:.1f} s")  # with `pytest -s`
    terminal.folder /= "my-plugin"

    server = terminal.start(serve.strip())
    try:
        assert server.stdout is not None
        (url,) = re.findall(r"socket  (\S+)", "".join(server.stdout.readline() for _ in range(4)))
        terminal.environment["LATENTWIRE_URL"] = url
        assert "ws://127.0.0.1:8000/ws" in script
        (terminal.folder / "look.py").write_text(script.replace("ws://127.0.0.1:8000/ws", url))
        seen = terminal.run(look)
        assert re.search(r"^my_plugin +0\.1\.0 +loaded +installed +image_finished, register$", seen, re.M)
        assert seen.endswith("the plugin says: None\n{'count': 1}\n")
        assert (terminal.folder / "apple.png").is_file()

        terminal.change("src/my_plugin/__init__.py", in_hook)
        wait_for(lambda: "the plugin says: 0.2\n" in terminal.run("python look.py"), "the change to be loaded")
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)

    terminal.change("tests/test_plugin.py", in_test)
    assert "3 passed" in terminal.run(test)
    assert terminal.run(check) == "ok: my_plugin (image_finished, register)\n"

    lines = publish.splitlines()
    assert [line for line in lines if line in UPLOAD] == UPLOAD
    (build,) = [line for line in lines if line not in UPLOAD]
    terminal.run(f"{build} --no-isolation")
    made = sorted(file.name for file in (terminal.folder / "dist").iterdir())
    assert made == ["my_plugin-0.1.0-py3-none-any.whl", "my_plugin-0.1.0.tar.gz"]


def test_what_the_page_shows_is_in_a_new_plugin() -> None:
    from latentwire.authoring.new_plugin import rendered

    files = rendered("my_plugin")
    for name in re.findall(r"^\| `([^`]+)` \|", PAGE, re.M):
        assert name in files
    for word in ("Section", "Settings", "image_finished", "register", "LATENTWIRE_API"):
        assert f"`{word}`" in PAGE
        assert re.search(rf"\b{word}\b", files["src/my_plugin/__init__.py"])
    for block, file in zip(blocks(PAGE, "diff"), ("src/my_plugin/__init__.py", "tests/test_plugin.py"), strict=True):
        before = "".join(line[1:] for line in block.splitlines(keepends=True) if line[0] in " -")
        assert before in files[file]
