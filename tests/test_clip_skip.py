"""The plugin `clip_skip`: the prompt's embedding from an earlier layer, also where pictures share an encoding."""

from collections.abc import Iterator

import pytest

from latentwire import Host, InvalidParams
from latentwire.testing import difference, generate, running_host


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with running_host("clip_skip") as host:
        yield host


def test_clip_skip_takes_the_embedding_from_an_earlier_layer(host: Host) -> None:
    assert difference(generate(host, clip_skip={"layers": 1}).picture, generate(host).picture) > 0
    for layers in (0, 3):  # the embedded model's text encoder has three
        with pytest.raises(InvalidParams) as caught:
            generate(host, clip_skip={"layers": layers})
        assert caught.value.details[0]["path"] == ["clip_skip", "layers"]


def test_clip_skip_holds_for_pictures_that_share_a_text_encoding(host: Host) -> None:
    alone = generate(host, clip_skip={"layers": 1}, seed=2).files[0]
    four = generate(host, clip_skip={"layers": 1}, num_images=4)
    assert generate(host, clip_skip={"layers": 1}, num_images=4, mode="fast").result["images"] == 4
    assert alone in four.files
