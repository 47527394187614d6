"""The Python client's pictures as PIL images, its progress bars, and pictures shown live in a notebook."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage
from PIL import ImageDraw

from latentwire.client import Image, Picture, Preview, RemoteError, Result, connect, connect_sync
from latentwire.core.events import Image as HostImage

from .conftest import Served, serving
from .wire import in_loop

SMALL: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 3, "seed": 1}


def test_a_picture_in_one_line(served: Served) -> None:
    with connect_sync(served.url) as host:
        picture = host.picture("red apple", **SMALL)
        (data,) = [
            event.image.data
            for event in host.generate("red apple", **SMALL)
            if isinstance(event, Image) and event.image
        ]
    assert (picture.mode, picture.size) == ("RGB", (64, 64))
    with PILImage.open(io.BytesIO(data)) as same:
        assert picture.tobytes() == same.tobytes()


@in_loop
async def test_pictures_come_in_order_async_too(served: Served) -> None:
    async with connect(served.url) as host:
        one = await host.picture("red apple", **SMALL)
        several = await host.pictures("red apple", **SMALL | {"seed": [5, 1, 6], "mode": "reproducible"})
        alone = await host.picture("red apple", **SMALL | {"seed": 6, "mode": "reproducible"})
        with pytest.raises(RemoteError, match="num_inference_steps"):
            await host.picture("red apple", num_inference_steps=0)
    assert one.size == (64, 64)
    assert len(several) == 3
    assert several[2].tobytes() == alone.tobytes()


def test_previews_become_pictures_and_events_are_the_hosts_own_kinds(served: Served) -> None:
    with connect_sync(served.url) as host:
        events = list(host.generate("red apple", previews={"size": 32}, **SMALL))
    previews = [event for event in events if isinstance(event, Preview)]
    assert {preview.image.to_pil().size for preview in previews} == {(32, 32)}
    (image,) = [event for event in events if isinstance(event, HostImage)]
    assert isinstance(image.image, Picture)
    assert (image.index, image.seed, image.image.width) == (0, 1, 64)
    assert isinstance(events[-1], Result)


def test_latents_have_no_picture(served: Served) -> None:
    with connect_sync(served.url) as host:
        assert host.pictures("red apple", output_type="latent", **SMALL) == []


def test_a_pil_image_is_uploaded_as_it_is(served: Served) -> None:
    noise = PILImage.effect_noise((600, 600), 90)  # large: in parts
    drawn = PILImage.new("RGB", (64, 64), "blue")
    ImageDraw.Draw(drawn).ellipse((8, 8, 56, 56), fill="red")
    with connect_sync(served.url) as host:
        assert len(host.upload(noise)) == 32
        started = host.picture("red apple", img2img={"image": host.upload(drawn), "strength": 0.4}, **SMALL)
    red, _, blue = started.getpixel((2, 2))  # type: ignore[misc]
    assert blue > red


def test_a_bar_shows_the_steps_of_all_pictures(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    with connect_sync(served.url) as host:
        assert not capfd.readouterr().err
        kinds = [type(event) for event in host.generate("red apple", progress=True, num_images=2, **SMALL)]
        assert kinds[-1] is Result
        assert "6/6" in capfd.readouterr().err
        host.picture("red apple", progress=True, **SMALL)
        assert "3/3" in capfd.readouterr().err
        host.picture("red apple", **SMALL)
        list(host.generate("red apple", **SMALL))
        assert capfd.readouterr().err == ""


def test_the_client_needs_neither_torch_nor_what_it_was_not_asked_for(served: Served) -> None:
    program = f"""
import sys
import latentwire.client
heavy = {{"torch", "diffusers", "transformers", "numpy", "pydantic", "starlette", "PIL", "tqdm", "IPython"}}
print(sorted(heavy & set(sys.modules)))
with latentwire.client.connect_sync({served.url!r}) as host:
    list(host.generate("red apple", width=64, height=64, num_inference_steps=2))
    print(sorted(heavy & set(sys.modules)))
    host.picture("red apple", width=64, height=64, num_inference_steps=2, progress=True)
    print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["[]", "[]", "['PIL', 'tqdm']"], done.stderr


NOTEBOOK = """
import latentwire
from latentwire.client.notebook import show, show_async

with latentwire.connect_sync({url!r}) as host:
    picture = show(host, "red apple", width=64, height=64, seed=1)
---
async with latentwire.connect({url!r}) as host:
    other = await show_async(host, "red apple", width=64, height=64, seed=2, num_inference_steps=3)
print(picture.size, other.size)
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_in_a_notebook_the_picture_forms_in_its_cell(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    updates: list[dict[str, Any]] = []

    class Watching(NotebookClient):  # type: ignore[misc]  # mypy looks at none of it
        def process_message(self, message: Any, *rest: Any) -> Any:
            if message["msg_type"] in ("display_data", "update_display_data"):
                updates.append(message)
            return super().process_message(message, *rest)

    with serving() as served:
        cells = [nbformat.v4.new_code_cell(cell) for cell in NOTEBOOK.format(url=served.url).split("---\n")]
        notebook = nbformat.v4.new_notebook(cells=cells)
        Watching(notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    first, second = (cell.outputs for cell in notebook.cells)
    assert [output.output_type for output in first] == ["display_data"]  # one picture, in whose place the next came
    assert "image/png" in first[0].data
    assert second[-1].text == "(64, 64) (64, 64)\n"
    shown = [message["content"]["transient"]["display_id"] for message in updates]
    assert len(set(shown)) == 2
    assert shown.count(shown[0]) > 2  # the display, previews, the picture
    assert [message["msg_type"] for message in updates].count("display_data") == 2
