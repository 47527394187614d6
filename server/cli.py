"""The command `latentwire`. Each part imports what it needs when it runs, so that `--help` is quick."""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import __version__
from . import cli_bench, cli_doctor, cli_generate, cli_plugins, cli_request
from .terminal import printable

DEFAULT_URL = "ws://127.0.0.1:8000/ws"
SETTINGS_FILE = Path("plugins.toml")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    parser = parser_of_all()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks; see `completion`
        import argcomplete

        argcomplete.autocomplete(parser)
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except cli_request.BadInput as error:
        print(f"latentwire: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _run(options: argparse.Namespace) -> int:
    if options.command == "serve":
        from .serve import serve

        return serve(_settings_file(options), _overrides(options), options.reload, options.open)
    if options.command == "new-plugin":
        return cli_plugins.new_plugin(options)
    if options.command == "plugins" and options.action == "check":
        return cli_plugins.check(options)
    if options.command == "doctor":
        return cli_doctor.doctor(options, _settings_file(options), _overrides(options))
    if options.command == "completion":
        from argcomplete.shell_integration import shellcode

        print(shellcode(["latentwire"], shell=options.shell))
        return 0
    if options.command == "generate":
        cli_request.check(options)
    from ..client import ConnectionLost, RemoteError
    from ..core.errors import LatentwireError

    try:
        if options.command == "bench":
            return cli_bench.bench(options, _settings_file(options), _overrides(options))
        return asyncio.run(_ask(options))
    except RemoteError as error:
        print(printable(f"latentwire: {error.message} ({error.code})"), file=sys.stderr)
        return 2 if error.code == "invalid_params" else 1
    except LatentwireError as error:  # of a host of its own
        print(f"latentwire: {error.message}", file=sys.stderr)
        return 2
    except (ConnectionLost, RuntimeError) as error:
        print(printable(f"latentwire: {error}"), file=sys.stderr)
    except BrokenPipeError:  # `| head` has had enough; what is left in the buffer must not fail again at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"latentwire: cannot write: {error}", file=sys.stderr)
    return 1


def parser_of_all() -> argparse.ArgumentParser:
    """The parser of every command."""
    parser = argparse.ArgumentParser(prog="latentwire", description="Live pictures from diffusion models.")
    parser.add_argument("--version", action="version", version=f"latentwire {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    settings = _settings_options()
    serve = commands.add_parser("serve", parents=[settings], help="run a host")
    serve.add_argument("--reload", action="store_true", help="load plugins anew when their code changes")
    serve.add_argument("--open", action="store_true", help="open the page in the browser once the host is ready")

    client = _client_options(
        url=os.environ.get("LATENTWIRE_URL", DEFAULT_URL),
        token=os.environ.get("LATENTWIRE_TOKEN"),
        key=os.environ.get("LATENTWIRE_KEY"),
    )

    cli_generate.add_generate(commands.add_parser, client)
    cli_doctor.add_doctor(commands.add_parser, settings)
    cli_bench.add_bench(commands.add_parser, client, settings)
    cli_plugins.add_new_plugin(commands.add_parser)
    cli_plugins.add_plugins(commands.add_parser, client, _client_options())
    for name, text in (
        ("models", "list the host's models"),
        ("describe", "print the host's commands, fields and events as JSON Schema"),
    ):
        command = commands.add_parser(name, parents=[client], help=text)
        if name == "models":
            command.add_argument("--json", action="store_true", help="print each model as a line of JSON")
    completion = commands.add_parser("completion", help="print a script that completes this command in a shell")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    return parser


def _settings_options() -> argparse.ArgumentParser:
    """The options of commands that run a host of their own."""
    settings = argparse.ArgumentParser(add_help=False)
    settings.add_argument(
        "--config", type=Path, metavar="FILE", help="settings file (default: plugins.toml here, if there is one)"
    )
    settings.add_argument("--host", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1)")
    settings.add_argument("--port", help="port to listen on (default: 8000)")
    settings.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: auto)")
    settings.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="any other setting")
    return settings


def _client_options(**defaults: str | None) -> argparse.ArgumentParser:
    """The options of commands that talk to a host; one without a default is left out where it is not given."""
    client = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    client.add_argument("--url", help="the host's socket")
    client.add_argument("--token", help="if the host asks for one")
    client.add_argument("--key", help="a secret of your own, for results")
    client.set_defaults(**defaults)
    return client


def _settings_file(options: argparse.Namespace) -> Path | None:
    if options.config is not None:
        return Path(options.config)
    return SETTINGS_FILE if SETTINGS_FILE.exists() else None


def _overrides(options: argparse.Namespace) -> list[str]:
    named = {"server.host": options.host, "server.port": options.port, "engine.device": options.device}
    return [*options.set, *(f"{key}={value}" for key, value in named.items() if value is not None)]


async def _ask(options: argparse.Namespace) -> int:
    from ..client import connect

    async with connect(options.url, token=options.token, key=options.key) as host:
        if options.command == "generate":
            return await cli_generate.generate(host, options)
        if options.command == "describe":
            print(json.dumps(await host.call("describe"), indent=2))
        elif options.command == "plugins":
            await cli_plugins.ask(host, options)
        else:
            for row in (await host.call("models.list"))["models"]:
                if options.json:
                    print(json.dumps(row))
                    continue
                note = row.get("error") or f"{row['family']}, {row['size']}x{row['size']}, {row['dtype']}"
                print(printable(f"{row['name']:<20} {note}{' (default)' if row.get('default') else ''}"))
    return 0
