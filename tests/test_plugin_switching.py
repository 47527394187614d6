"""Plugins are switched on, off and loaded anew while the host runs and makes pictures."""

import asyncio
import threading
import time
from dataclasses import asdict
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from latentwire import Host, LatentwireError, PluginError, RemoteError, connect, connect_sync
from latentwire.core.caller import Caller
from latentwire.core.events import PluginsChanged
from latentwire.core.settings import ServerSettings
from latentwire.server.access import Access
from latentwire.testing import Events, call, generate, plugin, running_host, serving
from latentwire.testing.hosts import ENGINE

from .conftest import wait_for
from .trust.served import OBSERVER, TOKEN, server
from .wire import in_loop

OPERATOR = "the token of an operator"

ADDS = """
    from dataclasses import replace
    from latentwire import *

    class Wanted(Strict):
        word: str = "{word}"

    @hookimpl
    def register(registry):
        registry.add_field("{name}", Wanted)
        registry.add_command("{name}.word", NoParams, word)

    @hookimpl
    def image_finished(context):
        context.metadata["order"] = context.metadata.get("order", "") + "{word} "

    async def word(context, params):
        return {{"word": "{word}"}}
"""


def write(folder: Path, name: str, word: str | None = None, source: str = ADDS) -> Path:
    path = folder / f"{name}.py"
    path.write_text(dedent(source).format(name=name, word=word or name))
    return path


def row(host: Host, name: str) -> dict[str, Any]:
    (found,) = [row for row in call(host, "plugins.list")["plugins"] if row["name"] == name]
    return dict(found)


def row_of(host: Host, name: str) -> dict[str, Any]:
    """The same, from within a loop."""
    (found,) = [asdict(report) for report in host.plugins.reports if report.name == name]
    return found


def order(host: Host, **fields: Any) -> str:
    return str(generate(host, **fields).picture.info.get("order", ""))


def test_a_plugin_is_switched_off_and_on(tmp_path: Path) -> None:
    with running_host(write(tmp_path, "one"), write(tmp_path, "two")) as host:
        assert order(host, one={}) == "one two "
        assert call(host, "plugins.disable", {"name": "one"})["state"] == "disabled"
        assert row(host, "one")["error"] == "disabled by an operator"
        assert order(host) == "two "
        for command, params in (("generate", {"prompt": "x", "one": {}}), ("one.word", {})):
            with pytest.raises(PluginError, match="plugin 'one' is disabled by an operator"):
                call(host, command, params)
        assert call(host, "plugins.enable", {"name": "one"})["state"] == "loaded"
        assert order(host, one={}) == "one two "
        assert call(host, "one.word") == {"word": "one"}


def test_what_the_settings_disabled_is_loaded_in_its_place(tmp_path: Path) -> None:
    paths = [write(tmp_path, name) for name in ("one", "two", "three")]
    with running_host(paths[0], plugin(paths[1]) | {"enabled": False}, paths[2]) as host:
        assert order(host) == "one three "
        assert "two" not in call(host, "describe")["fields"]
        assert row(host, "two")["state"] == "disabled"
        with pytest.raises(LatentwireError, match="not loaded, it is disabled"):
            call(host, "plugins.disable", {"name": "two"})
        call(host, "plugins.enable", {"name": "two"})
        assert order(host, two={}) == "one two three "
        described = call(host, "describe")
        assert described["fields"]["two"] == "two"
        assert "two" in described["commands"]["generate"]["params"]["properties"]


def test_code_that_was_changed_is_loaded_anew_and_what_is_broken_left_out_until_it_is_mended(tmp_path: Path) -> None:
    path = write(tmp_path, "one", "first")
    with running_host(path, write(tmp_path, "two")) as host:
        assert order(host) == "first two "
        write(tmp_path, "one", "other")  # of the same length, within the same second
        assert call(host, "plugins.reload", {"name": "one"})["state"] == "loaded"
        assert order(host, one={}) == "other two "
        assert call(host, "one.word") == {"word": "other"}

        path.write_text("def broken(:")
        with pytest.raises(PluginError, match="plugin 'one' failed to load: SyntaxError"):
            call(host, "plugins.reload", {"name": "one"})
        assert row(host, "one")["state"] == "failed"
        assert order(host) == "two "
        for command, params in (("generate", {"prompt": "x", "one": {}}), ("one.word", {})):
            with pytest.raises(LatentwireError, match=r"unknown key|there is no command"):
                call(host, command, params)

        write(tmp_path, "one", "third")
        assert call(host, "plugins.reload", {"name": "one"})["error"] is None
        assert order(host, one={}) == "third two "


