"""The command `latentwire doctor`: looks at everything that a host needs, and makes a picture with it."""

import argparse
import asyncio
import io
import os
import platform
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..core.host import Host
    from ..core.settings import Settings

    AddParser = Callable[..., argparse.ArgumentParser]

PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "peft", "pillow", "numpy")
MODULES = {"pillow": "PIL"}
WEIGHTY = ("unet", "transformer", "vae", "text_encoder")  # folders of a model that hold weights
GIB = 1 << 30
PROMPT = "red apple on a blue background"


@dataclass(frozen=True)
class Finding:
    """What was found; where it is not `ok`, `advice` says what to do."""

    check: str
    ok: bool
    found: str
    advice: str = ""


def add_doctor(add_parser: "AddParser", settings: argparse.ArgumentParser) -> None:
    """Add the parser of `latentwire doctor`."""
    parser = add_parser("doctor", parents=[settings], help="look at all that a host needs, and make a test picture")
    parser.add_argument("--json", action="store_true", help="print each finding as a line of JSON")


def doctor(options: argparse.Namespace, file: Path | None, overrides: list[str]) -> int:
    """Print what is found, one after the other; 1 if anything is broken."""
    broken = 0
    for finding in _findings(file, overrides):
        broken += not finding.ok
        if options.json:
            from .cli_report import json_line

            json_line(asdict(finding))
        else:
            print(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.check:<10} {finding.found}", flush=True)
            if finding.advice:
                print(f"      {'':<10} -> {finding.advice}", flush=True)
    if not options.json:
        print(f"{broken} of these must be mended" if broken else "all is well")
    return 1 if broken else 0


def _findings(file: Path | None, overrides: list[str]) -> Iterator[Finding]:
    from ..core.errors import LatentwireError

    yield Finding("latentwire", True, f"{__version__} in {Path(__file__).parents[1]}")
    yield Finding("python", True, f"{platform.python_version()} in {sys.prefix}")
    packages = [_package(name) for name in PACKAGES]
    yield from packages
    if not all(package.ok for package in packages):
        return
    yield from _devices()
    try:
        from ..core.settings import load_settings

        settings = load_settings(file, os.environ, overrides)
    except LatentwireError as error:
        yield Finding("settings", False, error.message, "correct it; docs/settings.md has every setting")
        return
    where = f"{file.resolve()} is valid" if file else "no plugins.toml here, so the defaults"
    yield Finding("settings", True, f"{where}; default model {settings.defaults.model}")
    yield _port(settings)
    yield from _roots(settings)
    yield from _models(settings)
    yield from _host(settings)


def _package(name: str) -> Finding:
    try:
        import_module(MODULES.get(name, name))
        return Finding(name, True, version(name))
    except Exception as error:
        advice = f"install it anew: pip install --force-reinstall {name}"
        return Finding(name, False, f"cannot be imported: {type(error).__name__}: {error}", advice)


def _devices() -> Iterator[Finding]:
    import psutil  # type: ignore[import-untyped]
    import torch

    from ..core.cpu import is_slow

    memory = psutil.virtual_memory()
    quick = "not quick" if is_slow("bfloat16") else "quick"
    text = (
        f"{os.cpu_count()} cores, {memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free, bfloat16 {quick}"
    )
    yield Finding("cpu", True, text)
    if not torch.cuda.is_available():
        yield Finding("gpu", True, f"none that torch {torch.__version__} can use")
    for number in range(torch.cuda.device_count()):
        check = f"cuda:{number}"
        try:
            free, total = torch.cuda.mem_get_info(number)
            about = f"{torch.cuda.get_device_name(number)}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
            yield Finding(check, True, about)
        except Exception as error:
            advice = "see nvidia-smi; `--device cpu` does without it"
            yield Finding(check, False, f"{type(error).__name__}: {error}", advice)


