"""Pictures in a terminal: a real pseudo-terminal, whose escape sequences are decoded and compared with the picture."""

import base64
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from latentwire.server.terminal import CHOICES, kind_of

from .conftest import Served

COLUMNS, LINES = 100, 30
ROWS = 20  # of a square picture there
REQUEST = ["red apple", "--steps", "3", "--seed", "7", "-o", "a.png"]


def in_terminal(served: Served, folder: Path, *arguments: str, **environment: str) -> str:
    """What a client writes to the terminal that it runs in."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    clean = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "latentwire", "generate", *arguments, "--url", served.url]
    client = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=clean | environment)
    os.close(theirs)
    written: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(ours, 1 << 16):
                written.append(data)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    assert client.wait(timeout=60) == 0, b"".join(written)
    reader.join(timeout=10)
    os.close(ours)
    return b"".join(written).decode()


def kitty(text: str) -> list[tuple[dict[str, str], PILImage.Image]]:
    """The pictures of kitty's graphics protocol, with their first chunk's keys."""
    found: list[tuple[dict[str, str], str]] = []
    more = False
    for keys, data in re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text):
        assert len(data) <= 4096
        values = dict(key.split("=") for key in keys.split(","))
        if more:
            found[-1] = (found[-1][0], found[-1][1] + data)
        else:
            found.append((values, data))
        more = values["m"] == "1"
    assert not more
    return [(keys, opened(data)) for keys, data in found]


def opened(data: str) -> PILImage.Image:
    picture = PILImage.open(io.BytesIO(base64.b64decode(data)))
    picture.load()
    return picture


def blocks(text: str) -> list[PILImage.Image]:
    """The pictures that were drawn in half blocks."""
    cell = r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m▀"
    pictures, lines = [], []
    for line in re.findall(rf"((?:{cell})+)\x1b\[0m", text):
        cells = np.array([[int(value) for value in found] for found in re.findall(cell, line[0])], np.uint8)
        lines += [cells[:, :3], cells[:, 3:]]
        if len(lines) == 2 * ROWS:
            pictures.append(PILImage.fromarray(np.array(lines)))
            lines = []
    assert not lines
    return pictures


def same(shown: PILImage.Image, file: Path) -> bool:
    with PILImage.open(file) as picture:
        wanted = picture.convert("RGB")
        if shown.size != wanted.size:
            wanted = wanted.resize(shown.size)
        return np.array_equal(np.asarray(shown.convert("RGB")), np.asarray(wanted))


def test_kitty_is_sent_previews_and_then_the_picture(served: Served, tmp_path: Path) -> None:
    text = in_terminal(served, tmp_path, *REQUEST, TERM="xterm-kitty")
    pictures = kitty(text)
    assert len(pictures) >= 2
    assert {(keys["a"], keys["f"], keys["c"], keys["r"]) for keys, _ in pictures} == {("T", "100", "40", str(ROWS))}
    assert len({keys["i"] for keys, _ in pictures}) == 1  # each in place of the last
    assert same(pictures[-1][1], tmp_path / "a.png")
    assert not same(pictures[0][1], tmp_path / "a.png")
    assert text.count(f"\x1b[{ROWS}A\x1b[J") == len(pictures) - 1  # drawn over one another
    assert re.search(r"a\.png  seed 7\r\n", text)


def test_iterm_is_sent_inline_images(served: Served, tmp_path: Path) -> None:
    text = in_terminal(served, tmp_path, *REQUEST, TERM_PROGRAM="iTerm.app")
    found = re.findall(
        r"\x1b\]1337;File=inline=1;size=(\d+);width=40;height=20;preserveAspectRatio=1:([^\x07]*)\x07", text
    )
    assert len(found) >= 2
    assert all(len(base64.b64decode(data)) == int(size) for size, data in found)
    assert same(opened(found[-1][1]), tmp_path / "a.png")


def test_others_get_half_blocks_of_the_picture(served: Served, tmp_path: Path) -> None:
    text = in_terminal(served, tmp_path, *REQUEST, COLORTERM="truecolor")
    pictures = blocks(text)
    assert len(pictures) >= 2
    assert pictures[-1].size == (2 * ROWS, 2 * ROWS)
    assert same(pictures[-1], tmp_path / "a.png")


def test_several_pictures_stand_side_by_side(served: Served, tmp_path: Path) -> None:
    text = in_terminal(served, tmp_path, *REQUEST, "--count", "2", "--preview", "kitty")
    last = kitty(text)[-1][1]
    assert last.size == (256, 128)
    for index in (0, 1):
        assert same(last.crop((128 * index, 0, 128 * index + 128, 128)), tmp_path / f"a-{index}.png")


def test_of_several_prompts_the_finished_pictures_are_shown(served: Served, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("red apple\nrocket\n")
    text = in_terminal(served, tmp_path, "--from", "prompts.txt", *REQUEST[1:], "--preview", "kitty")
    pictures = [picture for _, picture in kitty(text)]
    assert len(pictures) == 2
    for number in (0, 1):
        assert any(same(picture, tmp_path / f"a-{number}.png") for picture in pictures)
    assert f"\x1b[{ROWS}A\x1b[J" not in text  # each stays


@pytest.mark.parametrize("options", [["--preview", "off"], ["--json"], []])
def test_nothing_is_drawn_where_it_is_not_wanted_or_not_possible(
    served: Served, tmp_path: Path, options: list[str]
) -> None:
    environment = {"COLORTERM": "truecolor"} if options else {}
    text = in_terminal(served, tmp_path, *REQUEST, *options, **environment)
    assert not kitty(text)
    assert not blocks(text)
    assert (tmp_path / "a.png").exists()


@pytest.fixture
def terminal() -> Iterator[io.TextIOWrapper]:
    ours, theirs = pty.openpty()
    with open(theirs, "w") as stream:
        yield stream
    os.close(ours)


@pytest.mark.parametrize(
    ("environment", "kind"),
    [
        ({}, None),
        ({"COLORTERM": "24bit"}, "blocks"),
        ({"COLORTERM": "truecolor", "TERM": "dumb"}, None),
        ({"KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM_PROGRAM": "ghostty", "COLORTERM": "truecolor"}, "kitty"),
        ({"TERM_PROGRAM": "WezTerm", "COLORTERM": "truecolor"}, "iterm"),
        ({"LC_TERMINAL": "iTerm2"}, "iterm"),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/x", "COLORTERM": "truecolor"}, "blocks"),
    ],
)
def test_what_a_terminal_can_show(terminal: io.TextIOWrapper, environment: dict[str, str], kind: str | None) -> None:
    assert kind_of("auto", terminal, environment) == kind
    assert kind_of("off", terminal, environment) is None


def test_a_choice_counts_in_terminals_only(terminal: io.TextIOWrapper) -> None:
    for choice in CHOICES[1:-1]:
        assert kind_of(choice, terminal, {}) == choice
        assert kind_of(choice, io.StringIO(), {"COLORTERM": "truecolor"}) is None
