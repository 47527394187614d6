"""latentwire.testing: every name of it at work, the examples of its page, and what it must never do."""

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from latentwire import Host, InvalidParams, LatentwireError, PluginError, connect_sync, testing
from latentwire.testing import (
    Events,
    FakeClock,
    assert_same_latents,
    assert_same_picture,
    call,
    difference,
    fault_in,
    fixtures,
    generate,
    out_of_memory,
    plugin,
    running_host,
    serving,
    with_nan,
)

from .pages import GUIDES, blocks

pytest_plugins = ["pytester"]

PAGE = GUIDES["testing"]
FIXTURES = [name for name in vars(fixtures) if name.startswith("latentwire_")]


@pytest.fixture(scope="module")
def plain() -> Iterator[Host]:
    """A host without any plugin."""
    with running_host() as host:
        yield host


def loaded(host: Host) -> list[str]:
    return [report.name for report in host.plugins.reports if report.state == "loaded"]


# The page.


def test_every_name_and_fixture_is_on_the_page() -> None:
    assert len(FIXTURES) == 3
    for name in (*testing.__all__, *FIXTURES):
        assert re.search(rf"`{name}\b", PAGE), name
        assert inspect.getdoc(getattr(testing, name, None) or getattr(fixtures, name))


def test_the_examples_of_the_guides_run(pytester: pytest.Pytester) -> None:
    """In one run: each module with tests sees the plugins of its page by the names that the page gives them."""
    tests = [block for block in blocks(PAGE, "python") if "def test_" in block]
    (quota,) = (block for block in blocks(PAGE, "python") if "@hookimpl" in block)
    pytester.makepyfile(quota=quota, **{f"test_{number}": test for number, test in enumerate(tests)})
    expected = sum(len(re.findall(r"^def test_", test, re.M)) for test in tests)
    ours = "ignore:Module already imported so cannot be rewritten; __main__"  # see pyproject.toml
    outcomes = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-W", ours).parseoutcomes()
    assert outcomes.pop("warnings", 0) == 0
    assert outcomes == {"passed": expected + 1}  # one has two parameters
    assert expected >= 8


# Hosts.


def test_a_host_has_the_plugins_that_are_named_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even those that are installed, which any other host would load."""
    (tmp_path / "stranger.py").write_text("")
    package = tmp_path / "stranger-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[latentwire]\nstranger = stranger\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own.py").write_text("")
    with running_host("stats", tmp_path / "own.py", "clip_skip") as host:
        assert loaded(host) == ["stats", "own", "clip_skip"]
    with running_host("stranger") as host:
        assert loaded(host) == ["stranger"]
    with running_host() as host:
        assert loaded(host) == []


def test_settings_of_plugins_and_of_the_host(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("from latentwire import Strict\n\nclass Settings(Strict):\n    size: int = 0\n")
    with running_host(plugin(tmp_path / "own.py", size=3), limits={"jobs": 3}) as host:
        assert host.settings.limits.jobs == 3
        assert host.settings.plugins[0].settings == {"size": 3}
        assert host.settings.engine.device == "cpu"
    with pytest.raises(PluginError, match="'own' did not load"), running_host(plugin(tmp_path / "own.py", sise=3)):
        pass
    assert plugin("stats") == {"name": "stats", "settings": {}}


def test_a_plugin_that_does_not_load_fails_the_test_with_its_traceback(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        broken="def half(number):\n    return number / 0\n\nhalf(1)\n",
        test_it="""
            from pathlib import Path

            def test_it(latentwire_host):
                latentwire_host(Path("broken.py"))
        """,
    )
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*plugin 'broken' did not load*", "*broken.py*, line 2, in half*", "*ZeroDivisionError*"]
    )


def test_a_host_is_closed_with_its_block_whatever_happens() -> None:
    with pytest.raises(RuntimeError, match="on purpose"), running_host() as host:
        raise RuntimeError("on purpose")
    assert host.closing


def test_a_served_host_has_an_address_for_clients_and_one_for_everybody_else() -> None:
    with serving("clip_skip") as served:
        assert loaded(served.host) == ["clip_skip"]
        with connect_sync(served.url) as client:
            assert client.call("plugins.list")["plugins"][0]["name"] == "clip_skip"
        with urlopen(f"{served.http}/readyz") as answer:
            assert answer.status == 200
    assert served.host.closing


def test_the_fixtures_end_what_they_began(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import threading

        def engines():
            return sum(thread.name == "engine" for thread in threading.enumerate())

        before, hosts = engines(), []

        def test_begins(latentwire_host, latentwire_client):
            hosts.extend([latentwire_host(), latentwire_host("stats")])
            assert latentwire_client("stats").call("stats")
            assert engines() == before + 3

        def test_they_are_gone():
            assert [host.closing for host in hosts] == [True, True]
            assert engines() == before
    """)
    pytester.runpytest_inprocess().assert_outcomes(passed=2)


