"""How the refusal of a graph looks: `{"error": {...}, "node_errors": {node: ...}}`."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from latentwire import LatentwireError

from .object_info import Nodes, config_of, input_of

STATUS = {"too_many_jobs": 429, "host_closing": 503, "plugin_failed": 503, "unknown_command": 503}
"""Of the errors that are no fault of the graph's; 400 for all others."""


def refused(kind: str, message: str, details: str = "", status: int = 400) -> JSONResponse:
    """The refusal of a whole graph."""
    return JSONResponse(_body(kind, message, details, {}), status)


def invalid(error: LatentwireError, graph: Mapping[str, Any], nodes: Nodes) -> JSONResponse:
    """The refusal that the host's error means."""
    details = [detail for detail in error.details if detail.get("node") is not None]
    by_node: dict[str, dict[str, Any]] = {}
    for detail in details:
        name = str(detail["node"])
        given = graph.get(name)
        entry = by_node.setdefault(
            name,
            {
                "errors": [],
                "dependent_outputs": _dependent(name, graph, nodes),
                "class_type": str(given.get("class_type", "")) if isinstance(given, dict) else "",
            },
        )
        entry["errors"].append(_node_error(detail, given, nodes))
    kinds = {problem["type"] for entry in by_node.values() for problem in entry["errors"]}
    kind = "missing_node_type" if "missing_node_type" in kinds else "prompt_outputs_failed_validation"
    if not by_node:
        kind = "invalid_prompt" if error.code in ("invalid_graph", "invalid_params") else error.code
    return JSONResponse(_body(kind, error.message, "", by_node), STATUS.get(error.code, 400))


def _body(kind: str, message: str, details: str, by_node: dict[str, Any]) -> dict[str, Any]:
    return {
        "error": {"type": kind, "message": message, "details": details, "extra_info": {}},
        "node_errors": by_node,
    }


def _node_error(detail: Mapping[str, Any], given: Any, nodes: Nodes) -> dict[str, Any]:
    name = detail.get("input")
    kind, config = _kind(name, given, nodes)
    message, got = str(detail.get("message", "")), detail.get("got")
    extra = {} if name is None else {"input_name": name, "input_config": config, "received_value": got}
    details = message if name is None else f"{name}: got {got!s:.200}"
    return {"type": kind, "message": message, "details": details, "extra_info": extra}


def _kind(name: str | None, given: Any, nodes: Nodes) -> tuple[str, list[Any]]:
    """What kind of error it is, as far as editors act on it, and what the input wants."""
    kind = nodes.get(given["class_type"]) if _is_node(given) else None
    if kind is None:
        return "missing_node_type", []
    entry = input_of(kind, name)
    if entry is None:
        return "custom_validation_failed", []
    config = config_of(entry)
    value = given["inputs"].get(name) if isinstance(given.get("inputs"), dict) else None
    if value is None:
        return "required_input_missing", config
    if isinstance(value, list):
        return "return_type_mismatch", config
    if entry["type"] == "COMBO" or entry.get("upload"):
        return "value_not_in_list", config
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value < entry.get("minimum", value):
            return "value_smaller_than_min", config
        if value > entry.get("maximum", value):
            return "value_bigger_than_max", config
    return "invalid_input_type", config


def _dependent(name: str, graph: Mapping[str, Any], nodes: Nodes) -> list[str]:
    """The output nodes that need a node."""
    needed_by: dict[str, list[str]] = {}
    for other, node in graph.items():
        inputs = node.get("inputs") if isinstance(node, dict) else None
        for value in inputs.values() if isinstance(inputs, dict) else ():
            if isinstance(value, list) and value and isinstance(value[0], str):
                needed_by.setdefault(value[0], []).append(other)
    found, waiting = {name: None}, [name]
    while waiting:
        for other in needed_by.get(waiting.pop(), ()):
            if other not in found:
                found[other] = None
                waiting.append(other)
    return [other for other in found if _is_node(graph.get(other)) and _is_output(graph[other], nodes)]


def _is_node(given: Any) -> bool:
    return isinstance(given, dict) and isinstance(given.get("class_type"), str)


def _is_output(given: Any, nodes: Nodes) -> bool:
    kind = nodes.get(given["class_type"])
    return kind is not None and bool(kind["output"])
