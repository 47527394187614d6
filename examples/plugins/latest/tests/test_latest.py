"""The routes of a real server: everybody's own newest picture, and nobody else's."""

import json
from collections.abc import Iterator
from http.client import HTTPMessage
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from latentwire import connect_sync
from latentwire.client import Image
from latentwire.testing import Served, plugin, serving

FIELDS = {"num_inference_steps": 2, "mode": "exact"}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(plugin("latest", owners=3)) as served:
        yield served


def get(served: Served, path: str, key: str | None = None) -> tuple[int, HTTPMessage, bytes]:
    request = Request(served.http + path, headers={} if key is None else {"Latentwire-Key": key})
    try:
        with urlopen(request) as response:
            return response.status, response.headers, response.read()
    except HTTPError as error:
        return error.code, error.headers, error.read()


def make(served: Served, key: str | None, **fields: Any) -> list[Image]:
    """The image events of a job."""
    with connect_sync(served.url, key=key) as client:
        return [event for event in client.generate("red apple", **FIELDS | fields) if isinstance(event, Image)]


def key_of(name: str) -> str:
    return f"a key that is {name}'s"


def test_the_newest_picture_takes_the_olders_place(served: Served) -> None:
    for seed in (1, 2):
        (made,) = make(served, key_of("anna"), seed=seed)
        status, headers, data = get(served, "/latest.png", key_of("anna"))
        assert (status, headers["Content-Type"], headers["Cache-Control"]) == (200, "image/png", "no-store")
        assert data == made.image.data
        status, headers, text = get(served, "/latest.json", key_of("anna"))
        assert (status, headers["Cache-Control"]) == (200, "no-store")
        told = json.loads(text)
        assert told["image_id"] == made.image_id
        assert told["job"] == made.job
        assert (told["width"], told["height"]) == (128, 128)
        assert told["request"]["seed"] == seed


def test_its_request_makes_the_picture_again(served: Served) -> None:
    (made,) = make(served, key_of("anna"), seed=3)
    request = json.loads(get(served, "/latest.json", key_of("anna"))[2])["request"]
    with connect_sync(served.url, key=key_of("anna")) as client:
        (again,) = [event for event in client.generate(**request) if isinstance(event, Image)]
    assert again.image.data == made.image.data


def test_everybody_gets_their_own(served: Served) -> None:
    (hers,) = make(served, key_of("berta"), seed=1)
    (his,) = make(served, key_of("carl"), seed=2)
    assert get(served, "/latest.png", key_of("berta"))[2] == hers.image.data
    assert get(served, "/latest.png", key_of("carl"))[2] == his.image.data


@pytest.mark.parametrize("key", [None, key_of("nobody")])
@pytest.mark.parametrize("path", ["/latest.png", "/latest.json"])
def test_who_has_none_is_told_so(served: Served, path: str, key: str | None) -> None:
    make(served, None)
    make(served, key_of("anna"))
    status, headers, text = get(served, path, key)
    assert (status, headers["Cache-Control"]) == (404, "no-store")
    assert b"you have no picture yet" in text


def test_only_the_latest_owners_are_known(served: Served) -> None:
    for name in ("dora", "emil", "fritz", "gerda"):
        make(served, key_of(name), num_inference_steps=1)
    assert get(served, "/latest.json", key_of("dora"))[0] == 404
    assert [get(served, "/latest.json", key_of(name))[0] for name in ("emil", "fritz", "gerda")] == [200] * 3


def test_a_picture_that_had_to_make_room_is_gone() -> None:
    with serving("latest", limits={"images_mib": 1}) as small:
        make(small, key_of("anna"))
        assert get(small, "/latest.png", key_of("anna"))[0] == 200
        small.host.images.put(bytes(1 << 20))
        assert get(small, "/latest.png", key_of("anna"))[0] == 404
        assert get(small, "/latest.json", key_of("anna"))[0] == 200
