"""The watermark on real pictures: where it is, how strong, and that others go without it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentwire import Host, LatentwireError, PluginError
from latentwire.testing import Generated, assert_same_picture, generate, plugin, running_host

HALF = np.s_[:64], np.s_[64:]  # of 128 pixels


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with running_host(plugin("watermark", text="mine")) as host:
        yield host


def changed(marked: Generated, plain: Generated) -> Any:
    """Which pixels differ."""
    return (np.asarray(marked.picture) != np.asarray(plain.picture)).any(axis=-1)


def test_the_text_is_drawn_in_its_corner_alone(host: Host) -> None:
    difference = changed(generate(host, watermark=True), generate(host))
    first, second = HALF
    assert 20 < difference[second, second].sum() < 2000
    assert difference.sum() == difference[second, second].sum()
    assert not difference[:, -2:].any()  # the margin
    assert not difference[first, first].any()


def test_the_file_says_what_was_drawn(host: Host) -> None:
    assert generate(host, watermark=True).picture.info["watermark"] == "mine"
    assert "watermark" not in generate(host).picture.info
    assert '"watermark": true' in generate(host, watermark=True).picture.info["latentwire"]


def test_a_request_can_leave_out_what_the_host_always_draws(host: Host, latentwire_host: Callable[..., Host]) -> None:
    always = latentwire_host(plugin("watermark", always=True, corner="top-left"))
    assert_same_picture(generate(always, watermark=False).picture, generate(host).picture)
    difference = changed(generate(always), generate(host))
    assert difference[:32].any()
    assert not difference[32:].any()


def test_a_logo_is_mixed_in_by_its_own_alpha_and_the_opacity(
    host: Host, latentwire_host: Callable[..., Host], tmp_path: Path
) -> None:
    logo = Image.new("RGBA", (200, 100), (255, 0, 0, 255))
    logo.paste((0, 0, 0, 0), (0, 0, 100, 100))  # its left half is transparent
    logo.save(tmp_path / "logo.png")
    with_logo = latentwire_host(plugin("watermark", logo=str(tmp_path / "logo.png"), opacity=0.5, corner="top-right"))
    marked, plain = generate(with_logo, watermark=True), generate(host)
    assert marked.picture.info["watermark"] == "logo.png"
    place = np.s_[4:16, 112:124]  # within the right half: 32 x 16 pixels, 2 from the corner
    before, after = (np.asarray(made.picture, float)[place] for made in (plain, marked))
    assert np.abs(after - (before + np.array([255, 0, 0])) / 2).max() <= 2
    assert not changed(marked, plain)[:, :109].any()


def test_a_text_that_is_too_long_is_made_small(latentwire_host: Callable[..., Host]) -> None:
    host = latentwire_host(plugin("watermark", text="a very long text that says whose picture this is " * 2))
    difference = changed(generate(host, watermark=True), generate(host, watermark=False))
    assert difference[:, :32].any()
    assert difference[:, 96:].any()


@pytest.mark.parametrize("wrong", ["yes", 1, {"text": "mine"}])
def test_a_wrong_field_is_refused_with_its_place(host: Host, wrong: Any) -> None:
    with pytest.raises(LatentwireError) as caught:
        generate(host, watermark=wrong)
    assert caught.value.code == "invalid_params"
    assert caught.value.details[0]["path"][0] == "watermark"


def test_a_logo_that_is_not_there_is_said_when_the_plugin_is_loaded(tmp_path: Path) -> None:
    with (
        pytest.raises(PluginError, match=r"logo\.png"),
        running_host(plugin("watermark", logo=str(tmp_path / "logo.png"))),
    ):
        pass
