"""The commands `latentwire new-plugin` and `latentwire plugins`."""

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .terminal import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..client import Connection

    AddParser = Callable[..., argparse.ArgumentParser]

SWITCHES = {
    "enable": "let a plugin work again",
    "disable": "let a plugin rest until it is enabled or the host is started again",
    "reload": "load a plugin anew, as its code is now",
}


def add_new_plugin(add_parser: "AddParser") -> None:
    """Add the parser of `latentwire new-plugin`."""
    parser = add_parser("new-plugin", help="write a small, complete plugin to begin with")
    parser.add_argument("name", help="such as my-plugin")
    parser.add_argument("--into", type=Path, default=Path(), metavar="DIR", help="where its folder goes (default: .)")


def add_plugins(add_parser: "AddParser", client: argparse.ArgumentParser, again: argparse.ArgumentParser) -> None:
    """Add the parser of `latentwire plugins`.

    Args:
        client: Has the options of commands that talk to a host.
        again: Has them once more, without a default, which would put out what was given before the action.
    """
    parser = add_parser("plugins", parents=[client], help="list the host's plugins; check, enable, disable, reload one")
    parser.add_argument("--json", action="store_true", help="print each plugin as a line of JSON")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    as_json = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    as_json.add_argument("--json", action="store_true", help="print each plugin, or finding, as a line of JSON")
    actions.add_parser("list", parents=[again, as_json], help="list the host's plugins (default)")
    check = actions.add_parser("check", parents=[as_json], help="look a plugin's code over, without a host")
    check.add_argument("path", type=Path, help="a Python file, a module's folder, or a folder with a pyproject.toml")
    for action, text in SWITCHES.items():
        actions.add_parser(action, parents=[again, as_json], help=text).add_argument("name")


def new_plugin(options: argparse.Namespace) -> int:
    """Write a new plugin, and say how to go on."""
    from ..authoring import AuthoringError
    from ..authoring.new_plugin import GUIDE, new_plugin

    try:
        folder = new_plugin(options.name, options.into)
    except AuthoringError as error:
        return _refuse(error)
    print(f"{folder} is written; next:\n")
    print(f"    cd {shlex.quote(str(folder))}")
    print('    pip install --editable ".[test]"')
    print("    python -m pytest\n")
    print(f"Read on in {GUIDE}")
    return 0


def check(options: argparse.Namespace) -> int:
    """Print what is wrong with a plugin; 1 if anything is."""
    from ..authoring import AuthoringError
    from ..authoring.check import check

    try:
        report = check(options.path)
    except AuthoringError as error:
        return _refuse(error)
    for finding in report.findings:
        print(json.dumps(asdict(finding), default=str) if options.json else finding)
    if report.ok and not options.json:
        hooks = (f"{name} ({', '.join(hooks)})" for name, hooks in report.hooks.items())
        print(f"ok: {', '.join(hooks)}")
    return 0 if report.ok else 1


async def ask(host: "Connection", options: argparse.Namespace) -> None:
    """List a host's plugins, or switch one and show what became of it."""
    if options.action in SWITCHES:
        rows = [await host.call(f"plugins.{options.action}", name=options.name)]
    else:
        rows = (await host.call("plugins.list"))["plugins"]
    for row in rows:
        print(json.dumps(row) if options.json else printable(_line(row)))


def _line(row: dict[str, Any]) -> str:
    hooks = [f"{hook} {_time(row['times'][hook])}" if hook in row["times"] else hook for hook in row["hooks"]]
    about = f"{row['name']:<20} {row['version'] or '-':<10} {row['state']:<10} {row['source']:<10}"
    return f"{about} {'; '.join([row['error'] or ', '.join(hooks), *row['warnings']])}"


def _time(time: dict[str, Any]) -> str:
    """How often a hook was called, and how long it took by the call."""
    return f"({time['calls']}x {1000 * time['seconds'] / time['calls']:.2f} ms)"


def _refuse(error: Exception) -> int:
    print(f"latentwire: {error}", file=sys.stderr)
    return 2