def _port(settings: "Settings") -> Finding:
    server = settings.server
    where = f"{server.host}:{server.port}"
    try:
        family, *_, address = socket.getaddrinfo(
            server.host or None, server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        socket.create_server(address[:2], family=family).close()
        return Finding("port", True, f"{where} is free")
    except OSError as error:
        if _answers(server.port):
            return Finding("port", True, f"{where} is in use: a host is running there")
        reason = str(error.strerror).partition(" (while")[0]
        return Finding("port", False, f"{where}: {reason}", "end what listens there, or choose another: --host, --port")


def _answers(port: int) -> bool:
    """Whether a latentwire host listens on this machine's port."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/healthz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def _roots(settings: "Settings") -> Iterator[Finding]:
    from ..core.settings import MODELS_FOLDER

    for root in (MODELS_FOLDER, *settings.files.roots):
        if not root.is_dir():
            advice = "make the folder, or take it out of files.roots"
            yield Finding("root", False, f"{root} is no folder", advice)
            continue
        try:
            holders = {file.parent.relative_to(root).parts[:1] for file in root.rglob("*.safetensors")}
        except OSError as error:
            yield Finding("root", False, f"{root}: {error}", "let the host's user read it")
            continue
        names = ", ".join(sorted(parts[0] for parts in holders if parts)) or "no weights below it"
        yield Finding("root", True, f"{root}: {names}")


def _models(settings: "Settings") -> Iterator[Finding]:
    for name, model in sorted(settings.models.items()):
        if model.path is None:
            yield Finding("model", True, f"{name}: {model.hub} of the hub")
        elif not model.path.exists():
            advice = f"correct models.{name}.path, or fetch the model"
            yield Finding("model", False, f"{name}: there is no {model.path}", advice)
        elif wrong := _incomplete(model.path):
            yield Finding("model", False, f"{name}: {wrong}, in {model.path}", "fetch it again")
        else:
            yield Finding("model", True, f"{name}: {model.path}")


def _incomplete(path: Path) -> str:
    """What is missing of a model's files."""
    from ..core.whole import is_whole, whole_weights

    if path.is_file():
        return "" if is_whole(path) else f"{path.name} is only partly there"
    if not (path / "model_index.json").is_file():
        return "there is no model_index.json"
    try:
        for part in sorted(path.iterdir()):
            if part.name.startswith(WEIGHTY) and part.is_dir():
                whole_weights(part)
        return ""
    except (OSError, ValueError) as error:
        return str(error)


def _host(settings: "Settings") -> Iterator[Finding]:
    """A host as `serve` would start it: its plugins, and a picture."""
    from ..core.errors import LatentwireError
    from .own_host import own_host

    try:
        with own_host(settings) as host:
            for report in host.plugins.reports:
                text = f"{report.name} {report.version or ''}".strip()
                if report.state == "failed":
                    advice = f"mend it (`latentwire plugins check` helps), or set enabled = false for {report.name}"
                    yield Finding("plugin", False, f"{text}: {report.error}", advice)
                else:
                    yield Finding("plugin", True, f"{text} is {report.state}{': ' if report.warnings else ''}"
                                  f"{'; '.join(report.warnings)}")  # fmt: skip
            yield _picture(host)
    except LatentwireError as error:
        yield Finding("host", False, error.message, "correct the settings; docs/settings.md has every one")
    except Exception as error:
        yield Finding("host", False, f"{type(error).__name__}: {error}", "the first FAIL above may be why")


def _picture(host: "Host") -> Finding:
    """A picture of the default model, two made: the first one loads it."""
    from PIL import Image as PILImage

    from ..core.errors import LatentwireError
    from ..core.events import Image

    def make() -> tuple[dict[str, Any], bytes, float]:
        events: list[Any] = []
        begin = time.perf_counter()
        result = asyncio.run(host.dispatch("generate", {"prompt": PROMPT, "seed": 7}, "doctor", events.append))
        data = next(event.image.data for event in events if isinstance(event, Image) and event.image)
        return result, data, time.perf_counter() - begin

    try:
        first = make()[2]
        result, data, seconds = make()
    except LatentwireError as error:
        return Finding("picture", False, f"{error.message} ({error.code})", "the log above has more")
    with PILImage.open(io.BytesIO(data)) as picture:
        size = f"{picture.width}x{picture.height}"
        extrema: Any = picture.convert("L").getextrema()
    if extrema[0] == extrema[1]:
        advice = "try another device (--device cpu) or dtype (models.NAME.dtype)"
        return Finding("picture", False, f"the model {result['model']} paints one even colour", advice)
    times = f"in {seconds:.2f} s on {host.device}; the first took {first:.2f} s with loading"
    return Finding("picture", True, f"{size} of {result['model']} {times}")
