"""The command `latentwire`. Each part imports what it needs when it runs, so that `--help` is quick."""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from . import cli_plugins

if TYPE_CHECKING:
    from ..client import Connection

DEFAULT_URL = "ws://127.0.0.1:8000/ws"
SETTINGS_FILE = Path("plugins.toml")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    options = _parser().parse_args(arguments)
    if options.command == "serve":
        from .serve import serve

        return serve(_settings_file(options), _overrides(options), options.reload)
    if options.command == "new-plugin":
        return cli_plugins.new_plugin(options)
    if options.command == "plugins" and options.action == "check":
        return cli_plugins.check(options)
    from ..client import ConnectionLost, RemoteError

    try:
        return asyncio.run(_ask(options))
    except RemoteError as error:
        print(f"latentwire: {error.message} ({error.code})", file=sys.stderr)
    except ConnectionLost as error:
        print(f"latentwire: {error}", file=sys.stderr)
    except OSError as error:
        print(f"latentwire: cannot write: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="latentwire", description="Live pictures from diffusion models.")
    parser.add_argument("--version", action="version", version=f"latentwire {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run a host")
    serve.add_argument("--config", type=Path, help="settings file (default: plugins.toml here, if there is one)")
    serve.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", help="port to listen on (default: 8000)")
    serve.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: auto)")
    serve.add_argument("--reload", action="store_true", help="load plugins anew when their code changes")
    serve.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="any other setting")

    client = _client_options(
        url=os.environ.get("LATENTWIRE_URL", DEFAULT_URL),
        token=os.environ.get("LATENTWIRE_TOKEN"),
        key=os.environ.get("LATENTWIRE_KEY"),
    )

    generate = commands.add_parser("generate", parents=[client], help="make a picture from a prompt")
    generate.add_argument("prompt")
    generate.add_argument("-o", "--output", type=Path, default=Path("latentwire.png"), help="PNG to write")
    generate.add_argument("--previews", type=Path, metavar="DIR", help="also write every preview there")
    generate.add_argument("--negative-prompt")
    generate.add_argument("--model")
    generate.add_argument("--scheduler")
    generate.add_argument("--steps", type=int, dest="num_inference_steps")
    generate.add_argument("--guidance", type=float, dest="guidance_scale")
    generate.add_argument("--width", type=int)
    generate.add_argument("--height", type=int)
    generate.add_argument("--count", type=int, dest="num_images", help="several pictures: NAME-0.png, NAME-1.png, ...")
    generate.add_argument("--seed", type=int)
    generate.add_argument("--mode", choices=("exact", "reproducible", "fast"))

    cli_plugins.add_new_plugin(commands.add_parser)
    cli_plugins.add_plugins(commands.add_parser, client, _client_options())
    for name, text in (
        ("models", "list the host's models"),
        ("describe", "print the host's commands, fields and events as JSON Schema"),
    ):
        commands.add_parser(name, parents=[client], help=text)
    return parser


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
            return await _generate(host, options)
        if options.command == "describe":
            print(json.dumps(await host.call("describe"), indent=2))
        elif options.command == "plugins":
            await cli_plugins.ask(host, options)
        else:
            for row in (await host.call("models.list"))["models"]:
                note = row.get("error") or f"{row['family']}, {row['size']}x{row['size']}, {row['dtype']}"
                print(f"{row['name']:<20} {note}{' (default)' if row.get('default') else ''}")
    return 0


async def _generate(host: "Connection", options: argparse.Namespace) -> int:
    """Make the pictures under a progress bar and write them."""
    from tqdm import tqdm

    from ..client import Image, Loading, Preview, Result, Step

    fields: dict[str, Any] = {
        name: getattr(options, name)
        for name in (
            "negative_prompt", "model", "scheduler", "num_inference_steps", "guidance_scale",
            "width", "height", "num_images", "seed", "mode",
        )
        if getattr(options, name) is not None
    }  # fmt: skip
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if options.previews:
        options.previews.mkdir(parents=True, exist_ok=True)
        fields["previews"] = {"format": "jpeg"}
    count = options.num_images or 1
    with tqdm(unit="step", desc="waiting", delay=0.1) as bar:  # no bar for what is refused at once
        async for event in host.generate(options.prompt, **fields):
            match event:
                case Loading():
                    bar.set_description(f"loading {event.component}")
                case Step():
                    bar.total = event.steps * count
                    bar.set_description("drawing", refresh=False)
                    bar.update()
                case Preview():
                    name = f"{event.index}-{event.step:03d}.{event.image.format}"
                    (options.previews / name).write_bytes(event.image.data)
                case Image(image=picture) if picture is not None:
                    path = _output(options.output, event.index, count)
                    path.write_bytes(picture.data)
                    bar.write(f"{path}  seed {event.seed}", file=sys.stderr)
                case Result():
                    bar.set_description(f"done in {event.seconds:.2f} s")
    return 0


def _output(path: Path, index: int, count: int) -> Path:
    return path if count == 1 else path.with_stem(f"{path.stem}-{index}")
