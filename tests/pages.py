"""Reads the documentation for the tests that hold it against the program."""

import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).parents[1]
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
_BUILT_IN = {file.parent.name for file in (ROOT / "plugins").glob("*/__init__.py")}
_BELOW_PLUGINS = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "plugins").glob("*.md")}
PLUGIN_PAGES = {name: page for name, page in _BELOW_PLUGINS.items() if name in _BUILT_IN}
GUIDES = {name: page for name, page in _BELOW_PLUGINS.items() if name not in _BUILT_IN}
"""For authors of plugins."""

README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(page: str, title: str) -> str:
    """The text under a heading, sub-headings included."""
    match = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,6}} |\Z)", page, re.M | re.S)
    assert match, f"there is no heading {title!r}"
    level = len(match[1])
    rest = page[match.start(2) :]
    end = re.search(rf"^#{{1,{level}}} ", rest, re.M)
    return rest[: end.start()] if end else rest


def subheadings(text: str) -> list[str]:
    """The names in code type that a section's sub-headings consist of."""
    return re.findall(r"^### `([^`]+)`$", text, re.M)


def table(text: str) -> dict[str, list[str]]:
    """All tables of a section: the name in the first column, and the other columns."""
    rows = re.findall(r"^\| `([^`]+)` \|(.*)\|$", text, re.M)
    return {name: [cell.strip() for cell in rest.split(" | ")] for name, rest in rows}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.M | re.S)


def json_default(text: str) -> Any:
    """A default as a table writes it: JSON in code type, or nothing for a required field."""
    return json.loads(text.strip("`")) if text else PydanticUndefined


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models that a field's type mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in models_in(part)]


def defaults_of(model: type[BaseModel], prefix: str = "") -> list[tuple[str, Any]]:
    """Each field's dotted name and default, of the model and those within it."""
    found: list[tuple[str, Any]] = []
    for name, field in model.model_fields.items():
        nested = [part for part in models_in(field.annotation) if part.__module__.startswith("latentwire.core")]
        default = field.get_default(call_default_factory=True)
        found.append((prefix + name, default.model_dump() if isinstance(default, BaseModel) else default))
        for part in nested:
            found += defaults_of(part, f"{prefix}{name}.")
    return found


def paths_of(values: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted names of all entries."""
    found = []
    for name, value in values.items():
        found += [prefix + name, *(paths_of(value, f"{prefix}{name}.") if isinstance(value, dict) else ())]
    return found
