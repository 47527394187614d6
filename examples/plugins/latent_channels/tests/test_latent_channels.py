"""The previewer on a real job, and on latents whose picture is known."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from latentwire_latent_channels import paint
from PIL import Image

from latentwire import Host, InvalidParams
from latentwire.testing import assert_same_picture, call, generate, running_host

PREVIEWS = {"previewer": "latent_channels", "format": "png", "size": 64}
STEPS = 10


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with running_host("latent_channels") as host:
        yield host


def last_preview(host: Host, **options: Any) -> Image.Image:
    """Of one picture; that of its last step may give way to the picture itself."""
    made = generate(host, num_inference_steps=STEPS, stream={"previews": PREVIEWS | options})
    preview = made.events.named("preview")[-1]
    return Image.open(io.BytesIO(preview.image.data))


def test_previews_come_to_look_like_the_finished_latents(host: Host) -> None:
    latents = generate(host, num_inference_steps=STEPS, output_type="latent").latents
    wanted = np.asarray(Image.fromarray(paint(latents)).resize((64, 64), Image.Resampling.BICUBIC), float)
    got = np.asarray(last_preview(host), float)
    assert (got == got[:, :, :1]).all()  # grey
    assert np.corrcoef(got.ravel(), wanted.ravel())[0, 1] > 0.9
    assert np.corrcoef(got.ravel(), wanted[:, ::-1].ravel())[0, 1] < 0.5


def test_the_picture_of_known_latents() -> None:
    ramp = np.linspace(-3, 5, 6, dtype=np.float32).reshape(2, 3)
    latents = np.stack([ramp, -ramp, np.full_like(ramp, 7), 2 * ramp])
    picture = paint(latents)
    assert picture.shape == (4, 6, 3)
    assert picture.dtype == np.uint8
    wanted = np.round(np.linspace(0, 255, 6)).reshape(2, 3)
    assert np.abs(picture[:2, :3, 0] - wanted).max() <= 1
    assert np.abs(picture[:2, 3:, 0] - (255 - wanted)).max() <= 1
    assert (picture[2:, :3] == 0).all()  # all the same: no shape to see
    assert (picture[2:, 3:] == picture[:2, :3]).all()


@pytest.mark.parametrize(("channels", "shape"), [(16, (8, 12, 3)), (5, (4, 9, 3)), (1, (2, 3, 3))])
def test_other_numbers_of_channels_have_their_place(channels: int, shape: tuple[int, ...]) -> None:
    assert paint(np.random.default_rng(1).normal(size=(channels, 2, 3)).astype(np.float32)).shape == shape


def test_it_is_another_picture_than_the_models_own_preview(host: Host) -> None:
    own = np.asarray(last_preview(host, previewer=None), float)
    channels = np.asarray(last_preview(host), float)
    assert np.abs(own - channels).mean() > 10


def test_the_finished_picture_is_the_same(host: Host) -> None:
    assert_same_picture(generate(host, stream={"previews": PREVIEWS}).picture, generate(host).picture)


def test_describe_lists_it_and_a_wrong_name_is_refused(host: Host) -> None:
    assert call(host, "describe")["previewers"] == ["latent_channels"]
    with pytest.raises(InvalidParams, match="latent_channels") as caught:
        generate(host, stream={"previews": {"previewer": "latent_chanels"}})
    assert caught.value.details[0]["path"] == ["stream", "previews", "previewer"]
