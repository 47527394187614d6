"""What a host that means harm can do to who asks it by the command line: nothing to the terminal or to other files."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

from latentwire.client.progress import Progress
from latentwire.core.events import Loading
from latentwire.server import cli
from latentwire.server.codec import SUBPROTOCOL

ESCAPE = "\x1b]0;owned\x07\x1b[2J"
HELLO = {
    "id": None, "event": "hello", "seq": 0, "protocol": SUBPROTOCOL, "host": "0", "session": "s", "resume": None,
    "observer": False, "operator": False, "limits": {"message_bytes": 1 << 20, "jobs": 4, "resume_seconds": 0},
}  # fmt: skip


@contextmanager
def hostile(*answers: dict[str, Any]) -> Iterator[str]:
    """The address of a host that answers every command with these messages."""

    def act(line: ServerConnection) -> None:
        line.send(msgpack.packb(HELLO))
        for frame in line:
            for seq, answer in enumerate(answers, 1):
                line.send(msgpack.packb({"id": msgpack.unpackb(frame)["id"], "seq": seq, **answer}))

    with serve(act, "127.0.0.1", 0, subprotocols=[Subprotocol(SUBPROTOCOL)]) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/ws"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("command", [["generate", "apple"], ["models"], ["plugins"], ["bench"]])
def test_the_text_of_an_error_steers_no_terminal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with hostile({"event": "error", "code": "internal", "message": f"no {ESCAPE}", "details": []}) as url:
        assert cli.main([*command, "--url", url]) == 1
    assert r"no \x1b]0;owned\x07\x1b[2J" in capsys.readouterr().err


def test_rows_steer_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    model = {"name": ESCAPE, "family": "sd", "size": 64, "dtype": "float32"}
    plugin: dict[str, Any] = {
        "name": ESCAPE, "version": None, "state": "loaded", "source": ESCAPE, "error": None, "warnings": [ESCAPE],
        "hooks": [], "times": {},
    }  # fmt: skip
    with hostile({"event": "result", "result": {"models": [model], "plugins": [plugin]}}) as url:
        assert cli.main(["models", "--url", url]) == cli.main(["plugins", "--url", url]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert printed.count(r"\x1b]0;owned") == 4


@pytest.mark.parametrize("event", ["preview", "image"])
def test_no_file_is_written_but_in_the_folders_that_were_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, event: str
) -> None:
    (tmp_path / "out").mkdir()
    values = {"event": event, "job": "j", "index": f"{tmp_path}/evil", "step": 1, "steps": 2, "seed": 1}
    picture = {"format": "png", "width": 1, "height": 1, "data": b"evil"}
    accepted = {"event": "accepted", "job": "j", "seeds": [1, 2]}
    with hostile(accepted, {**values, "image": picture, "latents": None}, {"event": "result", "result": {}}) as url:
        out = str(tmp_path / "out" / "a.png")
        options = ["--previews", str(tmp_path / "out"), "--count", "2", "-o", out, "--url", url]
        assert cli.main(["generate", "apple", *options]) == 1
    assert "its file would be" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]


def test_the_bar_steers_no_terminal() -> None:
    with Progress() as progress:
        progress.take(Loading("j", "emoji", f"unet{ESCAPE}", 1, 2))
        assert progress.bar.desc == "loading unet]0;owned[2J: "
