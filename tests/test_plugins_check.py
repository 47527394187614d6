"""`latentwire plugins check`: each fault is found in a small plugin that has it, and none in plugins that are well."""

import re
from pathlib import Path
from textwrap import dedent

import pytest

from latentwire import API_VERSION
from latentwire.authoring import AuthoringError, import_check
from latentwire.authoring.check import check
from latentwire.authoring.names import built_in, hooks
from latentwire.core.hookspecs import hook_names
from latentwire.core.plugin_loading import BUILT_IN

from .pages import ROOT

WELL = f"""
from latentwire import hookimpl

LATENTWIRE_API = "{API_VERSION}"

@hookimpl
def modify_call(context): ...
"""

EXAMPLES = sorted((ROOT / "examples" / "plugins").glob("*.py"))
EXAMPLES += sorted(file.parent for file in (ROOT / "examples" / "plugins").glob("*/pyproject.toml"))


def found(path: Path) -> list[str]:
    """What is found, as `file:line: text`, the file by its name alone."""
    lines = [str(finding) for finding in check(path).findings]
    assert all("\n" not in line and "; " in line for line in lines), lines  # what is wrong, and what to do
    return [re.sub(r"^\S*/", "", line) for line in lines]


def plugin(folder: Path, source: str, name: str = "mine.py") -> Path:
    """A plugin's file, well but for what the source adds."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(WELL.lstrip() + dedent(source))
    return path


FIRST = WELL.count("\n")  # the first line of what a test adds


def test_a_plugin_that_is_well_is_ok(tmp_path: Path) -> None:
    report = check(plugin(tmp_path, ""))
    assert (report.ok, report.findings, report.hooks) == (True, [], {"mine": ["modify_call"]})


@pytest.mark.parametrize("name", built_in())
def test_built_in_plugins_check_clean(name: str) -> None:
    report = check(ROOT / "plugins" / name)
    assert report.findings == []
    assert list(report.hooks.values()) != [[]]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_check_clean(path: Path) -> None:
    report = check(path)
    assert [finding for finding in report.findings if not finding.hint] == []
    assert list(report.hooks.values()) != [[]]


def test_the_hooks_and_built_in_plugins_are_those_of_the_host() -> None:
    assert list(hooks()) == hook_names()
    assert set(built_in()) == set(BUILT_IN)


# Found by reading; each source with the line that is named, counted from its first one, and the words of the finding.


@pytest.mark.parametrize(
    ("source", "line", "said"),
    [
        ("@hookimpl\ndef modify_bild(context): ...", 2, "'modify_bild' is no hook; did you mean 'modify_build'?"),
        ("@hookimpl(specname='imag_finished')\ndef f(context): ...", 2, "did you mean 'image_finished'?"),
        ("@hookimpl\ndef zzz(context): ...", 2, "'zzz' is no hook; hooks: client_left, image_encoded"),
        ("@hookimpl\ndef modify_build(contxt): ...", 2, "no argument 'contxt'; write `def modify_build(context)`"),
        ("@hookimpl\ndef modify_build(context, job): ...", 2, "no argument 'job'; write `def modify_build(context)`"),
        ("@hookimpl\ndef register(context): ...", 2, "no argument 'context'; write `def register(registry)`"),
        ("@hookimpl\ndef modify_build(): ...", 2, "takes nothing; write `def modify_build(context)`"),
        ("@hookimpl\ndef modify_build(context, by=0.3): ...", 2, "'by' of hook 'modify_build' has a default"),
        (
            "@hookimpl\ndef modify_build(context=None): ...",
            2,
            "a host never fills it; write `def modify_build(context)`",
        ),
        (
            "@hookimpl\ndef modify_build(context, *, by): ...",
            2,
            "'by' of hook 'modify_build' is taken by name",
        ),
        ("@hookimpl\ndef modify_build(*all): ...", 2, "argument '*all' of hook 'modify_build' takes any number"),
        ("@hookimpl\nasync def modify_build(context): ...", 2, "is async; write `def modify_build(context)`"),
        ("@hookimpl(wrapper=True)\ndef modify_build(context): yield", 2, "is a wrapper; write it without"),
        ("@hookimpl(hookwrapper=True)\ndef modify_build(context): yield", 2, "is a wrapper; write it without"),
        ("@hookimpl\ndef modify_build(context): yield", 2, "yields, so nothing of it would run; do without yield"),
        ("import latentwire\n@latentwire.hookimpl\ndef modify_bild(context): ...", 3, "'modify_bild' is no hook"),
        ("from latentwire import *\n@hookimpl\ndef modify_bild(context): ...", 3, "'modify_bild' is no hook"),
        (
            "from latentwire import hookimpl as hook\n@hook\ndef modify_bild(context): ...",
            3,
            "'modify_bild' is no hook",
        ),
        ("import pluggy\nm = pluggy.HookimplMarker('latentwire')\n@m\ndef modify_bild(context): ...", 4, "is no hook"),
    ],
)
def test_hooks_that_a_host_refuses_are_found(tmp_path: Path, source: str, line: int, said: str) -> None:
    lines = found(plugin(tmp_path, source))
    assert lines[0].startswith(f"mine.py:{FIRST + line - 1}: ")
    assert said in lines[0]


def test_a_method_may_have_self_and_a_hook_of_a_later_version_may_be_optional(tmp_path: Path) -> None:
    source = """
        from latentwire import hookimpl

        class Plugin:
            @hookimpl
            def modify_build(self, context): ...

            @staticmethod
            @hookimpl
            def image_finished(context): ...

            @hookimpl(optionalhook=True)
            def of_next_year(self, context): ...
    """
    path = tmp_path / "mine.py"
    path.write_text(f'LATENTWIRE_API = "{API_VERSION}"' + dedent(source))
    assert found(path) == []


@pytest.mark.parametrize(
    ("source", "line", "said"),
    [
        (
            "class Hooks:\n    @hookimpl\n    def modify_build(self, context): ...",
            3,
            "'modify_build' is never called: a host makes an instance of the class Plugin only, not of Hooks",
        ),
        (
            "class Plugin:\n    @hookimpl\n    def modify_build(self, context): ...",
            0,
            "'modify_call' is never called: the module has a class Plugin, whose methods alone are hooks then",
        ),
        (
            "def make():\n    @hookimpl\n    def modify_build(context): ...",
            3,
            "'modify_build' is never called: it is inside of a function",
        ),
        ("@hookimpl\ndef modify_call(context): ...", 0, "'modify_call' is never called: another definition"),
    ],
)
def test_hooks_that_no_host_finds_are_found(tmp_path: Path, source: str, line: int, said: str) -> None:
    (only,) = found(plugin(tmp_path, source))
    assert only.startswith(f"mine.py:{FIRST + line - 1}: hook {said}")


def test_what_class_plugin_inherits_and_what_a_decorator_wraps_is_found_by_a_host(tmp_path: Path) -> None:
    source = f"""
        import functools
        from latentwire import hookimpl

        LATENTWIRE_API = "{API_VERSION}"

        def plain(function):
            def call(self, context): ...
            return call

        class Base:
            @hookimpl
            def modify_build(self, context): ...

        class Plugin(Base):
            @hookimpl
            @plain
            def modify_call(self, context): ...
    """
    path = tmp_path / "mine.py"
    path.write_text(dedent(source))
    assert found(path) == []


def test_a_hook_in_another_file_counts_once_the_module_imports_it(tmp_path: Path) -> None:
    package = plugin(tmp_path, "", "mine/__init__.py").parent
    plugin(tmp_path, "@hookimpl\ndef modify_build(context): ...", "mine/other.py")
    assert "other.py" in "".join(found(package))
    plugin(tmp_path, "from .other import modify_build, modify_call", "mine/__init__.py")
    assert [line for line in found(package) if "other.py" in line] == []


def test_a_module_without_hooks_is_found(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f'LATENTWIRE_API = "{API_VERSION}"')
    assert found(tmp_path / "mine.py") == [
        "mine.py:1: it has no hooks; write one, with `@hookimpl` above it: register, say"
    ]


def test_a_hook_without_its_decorator_is_a_hint(tmp_path: Path) -> None:
    path = plugin(tmp_path, "def modify_build(context): ...\n\ndef register(form): ...")
    assert found(path) == [
        f"mine.py:{FIRST}: hint: 'modify_build' is called as a hook is, but no host calls it; "
        "put `@hookimpl` above it, or rename it"
    ]
    assert check(path).ok


HANDLERS = """
    from latentwire import NoParams
    from .other import elsewhere

    def plain(context, params): ...

    class Plugin:
        @hookimpl
        def register(self, registry):
            registry.add_command("a.a", NoParams, {handler})

        @hookimpl
        def modify_call(self, context): ...

        def plain(self, context, params): ...
        async def well(self, context, params): ...
