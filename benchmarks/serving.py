"""The host as users run it: `latentwire serve` in a process of its own, with a settings file in a folder of its own."""

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil  # type: ignore[import-untyped]

Tables = Mapping[str, Mapping[str, Any]]
"""A settings file: `{"engine": {"device": "cpu"}, "models.emoji": {...}}`. What is left out has its default."""

CONNECT_S = 0.02  # between looks at /readyz
PR_SET_PDEATHSIG = 1  # of Linux' prctl


class HostProcess:
    """A host that was started.

    Attributes:
        started: When, on the clock `perf_counter`.
        log: What it has written to its log, each line with the time when it came.
        page: Its address for HTTP, without a slash at its end; after `wait_for_address`.
        socket: That of its WebSocket.
    """

    def __init__(self, folder: Path, tables: Tables, plugins: Mapping[str, Path] = {}) -> None:
        file = folder / "plugins.toml"
        file.write_text(_toml(tables, plugins, folder / "results"), encoding="utf-8")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LATENTWIRE_")}
        command = [sys.executable, "-m", "latentwire", "serve", "--port", "0", "--config", str(file)]
        self.log: list[tuple[float, str]] = []
        self.page = self.socket = ""
        self.started = perf_counter()
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=folder,
            preexec_fn=_end_with_parent,
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    @property
    def memory(self) -> int:
        """Bytes of memory that the process has now."""
        resident: int = psutil.Process(self._process.pid).memory_info().rss
        return resident

    @property
    def read_from_disk(self) -> int:
        """Bytes that had to be read from a disk for it so far."""
        read: int = psutil.Process(self._process.pid).io_counters().read_bytes
        return read

    def logged(self, pattern: str) -> str:
        """What the first group of a pattern last was in the log; an empty text if it never was there."""
        found = [match[1] for _, line in list(self.log) if (match := re.search(pattern, line))]
        return found[-1] if found else ""

    def wait_for_address(self) -> None:
        """Until it says where it listens.

        Raises:
            RuntimeError: it ended; with its log.
        """
        assert self._process.stdout is not None
        words: dict[str, str] = {}
        while "token" not in words:  # the last line
            line = self._process.stdout.readline()
            if not line:
                self._fail("it ended before it said where it listens")
            name, word, *_ = line.split()
            words[name] = word
        self.page, self.socket = words["page"].rstrip("/"), words["socket"]

    def wait_until_ready(self) -> None:
        """Until /readyz says so.

        Raises:
            RuntimeError: it ended; with its log.
        """
        while True:
            try:
                with urllib.request.urlopen(f"{self.page}/readyz"):
                    return
            except (urllib.error.URLError, ConnectionError):
                if self._process.poll() is not None:
                    self._fail("it ended before it was ready")
                time.sleep(CONNECT_S)

    def stop(self) -> None:
        """As Ctrl-C would."""
        self._process.terminate()
        self._process.communicate()

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.log.append((perf_counter(), line.rstrip()))

    def _fail(self, what: str) -> None:
        self._reader.join(timeout=1)
        raise RuntimeError("\n".join([f"the host failed: {what}", *(line for _, line in self.log[-30:])]))


@contextmanager
def started(tables: Tables = {}, plugins: Mapping[str, Path] = {}) -> Iterator[HostProcess]:
    """A host that was started just now.

    Args:
        tables: Its settings.
        plugins: Local files to load as plugins, by name.
    """
    with tempfile.TemporaryDirectory(prefix="latentwire-") as folder:
        host = HostProcess(Path(folder), tables, plugins)
        try:
            yield host
        finally:
            host.stop()


@contextmanager
def served(tables: Tables = {}, plugins: Mapping[str, Path] = {}) -> Iterator[HostProcess]:
    """A host that is ready."""
    with started(tables, plugins) as host:
        host.wait_for_address()
        host.wait_until_ready()
        yield host


def _end_with_parent() -> None:
    """In the host's process: go when the benchmark is gone, also when that was killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _toml(tables: Tables, plugins: Mapping[str, Path], results: Path) -> str:
    """Plain values are written in TOML as in JSON. Results are stored, as where the project's own settings are used."""
    lines = ["discover = false"]
    for name, values in tables.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value, default=str)}" for key, value in values.items()]
    lines += ["[[plugins]]", 'name = "results"', f"settings = {{ folder = {json.dumps(str(results))} }}"]
    for name, path in plugins.items():
        lines += ["[[plugins]]", f"name = {json.dumps(name)}", f"path = {json.dumps(str(path))}"]
    return "\n".join(lines) + "\n"
