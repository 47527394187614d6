"""The command `latentwire`, as processes of their own."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from latentwire.core.settings import ServerSettings
from latentwire.server.serve import _listen

from .conftest import wait_for

SMALL = ["--width", "64", "--height", "64", "--steps", "2"]
LONG = ["--width", "64", "--height", "64", "--steps", "1000"]

CLEAN = {key: value for key, value in os.environ.items() if not key.startswith("LATENTWIRE_")}


def latentwire(*arguments: str, cwd: Path | None = None, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "latentwire", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=CLEAN | environment, timeout=60)


@dataclass
class Serving:
    """A running `latentwire serve`, and what it printed when it had started."""

    process: "subprocess.Popen[str]"
    url: str
    page: str
    token: str

    def ask(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return latentwire(*arguments, LATENTWIRE_URL=self.url)

    def asking(self, *arguments: str) -> "subprocess.Popen[str]":
        """A client that still runs: its job has begun when this returns."""
        before = self.jobs()
        command = [sys.executable, "-m", "latentwire", *arguments]
        environment = CLEAN | {"LATENTWIRE_URL": self.url, "LATENTWIRE_TOKEN": self.token}
        client = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        wait_for(lambda: self.jobs() > before, "the job to begin")
        return client

    def jobs(self) -> int:
        from latentwire import connect_sync

        with connect_sync(self.url, token=self.token) as host:
            count: int = host.call("pipeline.state")["engine"]["jobs"]
            return count


@contextmanager
def serve(folder: Path, *arguments: str) -> Iterator[Serving]:
    command = [sys.executable, "-m", "latentwire", "serve", "--port", "0", "--device", "cpu", *arguments]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder, env=CLEAN)
    assert process.stdout is not None
    try:
        printed = "".join(process.stdout.readline() for _ in range(4))
        found = re.fullmatch(r"latentwire \S+\n  page    (\S+)\n  socket  (\S+)\n  token   (.*)\n", printed)
        assert found, printed + (folder / "log").read_text()
        page, url, token = (text.replace("0.0.0.0", "127.0.0.1") for text in found.groups())
        wait_for(lambda: ready(page), "the model to be ready")
        yield Serving(process, url, page, token)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def ready(page: str) -> bool:
    try:
        with urllib.request.urlopen(f"{page}readyz") as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One server for the tests that leave it as it is; on loopback, so without a token."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "tint.py").write_text("raise ValueError('no tint today')\n")
    (folder / "plugins.toml").write_text('discover = false\n[[plugins]]\nname = "tint"\npath = "tint.py"\n')
    with serve(folder) as server:
        yield server
        server.process.terminate()
        assert server.process.wait(timeout=30) == 0
    assert "Traceback (most recent call last)" not in (folder / "log").read_text()


def test_serve_prints_where_it_listens(server: Serving) -> None:
    assert re.fullmatch(r"ws://127\.0\.0\.1:[1-9]\d*/ws", server.url)
    assert server.token == "none needed"
    with urllib.request.urlopen(server.page) as answer:
        assert b"latentwire" in answer.read()


def test_generate_writes_the_png_and_the_previews(server: Serving, tmp_path: Path) -> None:
    output, previews = tmp_path / "new" / "apple.png", tmp_path / "steps"
    done = server.ask("generate", "red apple", "-o", str(output), "--previews", str(previews), "--seed", "7", *SMALL)
    assert (done.returncode, done.stdout) == (0, "")
    assert f"{output}  seed 7" in done.stderr
    assert "done in" in done.stderr
    with Image.open(output) as picture:
        assert picture.size == (64, 64)
        request = json.loads(picture.text["latentwire"])  # type: ignore[attr-defined]
    assert (request["prompt"], request["seed"], request["num_inference_steps"]) == ("red apple", 7, 2)
    assert "0-002.jpeg" in {file.name for file in previews.iterdir()}
    assert all(file.read_bytes().startswith(b"\xff\xd8\xff") for file in previews.iterdir())


def test_count_writes_several(server: Serving, tmp_path: Path) -> None:
    done = server.ask("generate", "red apple", "--count", "2", "-o", str(tmp_path / "a.png"), *SMALL)
    assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a-0.png", "a-1.png"]


def test_the_list_of_models(server: Serving) -> None:
    models = server.ask("models")
    assert models.returncode == 0
    assert re.search(r"^emoji +StableDiffusionPipeline, 128x128, float32 \(default\)$", models.stdout, re.MULTILINE)


def test_the_list_of_plugins_with_versions_and_the_time_of_hooks(server: Serving, tmp_path: Path) -> None:
    server.ask("generate", "red apple", "-o", str(tmp_path / "a.png"), *SMALL)
    for arguments in ([], ["list"]):
        listed = server.ask("plugins", *arguments)
        assert listed.returncode == 0
        assert re.search(r"^tint +- +failed +file +ValueError: no tint today$", listed.stdout, re.MULTILINE)
        clip_skip = r"^clip_skip +\d\S+ +loaded +built-in +modify_call \(\d+x \d+\.\d\d ms\), register$"
        assert re.search(clip_skip, listed.stdout, re.MULTILINE), listed.stdout


def test_plugins_are_switched_and_loaded_anew(server: Serving, tmp_path: Path) -> None:
    try:
        done = server.ask("plugins", "disable", "clip_skip")
        assert (done.returncode, done.stdout.count("\n")) == (0, 1)
        assert re.match(r"clip_skip +\S+ +disabled +built-in +disabled by an operator$", done.stdout)
        assert re.search(r"^clip_skip +\S+ +disabled", server.ask("plugins").stdout, re.MULTILINE)
    finally:
        done = server.ask("plugins", "enable", "clip_skip")
    assert re.match(r"clip_skip +\S+ +loaded", done.stdout)
    assert re.match(r"clip_skip +\S+ +loaded", server.ask("plugins", "reload", "clip_skip").stdout)
    done = server.ask("plugins", "reload", "clip_skop")
    assert (done.returncode, done.stdout) == (1, "")
    assert "clip_skip" in done.stderr


def test_where_the_host_is_may_be_said_before_the_action_and_after(server: Serving) -> None:
    for arguments in (["--url", server.url, "list"], ["list", "--url", server.url]):
        done = latentwire("plugins", *arguments, LATENTWIRE_URL="ws://127.0.0.1:1/ws")
        assert done.returncode == 0, done.stderr


def test_check_says_what_is_wrong_by_its_exit_status(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from latentwire import hookimpl\n\n@hookimpl\ndef modify_cal(context): ...\n")
    done = latentwire("plugins", "check", "mine.py", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[-1] == "mine.py:4: 'modify_cal' is no hook; did you mean 'modify_call'?"
    (tmp_path / "mine.py").write_text("from latentwire import hookimpl\n\n@hookimpl\ndef modify_call(context): ...\n")
    done = latentwire("plugins", "check", "mine.py", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "ok: mine (modify_call)"
    assert done.stdout.startswith("mine.py:1: hint: ")
    done = latentwire("plugins", "check", "none.py", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"latentwire: {tmp_path}/none.py is not there; wanted a Python file, a module's folder with an __init__.py, "
        "or a folder with a pyproject.toml\n"
    )


def test_describe_prints_json(server: Serving) -> None:
    done = server.ask("describe")
    assert done.returncode == 0
    assert "generate" in json.loads(done.stdout)["commands"]


def test_a_refused_request_goes_to_stderr_with_status_1(server: Serving, tmp_path: Path) -> None:
    done = server.ask("generate", "red apple", "--steps", "0", "-o", str(tmp_path / "a.png"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "latentwire: generate: num_inference_steps: Input should be greater than or equal to 1, got 0" in done.stderr
    assert "(invalid_params)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_named(server: Serving, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = server.ask("generate", "red apple", "-o", str(tmp_path / "file" / "a.png"), *SMALL)
    assert done.returncode == 1
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_generate_and_its_job(server: Serving, tmp_path: Path) -> None:
    client = server.asking("generate", "red apple", "-o", str(tmp_path / "a.png"), *LONG)
    client.send_signal(signal.SIGINT)
    _, errors = client.communicate(timeout=30)
    assert client.returncode == 130
    assert "Traceback" not in errors
    wait_for(lambda: server.jobs() == 0, "the job to be cancelled")


def test_nobody_there_is_status_1() -> None:
    done = latentwire("models", "--url", "ws://127.0.0.1:1/ws")
    assert (done.returncode, done.stdout) == (1, "")
    assert "latentwire: cannot connect to ws://127.0.0.1:1/ws" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_said_plainly(server: Serving, tmp_path: Path) -> None:
    port = server.url.rpartition(":")[2].partition("/")[0]
    done = latentwire("serve", "--port", port, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == (
        f"latentwire: cannot listen on 127.0.0.1:{port}: Address already in use; see --host and --port"
    )


@pytest.mark.parametrize(
    ("arguments", "text", "error"),
    [
        ([], "[server]\nprot = 1", "plugins.toml: unknown key 'server.prot', did you mean 'port'?"),
        ([], "[server", "cannot read plugins.toml"),
        (["--config", "none.toml"], "", "cannot read none.toml"),
        (["--port", "many"], "", "server.port: Input should be a valid integer"),
        (["--set", "engine.devise=cpu"], "", "did you mean engine.device?"),
        (["--host", "no.such.name.invalid"], "", "cannot listen on no.such.name.invalid:8000"),
    ],
)
def test_bad_settings_are_said_plainly_with_status_2(
    tmp_path: Path, arguments: list[str], text: str, error: str
) -> None:
    (tmp_path / "plugins.toml").write_text(text)
    port = [] if any("port" in part or "host" in part for part in arguments) else ["--port", "0"]
    done = latentwire("serve", *port, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert error in done.stderr
    assert "Traceback" not in done.stderr


def test_beyond_loopback_a_token_is_made_asked_for_and_jobs_end_with_a_reason(tmp_path: Path) -> None:
    with serve(tmp_path, "--host", "0.0.0.0", "--set", "server.shutdown_grace_s=0") as server:
        assert len(server.token) >= 24
        refused = server.ask("models")
        assert refused.returncode == 1
        assert "the token is missing or wrong" in refused.stderr
        assert server.ask("models", "--token", "x" * 32).returncode == 1
        assert server.ask("models", "--token", server.token).returncode == 0
        client = server.asking("generate", "red apple", "-o", str(tmp_path / "a.png"), *LONG)
        server.process.send_signal(signal.SIGINT)
        _, errors = client.communicate(timeout=30)
        assert client.returncode == 1
        assert "the host is shutting down (host_closing)" in errors
        assert server.process.wait(timeout=30) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_small_messages_do_not_wait_for_one_another() -> None:
    with (
        _listen(ServerSettings(port=0)) as listener,
        socket.create_connection(listener.getsockname()) as _,
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_help_and_version_import_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from latentwire.server.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: status = end.code\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'pydantic', 'numpy', 'starlette', 'websockets', 'msgpack'}\n"
        "print(status, sorted(heavy & set(sys.modules)))\n"
    )
    for arguments in (["--help"], ["--version"], ["generate", "--help"], ["serve", "--help"], ["plugins", "--help"]):
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == "0 []", done.stderr
