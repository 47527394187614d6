"""Names that mean to lead out of where a host keeps its files."""

import random
from collections.abc import Iterator
from pathlib import Path

# ruff: noqa: RUF001 - letters that look like others are what this is about
SECRET = "nobody-may-read-this"
UP = [
    "..",
    "..",
    "..",
    "../",
    ".../...//",
    "..;",
    "%2e%2e",
    "%252e%252e",
    "..%2f",
    "..%c0%af",
    "．．",
    "‥",
    "․․",
    ".. ",
    "...",
]
SEPARATORS = ["/", "/", "/", "//", "\\", "/./", "%2f", "%5c", "∕", "／", "⁄", "\\\\"]
STARTS = [
    "",
    "",
    "",
    "/",
    "//",
    "\\\\host\\share\\",
    "//host/share/",
    "C:\\",
    "c:/",
    "file:///",
    "file://localhost/",
    "~/",
    "~root/",
    "$HOME/",
    "${HOME}/",
    "%HOME%\\",
    "/proc/self/root/",
    "/proc/self/cwd/",
    "/proc/self/fd/",
    "/proc/1/root/",
    "/dev/fd/",
    "http://127.0.0.1/",
    "hf://",
    "s3://",
    "./",
    "loras/../",
    "loras/emoji-pencil/../../../",
    "link/",
    "nets/one/slash/",
    "nets/one/self/root/",
    "chain0/",
    "loop/",
]
TARGETS = [
    "etc/passwd",
    "secret.safetensors",
    "outside/secret.safetensors",
    "outside",
    "proc/self/environ",
    "proc/self/mem",
    "dev/zero",
    "dev/stdin",
    "root/.ssh/id_rsa",
    ".",
    "",
    "loras",
    "evil.bin",
    "nets/one",
    "style.safetensors",
    "openai/clip-vit-large-patch14",
    "someone/repo",
    "model_index.json",
    "pyproject.toml",
]
ENDS = [
    "",
    "",
    "",
    "\0",
    "\0.safetensors",
    ".safetensors",
    "/",
    "/.",
    " ",
    ".",
    "::$DATA",
    "\n",
    "\r\n",
    "\x7f",
    "\u202e",
    "?",
    "#",
]
ODD = [
    "",
    " ",
    "\0",
    "\n",
    ".",
    "..",
    "...",
    "~",
    "/",
    "//",
    "///",
    "\\",
    "*",
    "**/*",
    "?",
    "[a]",
    "con",
    "nul",
    "aux.safetensors",
    "\ud7ff",
    "\ufeff",
    "é" * 300,
    "x" * 255,
    "x" * 256,
    "a/" * 480,
    "../" * 330,
    "\u0000" * 50,
    "-rf",
    "--help",
    "`id`",
    "$(id)",
    "';--",
    "{}",
    "%s%n",
    "\u2028",
    "emoji\u0000",
    "EMOJI",
    "emoji ",
    " emoji",
    "emoji/",
    "./emoji",
    "еmoji",
    "emoji\u200b",
]


def hostile_names(count: int, seed: int, folder: Path) -> Iterator[str]:
    """So many of them; some mean to reach `folder`'s neighbours from within it."""
    chance = random.Random(seed)
    for number in range(count):
        if number < len(ODD):
            yield ODD[number]
            continue
        steps = [chance.choice(UP) for _ in range(chance.choice([0, 1, 1, 2, 3, 8, 20]))]
        middle = "".join(step + chance.choice(SEPARATORS) for step in steps)
        target = chance.choice([*TARGETS, str(folder.parent / "outside" / "secret.safetensors"), "chain39", "link"])
        name = chance.choice(STARTS) + middle + target + chance.choice(ENDS)
        if chance.random() < 0.2:
            place = chance.randrange(len(name) + 1)
            name = name[:place] + chance.choice(["\0", "%00", "\x01", "\u2215", "/../", "/", " ", "é"]) + name[place:]
        yield name[:990]


def make_folders(folder: Path) -> Path:
    """A root with honest weights, links that lead out of it, links in circles, and a secret beside it."""
    root = folder / "inside"
    for file in (
        "inside/style.safetensors",
        "inside/nets/one/config.json",
        "outside/secret.safetensors",
        "secret.safetensors",
    ):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{SECRET} = 1")
    (root / "link").symlink_to(folder / "outside")
    (root / "file.safetensors").symlink_to(folder / "outside" / "secret.safetensors")
    (root / "up").symlink_to("..")
    (root / "loop").symlink_to("loop")
    (root / "nets" / "circle.safetensors").symlink_to("circle.safetensors")
    (root / "ping").symlink_to("pong")
    (root / "pong").symlink_to("ping")
    (root / "nets" / "one" / "slash").symlink_to("/")
    (root / "nets" / "one" / "self").symlink_to("/proc/self")
    (root / "chain0").symlink_to(folder / "outside")
    for number in range(1, 60):
        (root / f"chain{number}").symlink_to(f"chain{number - 1}")
    return root
