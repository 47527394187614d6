"""The packages of examples/plugins/: complete, on the public names alone, and no burden to each other or to others.

Their own tests are run by `make examples`.
"""

import ast
import json
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import latentwire
from latentwire import Host, validate
from latentwire.core.plugin_host import PluginReport
from latentwire.testing import generate

from .conftest import running_host
from .packages import install
from .pages import ROOT, blocks
from .test_architecture import imports_of

FOLDER = ROOT / "examples" / "plugins"
PACKAGES = sorted(file.parent for file in FOLDER.glob("*/pyproject.toml"))
NAMES = [package.name for package in PACKAGES]
HEAVY = {"torch", "diffusers", "transformers", "accelerate", "peft"}

each_package = pytest.mark.parametrize("package", PACKAGES, ids=NAMES)


def module_of(package: Path) -> Path:
    return package / f"latentwire_{package.name}.py"


@each_package
def test_a_package_is_complete(package: Path) -> None:
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    assert project["name"] == f"latentwire-{package.name.replace('_', '-')}"
    assert project["entry-points"]["latentwire"] == {package.name: module_of(package).stem}
    assert project["dependencies"] == ["latentwire"]
    assert project["optional-dependencies"]["test"] == ["pytest"]
    assert module_of(package).is_file()
    assert (package / "tests" / f"test_{package.name}.py").is_file()
    assert (package / "README.md").read_text().startswith(f"# {package.name}\n")


@each_package
def test_it_declares_the_api_that_it_was_written_for(package: Path) -> None:
    assigned = [node for node in ast.parse(module_of(package).read_text()).body if isinstance(node, ast.Assign)]
    versions = [node.value for node in assigned if ast.unparse(node.targets[0]) == "LATENTWIRE_API"]
    assert [ast.literal_eval(value) for value in versions] == ["1.0"]


@each_package
def test_it_uses_the_public_names_alone(package: Path) -> None:
    assert set(imports_of(module_of(package))) == {""}
    names = {
        name.name
        for node in ast.walk(ast.parse(module_of(package).read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "latentwire"
        for name in node.names
    }
    assert names <= set(latentwire.__all__)
    tested = {name for file in package.glob("tests/*.py") for name in imports_of(file)}
    assert tested <= {"", "testing", "client"}


@each_package
def test_it_imports_nothing_heavy_before_it_is_needed(package: Path) -> None:
    assert HEAVY.isdisjoint(at_once(ast.parse(module_of(package).read_text()).body))


def at_once(body: list[ast.stmt]) -> Iterator[str]:
    """The packages that a module imports when it is imported itself."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]
        elif isinstance(node, ast.If) and ast.unparse(node.test) != "TYPE_CHECKING":
            yield from at_once([*node.body, *node.orelse])


@each_package
def test_its_settings_and_links_are_in_its_readme(package: Path) -> None:
    readme = (package / "README.md").read_text()
    classes = [node for node in ast.parse(module_of(package).read_text()).body if isinstance(node, ast.ClassDef)]
    for settings in (node for node in classes if node.name == "Settings"):
        fields = [node.target for node in settings.body if isinstance(node, ast.AnnAssign)]
        assert [field.id for field in fields if isinstance(field, ast.Name) and f"| `{field.id}` |" not in readme] == []
    assert (package / readme.partition("[latentwire](")[2].partition(")")[0]).resolve() == ROOT / "README.md"


def test_the_list_of_them_has_each() -> None:
    text = (FOLDER / "README.md").read_text()
    listed = [part.partition("]")[0] for part in text.split("| [")[1:]]
    assert sorted(listed) == sorted([*NAMES, *(file.name for file in FOLDER.glob("*.py"))])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All packages, installed in a folder of their own that Python looks into."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"  # building leaves folders behind
    shutil.copytree(FOLDER, source)
    install(folder / "site", *(source / name for name in NAMES))
    sys.path.insert(0, str(folder / "site"))
    try:
        yield folder / "site"
    finally:
        sys.path.remove(str(folder / "site"))
        for name in NAMES:
            sys.modules.pop(f"latentwire_{name}", None)


@pytest.fixture(scope="module")
def crowded(site: Path) -> Iterator[Host]:
    """A host that has found them all."""
    with running_host(discover=True) as host:
        yield host


def reports_of(host: Host) -> dict[str, PluginReport]:
    return {report.name: report for report in host.plugins.reports if report.name in NAMES}


@pytest.mark.slow
def test_installed_together_all_are_found_and_loaded(crowded: Host) -> None:
    reports = reports_of(crowded)
    assert sorted(reports) == NAMES
    assert {name: (report.source, report.state, report.error) for name, report in reports.items()} == dict.fromkeys(
        NAMES, ("installed", "loaded", None)
    )


@pytest.mark.slow
def test_who_asks_nothing_of_them_gets_the_same_bits(crowded: Host, host: Host) -> None:
    assert generate(crowded).files == generate(host).files
    latent: dict[str, Any] = {"output_type": "latent", "num_inference_steps": 4}
    assert generate(crowded, **latent).latents.tobytes() == generate(host, **latent).latents.tobytes()


@pytest.mark.slow
def test_the_requests_of_their_readmes_fit(crowded: Host) -> None:
    seen = 0
    for package in PACKAGES:
        for block in blocks((package / "README.md").read_text(), "json"):
            message = json.loads(block)
            if "command" in message:
                validate(crowded.registry.commands[message["command"]].params, message["params"], package.name)
                seen += 1
    assert seen >= len(NAMES) - 1  # latest answers HTTP alone
