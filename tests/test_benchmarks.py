"""The benchmarks run and print what they promise; their figures are nobody's business here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"

pytestmark = pytest.mark.slow


def printed(name: str, *options: str) -> Any:
    """The JSON that a benchmark prints."""
    command = [sys.executable, str(FOLDER / name), *options]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return json.loads(ended.stdout)


def test_switching_compares_each_request_and_both_sides_make_the_same_latents() -> None:
    result = printed("switching.py", "--size", "small", "--rounds", "1")
    assert result["benchmark"] == "switching"
    assert set(result["load_seconds"]) == {"model", "controlnet", "lora"}
    assert [row["request"] for row in result["requests"]] == ["plain", "controlnet", "lora", "plain_again"]
    figures = {"ours_outside_s", "reference_outside_s", "ratio", "ours_first_step_s", "reference_first_step_s"}
    for row in (*result["requests"], result["overall"]):
        assert figures <= row.keys()
        assert all(row[name] > 0 for name in figures)
    assert result["largest_difference_of_latents"] == 0


def test_adapters_compares_one_shared_forward_with_one_for_each_set() -> None:
    result = printed("adapters.py", "--rounds", "1", "--steps", "1", "--dtypes", "bfloat16")
    assert result["benchmark"] == "adapters"
    rows = result["models"]["emoji"]
    assert [row["case"] for row in rows] == ["4 jobs, 4 sets", "8 jobs, 4 sets", "8 jobs, 2 sets"]
    for row in rows:
        ratios = {key: value for key, value in row.items() if "_over_" in key}
        assert len(ratios) == 4
        assert min(ratios.values()) > 0
