"""The plugins of examples/plugins/, each loaded from its file and seen at work on a real job."""

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from latentwire import Host, LatentwireError, PluginError
from latentwire.core.events import Event, Image, Started, Step, Tensor
from latentwire.core.settings import EMBEDDED_MODEL

from .conftest import running_host

FOLDER = Path(__file__).parents[1] / "examples" / "plugins"
NAMES = sorted(file.stem for file in FOLDER.glob("*.py"))
REQUEST = {"prompt": "red apple", "num_inference_steps": 2, "seed": 1, "mode": "exact"}


@pytest.fixture(scope="module")
def examples() -> Iterator[Host]:
    """A host with all examples at once; a request that asks nothing of them must not notice them."""
    plugins = [{"name": name, "path": FOLDER / f"{name}.py"} for name in NAMES]
    with running_host(plugins=plugins) as host:
        yield host


def generate(host: Host, **fields: Any) -> tuple[dict[str, Any], list[Event]]:
    events: list[Event] = []
    return asyncio.run(host.dispatch("generate", REQUEST | fields, "test", events.append)), events


def picture(events: list[Event]) -> PILImage.Image:
    (event,) = [event for event in events if isinstance(event, Image)]
    assert event.image is not None
    return PILImage.open(io.BytesIO(event.image.data))


def latents(events: list[Event]) -> Tensor:
    (event,) = [event for event in events if isinstance(event, Image)]
    assert event.latents is not None
    return event.latents


def test_every_example_is_tested_here_and_loads(examples: Host) -> None:
    assert NAMES == ["few_steps", "step_log", "tint", "zero_snr_ddim"]
    assert {report.name: report.error for report in examples.plugins.reports if report.state == "failed"} == {}
    assert {"few_steps", "tint"} <= {report.name for report in examples.plugins.reports if report.state == "loaded"}


def test_tint_mixes_the_colour_into_the_finished_picture(examples: Host) -> None:
    plain = np.asarray(picture(generate(examples)[1]), float)
    tinted = picture(generate(examples, tint={"color": "#ff8000", "strength": 0.5})[1])
    assert np.abs(np.asarray(tinted) - (plain + np.array([255, 128, 0])) / 2).max() <= 1
    assert tinted.info["tint"] == "#ff8000 at 0.5"


def test_tint_takes_its_default_strength_from_the_settings() -> None:
    entry = {"name": "tint", "path": FOLDER / "tint.py", "settings": {"strength": 1.0}}
    with running_host(plugins=[entry]) as host:
        assert picture(generate(host, tint={"color": "#ff8000"})[1]).getcolors() == [(128 * 128, (255, 128, 0))]


@pytest.mark.parametrize("tint", ["#ff8000", {"color": "orange"}, {"color": "#ff8000", "strenght": 1}])
def test_a_wrong_tint_is_refused_with_its_place(examples: Host, tint: Any) -> None:
    with pytest.raises(LatentwireError) as caught:
        generate(examples, tint=tint)
    assert caught.value.code == "invalid_params"
    assert caught.value.details[0]["path"][0] == "tint"


def test_the_zero_snr_scheduler_differs_from_the_hosts_ddim(examples: Host) -> None:
    result, own = generate(examples, scheduler="ddim_zero_snr", output_type="latent")
    assert result["scheduler"] == "ddim_zero_snr"
    ddim = latents(generate(examples, scheduler="ddim", output_type="latent")[1])
    assert latents(own).shape == ddim.shape
    assert latents(own).data != ddim.data
    assert np.isfinite(np.frombuffer(latents(own).data, "<f4")).all()


def test_the_zero_snr_scheduler_says_which_models_it_cannot_run(tmp_path: Path) -> None:
    for part in EMBEDDED_MODEL.iterdir():
        (tmp_path / part.name).symlink_to(part)
    (tmp_path / "scheduler").unlink()
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "epsilon"}')
    plugins = [{"name": "zero_snr_ddim", "path": FOLDER / "zero_snr_ddim.py"}]
    with running_host(plugins=plugins, models={"epsilon": {"path": tmp_path}}) as host:
        with pytest.raises(PluginError, match="needs a model with v_prediction, this one has epsilon") as caught:
            generate(host, model="epsilon", scheduler="ddim_zero_snr")
        assert caught.value.plugin == "zero_snr_ddim"
        assert generate(host, scheduler="ddim_zero_snr")[0]["images"] == 1


@pytest.mark.parametrize(
    ("fields", "scheduler"),
    [
        ({"num_inference_steps": 8}, "unipc"),
        ({"num_inference_steps": 9}, "ddim"),
        ({"num_inference_steps": 8, "scheduler": "euler"}, "euler"),
        ({"num_inference_steps": None}, "ddim"),
    ],
)
def test_few_steps_chooses_a_scheduler_only_for_short_runs_that_name_none(
    examples: Host, fields: dict[str, Any], scheduler: str
) -> None:
    result, events = generate(examples, output_type="latent", **fields)
    assert result["scheduler"] == scheduler
    assert [event.scheduler for event in events if isinstance(event, Started)] == [scheduler]


def test_step_log_tells_of_each_step_of_one_job(examples: Host) -> None:
    result, events = generate(examples, num_images=2)
    ask = examples.dispatch("step_log.steps", {"job": result["job"]}, "test", lambda _: None)
    rows = asyncio.run(ask)["steps"]
    steps = [(event.index, event.step, event.timestep) for event in events if isinstance(event, Step)]
    assert [(row["index"], row["step"], row["timestep"]) for row in rows] == steps
    assert len(rows) == 4


def test_step_log_measures_the_latents(examples: Host) -> None:
    result, events = generate(examples, output_type="latent")
    rows = asyncio.run(examples.dispatch("step_log.steps", {"job": result["job"]}, "test", lambda _: None))["steps"]
    final = np.frombuffer(latents(events).data, "<f4")
    assert rows[-1]["mean"] == pytest.approx(final.mean(), abs=1e-5)
    assert rows[-1]["std"] == pytest.approx(final.std(ddof=1), abs=1e-5)


def test_step_log_has_nothing_to_tell_of_another_job(examples: Host) -> None:
    ask = examples.dispatch("step_log.steps", {"job": "no such job"}, "test", lambda _: None)
    assert asyncio.run(ask) == {"job": "no such job", "steps": []}
