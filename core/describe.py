"""The host in its own words: commands, request fields and events as JSON Schema."""

from typing import TYPE_CHECKING, Any, get_args

from pydantic import TypeAdapter

from . import errors
from .requests import Mode

if TYPE_CHECKING:
    from .host import Host


def describe(host: "Host") -> dict[str, Any]:
    """Everything that a client, or a node editor, needs to build its forms from."""
    registry = host.registry
    return {
        "commands": {
            name: {"summary": entry.summary, "plugin": entry.plugin, "params": entry.params.model_json_schema()}
            for name, entry in sorted(registry.commands.items())
        },
        "fields": {name: registry.owners["field", name] for name in registry.fields},
        "events": {
            name: {
                "summary": (event.__doc__ or "").strip().partition("\n")[0],
                "latest_wins": event.latest_wins,
                "schema": TypeAdapter(event).json_schema(),
            }
            for name, event in registry.events.items()
        },
        "errors": error_codes(),
        "schedulers": sorted(registry.schedulers),
        "preprocessors": {
            name: entry.options.model_json_schema() for name, entry in sorted(registry.preprocessors.items())
        },
        "plugins": {
            name: {"settings": None if model is None else model.model_json_schema()}
            for name, model in host.plugins.settings_models().items()
        },
        "previewers": sorted(registry.previewers),
        "modes": list(get_args(Mode)),
        "models": host.store.names(),
    }


def error_codes() -> dict[str, str]:
    """Each error's stable code and what it means."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    groups = {base for kind in kinds for base in kind.__bases__}  # the tree's inner nodes; plugins may subclass leaves
    return {
        kind.code: (kind.__doc__ or "").strip().partition("\n")[0]
        for kind in kinds
        if issubclass(kind, errors.LatentwireError) and kind not in groups
    }
