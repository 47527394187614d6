"""docs/commands.md, held against the parser; its command lines are run."""

import argparse
import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image as PILImage
from PIL import ImageDraw

from latentwire.server import cli

from .conftest import Served
from .pages import PAGES, blocks, section

PAGE = PAGES["commands"]
OF_A_HOST = {"--config", "--host", "--port", "--device", "--set"}
OF_A_CLIENT = {"--url", "--token", "--key"}


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands, or actions, below a parser."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found.update(action.choices)
    return found


COMMANDS = commands_of(cli.parser_of_all())


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """What a parser takes: options by all their names, arguments in capitals."""
    found: set[str] = set()
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction | argparse._HelpAction):
            found.update(action.option_strings or [action.dest.upper()])
    return found


def documented(text: str) -> set[str]:
    """What the first column of a section's tables, or its text, names."""
    cells = re.findall(r"^\| ((?:`[^`]+`(?:, )?)+) \|", text, re.M)
    return {
        name.split()[0]
        for cell in cells
        for name in re.findall(r"`([^`]+)`", cell)
        if name[0] in "-ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    }


def names_without_variables(text: str) -> set[str]:
    return {name for name in documented(text) if not name.startswith("LATENTWIRE_")}


def test_every_command_has_a_section() -> None:
    assert set(re.findall(r"^## `latentwire (.*)`$", PAGE, re.M)) == COMMANDS.keys()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_documented_and_no_other(command: str) -> None:
    options = options_of(COMMANDS[command])
    text = section(PAGE, f"`latentwire {command}`")
    if options >= OF_A_HOST:
        assert f"`{command}`" in section(PAGE, "Settings of a host")
        options -= OF_A_HOST
    if options >= OF_A_CLIENT:
        assert f"`{command}`" in section(PAGE, "Where the host is")
        options -= OF_A_CLIENT
    if command == "completion":
        assert options == {"SHELL"}
        assert "`latentwire completion SHELL`" in text
    else:
        assert names_without_variables(text) == options


def test_the_shared_options_are_documented() -> None:
    assert names_without_variables(section(PAGE, "Where the host is")) == OF_A_CLIENT
    assert names_without_variables(section(PAGE, "Settings of a host")) == OF_A_HOST


def test_the_actions_of_plugins_are_documented() -> None:
    rows = re.findall(r"^\| `([a-z]+)(?: ([A-Z]+))?` \|", section(PAGE, "`latentwire plugins`"), re.M)
    actions = commands_of(COMMANDS["plugins"])
    assert dict(rows) == {
        name: "".join(option for option in options_of(parser) if not option.startswith("-"))
        for name, parser in actions.items()
    }


def test_defaults_and_choices_are_as_documented() -> None:
    options = cli.parser_of_all().parse_args(["bench"])
    table = section(PAGE, "`latentwire bench`")
    assert f"`{','.join(str(count) for count in options.clients)}` |" in table
    assert f"of each; {options.rounds} |" in table
    generate = section(PAGE, "`latentwire generate`")
    for action in COMMANDS["generate"]._actions:
        for choice in action.choices or ():
            assert f"`{choice}`" in generate
    assert f"`{options_default('output')}`" in generate


def options_default(name: str) -> str:
    return str(COMMANDS["generate"].get_default(name))


LINES = [line for block in blocks(PAGE, "sh") for line in block.splitlines() if line.startswith("latentwire generate")]


@pytest.mark.parametrize("line", LINES)
def test_command_lines_run(
    served: Served, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    picture = PILImage.new("RGB", (128, 128))
    ImageDraw.Draw(picture).ellipse((20, 30, 100, 110), outline="white", width=4)
    for name in ("outline.png", "photo.png", "mask.png"):
        picture.save(name)
    Path("prompts.txt").write_text("red apple\ntiger face\n")
    assert cli.main([*shlex.split(line)[1:], "--url", served.url]) == 0
    written = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.png")} - {
        "outline.png",
        "photo.png",
        "mask.png",
    }
    assert written
    if "--from" in line:
        assert written == {"out/picture-0.png", "out/picture-1.png"}
    if "--json" in line:
        assert [json.loads(text)["event"] for text in capsys.readouterr().out.splitlines()][-1] == "result"
