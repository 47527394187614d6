"""The version of the plugin contract, and how what goes away is told of."""

import warnings
from pathlib import Path

import pytest

import latentwire
from latentwire import API_VERSION
from latentwire.core import api_version
from latentwire.core.api_version import Deprecated
from latentwire.core.hookspecs import HookSpecs, hookspec
from latentwire.testing import call, generate

from .conftest import running_host

MAJOR, MINOR = map(int, API_VERSION.split("."))


def load(folder: Path, source: str) -> dict[str, object]:
    """A plugin's row once a host has tried to load it."""
    (folder / "old.py").write_text(source)
    with running_host(plugins=[{"name": "old", "path": folder / "old.py"}]) as host:
        (row,) = [row for row in call(host, "plugins.list")["plugins"] if row["name"] == "old"]
        assert generate(host).result["images"] == 1  # whatever became of the plugin
    return dict(row)


@pytest.mark.parametrize("declared", [API_VERSION, f"{MAJOR}.0"])
def test_a_plugin_of_this_version_or_an_older_one_is_loaded(tmp_path: Path, declared: str) -> None:
    row = load(tmp_path, f"LATENTWIRE_API = {declared!r}")
    assert (row["state"], row["api"], row["warnings"]) == ("loaded", declared, [])


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        (f"{MAJOR}.{MINOR + 1}", "update latentwire"),
        (f"{MAJOR + 1}.0", "update latentwire"),
        (f"{MAJOR - 1}.7", "newer version of the plugin"),
        ("1", "wanted a text such as"),
        (1.0, "wanted a text such as"),
        ("latest", "wanted a text such as"),
    ],
)
def test_a_plugin_of_another_version_is_refused_with_what_to_do(tmp_path: Path, declared: object, said: str) -> None:
    row = load(tmp_path, f"LATENTWIRE_API = {declared!r}")
    assert row["state"] == "failed"
    assert said in str(row["error"])


def test_a_deprecated_name_works_and_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(api_version.NAMES, "OldStrict", Deprecated("latentwire.Strict", "1.0", "2.0"))
    with pytest.warns(DeprecationWarning, match=r"latentwire\.OldStrict is deprecated since API 1\.0") as caught:
        assert latentwire.OldStrict is latentwire.Strict
    assert caught[0].filename == __file__  # whoever uses it, not latentwire
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = load(tmp_path, "from latentwire import OldStrict")
    assert row["state"] == "loaded"
    message = "latentwire.OldStrict is deprecated since API 1.0 and goes with 2.0; use latentwire.Strict"
    assert row["warnings"] == [message]


def test_a_deprecated_hook_works_and_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Older(HookSpecs):
        @hookspec
        def call_changes(self, context: object) -> None:
            """Deprecated."""

    monkeypatch.setattr(HookSpecs, "call_changes", Older.call_changes, raising=False)
    monkeypatch.setitem(api_version.HOOKS, "call_changes", Deprecated("modify_call", "1.0", "2.0"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = load(tmp_path, "from latentwire import hookimpl\n@hookimpl\ndef call_changes(context): ...")
    assert row["state"] == "loaded"
    assert row["hooks"] == ["call_changes"]
    assert row["warnings"] == ["hook 'call_changes' is deprecated since API 1.0 and goes with 2.0; use modify_call"]


def test_an_optional_hook_of_a_later_version_is_ignored(tmp_path: Path) -> None:
    source = "from latentwire import hookimpl\n@hookimpl(optionalhook=True)\ndef {}(context): ..."
    assert load(tmp_path, source.format("of_the_future"))["state"] == "loaded"
    assert load(tmp_path, source.replace("optionalhook=True", "").format("of_the_future"))["state"] == "failed"


def test_nothing_is_deprecated_that_has_no_successor() -> None:
    for name, notice in api_version.NAMES.items():
        assert name not in latentwire.__all__
        assert notice.instead.removeprefix("latentwire.") in latentwire.__all__
    for notice in [*api_version.NAMES.values(), *api_version.HOOKS.values()]:
        assert int(notice.until.split(".")[0]) > int(notice.since.split(".")[0])  # only a new major version takes away
