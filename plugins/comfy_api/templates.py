"""What the front end offers to begin with: graphs that this host can run, with its own model in them.

The one that the front end brings itself is for a model of another family.
"""

import io
from collections.abc import Mapping
from typing import Any

from PIL import Image

from .object_info import SEEDS, Nodes

NAME = "text_to_image"
FIXED = "fixed"  # what becomes of a seed once it has been used
SIZE = 256  # of the picture to choose by, in pixels
SIZES = {"CLIPTextEncode": (400, 180), "SaveImage": (320, 360), "VAEDecode": (200, 60)}  # on the canvas

# A place on the canvas, and the inputs that are not as the nodes have them; a list is a link.
TEXT_TO_IMAGE: dict[str, tuple[str, tuple[int, int], dict[str, Any]]] = {
    "1": ("CheckpointLoaderSimple", (30, 330), {}),
    "2": ("CLIPTextEncode", (420, 120), {"clip": ["1", 1], "text": "red apple"}),
    "3": ("CLIPTextEncode", (420, 360), {"clip": ["1", 1], "text": ""}),
    "4": ("EmptyLatentImage", (420, 600), {}),
    "5": (
        "KSampler",
        (860, 180),
        {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]},
    ),
    "6": ("VAEDecode", (1220, 180), {"samples": ["5", 0], "vae": ["1", 2]}),
    "7": ("SaveImage", (1460, 180), {"images": ["6", 0]}),
}


def index(nodes: Nodes) -> list[dict[str, Any]]:
    """The list of what is offered; nothing where the nodes are missing."""
    if any(kind not in nodes for kind, _, _ in TEXT_TO_IMAGE.values()):
        return []
    about = {"title": "Text to Image", "description": "A picture from a prompt, by this host's own model."}
    template = {"name": NAME, "mediaType": "image", "mediaSubtype": "png", **about}
    return [{"moduleName": "default", "title": "latentwire", "type": "image", "templates": [template]}]


def text_to_image(nodes: Nodes, model: Mapping[str, Any]) -> dict[str, Any]:
    """The graph as editors keep it.

    Args:
        model: The host's default one, a row of `models.list`.
    """
    steps, guidance = (model["defaults"].get(name) for name in ("num_inference_steps", "guidance_scale"))
    of_model = {
        "CheckpointLoaderSimple": {"ckpt_name": model["name"]},
        "EmptyLatentImage": {"width": model["size"], "height": model["size"]},
        "KSampler": {"steps": steps, "cfg": guidance},
    }
    made: list[dict[str, Any]] = []
    links: list[list[Any]] = []
    for name, (kind, place, given) in TEXT_TO_IMAGE.items():
        values = {key: value for key, value in of_model.get(kind, {}).items() if value is not None} | given
        made.append(_node(int(name), kind, place, nodes[kind], values, links))
    for number, source, output, *_ in links:
        made[source - 1]["outputs"][output]["links"].append(number)
    last = {"last_node_id": len(made), "last_link_id": len(links)}
    return {**last, "nodes": made, "links": links, "groups": [], "config": {}, "extra": {}, "version": 0.4}


def thumbnail() -> bytes:
    """A picture to choose by."""
    file = io.BytesIO()
    Image.radial_gradient("L").resize((SIZE, SIZE)).save(file, "PNG")
    return file.getvalue()


def _node(
    number: int,
    kind: str,
    place: tuple[int, int],
    node: Mapping[str, Any],
    values: Mapping[str, Any],
    links: list[list[Any]],
) -> dict[str, Any]:
    """A node as editors keep it; its links are added to `links`."""
    inputs: list[dict[str, Any]] = []
    widgets: list[Any] = []
    for entry in node["inputs"]:
        value = values.get(entry["name"], entry.get("default"))
        if isinstance(value, list):
            links.append([len(links) + 1, int(value[0]), value[1], number, len(inputs), entry["type"]])
            inputs.append({"name": entry["name"], "type": entry["type"], "link": len(links)})
        elif entry["type"] in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
            widgets.append(value)
            widgets += [FIXED] if entry["name"] in SEEDS else []
    return {
        "id": number,
        "type": kind,
        "pos": list(place),
        "size": list(SIZES.get(kind, (320, 60))),
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": inputs,
        "outputs": [{"name": entry["name"], "type": entry["type"], "links": []} for entry in node["outputs"]],
        "properties": {},
        "widgets_values": widgets,
    }
