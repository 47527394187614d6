"""`latentwire new-plugin`: what it writes is generated, looked over, installed for real, tested, and run by a host."""

import importlib.metadata
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from latentwire import API_VERSION
from latentwire.authoring import AuthoringError
from latentwire.authoring.check import check
from latentwire.authoring.new_plugin import GUIDE, LONGEST, new_plugin, rendered

from .packages import install
from .pages import ROOT

# As a host does: every plugin that is installed, by its entry point, and a request that asks something of it.
USE = """
import asyncio, json
from latentwire import Host, Settings

host = Host(Settings.model_validate({"discover": True, "engine": {"device": "cpu"}}))
try:
    events = []
    request = {"prompt": "red apple", "num_inference_steps": 2, "seed": 1, "my_plugin": {"colour": 0}}
    asyncio.run(host.dispatch("generate", request, "test", events.append))
    counted = asyncio.run(host.dispatch("my_plugin.count", {}, "test", events.append))
    import io
    from PIL import Image
    (image,) = [event.image for event in events if event.name == "image"]
    red, green, blue = Image.open(io.BytesIO(image.data)).convert("RGB").split()
    grey = list(red.getdata()) == list(green.getdata()) == list(blue.getdata())
    (report,) = [report for report in host.plugins.reports if report.name == "my_plugin"]
    print(json.dumps([report.source, report.state, report.version, counted, grey]))
finally:
    host.close()
"""


@dataclass
class Made:
    """A new plugin that was installed into a folder of its own."""

    project: Path
    site: Path
    printed: str
    began: float

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run Python with the plugin installed, in its project."""
        paths = [str(self.site), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, cwd=self.project, env=environment, timeout=110
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    began = time.monotonic()
    folder = tmp_path_factory.mktemp("made")
    command = [sys.executable, "-m", "latentwire", "new-plugin", "my-plugin", "--into", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(importlib.metadata.version("setuptools").partition(".")[0]) >= 77  # as the new pyproject.toml wants it
    made = Made(folder / "my-plugin", folder / "site", done.stdout, began)
    install(made.site, made.project)
    return made


@pytest.mark.slow
def test_its_own_tests_pass_at_once(made: Made) -> None:
    done = made.run("-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    print(f"\nfrom new-plugin to a green test run: {time.monotonic() - made.began:.1f} s")  # with `pytest -s`


FAULTS = {
    ".enhance(colour)": ".enhance(colour / 2)",  # requests get something else
    "self.settings.colour if": "0 if",  # settings have no say
    "None, ge=0, le=4": "None",  # wrong requests are taken
}


@pytest.mark.slow
def test_its_own_tests_fail_without_what_they_are_for(made: Made, tmp_path: Path) -> None:
    source = (made.project / "src" / "my_plugin" / "__init__.py").read_text()
    for right, wrong in FAULTS.items():
        assert right in source
        source = source.replace(right, wrong)
    (tmp_path / "my_plugin").mkdir()
    (tmp_path / "my_plugin" / "__init__.py").write_text(source)
    about = "my_plugin-0.1.0.dist-info"
    (tmp_path / about).symlink_to(made.site / about)
    done = Made(made.project, tmp_path, made.printed, made.began).run("-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert "3 failed" in done.stdout, done.stdout


def test_a_host_finds_it_by_its_entry_point_and_makes_a_picture_with_its_field(made: Made) -> None:
    done = made.run("-c", USE)
    assert done.stdout.splitlines()[-1:] == ['["installed", "loaded", "0.1.0", {"count": 1}, true]'], done.stderr


def test_it_says_what_to_do_next(made: Made) -> None:
    lines = made.printed.splitlines()
    assert [line.strip() for line in lines if line.startswith("    ")] == [
        f"cd {made.project}",
        'pip install --editable ".[test]"',
        "python -m pytest",
    ]
    assert lines[-1].endswith(str(GUIDE))
    assert GUIDE.is_file()


def test_it_checks_clean(made: Made) -> None:
    report = check(made.project)
    assert (report.findings, report.hooks) == ([], {"my_plugin": ["image_finished", "register"]})
    assert f'LATENTWIRE_API = "{API_VERSION}"' in (made.project / "src" / "my_plugin" / "__init__.py").read_text()


@pytest.mark.parametrize("name", ["x", "my-plugin", "p" * LONGEST])
def test_it_is_formatted_and_lints_clean_however_long_its_name_is(tmp_path: Path, name: str) -> None:
    folder = new_plugin(name, tmp_path)
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["format", "--check"], ["check", "--select", "E,F,W,I,UP,B,SIM,RUF,PT,C4,ASYNC,PERF"]):
        done = subprocess.run([*ruff, *command, "--isolated", str(folder)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_its_types_are_strict(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # mypy does not follow an editable install of a package whose folder has another name
    (tmp_path / "latentwire").symlink_to(ROOT)
    monkeypatch.setenv("MYPYPATH", str(tmp_path))
    options = ["--strict", "--follow-imports", "silent", "--cache-dir", str(tmp_path / "cache")]
    done = made.run("-m", "mypy", *options, "src", "tests")
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_files_are_named_in_the_new_plugins_own_terms() -> None:
    files = rendered("my_plugin")
    assert sorted(files) == [
        "README.md",
        "pyproject.toml",
        "src/my_plugin/__init__.py",
        "src/my_plugin/py.typed",
        "tests/test_plugin.py",
    ]
    assert not [path for path, text in files.items() if "$" in text]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("My-Plugin", "a plugin cannot be called 'My-Plugin'; wanted up to 40 small letters, digits and single dashes"),
        ("1st", "cannot be called"),
        ("my plugin", "cannot be called"),
        ("my--plugin", "cannot be called"),
        ("my-plugin-", "cannot be called"),
        ("../up", "cannot be called"),
        ("p" * (LONGEST + 1), "cannot be called"),
        ("class", "taken by the language Python"),
        ("lora", "taken by a built-in plugin"),
        ("json", "taken by Python's own library"),
        ("torch", "taken by an installed Python package, "),
        ("latentwire", "taken by an installed Python package, "),
        ("prompt", "taken by the request of the command generate"),
    ],
)
def test_bad_names_are_refused(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(AuthoringError) as caught:
        new_plugin(name, tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "my-plugin").mkdir()
    (tmp_path / "my-plugin" / "README.md").write_text("mine")
    with pytest.raises(AuthoringError, match=r"there is a .*/my-plugin already"):
        new_plugin("my_plugin", tmp_path)
    assert [file.read_text() for file in (tmp_path / "my-plugin").iterdir()] == ["mine"]


def test_a_folder_that_cannot_be_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "latentwire", "new-plugin", "my-plugin", "--into", str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"latentwire: cannot write {tmp_path}/file/my-plugin: Not a directory; see --into\n"
