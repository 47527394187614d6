"""The benchmarks run and print what they promise; their figures are nobody's business here."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from .browser import NAMES

FOLDER = Path(__file__).parents[1] / "benchmarks"

pytestmark = pytest.mark.slow


def run(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / name), *options]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1"
    }  # several processes' threads that wait awake are slow on few cores
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=110, env=environment)


def printed(name: str, *options: str) -> Any:
    """The JSON that a benchmark prints, which begins with what it is and where it ran."""
    ended = run(name, *options)
    assert ended.returncode == 0, ended.stderr[-2000:]
    result = json.loads(ended.stdout)
    assert result["benchmark"] == name.removesuffix(".py")
    assert set(result["machine"]) == {"processor", "cores", "torch", "load"}
    return result


def assert_all_positive(figures: dict[str, float]) -> None:
    assert figures
    assert all(value > 0 for value in figures.values()), figures


def test_hooks_compares_plugins_with_bare_functions() -> None:
    result = printed("hooks.py", "--rounds", "1", "--plugins", "3")
    assert list(result["us_a_step"]) == ["none", "one", "3", "bare functions"]
    assert_all_positive(result["us_a_step"])
    assert_all_positive({name: result[name] for name in ("us_a_step_and_plugin", "ms_of_a_step", "share_of_a_step")})


def test_overhead_compares_each_way_of_asking_with_a_plain_call() -> None:
    result = printed("overhead.py", "--rounds", "1", "--steps", "2")
    assert list(result["ways"]) == ["previews_off", "jpeg_preview_each_step", "jpeg_preview_and_latents_each_step"]
    for figures in result["ways"].values():
        assert set(figures) == {"ratio_to_plain", "plain_s", "host_s"}
        assert_all_positive(figures)


@pytest.mark.parametrize("mix", [[], ["--mix"]], ids=["plain", "mix"])
def test_throughput_compares_with_one_after_the_other_and_with_raw_forwards(mix: list[str]) -> None:
    result = printed("throughput.py", "--clients", "1,6", "--rounds", "1", "--steps", "2", *mix)
    assert [row["clients"] for row in result["results"]] == [1, 6]
    for row in result["results"]:
        assert set(row) == {
            "clients",
            "speedup_over_one_after_the_other",
            "limit_of_the_raw_batched_forward",
            "share_of_the_limit",
            "share_of_the_time_in_raw_forwards",
            "seconds_a_picture",
        }
        assert_all_positive(row)


def test_graphs_compares_several_at_once_with_one_after_the_other() -> None:
    result = printed("graphs.py", "--graphs", "2", "--rounds", "1", "--steps", "2")
    figures = ("at_once_over_one_after_the_other", "one_after_the_other_s", "at_once_s")
    assert_all_positive({name: result[name] for name in figures})


def test_first_preview_counts_the_steps_of_those_who_run_already() -> None:
    result = printed("first_preview.py", "--rounds", "1", "--steps", "4", "--jobs", "2")
    assert 0 <= result["steps_of_the_others"]["worst"] <= 4
    assert result["first_preview_s"]["count"] == 1
    assert_all_positive(result["first_preview_s"])


def test_page_measures_in_a_browser() -> None:
    pytest.importorskip("playwright")
    if not any(map(shutil.which, NAMES)):
        pytest.skip("there is no Chromium on this machine")
    result = printed("page.py", "--loads", "1", "--strokes", "2")
    for name in ("ready_ms", "ready_again_ms", "first_preview_ms", "first_preview_while_typing_ms"):
        assert_all_positive(result[name])
    assert result["first_preview_ms"]["count"] == 2
    assert result["pictures_shown"] > 4
    assert result["longest_task_ms"] >= 0


def test_cancel_leaves_no_trace_and_its_job_takes_no_further_step() -> None:
    result = printed("cancel.py", "--rounds", "2", "--steps", "8", "--others", "2")
    assert result["next_picture_is_bit_identical"] is True
    for name in ("alone", "among_others"):
        assert result[name]["own_steps_after"] == 0
        assert result[name]["end_ms"]["count"] == result[name]["engine_ms"]["count"] == 2
        assert_all_positive(result[name]["end_ms"])


def test_fanout_tells_delays_and_memory_and_what_becomes_of_silent_clients() -> None:
    options = ("--watching", "3", "--steps", "10", "--idle", "20", "--silent", "2", "--patience", "0")
    result = printed("fanout.py", *options)
    for figures in result["watching"].values():
        # a watcher that comes late has no event of the steps before
        assert 3 * 5 < figures["step_delay_ms"]["count"] <= 3 * 10
        assert_all_positive(figures["step_delay_ms"])
    assert result["watching"]["without_previews"]["previews_a_client"] == 0
    assert result["watching"]["with_previews"]["previews_a_client"] > 0
    assert result["idle"]["connections"] == 20
    assert result["silent"]["with"]["step_delay_ms"]["count"] > 0


def test_startup_tells_when_and_where_the_time_went() -> None:
    figures = printed("startup.py", "--rounds", "1", "--steps", "2", "--caches", "warm")["warm"]
    assert 0 < figures["address_s"] < figures["ready_s"] < figures["first_picture_s"]
    stages = ("import_torch_s", "import_the_rest_s", "plugins_s", "read_model_s", "warm_up_s")
    assert_all_positive({name: figures[name] for name in stages})


def test_gpu_compares_with_plain_diffusers() -> None:
    result = printed("gpu.py", "--size", "small", "--rounds", "1", "--steps", "2", "--clients", "1,2")
    assert [row["clients"] for row in result["eager"]] == [1, 2]
    for row in result["eager"]:
        assert_all_positive(row)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_says_so_where_there_is_none() -> None:
    ended = run("gpu.py")
    assert ended.returncode == 1
    assert "finds no GPU" in ended.stderr


def test_switching_compares_each_request_and_both_sides_make_the_same_latents() -> None:
    result = printed("switching.py", "--size", "small", "--rounds", "1")
    assert set(result["load_seconds"]) == {"model", "controlnet", "lora"}
    assert [row["request"] for row in result["requests"]] == ["plain", "controlnet", "lora", "plain_again"]
    figures = {"ours_outside_s", "reference_outside_s", "ratio", "ours_first_step_s", "reference_first_step_s"}
    for row in (*result["requests"], result["overall"]):
        assert figures <= row.keys()
        assert all(row[name] > 0 for name in figures)
    assert result["largest_difference_of_latents"] == 0


def test_adapters_compares_one_shared_forward_with_one_for_each_set() -> None:
    result = printed("adapters.py", "--rounds", "1", "--steps", "1", "--dtypes", "bfloat16")
    rows = result["models"]["emoji"]
    assert [row["case"] for row in rows] == ["4 jobs, 4 sets", "8 jobs, 4 sets", "8 jobs, 2 sets"]
    for row in rows:
        ratios = {key: value for key, value in row.items() if "_over_" in key}
        assert len(ratios) == 4
        assert min(ratios.values()) > 0