"""


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        ("plain", "write `async def plain`"),
        ("self.plain", "write `async def plain`"),
        ("handler=plain", "write `async def plain`"),
        ("lambda context, params: {}", "write an async function"),
        ("elsewhere", "other.py:1: the handler of command 'a.a' is not async; write `async def elsewhere`"),
        ("self.well", None),
    ],
)
def test_handlers_that_are_not_async_are_found(tmp_path: Path, handler: str, said: str | None) -> None:
    source = WELL.replace("@hookimpl\ndef modify_call(context): ...\n", "") + dedent(HANDLERS).format(handler=handler)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text(source)
    (tmp_path / "mine" / "other.py").write_text("def elsewhere(context, params): ...")
    lines = found(tmp_path / "mine")
    assert len(lines) == (said is not None)
    assert said is None or said in lines[0]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import time\n\nasync def f(): time.sleep(1)", "time.sleep blocks, in async 'f'"),
        ("from time import sleep\n\nasync def f(): sleep(1)", "time.sleep blocks, in async 'f'"),
        ("import subprocess as s\n\nasync def f(): s.run(['ls'])", "subprocess.run blocks"),
        ("from urllib.request import urlopen\n\nasync def f(): urlopen('http://x')", "urllib.request.urlopen blocks"),
        ("import requests\n\nasync def f(): requests.get('http://x')", "requests.get blocks"),
        ("import time\n\nasync def f():\n    def g(): time.sleep(1)", None),  # for a worker thread, perhaps
        ("import asyncio, time\n\nasync def f(): await asyncio.to_thread(time.sleep, 1)", None),
        ("async def f(requests): requests.get('x')", None),
        ("import time\n\ndef f(): time.sleep(1)", None),
    ],
)
def test_what_blocks_within_async_functions_is_found(tmp_path: Path, source: str, said: str | None) -> None:
    lines = [line for line in found(plugin(tmp_path, source)) if "cannot be imported" not in line]  # without requests
    assert len(lines) == (said is not None)
    assert said is None or (f"mine.py:{FIRST + 2}: " in lines[0] and said in lines[0])


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("from latentwire.core.errors import PluginError", "latentwire.core.errors is private"),
        ("import latentwire.core.errors", "latentwire.core.errors is private"),
        ("from latentwire.client.sync import _thread", "latentwire.client.sync._thread is private"),
        ("from latentwire import _HOME", "latentwire._HOME is not public; do without"),
        ("from latentwire import core", "latentwire.core is not public; "),
        ("from latentwire import PluginRegistri", "is not public; did you mean 'PluginRegistry'?"),
        ("import latentwire\nlatentwire.core.errors", "latentwire.core is not public"),
        ("from latentwire import *\nfrom latentwire import __version__, Strict, client", None),
        ("from latentwire.client import Image\nimport latentwire.testing", None),
    ],
)
def test_private_imports_are_found(tmp_path: Path, source: str, said: str | None) -> None:
    lines = [line for line in found(plugin(tmp_path, source)) if "cannot be imported" not in line]
    assert len(lines) == (said is not None)
    assert said is None or said in lines[0]


def test_an_import_that_climbs_out_of_the_plugin_is_found(tmp_path: Path) -> None:
    path = plugin(tmp_path, "def f():\n    from .. import beyond", "mine/__init__.py")
    plugin(tmp_path, "from .. import LATENTWIRE_API", "mine/inner/__init__.py")
    (only,) = [line for line in found(path.parent) if "leaves" in line]
    assert only.startswith(f"__init__.py:{FIRST + 1}: `from .. import ...` leaves the plugin's own folder; ")


# Found by importing it, in another process.


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import time\ntime.sleep(0.01)", "its import sleeps"),
        ("import subprocess\nsubprocess.run(['true'])", "its import starts a process"),
        ("import os\nos.system('true')", "its import starts a process"),
        ("import socket\nsocket.getaddrinfo('127.0.0.1', 1)", "its import uses the network"),
        ("import socket\nsocket.socket().connect_ex(('127.0.0.1', 1))", "its import uses the network"),
        ("import pathlib\npathlib.Path(__file__ + '.log').write_text('')", "mine.py.log, and the host's start waits"),
    ],
)
def test_imports_that_block_are_found(tmp_path: Path, source: str, said: str) -> None:
    (only,) = found(plugin(tmp_path, source))
    assert only.startswith(f"mine.py:{FIRST + 1}: ")
    assert said in only
    assert "do it later" in only


def test_reading_files_is_fine(tmp_path: Path) -> None:
    assert found(plugin(tmp_path, "import pathlib\npathlib.Path(__file__).read_text()")) == []


def test_an_import_that_takes_long_is_found_with_what_it_is_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = "import time\nuntil = time.process_time() + 0.3\nwhile time.process_time() < until: ..."
    (tmp_path / "slow_library.py").write_text(busy)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    quick, slow = plugin(tmp_path, ""), plugin(tmp_path, "import slow_library", "slow.py")
    own = plugin(tmp_path, busy, "own.py")
    assert found(slow) == []
    monkeypatch.setattr(import_check, "SLOW_S", 0.2)
    assert found(quick) == []
    (only,) = found(slow)
    takes = r"importing it takes \S+ s of processor time"
    assert re.match(rf"slow\.py:{FIRST}: {takes}, \S+ s of it for slow_library; do it later", only)
    (only,) = found(own)
    assert re.match(rf"own\.py:1: {takes}; do it later", only)


@pytest.mark.parametrize("name", ["torch", "diffusers", "transformers"])
def test_torch_and_its_like_at_load_are_found(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / f"{name}.py").write_text("")  # quick ones
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "library"), prepend=":")
    later = f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import {name}\n\ndef f():\n    import {name}"
    assert found(plugin(tmp_path, later)) == []
    (only,) = found(plugin(tmp_path, f"import {name}"))
    assert only.startswith(f"mine.py:{FIRST}: {name} is imported at load; import it in the function that needs it")
    (tmp_path / "library" / "by_way_of.py").write_text(f"import {name}")
    (only,) = found(plugin(tmp_path, "import by_way_of"))
    assert only.startswith(f"mine.py:{FIRST}: {name} is imported at load")


def test_what_latentwire_itself_loads_is_not_the_plugins(tmp_path: Path) -> None:
    assert found(plugin(tmp_path, "from latentwire import Host, PluginRegistry")) == []


@pytest.mark.parametrize(
    ("source", "line", "said"),
    [
        ("import no_such_package", 0, "it cannot be imported: ModuleNotFoundError: No module named 'no_such_package'"),
        ("\ndef f():\n    1 / 0\nf()", 2, "it cannot be imported: ZeroDivisionError"),
        ("raise SystemExit(3)", 0, "it cannot be imported: SystemExit: 3"),
        ("import os\nos._exit(3)", None, "its import ended the process, with status 3"),
        ("def broken(:", 0, "it is no Python: invalid syntax"),
    ],
)
def test_imports_that_fail_are_found(tmp_path: Path, source: str, line: int | None, said: str) -> None:
    (only,) = found(plugin(tmp_path, source))
    assert only.startswith(f"mine.py:{1 if line is None else FIRST + line}: {said}")


def test_an_import_that_never_ends_is_found_with_what_was_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_check, "TIMEOUT_S", 2.0)
    lines = found(plugin(tmp_path, "import time\ntime.sleep(600)"))
    assert [line.partition(";")[0] for line in lines] == [
        "mine.py:1: its import took more than 2 s",
        f"mine.py:{FIRST + 1}: its import sleeps, and the host's start waits for it",
    ]


def test_nothing_of_the_plugin_runs_here(tmp_path: Path) -> None:
    import sys

    assert found(plugin(tmp_path, "import sys\nsys.ran_here = True\nprint('loud')")) == []
    assert not hasattr(sys, "ran_here")
    assert not list(tmp_path.rglob("__pycache__"))


@pytest.mark.parametrize(
    ("declared", "line", "said"),
    [
        (None, 1, 'hint: it does not say for which version of the plugin API it was written; write LATENTWIRE_API = "'),
        ('"99.0"', 2, "written for plugin API 99.0, this host has"),
        ('"0.9"', 2, "; look for a newer version of the plugin"),
        ("1.0", 2, 'LATENTWIRE_API is 1.0, wanted a text such as "1.0"'),
    ],
)
def test_the_api_version_is_looked_at(tmp_path: Path, declared: str | None, line: int, said: str) -> None:
    declaration = "" if declared is None else f"LATENTWIRE_API = {declared}\n"
    path = tmp_path / "mine.py"
    path.write_text(f"from latentwire import hookimpl\n{declaration}@hookimpl\ndef modify_call(context): ...")
    (only,) = found(path)
    assert only.startswith(f"mine.py:{line}: ")
    assert said in only
    assert check(path).ok is (declared is None)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "from typing import Any, Callable\nfrom latentwire import Strict\nclass Settings(Strict):\n"
            "    model_config = {'arbitrary_types_allowed': True}\n    paint: Callable[[], int] = int",
            "its Settings has no JSON Schema",
        ),
        ("\n\nclass Settings:\n    strength = 1", "its Settings is no pydantic model"),
        (
            "from pydantic import SecretStr\nfrom latentwire import Strict\nclass Settings(Strict):\n    a: SecretStr",
            None,
        ),
        ("from latentwire import *", None),  # which brings the host's own Settings
    ],
)
def test_settings_are_looked_at(tmp_path: Path, source: str, said: str | None) -> None:
    lines = found(plugin(tmp_path, source))
    assert len(lines) == (said is not None)
    assert said is None or lines[0].startswith(f"mine.py:{FIRST + 2}: {said}")


@pytest.mark.parametrize(
    ("settings", "arguments", "well"),
    [(True, "self", False), (False, "self, settings", False), (True, "self, settings", True), (False, "self", True)],
)
def test_class_plugin_must_take_what_it_is_called_with(
    tmp_path: Path, settings: bool, arguments: str, well: bool
) -> None:
    source = f"""
        from latentwire import Strict, hookimpl

        LATENTWIRE_API = "{API_VERSION}"

        class {"Settings" if settings else "Other"}(Strict): ...

        class Plugin:
            def __init__({arguments}): ...

            @hookimpl
            def modify_call(self, context): ...
    """
    (tmp_path / "mine.py").write_text(dedent(source))
    lines = found(tmp_path / "mine.py")
    assert len(lines) == (not well)
    assert well or lines[0].startswith(
        f"mine.py:8: class Plugin is called with {'its settings' if settings else 'nothing'}, which fails: "
    )


# The way to it.


def project(folder: Path, entry_points: str, more: str = "") -> Path:
    text = f"[project]\nname = 'mine'\n\n{entry_points}\n{more}"
    (folder / "pyproject.toml").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("file", "more", "leads_to"),
    [
        ("src/mine/__init__.py", "", "mine"),
        ("mine/__init__.py", "", "mine"),
        ("mine.py", "", "mine"),
        ("mine/plugin.py", "", "mine.plugin"),
        ("lib/mine.py", "[tool.setuptools.packages.find]\nwhere = ['lib']", "mine"),
        ("lib/mine.py", "[tool.setuptools.package-dir]\n'' = 'lib'", "mine"),
        ("mine/inner/plugin.py", "[tool.setuptools.package-dir]\n'mine' = 'mine'", "mine.inner.plugin"),
    ],
)
def test_a_project_leads_to_its_plugin(tmp_path: Path, file: str, more: str, leads_to: str) -> None:
    plugin(tmp_path, "@hookimpl\ndef modify_bild(context): ...", file)
    if leads_to != "mine":
        (tmp_path / "mine" / "__init__.py").write_text("")
    folder = project(tmp_path, f"[project.entry-points.latentwire]\nmine = '{leads_to}'", more)
    (only,) = found(folder)
    assert only.startswith(f"{Path(file).name}:{FIRST + 1}: 'modify_bild' is no hook")


@pytest.mark.parametrize(
    ("entry_points", "line", "said"),
    [
        ("[project.entry-points.latentwire]\nmine = 'mine.gone'", 5, "'mine' leads to 'mine.gone', which is nowhere"),
        ("[project.entry-points.latentwire]\nmine = 'mine:Gone'", None, "has no attribute 'Gone'"),
        ("[project.entry-points.latentwire]\nlora = 'mine'", 5, "'lora' has the name of a built-in plugin"),
        ("[project.entry-points.latentwire]\nMy-Mine = 'mine'", 5, "'My-Mine' cannot be a plugin's name"),
        ("[project.entry-points.latentwires]\nmine = 'mine'", 1, "no entry point in the group 'latentwire'"),
        ("[project", 4, "it is no TOML"),
    ],
)
def test_entry_points_are_looked_at(tmp_path: Path, entry_points: str, line: int | None, said: str) -> None:
    plugin(tmp_path, "", "mine.py")
    (only,) = found(project(tmp_path, entry_points))
    assert said in only
    assert line is None or only.startswith(f"pyproject.toml:{line}: ")


def test_a_module_whose_name_is_taken_is_found(tmp_path: Path) -> None:
    plugin(tmp_path, "", "json/__init__.py")
    (only,) = found(tmp_path / "json")
    assert "the name 'json' is taken by " in only


@pytest.mark.parametrize("path", ["nothing", "folder", "file.txt"])
def test_what_is_no_plugin_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(AuthoringError, match=r"wanted a Python file, a module's folder"):
        check(tmp_path / path)
