"""NaN and infinite values are found within a step, in the job that has them and in no other."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from latentwire import Host
from latentwire.core.events import Preview, Step
from latentwire.core.finite import is_finite
from latentwire.testing import fault_in

from ..conftest import running_host
from .injection import Forward, draw, draw_all, forward_of, gate

STEPS = 8


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with running_host() as host:
        yield host


def spoiling(value: float) -> Any:
    """A fault: the first row holds a value somewhere."""

    def spoilt(output: Any) -> Any:
        tensor: Any = output[0] if isinstance(output, tuple) else output
        tensor = getattr(tensor, "last_hidden_state", tensor)
        tensor[0].view(-1)[tensor[0].numel() // 2] = value
        return output

    return spoilt


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_nan_of_the_denoiser_ends_the_job_at_the_step_of_its_birth(host: Host, mode: str, value: float) -> None:
    fields: dict[str, Any] = {"mode": mode, "num_inference_steps": STEPS, "stream": {"previews": {}}}
    expected = draw(host, **fields).data
    with fault_in(host, "unet", spoiling(value), at=4):
        failed = draw(host, **fields)
    assert failed.code == "not_finite"
    assert f"after step 4 of {STEPS}" in failed.message
    assert "float32 or bfloat16" in failed.message
    assert "guidance_scale" in failed.message
    assert max(event.step for event in failed.events if isinstance(event, Step)) == 3
    assert all(event.step <= 3 for event in failed.events if isinstance(event, Preview))
    assert draw(host, **fields).data == expected


def test_others_in_the_same_forward_go_on(host: Host) -> None:
    """The one of five steps has NaN in its rows at its second one; all of them share their forwards."""
    requests: list[dict[str, Any]] = [{"seed": seed, "num_inference_steps": STEPS} for seed in range(4)]
    made_alone = draw(host).data
    guilty = draw(host, num_inference_steps=5)
    second = next(event.timestep for event in guilty.events if isinstance(event, Step) and event.step == 2)
    most_rows = 0

    def wrap(real: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal most_rows
            output = real(*args, **kwargs)
            timesteps = torch.as_tensor(kwargs["timestep"] if "timestep" in kwargs else args[1]).expand(len(output[0]))
            most_rows = max(most_rows, len(timesteps))
            output[0][timesteps == second] = float("nan")
            return output

        return forward

    with forward_of(gate(host, "unet"), wrap):
        made = draw_all(host, *requests, {"seed": 9, "num_inference_steps": 5})
    assert most_rows > 4
    assert [pictures.error for pictures in made[:-1]] == [None] * 4
    assert made[-1].code == "not_finite"
    assert "after step 2 of 5" in made[-1].message
    assert draw(host).data == made_alone


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_decoder_that_gives_nan_makes_no_black_picture(host: Host, value: float) -> None:
    expected = draw(host).data
    with fault_in(host, "vae.decoder", spoiling(value)):
        failed = draw(host)
    assert failed.code == "not_finite"
    assert "decoded picture" in failed.message
    assert failed.events[-1].name != "image"
    assert draw(host).data == expected


def test_nan_in_one_decoded_row_is_no_fault_of_the_others(host: Host) -> None:
    with fault_in(host, "vae.decoder", spoiling(float("nan"))):
        made = draw_all(host, *({"seed": seed} for seed in range(3)))
    codes = [pictures.error and pictures.error.code for pictures in made]
    assert "not_finite" in codes
    assert set(codes) <= {"not_finite", None}


def test_an_encoders_nan_is_not_remembered(host: Host) -> None:
    fields = {"prompt": "never heard before", "mode": "exact"}
    with fault_in(host, "text_encoder", spoiling(float("nan"))):
        assert draw(host, **fields).code == "not_finite"
    again = draw(host, **fields).data
    with running_host() as other:
        assert draw(other, **fields).data == again


def test_a_black_picture_of_finite_values_is_none_of_our_business(host: Host) -> None:
    with fault_in(host, "vae.decoder", lambda decoded: torch.full_like(decoded, -1.0)):
        assert len(draw(host).data) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_sum_that_overflows_is_no_nan(dtype: torch.dtype) -> None:
    assert is_finite(torch.full((4, 64, 64), torch.finfo(dtype).max, dtype=dtype))
    for value in (np.nan, np.inf, -np.inf):
        spoilt = torch.zeros(4, 64, 64, dtype=dtype)
        spoilt[3, 17, 5] = value
        assert not is_finite(spoilt)
    both = torch.zeros(4, dtype=dtype)
    both[0], both[1] = np.inf, -np.inf
    assert not is_finite(both)
