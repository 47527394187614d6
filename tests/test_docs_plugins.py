"""docs/plugins/, held against the built-in plugins: a page each, with every command, field, event and setting."""

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from latentwire import Host
from latentwire.core.plugin_loading import BUILT_IN

from .pages import PAGES, PLUGIN_PAGES, ROOT, blocks, section

TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


def test_every_built_in_plugin_has_a_page_that_the_overview_links_to() -> None:
    assert PLUGIN_PAGES.keys() == set(BUILT_IN)
    overview = section(PAGES["plugins"], "Built-in plugins")
    for name in BUILT_IN:
        assert f"[`{name}`](plugins/{name}.md)" in overview


@pytest.mark.parametrize("plugin", BUILT_IN)
def test_what_a_plugin_registers_is_on_its_page(host: Host, plugin: str) -> None:
    registered = [(kind, name) for (kind, name), owner in host.registry.owners.items() if owner == plugin]
    for kind, name in registered:
        assert kind == "routes" or f"`{name}`" in PLUGIN_PAGES[plugin], f"{kind} {name}"


@pytest.mark.parametrize("plugin", BUILT_IN)
def test_the_settings_of_a_plugin_are_on_its_page(plugin: str) -> None:
    model = getattr(import_module(f"latentwire.plugins.{plugin}"), "Settings", None)
    for name in model.model_fields if model else ():
        assert f"`{name}`" in PLUGIN_PAGES[plugin]


EXAMPLES = [
    (plugin, message)
    for plugin, page in PLUGIN_PAGES.items()
    for message in map(json.loads, blocks(page, "json"))
    if "command" in message
]


@pytest.mark.parametrize(("plugin", "message"), EXAMPLES)
def test_command_examples_are_valid(host: Host, plugin: str, message: dict[str, Any]) -> None:
    params = host.registry.commands[message["command"]].params
    params.model_validate(_with_bytes(message.get("params", {})))


def _with_bytes(value: Any) -> Any:
    if isinstance(value, dict):
        return bytes(value["$bytes"]) if "$bytes" in value else {key: _with_bytes(part) for key, part in value.items()}
    return [_with_bytes(part) for part in value] if isinstance(value, list) else value


def test_every_feature_names_a_test_and_a_command_that_exist(host: Host) -> None:
    names = set(re.findall(r"^(?:async )?def (test_\w+)", "".join(map(Path.read_text, TESTS)), re.M))
    rows = re.findall(r"^\| (?!the script|---|\|---)(.*) \|$", PAGES["features"], re.M)
    assert len(rows) > 20
    for row in rows:
        *_, test = row.split(" | ")
        assert test.strip("`") in names | {"test"}, row
    script = section(PAGES["features"], "Features").split("\n## ")[0]
    commands = re.findall(r"^\| [^|]* \| \[?`([a-z_.]+)`", script, re.M)
    assert len(commands) == 10
    assert set(commands) <= host.registry.commands.keys()
