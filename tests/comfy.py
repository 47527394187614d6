"""What the tests of ComfyUI's protocol share: a host that speaks it, graphs, and a client that notes what it hears."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image as PILImage
from PIL import ImageDraw
from websockets.sync.client import connect

from latentwire.testing import Served, plugin, serving

from .conftest import wait_for

PLUGINS = ("img2img", "controlnet", "lora", "clip_skip", "graph")
CHECKPOINT = "emoji"


@contextmanager
def comfy(folder: Path, *, server: Any = None, clock: Any = None, **settings: Any) -> Iterator[Served]:
    """A host with the plugin, which keeps all in a folder."""
    more = {} if server is None else {"server": server}
    with serving(*PLUGINS, plugin("comfy_api", folder=str(folder), **settings), **more) as served:
        yield served


def http_of(served: Served, **kwargs: Any) -> httpx2.Client:
    """For requests."""
    return httpx2.Client(base_url=served.http, timeout=60, trust_env=False, **kwargs)


@pytest.fixture
def http(served: Served) -> Iterator[httpx2.Client]:
    """For requests to the module's own host."""
    with http_of(served) as http:
        yield http


def text_to_image(seed: int = 1, steps: int = 3, prefix: str = "made", size: int = 64) -> dict[str, Any]:
    """The graph that everybody begins with."""
    return {
        "3": {
            "class_type": "KSampler",
            "inputs": {
                "seed": seed,
                "steps": steps,
                "cfg": 4.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
                "model": ["4", 0],
                "positive": ["6", 0],
                "negative": ["7", 0],
                "latent_image": ["5", 0],
            },
        },
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": CHECKPOINT}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": size, "height": size, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "red apple", "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": prefix, "images": ["8", 0]}},
    }


def image_to_image(image: str, seed: int = 1, steps: int = 4, prefix: str = "remade") -> dict[str, Any]:
    """The same, from a picture."""
    graph = text_to_image(seed, steps, prefix)
    graph["5"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["10", 0], "vae": ["4", 2]}}
    graph["10"] = {"class_type": "LoadImage", "inputs": {"image": image}}
    graph["3"]["inputs"]["denoise"] = 0.6
    return graph


def png(size: int = 64, color: str = "orange", mode: str = "RGB") -> bytes:
    """A picture to send."""
    picture = PILImage.new(mode, (size, size), "white" if mode == "RGB" else (0, 0, 0, 0))
    ImageDraw.Draw(picture).ellipse((8, 8, size - 8, size - 8), fill=color)
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def picture_of(answer: httpx2.Response) -> Any:
    """The picture that an answer is."""
    assert answer.status_code == 200, answer.text
    picture = PILImage.open(BytesIO(answer.content))
    picture.load()
    return picture


class Listener:
    """A client's WebSocket; notes all that it hears, in a thread.

    Args:
        features: What it says that it can do, as its first message; nothing where it is None.
    """

    def __init__(self, served: Served, client: str, features: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.texts: list[dict[str, Any]] = []
        self.binary: list[bytes] = []
        self.all: list[Any] = []
        self._open = ExitStack()
        self._socket = self._open.enter_context(connect(f"{served.url}?clientId={client}", **kwargs))
        if features is not None:
            self._socket.send(json.dumps({"type": "feature_flags", "data": features}))
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        self._thread.join()

    def kinds(self, prompt: str | None = None) -> list[str]:
        """The types of what was heard; of one graph."""
        return [text["type"] for text in self.texts if prompt is None or text["data"].get("prompt_id") == prompt]

    def of(self, kind: str, prompt: str | None = None) -> list[dict[str, Any]]:
        """What was heard of a type."""
        texts = [text["data"] for text in self.texts if text["type"] == kind]
        return [data for data in texts if prompt is None or data.get("prompt_id") == prompt]

    def wait(self, condition: Callable[[], Any], what: str) -> None:
        """Until something was heard."""
        wait_for(lambda: bool(condition()), what)

    def wait_for_end(self, prompt: str) -> str:
        """Until a graph has ended; the message that says how."""

        def ended() -> bool:
            return any(data["node"] is None for data in self.of("executing", prompt))

        self.wait(ended, f"the end of {prompt}")
        return self.kinds(prompt)[-2]

    def _listen(self) -> None:
        for message in self._socket:
            if isinstance(message, str):
                self.texts.append(json.loads(message))
                self.all.append(self.texts[-1])
            else:
                self.binary.append(message)
                self.all.append(message)


def queue(http: httpx2.Client, graph: Any, **more: Any) -> str:
    """Send a graph; its id."""
    answer = http.post("/prompt", json={"prompt": graph, **more})
    assert answer.status_code == 200, answer.text
    assert answer.json()["node_errors"] == {}
    return str(answer.json()["prompt_id"])


def wait_for_history(http: httpx2.Client, prompt: str) -> dict[str, Any]:
    """A graph's row of the history, once it is there."""
    found: dict[str, Any] = {}

    def there() -> bool:
        found.update(http.get(f"/history/{prompt}").json())
        return prompt in found

    wait_for(there, f"{prompt} in the history")
    row: dict[str, Any] = found[prompt]
    return row
