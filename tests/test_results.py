"""The plugin `results`: pictures that stay, its commands and route, bounds, failing disks, and its page in docs/."""

import asyncio
import io
import json
import logging
import os
import resource
import shutil
import sqlite3
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from latentwire import Caller, Host, LatentwireError, Picture, PluginError, RemoteError, connect_sync, encode
from latentwire.client import SyncConnection
from latentwire.core.events import Event, Image
from latentwire.core.image_store import image_id
from latentwire.plugins.results.files import Files, new_id
from latentwire.plugins.results.index import NAME, Index, Result
from latentwire.plugins.results.schema import VERSION
from latentwire.plugins.results.settings import Settings
from latentwire.plugins.results.store import MOST_STRAYS, SWEEP_AGE_S, Store
from latentwire.testing import Events, FakeClock, call, plugin, running_host, serving

from .conftest import running_host as any_host  # also one whose plugins fail to load
from .conftest import wait_for
from .pages import PLUGIN_PAGES, blocks
from .test_docs_protocol import assert_same_shape
from .wire import SMALL

MADE = {"prompt": "red apple", "negative_prompt": "", "model": "emoji", "seed": 1}
NOBODY = "0" * 32


def results(folder: Path, **bounds: Any) -> dict[str, Any]:
    return plugin("results", folder=str(folder), **bounds)


@contextmanager
def keeping(folder: Path, **bounds: Any) -> Iterator[Host]:
    """A host that keeps its pictures in a folder."""
    with running_host(results(folder, **bounds)) as host:
        yield host


@pytest.fixture(scope="module")
def keeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """One host for the tests that look at nothing but results of their own."""
    with keeping(tmp_path_factory.mktemp("keeper") / "results") as host:
        yield host


def ask(host: Host, command: str, **params: Any) -> dict[str, Any]:
    result: dict[str, Any] = call(host, command, params)
    return result


def refused(host: Host, command: str, **params: Any) -> LatentwireError:
    with pytest.raises(LatentwireError) as caught:
        ask(host, command, **params)
    return caught.value


def events_of(host: Host, command: str, **params: Any) -> Events:
    call(host, command, params, emit=(events := Events()))
    return events


def images(events: Events) -> list[Image]:
    return sorted(events.named("image"), key=lambda event: event.index)


def draw(host: Host, **fields: Any) -> Image:
    """The one picture of a request."""
    (image,) = images(events_of(host, "generate", **SMALL | {"num_inference_steps": 1} | fields))
    return image


def kept(host: Host, **fields: Any) -> str:
    """The id of a new picture's result."""
    image = draw(host, **fields)
    assert image.result is not None
    return image.result


def data_of(image: Image) -> bytes:
    assert image.image is not None
    return image.image.data


def pixels(image: Image) -> bytes:
    with PILImage.open(io.BytesIO(data_of(image))) as picture:
        return picture.tobytes()


def ids(answer: dict[str, Any]) -> list[str]:
    return [row["id"] for row in answer["results"]]


def pngs(folder: Path) -> set[str]:
    """The ids of all files."""
    return {file.stem for file in folder.rglob("*.png")}


ME = Caller("test", "test")
KEY, OBSERVER = "a key of sixteen letters", "an observer's token"


def kept_by(client: SyncConnection) -> str:
    """The result of a picture that a client makes."""
    *_, image, _ = client.generate(**SMALL)
    assert isinstance(image, Image)
    assert image.result is not None
    return image.result


def noise(side: int = 64) -> Picture:
    """A picture that takes about 3 * side * side bytes."""
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
    return encode(PILImage.fromarray(pixels), "png")


def store_of(folder: Path, **bounds: Any) -> Store:
    return Store(folder, Settings(folder=folder, **bounds))


def keep(store: Store, picture: Picture | None = None) -> str:
    result = store.keep(picture or noise(), MADE, "job", 0, "test")
    assert result is not None
    return result


# The commands.


