"""`/object_info`: the host's nodes, as `describe` lists them, in the form that ComfyUI's editors want."""

from collections.abc import Mapping
from typing import Any

Nodes = Mapping[str, Mapping[str, Any]]
"""What `describe` says of nodes, by name."""

SEEDS = ("seed", "noise_seed")
OPTIONS = {"default": "default", "minimum": "min", "maximum": "max", "step": "step", "multiline": "multiline"}
FOLDERS = {
    "checkpoints": "ckpt_name",
    "controlnet": "control_net_name",
    "embeddings": None,
    "loras": "lora_name",
    "vae": "vae_name",
}
"""What kinds of models there are, and the nodes' input that names one."""


def object_info(nodes: Nodes, pictures: list[str]) -> dict[str, Any]:
    """All nodes; `pictures` are the names that an input for an uploaded picture may have."""
    return {name: _node(name, node, pictures) for name, node in nodes.items()}


def models(nodes: Nodes, folder: str) -> list[str] | None:
    """The models of a kind; None where there is no such kind."""
    if folder not in FOLDERS:
        return None
    inputs = (entry for node in nodes.values() for entry in node["inputs"] if entry["name"] == FOLDERS[folder])
    return list(dict.fromkeys(choice for entry in inputs for choice in entry.get("choices", ())))


def input_of(node: Mapping[str, Any], name: str | None) -> Mapping[str, Any] | None:
    """A node's input by its name."""
    return next((entry for entry in node["inputs"] if entry["name"] == name), None)


def config_of(entry: Mapping[str, Any], pictures: list[str] | None = None) -> list[Any]:
    """What an input wants: its type, or its choices, and its options."""
    options = {theirs: entry[name] for name, theirs in OPTIONS.items() if name in entry}
    if "description" in entry:
        options["tooltip"] = entry["description"]
    if entry["type"] == "INT" and entry["name"] in SEEDS:
        options["control_after_generate"] = True
    if not entry["required"] and entry["type"] in ("INT", "FLOAT") and "default" not in entry:
        options["forceInput"] = True  # else editors would send a number that nobody has chosen
    if entry.get("upload"):
        return [pictures or [], {**options, "image_upload": True}]
    return [entry["choices"] if entry["type"] == "COMBO" else entry["type"], options]


def _node(name: str, node: Mapping[str, Any], pictures: list[str]) -> dict[str, Any]:
    inputs: dict[str, dict[str, Any]] = {"required": {}}
    for entry in node["inputs"]:
        kind = "required" if entry["required"] else "optional"
        inputs.setdefault(kind, {})[entry["name"]] = config_of(entry, pictures)
    return {
        "input": inputs,
        "input_order": {kind: list(entries) for kind, entries in inputs.items()},
        "output": [entry["type"] for entry in node["outputs"]],
        "output_is_list": [False] * len(node["outputs"]),
        "output_name": [entry["name"] for entry in node["outputs"]],
        "name": name,
        "display_name": node["title"],
        "description": node["description"],
        "python_module": "nodes",  # the front end marks those of other modules as extensions
        "category": node["category"],
        "output_node": node["output"],
        "deprecated": False,
        "experimental": False,
    }
