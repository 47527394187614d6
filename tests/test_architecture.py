"""Imports run one way: server -> core, plugins -> the public API, core -> nothing of ours above it."""

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import latentwire

ROOT = Path(__file__).parents[1]

# room -> rooms that it may import from; "" is the package's public names
ALLOWED = {
    "core": {"core"},
    "authoring": {"authoring", "core", ""},
    "server": {"server", "authoring", "core", "client", ""},
    "client": {"client", "core.events", "server.codec"},
    "plugins": {""},
    "testing": {"testing", "server", "client", "core", ""},
    "training": {"training"},
}


def imports_of(file: Path) -> Iterator[str]:
    """What a file imports of latentwire, as dotted names below the package."""
    package = [*file.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                yield ".".join([*base, *(node.module or "").split(".")]).strip(".")
            elif (node.module or "").split(".")[0] == "latentwire":
                yield (node.module or "").partition(".")[2]
        elif isinstance(node, ast.Import):
            yield from (name.name.partition(".")[2] for name in node.names if name.name.split(".")[0] == "latentwire")


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_from_the_rooms_below_it(room: str) -> None:
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for file in files:
        own = ".".join(file.relative_to(ROOT).parts[:2]) if room == "plugins" else room  # a plugin has only itself
        for name in imports_of(file):
            fits = name.startswith(f"{own}.") or any(
                name == other or (other and name.startswith(f"{other}.")) for other in ALLOWED[room]
            )
            assert fits, f"{file.relative_to(ROOT)} imports {name or 'latentwire'}"


@pytest.mark.parametrize("plugin", [folder.parent.name for folder in (ROOT / "plugins").glob("*/__init__.py")])
def test_a_built_in_plugin_is_tested_with_what_other_authors_have(plugin: str) -> None:
    (tests,) = (ROOT / "tests").glob(f"test_{plugin}.py")
    assert "testing" in imports_of(tests)


def test_every_public_name_exists() -> None:
    assert sorted(latentwire.__all__) == sorted(latentwire._HOME)
    for name in latentwire.__all__:
        assert getattr(latentwire, name) is not None


def test_importing_the_package_imports_none_of_torch() -> None:
    code = "import sys, latentwire, latentwire.client; print([m for m in ('torch', 'diffusers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_picture_imports_no_part_of_diffusers_that_other_threads_may_import_too() -> None:
    """But its schedulers, which import nothing in circles."""
    code = """if True:
        import asyncio, sys
        from latentwire.testing import running_host
        with running_host() as host:
            before = set(sys.modules)
            asyncio.run(host.dispatch("generate", {"prompt": "a", "num_inference_steps": 1}, "test", lambda _: None))
            new = [name for name in sys.modules if name not in before and not name.startswith("diffusers.schedulers.")]
            print(sorted(name for name in new if name.split(".")[0] in ("diffusers", "peft", "transformers")))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_packages_lists_every_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    rooms = [file.parent.relative_to(ROOT) for room in ALLOWED for file in (ROOT / room).rglob("__init__.py")]
    assert sorted(listed) == sorted(["latentwire", *(".".join(["latentwire", *room.parts]) for room in rooms)])


@pytest.mark.slow
def test_the_wheel_holds_the_code_the_model_and_the_docs(tmp_path: Path) -> None:
    source = tmp_path / "source"  # building leaves folders behind
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "training-runs"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    for wanted in (
        "latentwire/core/engine.py",
        "latentwire/plugins/clip_skip/__init__.py",
        "latentwire/models/emoji/unet/diffusion_pytorch_model.safetensors",
        "latentwire/docs/protocol.md",
        "latentwire/docs/plugins/lora.md",
        "latentwire/authoring/template/src/$plugin/__init__.py.tmpl",
        "latentwire/models/layouts/sdxl/unet/config.json",
        "latentwire/models/tokenizers/clip/merges.txt",
        "latentwire/server/web/index.html",
        "latentwire/server/web/app.js",
        "latentwire/client/js/latentwire.js",
        "latentwire/client/js/vendor/msgpack.js",
        "latentwire/py.typed",
    ):
        assert wanted in names
    assert not [name for name in names if name.startswith(("core/", "tests/", "latentwire/tests"))]
