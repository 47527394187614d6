"""The host in its own words: commands, request fields and events as JSON Schema."""

from typing import TYPE_CHECKING, Any, get_args

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from . import errors
from .requests import Mode

if TYPE_CHECKING:
    from .host import Host

BOUNDS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "multiple_of": "multipleOf",
}


class Schema(GenerateJsonSchema):
    """pydantic's JSON Schema, which has its own names for the bounds of a number that may be null and is validated."""

    def generate_inner(self, schema: Any) -> JsonSchemaValue:
        """See pydantic."""
        found = super().generate_inner(schema)
        if found.get("type") in ("integer", "number"):
            return {BOUNDS.get(key, key): value for key, value in found.items()}
        return found


def describe(host: "Host") -> dict[str, Any]:
    """Everything that a client, or a node editor, needs to build its forms from."""
    registry = host.registry
    return {
        "commands": {
            name: {
                "summary": entry.summary,
                "plugin": entry.plugin,
                "params": _schema(entry.params),
            }
            for name, entry in sorted(registry.commands.items())
        },
        "fields": {name: registry.owners["field", name] for name in registry.fields},
        "events": {
            name: {
                "summary": (event.__doc__ or "").strip().partition("\n")[0],
                "latest_wins": event.latest_wins,
                "schema": _schema(event),
            }
            for name, event in registry.events.items()
        },
        "errors": error_codes(),
        "schedulers": sorted(registry.schedulers),
        "preprocessors": {name: _schema(entry.options) for name, entry in sorted(registry.preprocessors.items())},
        "plugins": {
            name: {"settings": None if model is None else _schema(model)}
            for name, model in host.plugins.settings_models().items()
        },
        "previewers": sorted(registry.previewers),
        "modes": list(get_args(Mode)),
        "models": host.store.names(),
    }


def _schema(kind: Any) -> dict[str, Any]:
    return TypeAdapter(kind).json_schema(schema_generator=Schema)


def error_codes() -> dict[str, str]:
    """Each error's stable code and what it means."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    groups = {base for kind in kinds for base in kind.__bases__}  # the tree's inner nodes; plugins may subclass leaves
    return {
        kind.code: (kind.__doc__ or "").strip().partition("\n")[0]
        for kind in kinds
        if issubclass(kind, errors.LatentwireError) and kind not in groups
    }