def test_a_name_that_is_taken_keeps_a_reloaded_plugin_out(tmp_path: Path) -> None:
    path = write(tmp_path, "one")
    with running_host(path, write(tmp_path, "two")) as host:
        path.write_text(dedent(ADDS).format(name="two", word="one"))
        with pytest.raises(PluginError, match="of plugin 'one' is taken by 'two'"):
            call(host, "plugins.reload", {"name": "one"})
        assert order(host, two={}) == "two "


def test_a_package_is_loaded_anew_with_all_its_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, info = tmp_path / "lw_reloaded", tmp_path / "lw_reloaded-1.2.dist-info"
    for folder in (package, info):
        folder.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lw-reloaded\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[latentwire]\nreloaded = lw_reloaded\n")
    (package / "__init__.py").write_text(
        "from latentwire import hookimpl\nfrom .words import WORD\n\n"
        "@hookimpl\ndef image_finished(context):\n    context.metadata['order'] = WORD\n"
    )
    (package / "words.py").write_text("WORD = 'first'\n")
    monkeypatch.syspath_prepend(tmp_path)
    with running_host("reloaded") as host:
        assert row(host, "reloaded")["version"] == "1.2"
        assert order(host) == "first"
        (package / "words.py").write_text("WORD = 'other'\n")
        call(host, "plugins.reload", {"name": "reloaded"})
        assert order(host) == "other"


def test_jobs_under_way_go_on_while_plugins_are_loaded_anew(tmp_path: Path) -> None:
    paths = [write(tmp_path, name) for name in ("one", "two")]
    with running_host(*paths) as host:

        async def run() -> list[dict[str, Any]]:
            jobs = [
                asyncio.create_task(
                    host.dispatch("generate", {"prompt": "x", "num_inference_steps": 8}, "test", Events())
                )
                for _ in range(4)
            ]
            while not all(job.done() for job in jobs):
                await host.dispatch("plugins.reload", {"name": "one"}, "test", Events())
                await asyncio.sleep(0.01)
            return await asyncio.gather(*jobs)

        assert [result["images"] for result in asyncio.run(run())] == [1] * 4
        assert order(host) == "one two "


THREADS = """
    import threading
    from latentwire import hookimpl

    class Plugin:
        def __init__(self):
            self.ended = threading.Event()
            self.thread = threading.Thread(target=self.ended.wait, name="lw-unload-test")
            self.thread.start()

        @hookimpl
        def unload(self, context):
            self.ended.set()
            self.thread.join()
            with open("{word}", "a") as file:
                file.write(f"{{context.final}} ")
"""


def test_unload_lets_a_plugin_end_what_it_runs(tmp_path: Path) -> None:
    told = tmp_path / "told"

    def running() -> int:
        return sum(thread.name == "lw-unload-test" for thread in threading.enumerate())

    with running_host(write(tmp_path, "threads", str(told), THREADS)) as host:
        assert running() == 1
        call(host, "plugins.reload", {"name": "threads"})
        assert running() == 1
        assert told.read_text() == "False "
    assert running() == 0
    assert told.read_text() == "False True "


SLOW = """
    import time
    from latentwire import *

    ended = []

    @hookimpl
    def register(registry):
        registry.add_command("slow.ended", NoParams, tell)

    @hookimpl
    def unload(context):
        ended.append(context.final)
        time.sleep({word})

    async def tell(context, params):
        return {{"ended": ended}}
"""