@pytest.mark.parametrize("code", ["import latentwire.testing", "import latentwire.testing.fixtures"])
def test_importing_it_imports_none_of_torch(code: str) -> None:
    assert heavy_after(code) == "[]"


def test_the_pytest_plugin_imports_none_of_torch(tmp_path: Path) -> None:
    """Nor does it load a host: it is there in every run of pytest, also in those that have nothing to do with it."""
    (tmp_path / "test_other.py").write_text("def test_other():\n    pass\n")
    run = (
        f"import pytest; assert pytest.main(['-q', {str(tmp_path)!r}]) == 0; assert 'latentwire.testing' in sys.modules"
    )
    assert heavy_after(run) == "[]"


def heavy_after(code: str) -> str:
    """Which of the large libraries a new process has imported."""
    heavy = ("torch", "diffusers", "transformers", "pydantic", "starlette", "latentwire.core.host")
    code = f"import sys; {code}; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.splitlines()[-1]


# Commands, and what comes of them.


def test_generate_gives_all_that_a_job_gives(plain: Host) -> None:
    done = generate(plain, num_images=2)
    assert done.result["seeds"] == [1, 2]
    assert done.result["mode"] == "exact"
    assert done.events.names[0] == "accepted"
    assert len(done.events.named("step")) == 4
    assert [file[:4] for file in done.files] == [b"\x89PNG"] * 2
    first, second = done.pictures
    assert '"seed": 1' in first.info["latentwire"]
    assert '"seed": 2' in second.info["latentwire"]
    assert_same_picture(generate(plain, seed=2).picture, second)
    with pytest.raises(ValueError, match="too many values"):
        done.picture  # noqa: B018
    with pytest.raises(AssertionError, match="output_type"):
        generate(plain).latents  # noqa: B018
    assert generate(plain, output_type="latent", width=64, height=128).latents.shape == (4, 16, 8)


def test_what_is_refused_is_raised(plain: Host) -> None:
    with pytest.raises(InvalidParams, match="num_inference_steps"):
        generate(plain, num_inference_steps=0)
    with pytest.raises(LatentwireError, match="there is no command"):
        call(plain, "no.such")


def test_a_command_is_given_by_whoever_is_named(plain: Host) -> None:
    events = Events()
    making = Thread(target=call_quietly, args=(plain, {"prompt": "red apple", "num_inference_steps": 1000}, events))
    making.start()
    (accepted,) = events.wait_for("accepted")
    assert call(plain, "cancel", {"all": True}, client="somebody else") == {"jobs": []}
    assert call(plain, "cancel", {"all": True}, client="me") == {"jobs": [accepted.job]}
    making.join()


def call_quietly(host: Host, params: Any, events: Events) -> None:
    with pytest.raises(LatentwireError, match="cancelled"):
        call(host, "generate", params, "me", events)


def test_waiting_for_an_event_that_does_not_come_names_those_that_did(plain: Host) -> None:
    events = generate(plain).events
    assert [event.step for event in events.wait_for("step", count=2)] == [1, 2]
    with pytest.raises(AssertionError, match=r"waited 0\.01 s for 3 of 'step', got \['accepted', .*'image'\]"):
        events.wait_for("step", count=3, timeout_s=0.01)
    assert len(events) == len(list(events)) == len(events.names)


# Comparing.


def test_equal_pictures_are_equal_and_others_say_by_how_much() -> None:
    one, other = (PILImage.new("RGB", (4, 2), (10, 10, 10)) for _ in range(2))
    assert_same_picture(one, other)
    other.putpixel((0, 0), (10, 10, 12))
    other.putpixel((3, 1), (10, 9, 10))
    assert difference(one, other) == difference(other, one) == 2
    assert_same_picture(one, other, within=2)
    with pytest.raises(AssertionError, match="2 of 8 pixels differ by up to 2, wanted 0 at most"):
        assert_same_picture(one, other)
    with pytest.raises(AssertionError, match="1 of 8 pixels differ by up to 2, wanted 1 at most"):
        assert_same_picture(one, other, within=1)
    with pytest.raises(AssertionError, match="their shapes differ"):
        assert_same_picture(one, one.resize((2, 4)))


