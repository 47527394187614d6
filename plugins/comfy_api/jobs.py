"""Graphs as `/jobs` shows them."""

from typing import Any

from .history import Entry
from .run import Prompt

PENDING, IN_PROGRESS = "pending", "in_progress"
ENDED = ("completed", "failed", "cancelled")
STATUSES = (PENDING, IN_PROGRESS, *ENDED)


def job(prompt: Prompt | Entry, status: str, whole: bool = False) -> dict[str, Any]:
    """One graph.

    Args:
        whole: Whether with the graph itself, and all that came of it.
    """
    outputs = prompt.outputs
    pictures = [{**picture, "nodeId": node} for node, row in outputs.items() for picture in row.get("images", ())]
    best = sorted(pictures, key=lambda picture: picture["type"] == "temp")
    extra = prompt.extra.get("extra_pnginfo")
    workflow = extra.get("workflow") if isinstance(extra, dict) else None
    row = {
        "id": prompt.id,
        "status": status,
        "priority": prompt.number,
        "create_time": prompt.created,
        "execution_start_time": prompt.begun,
        "execution_end_time": prompt.ended if isinstance(prompt, Entry) else None,
        "preview_output": {**best[0], "mediaType": "images"} if best else None,
        "outputs_count": len(pictures),
        "previewable_outputs_count": len(pictures),
        "execution_error": prompt.error if isinstance(prompt, Entry) else None,
        "workflow_id": str(workflow["id"]) if isinstance(workflow, dict) and "id" in workflow else None,
    }
    if whole:
        row |= {
            "workflow": {"prompt": prompt.graph, "extra_data": prompt.extra},
            "outputs": outputs,
            "update_time": row["execution_end_time"] or prompt.begun or prompt.created,
            "execution_status": {"messages": prompt.messages},
            "execution_meta": {},
        }
    return row


def assets(prompt: Prompt | Entry) -> list[dict[str, Any]]:
    """The pictures of a graph."""
    return [
        {
            "id": f"{prompt.id}-{node}-{index}",
            "name": picture["filename"],
            "mime_type": "image/png",
            "node_id": node,
            "output_key": "images",
            "output_index": index,
        }
        for node, row in prompt.outputs.items()
        for index, picture in enumerate(row.get("images", ()))
    ]