def test_a_disabled_plugin_ends_what_it_runs_too(tmp_path: Path) -> None:
    told = tmp_path / "told"
    with running_host(write(tmp_path, "threads", str(told), THREADS)) as host:
        call(host, "plugins.disable", {"name": "threads"})
        call(host, "plugins.reload", {"name": "threads"})
        call(host, "plugins.disable", {"name": "threads"})
    assert told.read_text() == "False True "


def test_what_was_begun_is_done_though_whoever_asked_has_gone(tmp_path: Path) -> None:
    with running_host(write(tmp_path, "slow", "0.5", SLOW)) as host:

        async def run() -> Any:
            asked = asyncio.create_task(host.dispatch("plugins.reload", {"name": "slow"}, "one", Events()))
            while not (await host.dispatch("slow.ended", {}, "two", Events()))["ended"]:  # noqa: ASYNC110 - a command
                await asyncio.sleep(0.01)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            await host.dispatch("plugins.disable", {"name": "slow"}, "two", Events())  # after the other one
            assert row_of(host, "slow")["error"] == "disabled by an operator"
            await host.dispatch("plugins.enable", {"name": "slow"}, "two", Events())
            return await host.dispatch("slow.ended", {}, "two", Events())

        assert asyncio.run(run()) == {"ended": []}


WAITS = """
    import pathlib
    import time
    from latentwire import hookimpl

    def wait():
        while not pathlib.Path("{word}").exists():
            time.sleep(0.01)

    @hookimpl
    def unload(context):
        wait()
"""


@pytest.mark.parametrize("part", ["import", "unload"])
def test_a_plugin_that_hangs_while_it_is_switched_keeps_no_other_from_it(tmp_path: Path, part: str) -> None:
    woken, path = tmp_path / "woken", write(tmp_path, "waits", "first")
    with running_host(path, write(tmp_path, "one"), engine=ENGINE | {"plugin_timeout_s": 0.5}) as host:

        async def switch(command: str, name: str) -> dict[str, Any]:
            return await host.dispatch(f"plugins.{command}", {"name": name}, "test", Events())

        async def run() -> None:
            write(tmp_path, "waits", str(woken), dedent(WAITS) + ("wait()\n" if part == "import" else ""))
            if part == "import":
                with pytest.raises(PluginError, match="plugin 'waits' hangs"):
                    await switch("reload", "waits")
                # the old code is there, and whole
                assert await host.dispatch("waits.word", {}, "test", Events()) == {"word": "first"}
            else:
                await switch("reload", "waits")
                assert (await switch("reload", "waits"))["state"] == "loaded"
            assert (await switch("reload", "one"))["state"] == "loaded"
            woken.touch()

        asyncio.run(run())


FAILS = """
    from latentwire import hookimpl

    @hookimpl
    def modify_call(context):
        if context.request.prompt == "fail":
            raise ValueError("on purpose")
"""


def test_whoever_failed_three_times_is_forgiven_by_an_operator(tmp_path: Path) -> None:
    with running_host(write(tmp_path, "fails", source=FAILS)) as host:
        for _ in range(3):
            with pytest.raises(PluginError, match="on purpose"):
                generate(host, "fail")
        assert row(host, "fails")["state"] == "disabled"
        generate(host, "fail")  # nobody is called
        call(host, "plugins.enable", {"name": "fails"})
        with pytest.raises(PluginError, match="on purpose"):
            generate(host, "fail")
        assert row(host, "fails")["state"] == "loaded"


def test_the_time_of_each_hook_is_told(tmp_path: Path) -> None:
    slow = """
        import time
        from latentwire import hookimpl

        @hookimpl
        def modify_call(context):
            time.sleep(0.05)

        @hookimpl
        def step_finished():
            pass
    """
    with running_host(write(tmp_path, "slow", source=slow)) as host:
        assert row(host, "slow")["times"] == {}
        generate(host, num_inference_steps=3)
        generate(host, num_inference_steps=3)
        times = row(host, "slow")["times"]
        assert {hook: time["calls"] for hook, time in times.items()} == {"modify_call": 2, "step_finished": 6}
        assert times["modify_call"]["seconds"] >= 0.1
        assert times["modify_call"]["slowest"] >= 0.05
        assert times["step_finished"]["seconds"] < times["modify_call"]["seconds"]


