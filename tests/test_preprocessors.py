"""Preprocessors: pictures to control images, white on black."""

import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pydantic import ValidationError

from latentwire.plugins.controlnet.preprocessors import PREPROCESSORS


def run(name: str, picture: Image.Image, **options: Any) -> Image.Image:
    model, apply = PREPROCESSORS[name]
    return apply(picture, model(**options))


def white(picture: Image.Image) -> Any:
    return np.asarray(picture.convert("L")) > 127


def disc(colour: str = "white", background: str = "black") -> Image.Image:
    """Of radius 30 in the middle of 100x100."""
    picture = Image.new("RGB", (100, 100), background)
    ImageDraw.Draw(picture).ellipse((20, 20, 80, 80), fill=colour)
    return picture


def radii(mask: Any) -> Any:
    y, x = np.nonzero(mask)
    return np.hypot(x - 50, y - 50)


@pytest.mark.parametrize("name", PREPROCESSORS)
def test_the_result_is_an_rgb_picture_of_the_same_size(name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (37, 53, 3), np.uint8)
    result = run(name, Image.fromarray(noise))
    assert (result.mode, result.size) == ("RGB", (53, 37))


@pytest.mark.parametrize("name", ["canny", "soft_edge", "scribble"])
@pytest.mark.parametrize("colour", ["black", "gray", "white"])
def test_a_plain_picture_has_no_edges(name: str, colour: str) -> None:
    assert not np.asarray(run(name, Image.new("RGB", (40, 30), colour))).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2)])
@pytest.mark.parametrize("name", PREPROCESSORS)
def test_tiny_pictures_are_no_trouble(name: str, size: tuple[int, int]) -> None:
    assert run(name, Image.new("RGB", size, "white")).size == size


def test_canny_gives_a_disc_a_thin_closed_ring() -> None:
    ring = white(run("canny", disc()))
    assert np.abs(radii(ring) - 30).max() < 2
    assert ring.sum() < 1.3 * 2 * np.pi * 30
    outside = Image.fromarray((~ring * 255).astype(np.uint8))
    ImageDraw.floodfill(outside, (0, 0), 100)
    assert outside.getpixel((50, 50)) == 255  # the flood does not come in


def test_canny_sees_dark_on_bright_as_well() -> None:
    assert np.abs(radii(white(run("canny", disc("black", "white")))) - 30).max() < 2


def test_a_higher_threshold_leaves_out_the_fainter_edge() -> None:
    picture = Image.new("RGB", (90, 30), "black")
    picture.paste((20, 20, 20), (30, 0, 90, 30))  # gradient 80
    picture.paste("white", (60, 0, 90, 30))
    columns = {int(x) // 25 for x in np.nonzero(white(run("canny", picture, low=50, high=60)))[1]}
    assert columns == {1, 2}
    columns = {int(x) // 25 for x in np.nonzero(white(run("canny", picture, low=100, high=200)))[1]}
    assert columns == {2}


def test_a_weak_edge_stays_where_it_goes_on_from_a_strong_one() -> None:
    rows = np.linspace(60, 255, 80).astype(np.uint8)  # an edge that fades from bottom to top
    pixels = np.zeros((80, 40, 3), np.uint8)
    pixels[:, 20:] = rows[:, None, None]
    picture = Image.fromarray(pixels)
    whole = white(run("canny", picture, low=200, high=900)).any(axis=1).sum()
    strong = white(run("canny", picture, low=900, high=900)).any(axis=1).sum()
    assert whole > 70 > strong > 0


def test_a_blur_takes_noise_away() -> None:
    noise = np.random.default_rng(0).integers(100, 156, (64, 64, 3), np.uint8)
    picture = Image.fromarray(noise)
    assert white(run("canny", picture)).sum() > 10 * white(run("canny", picture, sigma=3)).sum()


@pytest.mark.parametrize(
    ("low", "high", "pixels", "checksum"), [(100, 200, 1227, 2901705601), (150, 450, 981, 2599907134)]
)
def test_canny_finds_the_very_pixels_that_opencv_finds(low: int, high: int, pixels: int, checksum: int) -> None:
    blocks = np.kron(np.random.default_rng(7).integers(0, 256, (9, 12, 3), np.uint8), np.ones((6, 6, 1), np.uint8))
    noisy = blocks // 2 + np.random.default_rng(8).integers(0, 60, blocks.shape, np.uint8)
    edges = np.asarray(run("canny", Image.fromarray(noisy), low=low, high=high).convert("L"))
    assert (edges > 0).sum() == pixels  # what OpenCV 5.0 gave
    assert zlib.crc32(edges.tobytes()) == checksum


def test_a_faint_line_is_followed_to_its_end_however_long() -> None:
    y, x = np.mgrid[-120:120, -120:120]
    inside = (np.hypot(x, y) / 20 - np.arctan2(y, x) / (2 * np.pi)) % 1 < 0.5  # a spiral with its end in the middle
    faint = np.where(inside, 30, 0)
    stronger = np.where(inside, 30 + np.maximum(0, 3 * (x - 60)), 0)  # towards the right

    def edges(values: Any) -> Any:
        return white(run("canny", Image.fromarray(np.uint8(values)).convert("RGB"), low=50, high=400))

    assert not edges(faint).any()
    assert edges(stronger)[110:130, 110:130].any()


def test_soft_edges_are_strongest_on_the_edge_and_fade() -> None:
    soft = np.asarray(run("soft_edge", disc()).convert("L"), int)
    assert soft[50, 20] > 150
    assert soft[50, 20] > soft[50, 23] > soft[50, 30]
    assert soft[50, 50] == soft[5, 5] == 0


def test_scribbles_are_thicker_than_canny_and_thickness_makes_them_thicker() -> None:
    counts = [white(run("scribble", disc(), thickness=thickness)).sum() for thickness in (1, 3, 6)]
    assert white(run("canny", disc())).sum() < counts[0] < counts[1] < counts[2]
    assert set(np.unique(np.asarray(run("scribble", disc())))) == {0, 255}


def test_threshold_and_invert() -> None:
    picture = Image.new("RGB", (2, 1), (100, 100, 100))
    picture.putpixel((1, 0), (150, 150, 150))
    assert white(run("threshold", picture)).tolist() == [[False, True]]
    assert white(run("threshold", picture, level=90)).tolist() == [[True, True]]
    assert run("invert", picture).getpixel((0, 0)) == (155, 155, 155)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("canny", {"low": 300, "high": 200}),
        ("canny", {"hi": 1}),
        ("threshold", {"level": 300}),
        ("invert", {"level": 1}),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PREPROCESSORS[name][0](**options)
