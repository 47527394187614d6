"""Five broken packages, installed for real: the host starts, names each and the reason in one line, and works."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import pytest

from latentwire import RemoteError, connect_sync

from .conftest import wait_for
from .packages import install
from .trust.served import Server, server

PYPROJECT = """
    [build-system]
    requires = ["setuptools>=77"]
    build-backend = "setuptools.build_meta"

    [project]
    name = "lw-{name}"
    version = "1.0"

    [project.entry-points.latentwire]
    {point} = "lw_{name}"

    [tool.setuptools]
    py-modules = ["lw_{name}"]
"""

BAD_HOOK = """
    from latentwire import hookimpl

    @hookimpl
    def modify_cal(context): ...
"""
BAD_SETTINGS = """
    from latentwire import Strict

    class Settings(Strict):
        folder: str
"""
RAISES = """
    from latentwire import hookimpl

    @hookimpl
    def modify_call(context):
        raise ValueError("on purpose\\nand in two lines")
"""
CLASHES = """
    from latentwire import PluginRegistry, Strict, hookimpl

    @hookimpl
    def register(registry: PluginRegistry) -> None:
        registry.add_field("lora", Strict)
"""

# entry point -> source, what its line says
BROKEN = {
    "unimportable": ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
    "bad_hook": (BAD_HOOK, "it implements 'modify_cal', which is no hook; did you mean 'modify_call'?"),
    "bad_settings": (BAD_SETTINGS, "settings: folder: Field required"),
    "clashes": (CLASHES, "field 'lora' of plugin 'clashes' is taken by 'lora'; rename one"),
    "stats": ("", "the name 'stats' of the package 'lw-stats' is a built-in plugin's; rename its entry point"),
}


@contextmanager
def installed(folder: Path, point: str, source: str) -> Iterator[Server]:
    """A server beside whose packages this one is installed."""
    package, packages = folder / "package", folder / "packages"
    package.mkdir()
    (package / "pyproject.toml").write_text(dedent(PYPROJECT).format(name=point, point=point))
    (package / f"lw_{point}.py").write_text(dedent(source))
    install(packages, package)
    with server(folder, packages=[str(packages)]) as running:
        yield running


def works(running: Server) -> None:
    with connect_sync(running.url) as client:
        events = list(client.generate("red apple", num_inference_steps=1, seed=1))
        assert events[-1].images == 1  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("point", BROKEN)
def test_the_host_starts_names_the_package_and_works(tmp_path: Path, point: str) -> None:
    source, said = BROKEN[point]
    with installed(tmp_path, point, source) as running:
        wait_for(lambda: any(f"plugin {point} " in line for line in running.log), "the log to name it")
        lines = [line for line in running.log if f"plugin {point} " in line]
        assert lines == [f"ERROR    plugin {point} (installed) failed to load: {said}"]
        assert not [line for line in running.log if "Traceback" in line]
        with connect_sync(running.url) as client:
            rows = [row for row in client.call("plugins.list")["plugins"] if row["name"] == point]
            assert (rows[-1]["state"], rows[-1]["error"], rows[-1]["version"]) == ("failed", said, "1.0")
            if point == "stats":  # the built-in one has its name
                assert rows[0]["state"] == "loaded"
        works(running)


def test_a_hook_that_raises_is_named_in_one_line_and_disabled_at_last(tmp_path: Path) -> None:
    said = "plugin 'raises' failed in modify_call: ValueError: on purpose and in two lines"
    with installed(tmp_path, "raises", RAISES) as running:
        with connect_sync(running.url) as client:
            for _ in range(3):
                with pytest.raises(RemoteError) as caught:
                    list(client.generate("red apple", num_inference_steps=1))
                assert caught.value.message == said

        def lines() -> list[str]:
            return [line for line in running.log if line.startswith("ERROR") and said in line]

        wait_for(lambda: len(lines()) >= 4, "one line for each job, and one that it is disabled")
        assert len(lines()) == 4
        works(running)
