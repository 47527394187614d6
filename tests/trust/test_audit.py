"""The watch over all tests (`audit.py`) catches what it is for."""

import io
import pickle
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from latentwire import connect_sync

from . import audit
from .served import server


@pytest.fixture(autouse=True)
def forgiven() -> Iterator[None]:
    """What these tests do on purpose fails no suite."""
    yield
    audit.violations.clear()


def test_torch_load_is_caught() -> None:
    file = io.BytesIO()
    torch.save({"a": torch.zeros(1)}, file)
    for weights_only in (True, False):
        file.seek(0)
        audit.violations.clear()
        torch.load(file, weights_only=weights_only)
        assert "called torch.load" in audit.violations
        assert weights_only or any("unpickled" in what for what in audit.violations)


def test_an_unpickler_below_the_host_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    from latentwire.core import weights

    source = Path(weights.__file__).resolve()
    code = compile("pickle.loads(data)", str(source), "exec")
    exec(code, {"pickle": pickle, "data": pickle.dumps(Path("x"))})
    assert any("unpickled pathlib" in what for what in audit.violations)


@pytest.mark.parametrize("path", ["/root/.ssh/id_rsa", "/srv/secret.safetensors", "/boot/model.json"])
def test_a_file_of_elsewhere_is_caught(path: str) -> None:
    with pytest.raises(OSError, match=r"No such file|denied"):
        Path(path).read_bytes()
    assert audit.violations == [f"opened {path}"]


def test_weights_behind_a_link_to_elsewhere_are_caught(tmp_path: Path) -> None:
    link = tmp_path / "good.safetensors"
    link.symlink_to("/etc/hostname")
    with open(link, "rb"):
        pass
    assert len(audit.violations) == 1


def test_a_call_to_elsewhere_is_caught() -> None:
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as caller:  # sends nothing
        caller.connect(("192.0.2.1", 9))
    assert any("192.0.2.1" in what for what in audit.violations)


def test_what_is_allowed_is_not(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    assert audit.violations == []


LEAK = """
import pickle, socket
from pathlib import Path
from latentwire import NoParams, hookimpl

async def leak(context, params):
    try:
        Path("/srv/secret.safetensors").read_bytes()
    except OSError:
        pass
    return {}

@hookimpl
def register(registry):
    registry.add_command("leak", NoParams, leak)
"""


def test_a_server_in_its_own_process_is_watched_too(tmp_path: Path) -> None:
    (tmp_path / "leak.py").write_text(LEAK)
    with (
        pytest.raises(AssertionError, match="AUDIT: opened /srv/secret"),
        server(tmp_path, toml='[[plugins]]\nname = "leak"\npath = "leak.py"\n') as started,
        connect_sync(started.url) as client,
    ):
        client.call("leak")
