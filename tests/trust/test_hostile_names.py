"""Ten thousand names that mean to lead out: by no command, and by no route, does one get through.

What is promised: a name resolves, links followed, within the host's roots, when it is looked up. What is not: that
somebody who may write into a root cannot swap a link afterwards. Weights files are held to what was checked of them by
being opened once (`core/weights.py`); a folder that a library opens by its name is not.
"""

import asyncio
import os
import random
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from latentwire import Host, InvalidParams
from latentwire.core.errors import LatentwireError
from latentwire.core.files import check_inside, find
from latentwire.core.settings import MODELS_FOLDER, FileSettings

from ..conftest import Served, running_host
from ..wire import SMALL
from .hostile_names import SECRET, hostile_names, make_folders

COUNT = 10_000
SEED = int(os.environ.get("LATENTWIRE_SEED") or random.randrange(1 << 32))

COMMANDS = [
    ("lora.load", "path"),
    ("controlnet.load", "path"),
    ("controlnet.load", "lora_weights_path"),
    ("lora.unload", "name"),
    ("controlnet.unload", "name"),
    ("results.get", "id"),
    ("results.reproduce", "id"),
    ("generate", "model"),
    ("generate", "scheduler"),
    ("generate", "init"),
]
CODES = {"invalid_params", "model_load_failed", "not_loaded", "unknown_model", "unknown_image"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    print("seed", SEED)
    return make_folders(tmp_path_factory.mktemp("names"))


@pytest.fixture(scope="module")
def host(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    results = {"name": "results", "settings": {"folder": str(tmp_path_factory.mktemp("results"))}}
    with running_host(files={"roots": [root]}, plugins=[results]) as host:
        host.warm_up()
        yield host


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ten_thousand_names_resolve_inside_or_not_at_all(root: Path) -> None:
    files = FileSettings(roots=[root])
    roots = [root.resolve(), MODELS_FOLDER.resolve()]
    met: Counter[str] = Counter()
    for name in hostile_names(COUNT, SEED, root):
        try:
            path = find(files, name)
        except InvalidParams as error:
            met["leads out" if "leads out" in error.message else "is not there"] += 1
            continue
        real = Path(os.path.realpath(path))
        assert any(real.is_relative_to(allowed) for allowed in roots), f"{name!r} gave {path}"
        met["is inside"] += 1
    assert min(met["leads out"], met["is not there"], met["is inside"]) > 5, met


def test_no_command_lets_one_through(host: Host, root: Path) -> None:
    """Each name by one command after another; what is inside holds no weights, so none may end well."""

    async def ask(command: str, key: str, name: str) -> None:
        params = {"prompt": "x"} | SMALL | {key: name} if command == "generate" else {key: name}
        if key == "init":
            params = SMALL | {"img2img": {"image": name}}
        try:
            await host.dispatch(command, params, "me", lambda _: None)
        except LatentwireError as error:
            refused = error
        else:
            pytest.fail(f"{command} took {name!r}")
        assert refused.code in CODES, f"{command} {name!r}: {refused.code} {refused.message}"
        assert SECRET not in refused.message

    async def all_of_them() -> None:
        for number, name in enumerate(hostile_names(COUNT // 4, SEED + 1, root)):
            await ask(*COMMANDS[number % len(COMMANDS)], name)
        for odd in (
            ".",
            "nets",
            "loras",
            "..",
            "/",
            "link",
            "slash/etc/passwd",
            "self/root/etc/passwd",
            "chain59",
            "up",
        ):
            for command, key in COMMANDS:
                await ask(command, key, odd)
        for inside in ("nets/one", "loras/emoji-pencil"):
            for way_out in ("../../link/secret.safetensors", "../../file.safetensors", "/etc/passwd", "x" * 900, "\0"):
                params = {"path": inside, "lora_weights_path": way_out}
                with pytest.raises(LatentwireError) as caught:
                    await host.dispatch("controlnet.load", params, "me", lambda _: None)
                assert caught.value.code in CODES, way_out

    asyncio.run(all_of_them())
    assert host.store.brought("adapter") == host.store.brought("controlnet") == []


def test_files_behind_links_are_not_inside(root: Path) -> None:
    files = FileSettings(roots=[root])
    check_inside(files, root / "style.safetensors")
    for name in ("file.safetensors", "link/secret.safetensors", "chain5/secret.safetensors", "up/secret.safetensors"):
        with pytest.raises(LatentwireError, match="leads out"):
            check_inside(files, root / name)


def test_no_page_of_the_docs_is_another_file(served: Served, root: Path) -> None:
    """By a raw socket: an HTTP client would tidy up the path."""
    address = served.http.removeprefix("http://").split(":")
    names = list(hostile_names(600, SEED + 2, root))
    for number, name in enumerate(names):
        kept = "/\\.%;:~" if number % 2 else ""
        path = quote(name.encode("utf-8", "surrogatepass"), safe=kept)
        for route in ("/docs/{}", "/results/{}.png", "/swagger-ui/{}"):
            request = f"GET {route.format(path)} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            with socket.create_connection((address[0], int(address[1])), timeout=20) as stream:
                stream.sendall(request.encode())
                answer = b""
                while piece := stream.recv(1 << 16):
                    answer += piece
            status = int(answer.split(b" ", 2)[1])
            assert status in (400, 404, 422, 503), (route, name, answer[:200])
            assert b"root:" not in answer
            assert b"Traceback" not in answer