def test_those_who_subscribed_are_told_of_every_change(tmp_path: Path) -> None:
    with (
        serving(write(tmp_path, "one"), write(tmp_path, "fails", source=FAILS)) as served,
        connect_sync(served.url) as client,
        connect_sync(served.url) as other,
    ):
        events = client.subscribe("plugins.subscribe")

        def next_states() -> dict[str, str]:
            event = next(event for event in events if isinstance(event, PluginsChanged))
            return {row["name"]: row["state"] for row in event.plugins if row["source"] == "file"}

        assert next_states() == {"one": "loaded", "fails": "loaded"}
        other.call("plugins.disable", name="one")
        assert next_states() == {"one": "disabled", "fails": "loaded"}
        for _ in range(3):
            with pytest.raises(RemoteError, match="on purpose"):
                list(other.generate("fail", num_inference_steps=1))
        assert next_states() == {"one": "disabled", "fails": "disabled"}


@pytest.mark.parametrize("name", ["nobody", "", "../one", "x" * 100])
@pytest.mark.parametrize("command", ["plugins.enable", "plugins.disable", "plugins.reload"])
def test_a_plugin_that_is_not_there_is_refused(host: Host, command: str, name: str) -> None:
    with pytest.raises(LatentwireError, match="there is no plugin") as caught:
        call(host, command, {"name": name})
    assert caught.value.code == "invalid_params"
    assert caught.value.details[0]["path"] == ["name"]


@in_loop
async def test_only_an_operator_switches_plugins(tmp_path: Path) -> None:
    settings = [
        f"server.{name}={token}" for name, token in (("observer_token", OBSERVER), ("operator_token", OPERATOR))
    ]
    with server(tmp_path, f"server.token={TOKEN}", *settings) as guarded:
        for token, may in ((TOKEN, False), (OBSERVER, False), (OPERATOR, True)):
            async with connect(guarded.url, token=token) as client:
                for command in ("plugins.disable", "plugins.enable", "plugins.reload"):
                    if may:
                        assert (await client.call(command, name="clip_skip"))["name"] == "clip_skip"
                    else:
                        with pytest.raises(RemoteError, match="only an operator") as caught:
                            await client.call(command, name="clip_skip")
                        assert caught.value.code == "unauthorized"
        async with connect(guarded.url, token=OPERATOR) as operator, connect(guarded.url, token=TOKEN) as user:
            job = asyncio.create_task(user.call("generate", prompt="x", num_inference_steps=1000, slot="a"))
            jobs: list[Any] = []
            while not jobs:
                jobs = (await operator.call("jobs"))["jobs"]  # an operator is an observer, too
            await user.call("cancel", all=True)
            with pytest.raises(RemoteError, match="cancelled"):
                await job


@pytest.mark.parametrize(
    "setting", [{}, {"allowed_hosts": ["pictures.example"]}, {"allowed_origins": ["https://pictures.example"]}]
)
def test_whom_a_proxy_or_a_page_lets_in_is_no_operator(setting: dict[str, Any]) -> None:
    access = Access(ServerSettings.model_validate(setting))
    assert access.log_in(Caller.nobody_known(), None, None).operator == (not setting)


def test_results_are_asked_for_while_they_are_loaded_anew(tmp_path: Path) -> None:
    with running_host(plugin("results", folder=str(tmp_path))) as host:

        async def run() -> None:
            async def ask() -> None:
                while not reloaded.is_set():
                    await host.dispatch("results.list", {}, "test", Events())

            reloaded = asyncio.Event()
            asking = [asyncio.create_task(ask()) for _ in range(4)]
            for _ in range(5):
                await host.dispatch("plugins.reload", {"name": "results"}, "test", Events())
            reloaded.set()
            await asyncio.gather(*asking)

        asyncio.run(run())
        assert row(host, "results")["state"] == "loaded"


