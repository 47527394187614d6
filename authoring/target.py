"""What `latentwire plugins check` is pointed at: the plugins of a file, a module's folder, or a package's project."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import AuthoringError
from .finding import Finding
from .names import PACKAGE, PLUGIN_NAME, built_in

GROUP = "latentwire"


@dataclass(frozen=True)
class Target:
    """One plugin.

    `file` is the module's own, `attribute` what an entry point names within it. A module of a package is imported by
    its dotted name from `root`; one without is loaded from its file, as a host does.
    """

    file: Path
    module: str | None = None
    root: Path | None = None
    attribute: str | None = None

    @property
    def files(self) -> list[Path]:
        """All files of the plugin."""
        return [self.file] if self.module is None or not _is_package(self.file.parent) else _files(self.file.parent)

    @property
    def top(self) -> Path:
        """The folder of the outermost package."""
        return self.file.parent if self.module is None else _top(self.file.parent)


def find(path: Path) -> tuple[list[Target], list[Finding]]:
    """The plugins at a path, and what is wrong with the way to them.

    Raises:
        AuthoringError: there is nothing that could be one.
    """
    path = path.resolve()
    if path.is_file() and path.suffix == ".py":
        return [_of_file(path)], []
    if (path / "pyproject.toml").is_file():
        return _of_project(path / "pyproject.toml")
    if _is_package(path):
        return [_of_file(path / "__init__.py")], []
    what = "no plugin" if path.exists() else "not there"
    wanted = "a Python file, a module's folder with an __init__.py, or a folder with a pyproject.toml"
    raise AuthoringError(f"{path} is {what}; wanted {wanted}")


def _of_file(file: Path) -> Target:
    """A module by its file; if it is in a package, its dotted name begins with that."""
    if not _is_package(file.parent):
        return Target(file)
    if file.is_relative_to(PACKAGE):  # a built-in one
        names = file.relative_to(PACKAGE.parent).with_suffix("").parts
        return Target(file, ".".join(["latentwire", *names[1:]]).removesuffix(".__init__"))
    root = _top(file.parent).parent
    name = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    return Target(file, name, root)


def _of_project(pyproject: Path) -> tuple[list[Target], list[Finding]]:
    """The plugins that a project's entry points lead to."""
    text = pyproject.read_text(encoding="utf-8")
    try:
        settings = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        return [], [Finding(pyproject, int(found[1]) if found else 1, f"it is no TOML: {error}", "mend it")]
    points = settings.get("project", {}).get("entry-points", {}).get(GROUP, {})
    targets, findings = [], []
    for name, leads_to in points.items():
        line = _line_of(text, name)
        if name in built_in():
            wrong = f"entry point {name!r} has the name of a built-in plugin, which is loaded in its place"
            findings.append(Finding(pyproject, line, wrong, "choose another name"))
        elif not PLUGIN_NAME.fullmatch(name):
            wrong = f"entry point {name!r} cannot be a plugin's name, so no plugins.toml can name it"
            findings.append(Finding(pyproject, line, wrong, "use small letters, digits and `_`, a letter first"))
        module, _, attribute = str(leads_to).partition(":")
        roots = _roots(pyproject.parent, settings, module)
        file = next((file for root in roots for file in _candidates(root) if file.is_file()), None)
        if file is None:
            wrong = f"entry point {name!r} leads to {module!r}, which is nowhere"
            where = " or ".join(str(path.relative_to(pyproject.parent)) for path in _candidates(roots[0]))
            findings.append(Finding(pyproject, line, wrong, f"wanted {where}"))
        else:
            root = file.parents[len(module.split(".")) - (file.name != "__init__.py")]
            targets.append(Target(file, module.strip(), root, attribute.strip() or None))
    if not points:
        wrong = f"it has no entry point in the group {GROUP!r}, so no host finds the plugin"
        todo = f'add [project.entry-points.{GROUP}] with my_plugin = "my_package"'
        findings.append(Finding(pyproject, 1, wrong, todo))
    return targets, findings


def _roots(folder: Path, settings: dict[str, Any], module: str) -> list[Path]:
    """Where a module's file may be, but for its suffix: as setuptools is told, in src/, or beside pyproject.toml."""
    setuptools = settings.get("tool", {}).get("setuptools", {})
    path = Path(*module.strip().split("."))
    found = []
    for package, place in sorted(setuptools.get("package-dir", {}).items(), reverse=True):
        if not package:
            found.append(folder / place / path)
        elif module == package or module.startswith(f"{package}."):
            found.append(folder / place / path.relative_to(Path(*package.split("."))))
    packages = setuptools.get("packages", {})
    where = packages.get("find", {}).get("where", []) if isinstance(packages, dict) else []
    return [*found, *(folder / place / path for place in (*where, "src", "."))]


def _candidates(path: Path) -> tuple[Path, Path]:
    return path / "__init__.py", path.with_suffix(".py")


def _line_of(text: str, name: str) -> int:
    """Where an entry point is written."""
    begin = text.find(f"entry-points.{GROUP}")
    match = re.compile(rf'^\s*["\']?{re.escape(name)}["\']?\s*=', re.M).search(text, max(begin, 0))
    return text.count("\n", 0, match.end()) + 1 if match else 1


def _is_package(folder: Path) -> bool:
    return (folder / "__init__.py").is_file()


def _top(folder: Path) -> Path:
    while _is_package(folder.parent) and folder.parent != PACKAGE / "plugins":
        folder = folder.parent
    return folder


def _files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))