def test_a_picture_is_told_as_stored_and_comes_back_with_its_request(keeper: Host) -> None:
    begin = time.time()
    image = draw(keeper, prompt="red apple", negative_prompt="leaf", seed=5)
    result = ask(keeper, "results.get", id=image.result)
    assert result["image"] == {"format": "png", "width": 64, "height": 64, "data": data_of(image)}
    with PILImage.open(io.BytesIO(data_of(image))) as picture:
        assert result["request"] == json.loads(picture.info["latentwire"])
    assert begin <= result["created"] <= time.time()
    row = {name: value for name, value in result.items() if name not in ("image", "created", "request")}
    assert row == {
        "id": image.result,
        "job": image.job,
        "index": 0,
        "prompt": "red apple",
        "negative_prompt": "leaf",
        "model": "emoji",
        "seed": 5,
        "width": 64,
        "height": 64,
        "bytes": len(data_of(image)),
    }
    (listed,) = ask(keeper, "results.list", limit=1)["results"]
    assert listed == {name: value for name, value in result.items() if name != "image"}


def test_each_picture_of_a_job_is_a_result_of_its_own(keeper: Host) -> None:
    made = images(events_of(keeper, "generate", **SMALL | {"num_images": 3, "seed": [7, 3, 9]}))
    rows = ask(keeper, "results.list", job=made[0].job)["results"]
    assert {(row["id"], row["index"], row["seed"]) for row in rows} == {
        (image.result, image.index, image.seed) for image in made
    }
    assert "num_images" not in rows[0]["request"]


def test_the_list_is_newest_first_and_new_pictures_do_not_shift_its_pages(tmp_path: Path) -> None:
    with keeping(tmp_path) as host:
        assert ask(host, "results.list") == {"results": [], "next": None}
        made = [kept(host, seed=seed) for seed in range(5)]
        assert ids(ask(host, "results.list")) == made[::-1]
        first = ask(host, "results.list", limit=2)
        kept(host, seed=5)
        second = ask(host, "results.list", limit=2, before=first["next"])
        third = ask(host, "results.list", limit=2, before=second["next"])
        assert [ids(first), ids(second), ids(third)] == [made[:2:-1], made[2:0:-1], made[:1]]
        assert third["next"] is None
        ask(host, "results.delete", ids=ids(second))  # nor do those that go
        assert ids(ask(host, "results.list", before=first["next"])) == made[:1]


@pytest.mark.parametrize(
    ("params", "path"),
    [
        ({"limit": 0}, ["limit"]),
        ({"limit": 501}, ["limit"]),
        ({"before": 0}, ["before"]),
        ({"before": 2**63}, ["before"]),
        ({"search": 1}, ["search"]),
        ({"ids": []}, ["ids"]),
    ],
)
def test_wrong_params_are_refused_with_their_place(keeper: Host, params: dict[str, Any], path: list[str]) -> None:
    error = refused(keeper, "results.delete" if "ids" in params else "results.list", **params)
    assert error.code == "invalid_params"
    assert error.details[0]["path"] == path


PROMPTS = ("Red Apple", "50% off_season", 'it\'s a "quoted" cat', "grüner APFEL, Öl", "back\\slash 5000 off")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with keeping(tmp_path_factory.mktemp("library")) as host:
        for prompt in PROMPTS:
            kept(host, prompt=prompt)
        yield host


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("apple RED", PROMPTS[:1]),
        ("apple green", ()),
        ("app", PROMPTS[:1]),
        ("50%", PROMPTS[1:2]),
        ("off_season", PROMPTS[1:2]),
        ("offXseason", ()),
        ("%", PROMPTS[1:2]),
        ("_", PROMPTS[1:2]),
        ("it's", PROMPTS[2:3]),
        ('"QUOTED"', PROMPTS[2:3]),
        ("') OR 1=1 --", ()),
        ("GRÜNER öl", PROMPTS[3:4]),
        ("\\", PROMPTS[4:]),
        ("off", (PROMPTS[4], PROMPTS[1])),
        ("  ", PROMPTS[::-1]),
        ("x " * 500, ()),
    ],
)
def test_a_search_finds_the_prompts_with_all_its_words(library: Host, search: str, found: tuple[str, ...]) -> None:
    rows = ask(library, "results.list", search=search)["results"]
    assert [row["prompt"] for row in rows] == list(found)