@in_loop
async def test_on_a_host_of_ones_own_everybody_is_the_operator(tmp_path: Path) -> None:
    with server(tmp_path) as local:
        async with connect(local.url) as client:
            assert (await client.call("plugins.disable", name="lora"))["state"] == "disabled"
        page = local.get("/")[1].decode()
        assert "<code>lora</code>" in page
        assert "disabled by an operator" in page


@pytest.mark.slow
def test_a_saved_file_is_loaded_anew_by_a_server_with_reload(tmp_path: Path) -> None:
    write(tmp_path, "one", "first")
    toml = '[[plugins]]\nname = "one"\npath = "one.py"\n'
    with server(tmp_path, toml=toml, options=["--reload"]) as local, connect_sync(local.url) as client:
        assert client.call("one.word") == {"word": "first"}
        for word in ("other", "third"):
            temporary = write(tmp_path, "new", word)
            temporary.write_text(temporary.read_text().replace('"new', '"one'))
            temporary.replace(tmp_path / "one.py")  # as editors save
            wait_for(lambda word=word: client.call("one.word") == {"word": word}, "the new code")  # type: ignore[misc]
        (tmp_path / "one.py").write_text("raise ValueError('not yet')")
        wait_for(lambda: any("ValueError: not yet" in line for line in local.log), "the log to say what is wrong")
        write(tmp_path, "one", "mended")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                assert client.call("one.word") == {"word": "mended"}
                break
            except RemoteError:
                time.sleep(0.05)
        else:
            pytest.fail("it was not loaded again")


def test_a_job_whose_plugin_is_disabled_before_it_is_prepared_fails_and_is_not_made_without_it(tmp_path: Path) -> None:
    slow = """
        import time
        from latentwire import *

        @hookimpl
        def modify_build(context):
            time.sleep(0.5)
    """
    with running_host(write(tmp_path, "slow", source=slow), write(tmp_path, "one")) as host:

        async def run() -> None:
            job = asyncio.create_task(host.dispatch("generate", {"prompt": "x", "one": {}}, "test", Events()))
            await asyncio.sleep(0.1)
            await host.dispatch("plugins.disable", {"name": "one"}, "test", Events())
            with pytest.raises(PluginError, match="plugin 'one' is disabled by an operator"):
                await job

        asyncio.run(run())


def test_a_command_of_code_that_was_replaced_is_no_strike_of_the_new_one(tmp_path: Path) -> None:
    ends = """
        import asyncio, time
        from latentwire import *

        class Plugin:
            def __init__(self):
                self.ended = asyncio.Event()

            @hookimpl
            def register(self, registry):
                registry.add_command("ends.wait", NoParams, self.wait)

            @hookimpl
            def unload(self, context):
                self.closed = True
                time.sleep(0.05)  # so that the command ends before the new code is there

            async def wait(self, context, params):
                while not hasattr(self, "closed"):
                    await asyncio.sleep(0.01)
                raise ValueError("its file is closed")
    """
    with running_host(write(tmp_path, "ends", source=ends)) as host:

        async def run() -> None:
            for _ in range(4):
                waiting = asyncio.create_task(host.dispatch("ends.wait", {}, "test", Events()))
                await asyncio.sleep(0.05)
                await host.dispatch("plugins.reload", {"name": "ends"}, "test", Events())
                with pytest.raises(PluginError, match=r"was loaded anew while ends\.wait ran; send it again"):
                    await waiting

        asyncio.run(run())
        assert row(host, "ends")["state"] == "loaded"


def test_what_a_plugin_began_before_it_was_refused_ends(tmp_path: Path) -> None:
    begins = """
        from latentwire import *

        class Plugin:
            @hookimpl
            def register(self, registry):
                registry.add_field("one", Strict)

            @hookimpl
            def unload(self, context):
                open("{word}", "w").close()
    """
    told = tmp_path / "told"
    plugins = [write(tmp_path, "one"), write(tmp_path, "begins", str(told), begins)]
    with pytest.raises(PluginError, match="is taken by 'one'"), running_host(*plugins):
        pass
    assert told.exists()
