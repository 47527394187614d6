"""The examples for clients, run against a real server: the scripts, and the notebook in a real kernel."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage

from .conftest import Served, serving

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOK = EXAMPLES / "notebook.ipynb"


def run(script: str, *arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=90)


def test_draw_ends_with_the_picture(served: Served, tmp_path: Path) -> None:
    done = run("draw.py", "red apple", "--url", served.url, "--seed", "7", "-o", "apple.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with PILImage.open(tmp_path / "apple.png") as picture:
        assert picture.size == (128, 128)
        assert "latentwire" in picture.text  # type: ignore[attr-defined]  # a preview says nothing of itself
    assert [file.name for file in tmp_path.iterdir()] == ["apple.png"]


def test_strip_has_a_row_for_each_prompt(served: Served, tmp_path: Path) -> None:
    options = ["--url", served.url, "--columns", "3", "--side", "32", "-o", "strip.png"]
    done = run("strip.py", "red apple", "rocket", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with PILImage.open(tmp_path / "strip.png") as picture:
        assert picture.size == (96, 64)


def read_notebook() -> Any:
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_the_notebook_is_stored_without_outputs() -> None:
    cells = [cell for cell in read_notebook().cells if cell.cell_type == "code"]
    assert cells
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbclient import NotebookClient

    notebook = read_notebook()
    with serving() as served:
        monkeypatch.setenv("LATENTWIRE_URL", served.url)
        NotebookClient(
            notebook, timeout=90, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
        ).execute()
    shown = [[output.output_type for output in cell.outputs] for cell in notebook.cells if cell.cell_type == "code"]
    assert shown[1] == ["display_data"]
    assert shown[2][-1] == shown[4][-1] == "execute_result"
    texts = "".join(
        output.text
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.get("name") == "stdout"
    )
    assert "step  5 of 20: latents (4, 16, 16)" in texts