def test_what_is_deleted_is_gone_file_and_all(tmp_path: Path) -> None:
    with keeping(tmp_path) as host:
        first, second, third = (kept(host, seed=seed) for seed in range(3))
        deleted = ask(host, "results.delete", ids=[third, NOBODY, first, first, "../../etc/passwd"])["deleted"]
        assert deleted == [third, first]
        assert ids(ask(host, "results.list")) == [second]
        assert pngs(tmp_path) == {second}
        assert refused(host, "results.get", id=first).code == "unknown_image"
        assert ask(host, "results.delete", ids=[first]) == {"deleted": []}


@pytest.mark.parametrize("wanted", [NOBODY, "", "A" * 32, "../" * 10 + "ab", f"{NOBODY}/..", f"{NOBODY}\n"])
@pytest.mark.parametrize("command", ["results.get", "results.reproduce"])
def test_an_id_that_there_is_not_is_refused_by_a_sentence(keeper: Host, command: str, wanted: str) -> None:
    error = refused(keeper, command, id=wanted)
    assert error.code == "unknown_image"
    assert repr(wanted) in error.message


def test_a_path_is_made_of_nothing_but_an_id(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no result's id"):
        Files(tmp_path).path("../" + NOBODY[3:])


def test_a_file_that_somebody_has_removed_is_said_to_be_gone(tmp_path: Path) -> None:
    with keeping(tmp_path) as host:
        result = kept(host)
        Files(tmp_path).remove(result)
        error = refused(host, "results.get", id=result)
    assert error.code == "unknown_image"
    assert "gone from the host's folder" in error.message


@pytest.mark.parametrize("mode", ["exact", "reproducible"])
def test_a_result_is_made_again_with_the_same_pixels(tmp_path: Path, mode: str) -> None:
    fields = {"num_inference_steps": 3, "num_images": 2, "scheduler": "euler", "negative_prompt": "leaf", "mode": mode}
    with keeping(tmp_path) as host:
        first = images(events_of(host, "generate", **SMALL | fields))
    with keeping(tmp_path) as host:  # which knows nothing but the folder
        for image in first:
            events = events_of(host, "results.reproduce", id=image.result)
            (again,) = images(events)
            assert pixels(again) == pixels(image)
            assert again.seed == image.seed
            assert again.result not in (None, image.result)
            names = [event.name for event in events if event.name != "loading"]
            assert names == ["accepted", "started", "step", "step", "step", "image"]
        assert pixels(first[0]) != pixels(first[1])


def test_reproducing_takes_a_stream_and_a_mode_and_ends_as_generate_does(keeper: Host) -> None:
    result = kept(keeper, mode="exact")
    stream = {"steps": False, "latents": {"dtype": "float32"}}
    events = Events()
    params = {"id": result, "stream": stream, "mode": "fast"}
    ended = call(keeper, "results.reproduce", params, emit=events)
    assert set(events.names) == {"accepted", "started", "latents", "image"}
    assert ended.keys() == {"job", "images", "seeds", "model", "scheduler", "mode", "seconds"}
    assert (ended["mode"], ended["seeds"]) == ("fast", [1])
    (image,) = images(events)
    assert ask(keeper, "results.get", id=image.result)["request"]["mode"] == "fast"


def test_a_picture_whose_input_is_forgotten_can_be_made_again_once_that_is_there(tmp_path: Path) -> None:
    start = noise().data
    with running_host("img2img", results(tmp_path)) as host:
        fields = {"num_inference_steps": 2, "img2img": {"image": start, "strength": 1.0}, "mode": "exact"}
        image = draw(host, **fields)
    with running_host("img2img", results(tmp_path)) as host:
        error = refused(host, "results.reproduce", id=image.result)
        assert error.code == "unknown_image"
        assert image_id(start) in error.message
        ask(host, "images.put", data=start)
        (again,) = images(events_of(host, "results.reproduce", id=image.result))
    assert pixels(again) == pixels(image)


def test_the_client_sees_what_is_kept_and_can_follow_its_remaking(tmp_path: Path) -> None:
    with serving(results(tmp_path)) as served, connect_sync(served.url) as client:
        (first,) = (event for event in client.generate(**SMALL, mode="exact") if isinstance(event, Image))
        assert client.call("results.get", id=first.result)["image"]["data"] == data_of(first)
        *_, last = client.subscribe("results.reproduce", id=first.result)
        assert isinstance(last, Image)
        assert pixels(last) == pixels(first)
        rows = client.call("results.list", job=last.job)["results"]
        assert [row["id"] for row in rows] == [last.result]


def test_latents_are_not_kept(keeper: Host) -> None:
    before = ids(ask(keeper, "results.list"))
    image = draw(keeper, output_type="latent")
    assert image.result is None
    assert ids(ask(keeper, "results.list")) == before


def test_a_host_without_a_folder_keeps_nothing_and_says_so(host: Host) -> None:
    assert draw(host).result is None
    for command, params in (("list", {}), ("get", {"id": NOBODY}), ("delete", {"ids": [NOBODY]})):
        error = refused(host, f"results.{command}", **params)
        assert (error.code, error.message[:27]) == ("plugin_failed", "this host keeps no results;")


def test_a_relative_folder_begins_where_the_host_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with keeping(Path("here")) as host:
        monkeypatch.chdir("/")
        result = kept(host)
    assert pngs(tmp_path / "here") == {result}


# The hook.


def test_the_hook_runs_between_the_png_and_its_event_and_fills_the_event_in(tmp_path: Path) -> None:
    source = """
from latentwire import *

seen = []

@hookimpl
def image_finished(context):
    seen.append("image_finished")
    context.metadata["mark"] = "here"

@hookimpl
def image_encoded(context):
    seen.append(context)
    try:
        context.picture = None
    except AttributeError as error:
        seen.append(str(error))
    context.result = "mine"
"""
    (tmp_path / "watch.py").write_text(source)
    with running_host(tmp_path / "watch.py") as host:
        seen: list[Any] = sys.modules["latentwire_plugin_watch"].seen
        events = Events()

        def listen(event: Event) -> None:
            events(event)
            if isinstance(event, Image):
                seen.append(event.name)

        asyncio.run(host.dispatch("generate", SMALL, "me", listen))
        (image,) = images(events)
        first, context, said, last = seen
        assert (first, last) == ("image_finished", "image")
        assert image.result == "mine"
        assert (context.host, context.client, context.job) == (host, "me", image.job)
        assert (context.index, context.seed, context.image_id) == (0, 1, image.image_id)
        assert context.picture is image.image
        with PILImage.open(io.BytesIO(data_of(image))) as picture:
            assert picture.info["mark"] == "here"
            assert context.made == json.loads(picture.info["latentwire"])
        assert said == "context.picture cannot be changed any more; context.result may be set"
        seen.clear()
        events_of(host, "generate", **SMALL | {"output_type": "latent"})
        assert seen == []


def test_a_result_that_is_no_text_fails_the_job_and_names_the_plugin(tmp_path: Path) -> None:
    source = "from latentwire import *\n@hookimpl\ndef image_encoded(context): context.result = 7\n"
    (tmp_path / "wrong.py").write_text(source)
    said = r"'wrong' failed in image_encoded: TypeError: context\.result must be"
    with (
        running_host(tmp_path / "wrong.py") as host,
        pytest.raises(PluginError, match=said),
    ):
        ask(host, "generate", **SMALL)


# Bounds.


def test_beyond_a_count_the_oldest_go(tmp_path: Path) -> None:
    with keeping(tmp_path, max_count=2) as host:
        made = [kept(host, seed=seed) for seed in range(4)]
        assert ids(ask(host, "results.list")) == made[:1:-1]
        assert pngs(tmp_path) == set(made[2:])


def test_beyond_a_size_the_oldest_go_but_the_newest_stays(tmp_path: Path) -> None:
    store = store_of(tmp_path, max_mib=1)
    picture = noise(360)
    assert 2 * len(picture.data) < 1 << 20 < 3 * len(picture.data)
    made = [keep(store, picture) for _ in range(4)]
    assert pngs(tmp_path) == set(made[2:])
    large = keep(store, noise(600))
    assert [result.id for result in store.newest(ME, 50, None, [], None)[0]] == [large]
    assert pngs(tmp_path) == {large}


def test_beyond_an_age_results_go_on_list_on_start_and_with_the_next_picture(tmp_path: Path) -> None:
    clock = FakeClock()
    store = store_of(tmp_path, max_age_days=2)
    store.clock = clock
    day = 24 * 3600.0
    keep(store)
    clock.advance(0.2 * day)
    second = keep(store)
    clock.advance(1.9 * day)
    assert [result.id for result in store.newest(ME, 50, None, [], None)[0]] == [second]
    assert pngs(tmp_path) == {second}
    clock.advance(day)
    third = keep(store)
    assert pngs(tmp_path) == {third}
    clock.advance(3 * day)
    later = store_of(tmp_path, max_age_days=2)
    later.clock = clock
    later.tidy()
    assert pngs(tmp_path) == set()


def test_bounds_that_were_narrowed_hold_from_the_start(tmp_path: Path) -> None:
    made = [keep(store_of(tmp_path)) for _ in range(5)]
    with keeping(tmp_path, max_count=2):
        wait_for(lambda: pngs(tmp_path) == set(made[3:]), "the oldest to go")


@pytest.mark.parametrize("bounds", [{"max_mib": 0}, {"max_age_days": 0}, {"max_count": -1}, {"max_number": 5}])
def test_wrong_settings_are_reported(tmp_path: Path, bounds: dict[str, Any]) -> None:
    with any_host(plugins=[results(tmp_path, **bounds)]) as host:
        report = next(report for report in host.plugins.reports if report.name == "results")
    assert report.state == "failed"
    assert next(iter(bounds)) in str(report.error)


# Disks that do not play along.


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = [record for record in caplog.records if record.name.startswith("latentwire.plugins.results")]
    return [record.getMessage() for record in records if record.levelno >= logging.WARNING]


def test_a_write_that_fails_costs_no_picture_is_said_once_and_ends_by_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, aside = tmp_path / "results", tmp_path / "aside"
    with keeping(folder) as host:
        first = kept(host)
        folder.rename(aside)
        folder.write_text("in the way")
        unkept = [draw(host, seed=seed) for seed in (2, 3)]
        assert [image.result for image in unkept] == [None, None]
        assert all(data_of(image).startswith(b"\x89PNG") for image in unkept)
        (said,) = errors(caplog)
        assert "cannot keep pictures in" in said
        error = refused(host, "results.list")
        assert error.code == "plugin_failed"
        assert "cannot be read just now" in error.message
        folder.unlink()
        aside.rename(folder)
        again = kept(host)
        assert errors(caplog)[1:] == [f"results: pictures are kept in {folder} again; 2 were not"]
        assert ids(ask(host, "results.list")) == [again, first]
        assert pngs(folder) == {again, first}


def test_a_folder_that_is_removed_under_a_running_host_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    with keeping(folder) as host:
        kept(host)
        shutil.rmtree(folder)
        result = kept(host)
        assert ids(ask(host, "results.list")) == [result]
        assert pngs(folder) == {result}


def test_a_locked_index_costs_no_picture_and_leaves_no_stray_file(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    first = keep(store)
    with closing(sqlite3.connect(tmp_path / NAME, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert store.keep(noise(), MADE, "job", 0, "test") is None
        begin = time.monotonic()
        assert [store.keep(noise(), MADE, "job", 0, "test") for _ in range(10)] == [None] * 10
        assert time.monotonic() - begin < 5  # only the first one was patient
        assert store.newest(ME, 50, None, [], None)[0][0].id == first  # reading goes on
        assert pngs(tmp_path) == {first}
        other.execute("ROLLBACK")
    second = keep(store)
    assert pngs(tmp_path) == {first, second}


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a full disk, every write beyond so many bytes of a file fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [5_000, 20_000])  # the picture itself does not fit; it does, but its row does not
def test_a_full_disk_costs_no_picture_and_leaves_nothing_behind(tmp_path: Path, size: int) -> None:
    store = store_of(tmp_path)
    made = {keep(store) for _ in range(5)}
    assert 5_000 < len(noise().data) < 20_000 < (tmp_path / f"{NAME}-wal").stat().st_size
    with files_of_at_most(size):
        assert [store.keep(noise(), MADE, "job", 0, "test") for _ in range(3)] == [None] * 3
    assert pngs(tmp_path) == made
    assert not list(tmp_path.rglob("*.part"))
    made.add(keep(store))
    assert {result.id for result in store.newest(ME, 50, None, [], None)[0]} == made == pngs(tmp_path)


def test_a_folder_that_cannot_be_used_at_the_start_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "results"
    folder.write_text("in the way")
    with keeping(folder) as host:
        assert "cannot keep pictures in" in errors(caplog)[0]
        assert draw(host).result is None
        folder.unlink()
        result = kept(host)
    assert pngs(folder) == {result}


def test_an_index_of_a_newer_version_is_refused_and_the_host_runs_on(tmp_path: Path) -> None:
    keep(store_of(tmp_path))
    with closing(sqlite3.connect(tmp_path / NAME, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    with any_host(plugins=[results(tmp_path)]) as host:
        report = next(report for report in host.plugins.reports if report.name == "results")
        assert report.state == "failed"
        assert f"has version {VERSION + 1}, this host knows {VERSION}; update it" in str(report.error)
        assert draw(host).result is None
        assert refused(host, "results.list").code == "unknown_command"
    assert len(pngs(tmp_path)) == 1


def test_an_index_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("a diary, of all things\n" * 100)
    with any_host(plugins=[results(tmp_path)]) as host:
        report = next(report for report in host.plugins.reports if report.name == "results")
    assert (report.state, report.error) == ("failed", "DatabaseError: file is not a database")


# What a killed host leaves behind, and several hosts at once.


def test_only_old_files_of_ours_without_a_row_are_swept_up(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    result, young = keep(store), new_id()
    Files(tmp_path).write(young, b"its row may yet come")
    strays = [tmp_path / "00" / f"{NOBODY}.png", tmp_path / young[:2] / f"{NOBODY}.part"]
    others = [tmp_path / "00" / "notes.png", tmp_path / "notes.txt", tmp_path / "notes" / f"{NOBODY}.png"]
    for path in (*strays, *others):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"torn")
    old = time.time() - SWEEP_AGE_S - 60
    with closing(sqlite3.connect(tmp_path / NAME, isolation_level=None)) as connection:
        connection.execute("UPDATE begun SET time = time - ?", [SWEEP_AGE_S + 120])
    for path in (*strays, *others, Files(tmp_path).path(result)):
        os.utime(path, (old, old))
    with keeping(tmp_path) as host:
        wait_for(lambda: not any(path.exists() for path in strays), "the sweep")
        assert ids(ask(host, "results.list")) == [result]
    assert all(path.exists() for path in (*others, Files(tmp_path).path(result), Files(tmp_path).path(young)))


def test_pictures_whose_index_was_lost_are_not_taken_for_strays(tmp_path: Path) -> None:
    result = keep(store_of(tmp_path))
    old = time.time() - SWEEP_AGE_S - 60
    os.utime(Files(tmp_path).path(result), (old, old))
    for file in tmp_path.glob(f"{NAME}*"):
        file.unlink()
    store = store_of(tmp_path)
    store.tidy()
    assert store.newest(ME, 50, None, [], None) == ([], None)
    assert pngs(tmp_path) == {result}


def test_a_row_is_never_added_for_a_file_that_a_sweep_took(tmp_path: Path) -> None:
    keep(store_of(tmp_path))
    index, files, result = Index(tmp_path), Files(tmp_path), new_id()
    files.write(result, b"picture")
    files.remove(result)
    row = Result(result, time.time(), "job", 0, "", "", "emoji", 1, 64, 64, 7, {}, "me")
    with pytest.raises(FileNotFoundError):
        index.add(row, Settings(), 0.0, files.path(result).exists)
    assert index.get(result) is None


def test_two_hosts_share_a_folder(tmp_path: Path) -> None:
    with keeping(tmp_path) as one, keeping(tmp_path) as two:
        first = [kept(host, seed=seed) for seed in range(3) for host in (one, two)]
        assert ids(ask(one, "results.list")) == ids(ask(two, "results.list")) == first[::-1]
        assert ask(two, "results.delete", ids=first[:1])["deleted"] == first[:1]
        assert refused(one, "results.get", id=first[0]).code == "unknown_image"


def test_where_many_files_have_no_row_the_index_is_an_older_one_and_they_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, restored = tmp_path / "whole", tmp_path / "restored"
    store = store_of(whole)
    restored.mkdir()
    with closing(sqlite3.connect(whole / NAME)) as connection:
        connection.execute("VACUUM INTO ?", [str(restored / NAME)])
    made = [keep(store, noise(8)) for _ in range(MOST_STRAYS + 1)]
    shutil.copytree(whole, restored, dirs_exist_ok=True, ignore=lambda *_: [NAME, f"{NAME}-wal", f"{NAME}-shm"])
    old = time.time() - SWEEP_AGE_S - 60
    with closing(sqlite3.connect(restored / NAME, isolation_level=None)) as connection:
        connection.execute("UPDATE begun SET time = time - ?", [SWEEP_AGE_S + 120])
    for result in made:
        os.utime(Files(restored).path(result), (old, old))
    store_of(restored).tidy()
    assert pngs(restored) == set(made)
    assert "17 files" in caplog.text


def test_many_pictures_at_once_are_all_kept(tmp_path: Path) -> None:
    with keeping(tmp_path) as host:

        async def all_of_them() -> Events:
            events = Events()
            requests = [SMALL | {"num_inference_steps": 1, "num_images": 8, "seed": 8 * job} for job in range(4)]
            await asyncio.gather(*(host.dispatch("generate", request, "test", events) for request in requests))
            return events

        made = {image.result for image in images(asyncio.run(all_of_them()))}
        assert len(made) == 32
        assert set(ids(ask(host, "results.list"))) == made == pngs(tmp_path)


# The route.


def fetch(url: str, **headers: str) -> tuple[int, bytes, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers


def test_the_route_gives_the_file_to_keep_for_good(tmp_path: Path) -> None:
    with serving(results(tmp_path), server={"observer_token": OBSERVER}) as served:
        image = draw(served.host)
        status, data, headers = fetch(f"{served.http}/results/{image.result}.png", Authorization=f"Bearer {OBSERVER}")
        assert (status, data, headers["Content-Type"]) == (200, data_of(image), "image/png")
        assert headers["Cache-Control"] == "private, max-age=31536000, immutable"
        for wrong in (NOBODY, "A" * 32, "%00", "..%5c..", "..%2f..%2fetc%2fpasswd"):
            status, data, headers = fetch(f"{served.http}/results/{wrong}.png")
            assert (status, headers["Cache-Control"]) == (404, None)
            assert b"you have no result" in data or "%2f" in wrong  # which is another path
        ask(served.host, "results.delete", ids=[image.result])
        assert fetch(f"{served.http}/results/{image.result}.png", Authorization=f"Bearer {OBSERVER}")[0] == 404


def test_the_route_is_for_the_owner_and_observers_alone(tmp_path: Path) -> None:
    token = "sixteen letters!"
    with serving(results(tmp_path), server={"token": token, "observer_token": OBSERVER}) as served:
        with connect_sync(served.url, token=token, key=KEY) as client:
            url = f"{served.http}/results/{kept_by(client)}.png"
            ticket = client.call("session.ticket")["ticket"]
        assert fetch(url)[0] == 401
        assert fetch(url, Authorization=f"Bearer {token}")[0] == 404
        assert fetch(url, Authorization=f"Bearer {token}", **{"Latentwire-Key": f"{KEY}!"})[0] == 404
        assert fetch(url, Authorization=f"Bearer {token}", **{"Latentwire-Key": KEY})[0] == 200
        assert fetch(url, Authorization=f"Bearer {OBSERVER}")[0] == 200
        assert fetch(url, Authorization=f"Bearer {OBSERVER}", Origin="http://elsewhere.example")[0] == 403
        assert fetch(f"{url}?ticket={ticket}")[0] == 200
        assert fetch(f"{url}?ticket={ticket}")[0] == 401  # it has been used


def test_clients_see_only_their_own_unless_they_are_observers(tmp_path: Path) -> None:
    with serving(results(tmp_path), server={"observer_token": OBSERVER}) as served:
        with connect_sync(served.url, key=KEY) as mine:
            result = kept_by(mine)
        with connect_sync(served.url) as other:
            assert other.call("results.list")["results"] == []
            for command in ("results.get", "results.reproduce"):
                with pytest.raises(RemoteError, match="you have no result"):
                    other.call(command, id=result)
            assert other.call("results.delete", ids=[result])["deleted"] == []
        with connect_sync(served.url, token=OBSERVER) as observer:
            assert ids(observer.call("results.list")) == [result]
            assert observer.call("results.get", id=result)["id"] == result
            assert observer.call("results.delete", ids=[result])["deleted"] == []
        with connect_sync(served.url, key=KEY) as again:
            assert ids(again.call("results.list")) == [result]
            assert again.call("results.delete", ids=[result])["deleted"] == [result]


def test_an_index_from_before_there_were_owners_is_taken_over(tmp_path: Path) -> None:
    result = keep(store_of(tmp_path))
    with closing(sqlite3.connect(tmp_path / NAME, isolation_level=None)) as connection:
        connection.executescript(
            "DROP INDEX results_owner; ALTER TABLE results DROP COLUMN owner; PRAGMA user_version = 1;"
        )
    store = store_of(tmp_path)
    assert store.newest(ME, 50, None, [], None)[0] == []
    observer = Caller("", "", observer=True)
    assert [row.id for row in store.newest(observer, 50, None, [], None)[0]] == [result]
    assert len(store.read(result, observer)) > 0


# The page.


def test_the_examples_are_as_the_host_answers(tmp_path: Path) -> None:
    messages = [json.loads(block) for block in blocks(PLUGIN_PAGES["results"], "json")]
    commands = [message for message in messages if "command" in message]
    answers = {message["id"]: message for message in messages if "event" in message}
    assert {message["command"] for message in commands} == {
        f"results.{verb}" for verb in ("list", "get", "delete", "reproduce")
    }
    example = answers[1]["result"]["results"][0]
    with running_host("lora", results(tmp_path)) as host:
        request = {name: value for name, value in example["request"].items() if name != "seed"}
        result = kept(host, **request | {"seed": example["seed"], "num_inference_steps": 2})
        for message in commands:
            params = json.loads(json.dumps(message["params"]).replace(example["id"], result))
            wanted = answers[message["id"]]
            if wanted["event"] == "result":
                answer = ask(host, message["command"], **params)
                assert_same_shape(wanted["result"], answer, message["command"])
            else:
                error = refused(host, message["command"], **params)
                assert error.code == wanted["code"]
                assert error.message == wanted["message"].replace(example["id"], result)
