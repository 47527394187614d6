"""The pace of a denoiser: made-up curves, and the real models."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from latentwire.core.pace import Pace, made_up_inputs, measure, measure_denoiser
from latentwire.core.run import Run

from . import small_models
from .conftest import running_host

# tenths of a second of a forward of the embedded model on two cores
FLOAT32 = {2: 17.7, 4: 23.1, 8: 43.3, 16: 60.2, 32: 115.3}
BFLOAT16 = {2: 16.6, 4: 19.8, 8: 25.0, 16: 33.9, 32: 52.6}


@pytest.mark.parametrize(
    ("seconds", "knee"),
    [
        (FLOAT32, 16),
        (BFLOAT16, 32),
        ({2: 1.0, 4: 2.0, 8: 4.0}, 2),  # nothing is gained by sharing
        ({2: 1.0, 4: 1.0, 8: 1.0}, 8),  # all that there is
        ({2: 1.0, 4: 1.0, 8: 3.0, 16: 8.0}, 4),  # too much loses
        ({2: 1.0, 4: 1.96, 8: 3.84}, 2),  # two per cent at each step are not worth the waiting
        ({2: 1.0}, None),
        ({2: 0.03, 4: 0.06, 8: 0.09, 16: 0.2}, 8),  # nobody minds a forward so quick
    ],
)
def test_the_knee_is_the_fewest_rows_of_nearly_the_best_throughput(seconds: dict[int, float], knee: int | None) -> None:
    assert Pace(seconds).knee == knee


def test_other_numbers_of_rows_are_estimated_from_those_measured() -> None:
    pace = Pace({2: 10.0, 4: 12.0, 8: 20.0})
    assert [pace.seconds(rows) for rows in (1, 2, 3, 4, 6, 8, 16)] == [10.0, 10.0, 11.0, 12.0, 16.0, 20.0, 40.0]


def timed(seconds_of: Callable[[int], float], asked: list[int]) -> Callable[[int], None]:
    """A forward that takes so long and notes its rows."""

    def forward(rows: int) -> None:
        asked.append(rows)
        time.sleep(seconds_of(rows))

    return forward


def test_rows_are_doubled_up_to_the_most_and_each_is_timed_a_few_times() -> None:
    asked: list[int] = []
    pace = measure(timed(lambda rows: 0.001 * rows, asked), 20, budget_s=60)
    assert pace is not None
    assert list(pace.measured) == [2, 4, 8, 16]
    assert asked == [2, 4, 8, 16] * 3
    assert all(pace.measured[rows] >= 0.001 * rows for rows in pace.measured)


def test_a_slow_forward_is_made_once_and_the_next_size_not_at_all() -> None:
    asked: list[int] = []
    pace = measure(timed(lambda rows: 0.2, asked), 32, budget_s=0.1)
    assert asked == [2]
    assert pace is not None
    assert pace.knee is None
    assert pace.seconds(4) >= 0.4


def test_it_ends_where_memory_does() -> None:
    def forward(rows: int) -> None:
        if rows > 4:
            raise torch.OutOfMemoryError("on purpose")

    pace = measure(forward, 32, budget_s=60)
    assert pace is not None
    assert list(pace.measured) == [2, 4]

    def never(rows: int) -> None:
        raise torch.OutOfMemoryError("on purpose")

    assert measure(never, 32, budget_s=60) is None


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "sd3"])
def test_every_family_is_measured_on_the_engines_thread(family: str, tmp_path: Path) -> None:
    folder = getattr(small_models, family)(tmp_path / family)
    with running_host(models={"it": {"path": folder}}, defaults={"model": "it"}) as host:
        with host.store.leased("it") as lease:
            denoiser = lease.components[lease.card.row.denoiser]
            outcome: Future[Any] = Future()
            forwards = host.engine.figures.forwards
            host.engine.submit(
                Run(
                    "exact",
                    lambda: measure_denoiser(denoiser, lease.device, 8, budget_s=60),
                    lambda result, error: outcome.set_exception(error) if error else outcome.set_result(result),
                )
            )
            pace = outcome.result()
        assert list(pace.measured) == [2, 4, 8]
        assert pace.knee in pace.measured
        assert host.engine.figures.forwards == forwards  # no gate was waited at


def test_a_denoiser_of_an_unknown_kind_is_not_measured() -> None:
    with running_host() as host, host.store.leased("emoji") as lease:
        vae = lease.components["vae"]
        assert made_up_inputs(vae, 2, lease.device) is None
        assert measure_denoiser(vae, lease.device, 8) is None
