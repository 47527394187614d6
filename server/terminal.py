"""Pictures in a terminal: as real ones where it can show them, else in half blocks of 24-bit colour.

Each picture is drawn over the one before it, until `Screen.keep`. What is written needs none of a terminal's answers,
so nothing waits for one.
"""

import base64
import io
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal, TextIO

if TYPE_CHECKING:
    from PIL import Image as PILImage

Kind = Literal["kitty", "iterm", "blocks"]

CHOICES = ("auto", "kitty", "iterm", "blocks", "off")
MOST_ROWS = 20
KITTY_CHUNK = 4096  # the protocol's most in one escape sequence
KITTY_ID = 0x6C77  # the picture that the next one replaces


def kind_of(choice: str, stream: TextIO, environment: Mapping[str, str]) -> Kind | None:
    """How pictures can be shown on a stream; None where not at all, or not wanted."""
    if choice == "off" or not stream.isatty() or environment.get("TERM") == "dumb":
        return None
    for kind in ("kitty", "iterm", "blocks"):
        if choice == kind:
            return kind
    program = environment.get("TERM_PROGRAM", "")
    if not {"TMUX", "STY"} & environment.keys():  # those swallow what they do not know
        if "KITTY_WINDOW_ID" in environment or environment.get("TERM") == "xterm-kitty" or program == "ghostty":
            return "kitty"
        if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
            return "iterm"
    return "blocks" if environment.get("COLORTERM") in ("truecolor", "24bit") else None


class Screen:
    """The part of a terminal that pictures are drawn on; the cursor stands at the beginning of the line below it."""

    def __init__(self, kind: Kind, stream: TextIO) -> None:
        self._kind = kind
        self._stream = stream
        self._rows = 0  # of the picture above the cursor

    def show(self, picture: "PILImage.Image") -> None:
        """Draw a picture in place of the last one."""
        columns, rows = self._size(picture)
        text = f"\x1b[{self._rows}A\x1b[J" if self._rows else ""
        if self._kind == "blocks":
            text += "".join(_blocks(picture, columns, rows))
        else:
            draw = _kitty if self._kind == "kitty" else _iterm
            text += "\n" * rows + f"\x1b[{rows}A\x1b7" + draw(_png(picture), columns, rows) + "\x1b8" + f"\x1b[{rows}B"
        self._rows = rows
        self._stream.write(text)
        self._stream.flush()

    def keep(self) -> None:
        """Leave the picture where it is; the next one comes below."""
        self._rows = 0

    def _size(self, picture: "PILImage.Image") -> tuple[int, int]:
        """Columns and rows of a picture; a cell is taken for twice as high as wide."""
        try:
            columns, lines = os.get_terminal_size(self._stream.fileno())
        except OSError:
            columns, lines = 80, 24
        rows = max(1, min(MOST_ROWS, lines - 4))  # a terminal may say that it has none
        width = round(rows * 2 * picture.width / picture.height)
        if width > max(columns - 1, 2):
            width = max(columns - 1, 2)
            rows = max(1, round(width * picture.height / picture.width / 2))
        return max(1, width), rows


def printable(text: str) -> str:
    """A text of a host's, in which nothing steers the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def sheet(pictures: list["PILImage.Image"]) -> "PILImage.Image":
    """Pictures of one size beside one another, at most four in a row."""
    from PIL import Image as PILImage

    if len(pictures) == 1:
        return pictures[0]
    width, height = pictures[0].size
    across = min(4, len(pictures))
    paper = PILImage.new("RGB", (across * width, -(-len(pictures) // across) * height))
    for number, picture in enumerate(pictures):
        paper.paste(picture.resize((width, height)), (number % across * width, number // across * height))
    return paper


def _png(picture: "PILImage.Image") -> bytes:
    file = io.BytesIO()
    picture.convert("RGB").save(file, "png", compress_level=1)
    return file.getvalue()


def _kitty(png: bytes, columns: int, rows: int) -> str:
    """kitty's graphics protocol: transmit and show (a=T) a PNG (f=100), quietly, the cursor left in its place (C=1)."""
    data = base64.b64encode(png).decode()
    chunks = [data[begin : begin + KITTY_CHUNK] for begin in range(0, len(data), KITTY_CHUNK)]
    head = f"a=T,f=100,q=2,C=1,i={KITTY_ID},p=1,c={columns},r={rows},"
    parts = []
    for number, chunk in enumerate(chunks):
        more = int(number < len(chunks) - 1)
        parts.append(f"\x1b_G{head if number == 0 else ''}m={more};{chunk}\x1b\\")
    return "".join(parts)


def _iterm(png: bytes, columns: int, rows: int) -> str:
    """iTerm2's inline images."""
    data = base64.b64encode(png).decode()
    return f"\x1b]1337;File=inline=1;size={len(png)};width={columns};height={rows};preserveAspectRatio=1:{data}\x07"


def _blocks(picture: "PILImage.Image", columns: int, rows: int) -> Iterator[str]:
    """Upper half blocks: the letter's colour is the upper pixel's, the ground's the lower one's."""
    pixels = picture.convert("RGB").resize((columns, rows * 2)).tobytes()
    line = columns * 3
    for row in range(rows):
        upper, lower = (pixels[begin : begin + line] for begin in (2 * row * line, (2 * row + 1) * line))
        for x in range(0, line, 3):
            (r, g, b), (s, h, c) = upper[x : x + 3], lower[x : x + 3]
            yield f"\x1b[38;2;{r};{g};{b};48;2;{s};{h};{c}m▀"
        yield "\x1b[0m\n"
