"""README, quick start, settings, plugins and architecture, held against the program; their code is run."""

import asyncio
import re
import shlex
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image as PILImage

import latentwire
from latentwire import LatentwireError, PluginError, PluginRegistry, load_settings, testing
from latentwire.core.build import PipelineBuild, PipelineCall
from latentwire.core.command_context import CommandContext
from latentwire.core.registry import CORE
from latentwire.core.settings import Settings
from latentwire.server import cli

from .conftest import Served, running_host
from .pages import (
    GUIDES,
    PAGES,
    README,
    ROOT,
    blocks,
    defaults_of,
    json_default,
    models_in,
    section,
    subheadings,
    table,
)

ALL_PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "training/README.md", "models/emoji/README.md")]
ALL_PAGES += sorted((ROOT / "docs").rglob("*.md"))
DEFAULT_URL = "ws://127.0.0.1:8000/ws"


# Settings.


def test_every_setting_is_documented_with_its_default() -> None:
    sections = {name for name, field in Settings.model_fields.items() if models_in(field.annotation)}
    known = {
        name.replace("models.", "models.NAME."): default
        for name, default in defaults_of(Settings)
        if name not in sections
    }
    documented = {name: json_default(row[0]) for name, row in table(PAGES["settings"]).items()}
    assert documented == known


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.name)
def test_toml_examples_are_valid_settings(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(page.read_text(encoding="utf-8"), "toml")):
        assert tomllib.loads(block)
        file = tmp_path / f"{number}.toml"
        file.write_text(block, encoding="utf-8")
        load_settings(file)


# Plugins; tests/test_hook_contract.py has the hooks.


def test_build_and_call_are_documented_with_their_fields() -> None:
    for hook, kind in (("modify_build", PipelineBuild), ("modify_call", PipelineCall)):
        for field in fields(kind):
            assert f"`{field.name}`" in section(GUIDES["hooks"], f"`{hook}`")


def test_what_a_plugin_can_register_is_documented() -> None:
    methods = [name for name in vars(PluginRegistry) if name.startswith("add_")]
    assert sorted(subheadings(section(GUIDES["registering"], "Methods"))) == sorted(methods)
    documented = table(section(GUIDES["registering"], "`add_command`"))
    assert list(documented) == [field.name for field in fields(CommandContext)]


def test_the_public_names_are_documented() -> None:
    (lines,) = re.findall(r"^\| for \| names \|\n\|---\|---\|\n((?:\|.*\n)+)", PAGES["plugins"], re.M)
    assert sorted(re.findall(r"`(\w+)`", lines)) == sorted(latentwire.__all__)


PLUGIN_EXAMPLES = [
    block
    for page in (README, PAGES["plugins"], *GUIDES.values())
    for block in blocks(page, "python")
    if "@hookimpl" in block
]


def test_plugin_examples_load_and_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # one of them writes pictures
    files = [tmp_path / f"example{number}.py" for number in range(len(PLUGIN_EXAMPLES))]
    for file, source in zip(files, PLUGIN_EXAMPLES, strict=True):
        file.write_text(source, encoding="utf-8")
    with testing.running_host(*files) as host:  # all of them at once, and none has failed
        owned = [name for (kind, name), owner in host.registry.owners.items() if kind == "scheduler" and owner != CORE]
        assert owned
        for scheduler in (None, *owned):
            assert testing.generate(host, scheduler=scheduler).picture


def test_a_command_that_fails_ends_as_documented(tmp_path: Path) -> None:
    source = """
from latentwire import LatentwireError, Strict, hookimpl

class Params(Strict):
    on_purpose: bool

async def fail(context, params):
    raise LatentwireError("not now") if params.on_purpose else ValueError("a mistake")

@hookimpl
def register(registry):
    registry.add_command("failing.fail", Params, fail)
"""
    (tmp_path / "failing.py").write_text(source)
    with running_host(plugins=[{"name": "failing", "path": tmp_path / "failing.py"}]) as host:
        with pytest.raises(LatentwireError, match="not now"):
            asyncio.run(host.dispatch("failing.fail", {"on_purpose": True}, "test", lambda _: None))
        with pytest.raises(PluginError, match=r"'failing' failed in command failing\.fail: ValueError: a mistake"):
            asyncio.run(host.dispatch("failing.fail", {"on_purpose": False}, "test", lambda _: None))


def test_the_hosts_own_settings_are_not_taken_for_a_plugins(tmp_path: Path) -> None:
    source = """
from latentwire import *

class Plugin:
    @hookimpl
    def modify_call(self, context): ...
"""
    (tmp_path / "starred.py").write_text(source)
    with running_host(plugins=[{"name": "starred", "path": tmp_path / "starred.py"}]) as host:
        assert {report.error for report in host.plugins.reports} == {None}


# Code for clients, the command line, and links.

CLIENT_EXAMPLES = [
    block for page in (README, PAGES["quickstart"]) for block in blocks(page, "python") if DEFAULT_URL in block
]


@pytest.mark.parametrize("source", CLIENT_EXAMPLES)
def test_client_examples_run(
    served: Served, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(source.replace(DEFAULT_URL, served.url), {})
    assert capsys.readouterr().out or list(tmp_path.iterdir())
    for picture in [*tmp_path.glob("*.png"), *tmp_path.glob("*.jpg")]:
        with PILImage.open(picture) as image:
            assert image.size == (128, 128)


def test_every_python_example_is_run_by_a_test() -> None:
    for page in (README, *PAGES.values(), *GUIDES.values()):
        for block in blocks(page, "python"):
            assert block in (*PLUGIN_EXAMPLES, *CLIENT_EXAMPLES) or "def test_" in block  # tests/test_testing.py


SHELL = [line for page in (README, PAGES["quickstart"]) for block in blocks(page, "sh") for line in block.splitlines()]


@pytest.mark.parametrize("line", [line for line in SHELL if "latentwire " in line])
def test_command_lines_run(served: Served, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(line)
    assert program.endswith("latentwire")
    assert cli.main([*arguments, "--url", served.url]) == 0
    if "-o" in arguments:
        written = Path(arguments[arguments.index("-o") + 1])
        assert list(tmp_path.glob(f"{written.stem}*{written.suffix}"))


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in ALL_PAGES:
        for target in re.findall(r"(?:`|^)make (\w+)", page.read_text(encoding="utf-8"), re.M):
            assert re.search(rf"^{target}:", makefile, re.M), f"{page.name}: make {target}"


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)
            anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, target


def test_every_file_of_the_rooms_is_in_the_architecture() -> None:
    named = set(re.findall(r"^\| `(\w+\.py)` \|", PAGES["architecture"], re.M))
    files = {file.name for room in ("core", "server", "client") for file in (ROOT / room).glob("*.py")}
    assert named == files - {"__init__.py"}


def test_every_benchmark_is_on_the_page_with_its_command_line() -> None:
    usages = [re.findall(r"^ {4}python (.*)$", file.read_text(), re.M) for file in (ROOT / "benchmarks").glob("*.py")]
    written = [line for lines in usages for line in lines]
    assert len(written) == len(subheadings(section(PAGES["performance"], "The benchmarks"))) > 0
    for line in written:
        assert f"    python {line}\n" in PAGES["performance"], line