def test_equal_latents_are_equal_and_others_say_by_how_much() -> None:
    latents = np.zeros((4, 8, 8), np.float32)
    assert_same_latents(latents, torch.zeros(4, 8, 8))
    assert_same_latents(latents, latents + 0.25, within=0.25)
    assert difference(latents, latents - 0.5) == 0.5
    with pytest.raises(AssertionError, match=r"differ by up to 0\.5, wanted 0\.25 at most"):
        assert_same_latents(latents, latents - 0.5, within=0.25)
    with pytest.raises(AssertionError, match="their shapes differ"):
        assert_same_latents(latents, latents[:1])
    for value in (np.nan, np.inf):
        with pytest.raises(AssertionError, match="NaN or infinite"):
            assert_same_latents(latents + value, latents + value)


# Time.


def test_a_clock_stands_still_until_it_is_moved() -> None:
    clock = FakeClock(100.0)
    assert (clock.time(), clock.monotonic()) == (100.0, 0.0)
    clock.advance(2.5)
    assert (clock.time(), clock.monotonic()) == (102.5, 2.5)
    with pytest.raises(ValueError, match="time does not go back"):
        clock.advance(-1)


def test_a_plugin_and_its_host_go_by_the_clock(tmp_path: Path, latentwire_clock: FakeClock) -> None:
    kept = plugin("results", folder=str(tmp_path), max_age_days=1.0)
    with running_host(kept, clock=latentwire_clock) as host:
        assert call(host, "ping") == {"time": latentwire_clock.time()}
        generate(host)
        (row,) = call(host, "results.list")["results"]
        assert row["created"] == latentwire_clock.time()
        latentwire_clock.advance(24 * 3600 - 1)
        assert call(host, "results.list")["results"] == [row]
        latentwire_clock.advance(2)
        assert call(host, "results.list")["results"] == []
        assert list(tmp_path.rglob("*.png")) == []


# Faults.


@pytest.mark.parametrize(
    ("component", "fault", "code"),
    [
        ("unet", out_of_memory(), "out_of_memory"),
        ("unet", with_nan, "not_finite"),
        ("text_encoder", with_nan, "not_finite"),
        ("vae.decoder", out_of_memory(), "out_of_memory"),
        ("vae.decoder", with_nan, "not_finite"),
        ("vae.decoder", RuntimeError("on purpose"), "job_failed"),
    ],
)
def test_a_fault_fails_the_job_and_is_gone_with_its_block(plain: Host, component: str, fault: Any, code: str) -> None:
    before = generate(plain, f"a prompt for {component}").picture
    with fault_in(plain, component, fault), pytest.raises(LatentwireError) as caught:
        generate(plain, f"a prompt that no text encoder remembers, {component} {code}")
    assert caught.value.code == code
    assert_same_picture(generate(plain, f"a prompt for {component}").picture, before)


def test_a_fault_in_the_encoder_of_pictures() -> None:
    with running_host("img2img") as host:
        picture = generate(host).files[0]
        with fault_in(host, "vae.encoder", with_nan), pytest.raises(LatentwireError) as caught:
            generate(host, img2img={"image": picture})
        assert caught.value.code == "not_finite"


def test_a_fault_begins_with_the_forward_that_is_named(plain: Host) -> None:
    def steps_made(**when: int) -> int:
        events = Events()
        with fault_in(plain, "unet", RuntimeError("on purpose"), **when), pytest.raises(LatentwireError):
            call(plain, "generate", {"prompt": "red apple", "num_inference_steps": 4, "mode": "exact"}, emit=events)
        return len(events.named("step"))

    assert steps_made() == 0
    assert steps_made(at=3) == 2
    with fault_in(plain, "unet", RuntimeError("on purpose"), at=3):
        generate(plain, num_inference_steps=2)


def test_a_fault_lasts_for_as_many_forwards_as_asked(plain: Host) -> None:
    seen: list[int] = []

    def note(output: Any) -> Any:
        seen.append(1)
        return output

    with fault_in(plain, "unet", note, at=2, times=2):
        generate(plain, num_inference_steps=6)
    assert len(seen) == 2


def test_a_fault_in_something_else_says_what_there_is(plain: Host) -> None:
    with (
        pytest.raises(AssertionError, match=r"by its halves, vae\.decoder say"),
        fault_in(plain, "vae", with_nan),
    ):
        pass
