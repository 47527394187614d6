"""Every hook of the contract: documented, with a plugin that uses it, and an example that does what its page says.

The hooks are those of `HookSpecs`. A new one fails here until docs/plugins/hooks.md has its section, a built-in plugin
or an example uses it, and a function `uses_<hook>` below shows its example at work.
"""

import ast
import asyncio
import inspect
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import latentwire
from latentwire import Host, UnloadContext, connect_sync
from latentwire.core.hookspecs import HookSpecs
from latentwire.testing import Events, assert_same_latents, call, generate, plugin, running_host, serving

from .conftest import wait_for
from .pages import GUIDES, ROOT, blocks, section, subheadings, table

HOOKS = [name for name in vars(HookSpecs) if not name.startswith("_")]


def spec_of(hook: str) -> Any:
    return getattr(HookSpecs, hook)


def context_of(hook: str) -> type | None:
    """The class of a hook's argument `context`; None for `register`, whose argument is a registry."""
    arguments = inspect.signature(spec_of(hook)).parameters
    assert list(arguments) in (["self", "context"], ["self", "registry"])
    return arguments["context"].annotation if "context" in arguments else None


WITH_CONTEXT = [hook for hook in HOOKS if context_of(hook)]


def documented(hook: str) -> str:
    return section(GUIDES["hooks"], f"`{hook}`")


def said_of(hook: str) -> tuple[str, str]:
    """The thread that a hook is documented to run on, and the event that the client gets next."""
    match = re.search(r"^Thread: (\w+)\. Next event: (?:`(\w+)`|none)", documented(hook), re.M)
    assert match, f"{hook}: say 'Thread: worker. Next event: `image`.', or 'none'"
    return match[1], match[2]


# On paper.


def test_the_page_has_a_section_for_each_hook() -> None:
    assert subheadings(section(GUIDES["hooks"], "Hooks")) == HOOKS


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_says_when_it_runs_and_on_which_thread(hook: str) -> None:
    doc = spec_of(hook).__doc__
    assert re.match(r"(Once|After)\b", doc)
    assert re.search(rf"\({said_of(hook)[0]} thread\b", doc)
    assert documented(hook).split()[0].strip(",") == doc.split()[0].strip(",")  # each is about the same moments


@pytest.mark.parametrize("hook", WITH_CONTEXT)
def test_a_context_is_documented_with_its_very_fields(hook: str) -> None:
    context = context_of(hook)
    assert context is not None
    assert (context.__doc__ or "").startswith(f"For `{hook}`")
    names = [field.name for field in fields(context) if not field.name.startswith("_")]
    names += [name for name, value in vars(context).items() if isinstance(value, property)]
    assert list(table(documented(hook))) == names


@pytest.mark.parametrize("hook", HOOKS)
def test_the_picture_of_a_jobs_life_shows_a_hook(hook: str) -> None:
    picture = (ROOT / "docs" / "images" / "job.svg").read_text()
    assert f">{hook}<" in picture or context_of(hook) in (None, UnloadContext)  # which are about no job
    assert len(picture) < 8_000


def implemented_in(file: Path) -> set[str]:
    """The functions with the decorator `hookimpl`."""
    functions = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef))
    return {function.name for function in functions if "hookimpl" in map(ast.unparse, function.decorator_list)}


@pytest.mark.parametrize("hook", HOOKS)
def test_a_plugin_that_comes_along_uses_a_hook(hook: str) -> None:
    files = [file for room in ("plugins", "examples/plugins") for file in (ROOT / room).rglob("*.py")]
    assert hook in set().union(*map(implemented_in, files))


# At work: each example of the page, on a real host.


@dataclass(frozen=True)
class Ran:
    """One call of a hook: the thread, and how many events the client had when it returned."""

    hook: str
    thread: str
    events: int


