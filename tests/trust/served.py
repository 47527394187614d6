"""A real server in a process of its own, and raw requests to it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from ..conftest import wait_for

TOKEN = "the token of this test"
OBSERVER = "the token of an observer"
AUDITED = str(Path(__file__).with_name("audited"))  # lets `audit.py` watch the server


class Server:
    """A host that was started by its command line.

    Attributes:
        url: Of its WebSocket.
        http: Its address, without a slash at the end.
        token: As it printed it.
        log: The lines of its log so far.
    """

    def __init__(
        self,
        folder: Path,
        *settings: str,
        toml: str = "",
        listen: str = "127.0.0.1",
        ready: bool = True,
        variables: dict[str, str] = {},
        options: Sequence[str] = (),
        packages: Sequence[str] = (),
    ) -> None:
        file = folder / "plugins.toml"
        file.write_text(f"discover = {json.dumps(bool(packages))}\n{toml}", encoding="utf-8")
        sets = [part for setting in settings for part in ("--set", setting)]
        command = [sys.executable, "-m", "latentwire", "serve", "--host", listen, "--port", "0", "--device", "cpu"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LATENTWIRE_")}
        environment |= variables | {"PYTHONPATH": os.pathsep.join([AUDITED, *packages, *sys.path])}
        self.process = subprocess.Popen(
            [*command, "--config", str(file), *sets, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment,
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        assert self.process.stdout is not None
        words: dict[str, str] = {}
        while "token" not in words:
            line = self.process.stdout.readline()
            assert line, "\n".join(self.log)
            name, _, word = line.strip().partition(" ")
            words[name] = word.strip()
        self.token = words["token"]
        self.port = int(re.findall(r":(\d+)/", words["socket"])[0])
        self.url = f"ws://127.0.0.1:{self.port}/ws"
        self.http = f"http://127.0.0.1:{self.port}"
        if ready:
            wait_for(lambda: self.get("/readyz")[0] == 200, "the server to be ready")

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
        """A request's status and body. `_` in a header's name stands for `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.http + path, method=method, headers=named)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def raw(self, request: bytes) -> bytes:
        """What a connection gets for these bytes, up to its end or the end of a head."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as stream:
            stream.sendall(request)
            answer = b""
            with suppress(ConnectionResetError):
                while b"\r\n\r\n" not in answer and (part := stream.recv(65536)):
                    answer += part
            return answer

    @property
    def memory(self) -> int:
        """Bytes that the process has now."""
        resident: int = psutil.Process(self.process.pid).memory_info().rss
        return resident

    def stop(self, patience_s: float = 60) -> int:
        """End it with SIGTERM; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(patience_s)
        self._reader.join(10)
        return status

    def errors(self) -> list[str]:
        """The lines of the log that tell of an error, and tracebacks."""
        return [line for line in self.log if line.startswith(("ERROR", "CRITICAL", "Traceback"))]

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.rstrip("\n"))


@contextmanager
def server(folder: Path, *settings: str, **options: Any) -> Iterator[Server]:
    """A server for as long as the block runs."""
    started = Server(folder, *settings, **options)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
            started.process.wait(30)
        started._reader.join(10)
        for pipe in (started.process.stdout, started.process.stderr):
            if pipe is not None:
                pipe.close()
        caught = [line for line in started.log if line.startswith("AUDIT:")]
        assert not caught, "\n".join(caught)


def handshake(path: str = "/ws", **headers: str | list[str] | None) -> bytes:
    """A WebSocket's request; None takes a header out, a list gives it several times."""
    fields: dict[str, Any] = {
        "Host": "127.0.0.1",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec_WebSocket_Version": "13",
    } | headers
    return request("GET", path, **fields)


def request(method: str, path: str, **headers: str | list[str] | None) -> bytes:
    """A request's head."""
    lines = [f"{method} {path} HTTP/1.1"]
    for name, values in headers.items():
        given = [values] if isinstance(values, str) else values or []
        lines += [f"{name.replace('_', '-')}: {value}" for value in given]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def status(answer: bytes) -> int:
    """The status of an HTTP answer."""
    return int(answer.split(b" ", 2)[1])


def json_of(answer: tuple[int, bytes]) -> Any:
    """The body of an answer that went well."""
    code, body = answer
    assert code == 200, body
    return json.loads(body)