class Watched:
    """What the hooks of the page's example did."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.events = Events()  # of the command that the scenario runs
        self.ran: list[Ran] = []

    def hookimpl(self, function: Callable[..., None]) -> Any:
        """In place of `latentwire.hookimpl`: takes down each call."""

        @wraps(function)
        def call(*args: Any) -> None:
            function(*args)
            self.ran.append(Ran(function.__name__, thread_now(), len(self.events)))

        return REAL_HOOKIMPL(call)

    def generate(self, host: Host, **fields: Any) -> Events:
        call(host, "generate", REQUEST | fields, emit=self.events)
        return self.events


REAL_HOOKIMPL = latentwire.hookimpl
REQUEST = {"prompt": "red apple", "num_inference_steps": 2, "seed": 1, "mode": "exact"}


def thread_now() -> str:
    """As the page calls them."""
    name = threading.current_thread().name
    if name in ("prepare", "finish") or name.startswith("asyncio_"):
        return "worker"
    if name == "engine":
        return "engine"
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return "main" if threading.current_thread() is threading.main_thread() else name
    return "main"


@pytest.mark.parametrize("hook", HOOKS)
def test_the_example_of_a_hook_does_what_the_page_says(
    hook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source,) = blocks(documented(hook), "python")
    (tmp_path / f"{hook}.py").write_text(source)
    watched = Watched(tmp_path / f"{hook}.py")
    monkeypatch.setattr(latentwire, "hookimpl", watched.hookimpl, raising=False)
    globals()[f"uses_{hook}"](watched)
    assert {ran.hook for ran in watched.ran} - {"register"} == {hook} - {"register"}
    thread, event = said_of(hook)
    calls = [ran for ran in watched.ran if ran.hook == hook]
    assert {ran.thread for ran in calls} == {thread}
    passing = {"step"} - {event}  # other pictures' and later ones
    for ran in calls if event else ():
        following = [name for name in watched.events.names[ran.events :] if name not in passing]
        assert following[0] == event


@contextmanager
def host_with(watched: Watched, **settings: Any) -> Iterator[Host]:
    with running_host(plugin(watched.file, **settings)) as host:
        assert {ran.hook for ran in watched.ran} <= {"register"}
        yield host


def plain_latents(**fields: Any) -> Any:
    with running_host() as host:
        return generate(host, output_type="latent", **fields).latents


def uses_register(watched: Watched) -> None:
    with host_with(watched) as host:
        assert len(watched.ran) == 1
        assert call(host, "greeting.say") == {"greeting": "hello"}


def uses_modify_build(watched: Watched) -> None:
    with host_with(watched) as host:
        (started,) = watched.generate(host, num_images=2).named("started")
        assert started.scheduler == "unipc"
        (build,) = watched.ran
        assert generate(host, scheduler="euler").result["scheduler"] == "euler"
        watched.ran[:] = [build]


def uses_modify_call(watched: Watched) -> None:
    with host_with(watched) as host:
        events = watched.generate(host, num_images=2, output_type="latent", guidance_scale=4.0)
    assert len(watched.ran) == 2  # both before the first of them has begun
    for picture in events.named("image"):
        made = np.frombuffer(picture.latents.data, "<f4").reshape(picture.latents.shape)
        wanted = plain_latents(seed=1 + picture.index, guidance_scale=4.0 + 2 * picture.index)
        assert_same_latents(made, wanted)


def uses_step_finished(watched: Watched) -> None:
    with host_with(watched) as host:
        (picture,) = watched.generate(host, output_type="latent").named("image")
    assert len(watched.ran) == len(watched.events.named("step")) == 2
    latents = np.frombuffer(picture.latents.data, "<f4").reshape(picture.latents.shape)
    assert_same_latents(latents, latents[..., ::-1])
    plain = plain_latents()
    assert np.abs(plain - plain[..., ::-1]).max() > 0.1


def uses_image_finished(watched: Watched) -> None:
    with host_with(watched) as host:
        picture = generate(host).picture
        watched.ran.clear()
        watched.generate(host, num_images=2)
        assert len(watched.ran) == 2
        assert picture.info["look"] == "grey"
        red, green, _ = picture.split()
        assert red.tobytes() == green.tobytes()
        watched.generate(host, output_type="latent")
        assert len(watched.ran) == 2


def uses_image_encoded(watched: Watched) -> None:
    folder = watched.file.parent / "kept"
    with host_with(watched, folder=str(folder)) as host:
        (picture,) = watched.generate(host).named("image")
        assert (folder / picture.result).read_bytes() == picture.image.data
        assert len(watched.ran) == 1
        watched.generate(host, output_type="latent")
        assert len(watched.ran) == 1


def uses_update_job(watched: Watched) -> None:
    with host_with(watched) as host:
        request = {"prompt": "red apple", "num_inference_steps": 1000, "guidance_scale": 4.0, "slot": "here"}
        making = threading.Thread(target=call_until_cancelled, args=(host, request, watched.events))
        making.start()
        watched.events.wait_for("step")
        (accepted,) = watched.events.named("accepted")
        call(host, "jobs.update", {"job": accepted.job, "guidance": {"times": 1.5}})
        (changed,) = watched.events.named("changed")
        assert changed.guidance_scale == 6.0
        call(host, "cancel", {"slot": "here"})
        making.join()


def call_until_cancelled(host: Host, request: dict[str, Any], events: Events) -> None:
    with pytest.raises(latentwire.LatentwireError, match="cancelled"):
        call(host, "generate", request, emit=events)


def uses_client_left(watched: Watched) -> None:
    with serving(watched.file) as served, connect_sync(served.url) as stays:
        assert stays.call("visits.count") == {"visits": 1, "clients": 1}
        with connect_sync(served.url) as leaves:
            assert leaves.call("visits.count") == {"visits": 1, "clients": 2}
            assert leaves.call("visits.count") == {"visits": 2, "clients": 2}
            assert [ran.hook for ran in watched.ran] == ["register"]
        wait_for(lambda: len(watched.ran) == 2, "the client that left to be forgotten")
        assert stays.call("visits.count") == {"visits": 2, "clients": 1}


def uses_unload(watched: Watched) -> None:
    file = watched.file.parent / "pictures.txt"
    with host_with(watched, file=str(file)) as host:
        generate(host, "green frog", seed=7)
        watched.ran.clear()
        asyncio.run(host.reload_plugin(watched.file.stem))
        assert file.read_text() == "7 green frog\n"
        (unloaded,) = watched.ran
        generate(host, "red apple", seed=8)
        watched.ran.clear()
    assert file.read_text() == "7 green frog\n8 red apple\n"
    assert [ran.hook for ran in watched.ran] == ["unload"]
    watched.ran[:] = [unloaded]  # that one was on the thread which closes the host
