"""Plugins that raise, hang or keep failing: each costs its own job, and none of it costs the host."""

import asyncio
import logging
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from latentwire import Host
from latentwire.core.errors import InvalidParams, LatentwireError, PluginError
from latentwire.core.events import Step
from latentwire.core.painter import Painter
from latentwire.core.strikes import JOB, MOST, Strikes

from ..conftest import ENGINE, running_host, serving, wait_for
from .injection import SMALL, Pictures, draw, draw_all, draw_soon, plugin

TIMEOUT_S = 0.3
QUICK = ENGINE | {"plugin_timeout_s": TIMEOUT_S}
JOB_HOOKS = ["modify_build", "modify_call", "step_finished", "image_finished", "image_encoded"]
ERRORS = ["ValueError", "SystemExit", "KeyboardInterrupt", "GeneratorExit", "asyncio.CancelledError"]

MINE = """
    import asyncio
    import threading

    go = threading.Event()
    woken = []
    inside = []

    @hookimpl
    def {hook}(context):
        if context.request.prompt != "mine":
            return
        {does}
"""
HANGS = "inside.append(threading.current_thread()); go.wait(); woken.append(context.job)"


def module(name: str) -> Any:
    return sys.modules[f"latentwire_plugin_{name}"]


def reports(host: Host) -> dict[str, Any]:
    listed = asyncio.run(host.dispatch("plugins.list", {}, "test", lambda _: None))
    return {row["name"]: row for row in listed["plugins"]}


def ask(host: Host, command: str, **params: Any) -> Any:
    return asyncio.run(host.dispatch(command, params, "test", lambda _: None))


def blamed(pictures: Pictures) -> tuple[str, str | None]:
    assert isinstance(pictures.error, PluginError), pictures.error
    return pictures.error.plugin, pictures.error.hook


# Raising.


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("hook", JOB_HOOKS)
def test_whatever_a_hook_raises_ends_its_job_alone(tmp_path: Path, hook: str, error: str) -> None:
    entry = plugin(tmp_path, "odd", MINE.format(hook=hook, does=f"raise {error}('on purpose')"))
    with running_host(plugins=[entry]) as host:
        before = draw(host, mode="exact").data
        mine, theirs = draw_all(host, {"prompt": "mine"}, {"mode": "exact"})
        assert blamed(mine) == ("odd", hook)
        assert theirs.data == before
        assert draw(host, mode="exact").data == before
        assert host.engine.generation == 0


ODD = """
    import asyncio

    class Scheduler:
        pass

    def make(config):
        raise {error}("on purpose")

    def broken_step(config):
        from diffusers import DDIMScheduler
        scheduler = DDIMScheduler.from_config(config)
        def step(model_output, timestep, sample, eta=0.0, generator=None, return_dict=True):
            raise {error}("on purpose")
        scheduler.step = step
        return scheduler

    def preprocess(picture, options):
        raise {error}("on purpose")

    async def command(context, params):
        raise {error}("on purpose")

    async def in_a_thread(context, params):
        await asyncio.to_thread(preprocess, None, None)

    def load(dtype):
        raise {error}("on purpose")

    async def bring(context, params):
        return await asyncio.to_thread(context.host.store.bring, "adapter", "some", "emoji", load)

    def routes(host):
        from starlette.responses import PlainTextResponse
        from starlette.routing import Route, WebSocketRoute
        async def odd(request):
            raise {error}("on purpose")
        async def fine(request):
            return PlainTextResponse("fine")
        return [Route("/odd", odd), Route("/fine", fine), WebSocketRoute("/odd_socket", odd)]

    class Odd(Strict):
        why: str = ""

    @hookimpl
    def register(registry):
        registry.add_scheduler("no_such", make)
        registry.add_scheduler("no_step", broken_step)
        registry.add_preprocessor("broken", Strict, preprocess)
        registry.add_command("odd.command", Strict, command)
        registry.add_command("odd.thread", Strict, in_a_thread)
        registry.add_command("odd.bring", Strict, bring)
        registry.add_update("odd", Odd)
        registry.add_routes(routes)

    @hookimpl
    def update_job(context):
        if context.update.odd:
            raise {error}("on purpose")

    @hookimpl
    def client_left(context):
        raise {error}("on purpose")
"""


@pytest.fixture(params=["ValueError", "SystemExit", "KeyboardInterrupt", "asyncio.CancelledError"])
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    with running_host(plugins=[plugin(tmp_path, "odd", ODD.format(error=request.param))]) as host:
        before = draw(host, mode="exact").data
        yield host
        assert draw(host, mode="exact").data == before


@pytest.mark.parametrize("scheduler", ["no_such", "no_step"])
def test_whatever_a_scheduler_raises_ends_its_job_alone(odd: Host, scheduler: str) -> None:
    assert blamed(draw(odd, scheduler=scheduler)) == ("odd", None)


@pytest.mark.parametrize("command", ["odd.command", "odd.thread"])
def test_whatever_a_command_raises_is_its_own_answer(odd: Host, command: str) -> None:
    with pytest.raises(PluginError, match="on purpose") as caught:
        ask(odd, command)
    assert caught.value.plugin == "odd"


def test_whatever_a_load_raises_is_its_commands_answer(odd: Host) -> None:
    with pytest.raises(LatentwireError) as caught:
        ask(odd, "odd.bring")
    assert caught.value.code in ("model_load_failed", "plugin_failed")
    assert odd.store.brought("adapter") == []


def test_whatever_a_preprocessor_raises_names_its_plugin(odd: Host) -> None:
    from latentwire.core.images import encode

    picture = encode(odd.picture(draw(odd).data[0]), "png").data
    with pytest.raises(PluginError) as caught:
        ask(odd, "controlnet.preprocess", name="broken", image=picture)
    assert caught.value.plugin == "odd"


def test_whatever_update_job_and_client_left_raise_stays_there(odd: Host) -> None:
    async def run() -> None:
        long = asyncio.create_task(draw_soon(odd, num_inference_steps=1000))
        await asyncio.to_thread(wait_for, lambda: odd.engine.running == 1, "the job to begin")
        (job,) = odd.jobs.all()
        with pytest.raises(PluginError) as caught:
            await odd.dispatch("jobs.update", {"job": job.id, "odd": {}}, "test", lambda _: None)
        assert (caught.value.plugin, caught.value.hook) == ("odd", "update_job")
        await odd.dispatch("cancel", {"job": job.id}, "test", lambda _: None)
        assert (await long).code == "cancelled"
        odd.client_left("test")

    asyncio.run(run())


@pytest.mark.parametrize("error", ["ValueError", "SystemExit", "KeyboardInterrupt"])
def test_whatever_a_route_raises_is_its_own_answer(tmp_path: Path, error: str) -> None:
    import httpx2 as httpx

    entry = plugin(tmp_path, "odd", ODD.format(error=error))
    with serving(plugins=[entry]) as served:
        before = draw(served.host, mode="exact").data
        assert httpx.get(f"{served.http}/odd").status_code == 500
        with pytest.raises(WebSocketException), connect(served.url.replace("/ws", "/odd_socket")):
            pass
        assert httpx.get(f"{served.http}/fine").text == "fine"
        assert draw(served.host, mode="exact").data == before
        for _ in range(MOST):
            assert httpx.get(f"{served.http}/odd").status_code == 500
        answer = httpx.get(f"{served.http}/fine")
        assert (answer.status_code, answer.json()["code"]) == (503, "plugin_failed")
        assert "disabled after three failures" in answer.json()["detail"]
        assert httpx.get(f"{served.http}/healthz").status_code == 200


def test_a_painter_outlives_whatever_is_raised_in_it() -> None:
    painter = Painter()

    def fails() -> None:
        raise SystemExit("on purpose")

    done = threading.Event()
    for picture in range(4):
        painter.paint(picture, fails)
    painter.paint(0, done.set)
    assert done.wait(30)
    painter.close()


def test_a_cancelled_command_of_a_plugin_is_cancelled(tmp_path: Path) -> None:
    source = """
        import asyncio
        ended = []

        async def forever(context, params):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        @hookimpl
        def register(registry):
            registry.add_command("forever.wait", Strict, forever)
    """
    with running_host(plugins=[plugin(tmp_path, "forever", source)]) as host:

        async def run() -> None:
            for _ in range(MOST):
                task = asyncio.create_task(host.dispatch("forever.wait", {}, "test", lambda _: None))
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

        asyncio.run(run())
        assert module("forever").ended == ["cancelled"] * MOST
        assert reports(host)["forever"]["state"] == "loaded"  # no fault of its own


# Hanging.


@pytest.fixture
def hanging(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    entry = plugin(tmp_path, "sleepy", MINE.format(hook=request.param, does=HANGS))
    with running_host(engine=QUICK | {"max_running": 2}, plugins=[entry]) as host:
        yield host
        module("sleepy").go.set()


@pytest.mark.parametrize("hanging", JOB_HOOKS, indirect=True)
def test_a_hook_that_hangs_is_named_and_costs_its_job(
    hanging: Host, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    hook = request.node.callspec.params["hanging"]
    host, sleepy = hanging, module("sleepy")
    expected = draw(host, mode="exact").data
    failed = draw(host, prompt="mine")
    assert blamed(failed) == ("sleepy", hook)
    assert "0.3 s" in failed.message
    said = [record.getMessage() for record in caplog.records if "hangs in" in record.getMessage()]
    assert f"plugin 'sleepy' hangs in {hook}" in said[0]
    assert "go.wait()" in said[0]  # where in its code
    assert draw(host, mode="exact").data == expected
    # and when it wakes up, nothing of its old work goes on
    finished, jobs = host.engine.figures.runs_finished, len(host.jobs.all())
    sleepy.go.set()
    (thread,) = sleepy.inside
    thread.join(30)
    assert not thread.is_alive()
    assert len(sleepy.woken) == 1
    assert (host.engine.figures.runs_finished, len(host.jobs.all())) == (finished, jobs)
    assert draw(host, mode="exact").data == expected


@pytest.mark.parametrize("hanging", ["step_finished"], indirect=True)
def test_when_the_engine_hangs_others_that_run_are_told_and_those_that_wait_go_on(hanging: Host) -> None:
    host = hanging
    before = [draw(host, mode="exact", seed=seed).data for seed in range(3)]
    requests: list[dict[str, Any]] = [{"mode": "exact", "seed": seed} for seed in range(3)]

    async def run() -> list[Pictures]:
        long = asyncio.create_task(draw_soon(host, num_inference_steps=1000, mode="exact"))
        await asyncio.to_thread(wait_for, lambda: host.engine.running == 1, "the long one to run")
        mine = asyncio.create_task(draw_soon(host, prompt="mine", num_inference_steps=1000))
        waiting = [asyncio.create_task(draw_soon(host, **request)) for request in requests]
        return [await task for task in (long, mine, *waiting)]

    long, mine, *others = asyncio.run(run())
    assert blamed(mine) == ("sleepy", "step_finished")
    assert long.code == "engine_restarted"
    assert "'sleepy'" in long.message
    assert [pictures.error and pictures.error.code for pictures in others].count(None) >= 2
    for pictures, expected in zip(others, before, strict=True):
        assert pictures.error is not None or pictures.data == expected
    assert sum(isinstance(event, Step) for event in mine.events) == 0
    assert draw(host, mode="exact", seed=2).data == before[2]


@pytest.mark.parametrize("hanging", ["image_finished"], indirect=True)
def test_threads_that_hang_are_replaced(hanging: Host) -> None:
    """There are two that finish pictures."""
    expected = draw(hanging).data
    made = draw_all(hanging, *({"prompt": "mine", "seed": seed} for seed in range(4)))
    assert {blamed(pictures) for pictures in made} <= {("sleepy", "image_finished")}
    assert draw(hanging).data == expected


@pytest.mark.parametrize("hanging", ["step_finished", "image_finished", "modify_call"], indirect=True)
def test_a_host_can_be_closed_while_a_plugin_hangs(hanging: Host) -> None:
    async def run() -> None:
        task = asyncio.create_task(draw_soon(hanging, prompt="mine"))
        await asyncio.to_thread(wait_for, lambda: bool(module("sleepy").inside), "it to hang")
        await asyncio.to_thread(hanging.close)
        assert (await task).code in ("host_closing", "plugin_failed")

    asyncio.run(run())


def test_a_scheduler_that_hangs_is_named(tmp_path: Path) -> None:
    source = """
        import threading
        go = threading.Event()

        @hookimpl
        def register(registry):
            registry.add_scheduler("sleepy", make)

        def make(config):
            go.wait()
    """
    with running_host(engine=QUICK, plugins=[plugin(tmp_path, "sleepy", source)]) as host:
        expected = draw(host).data
        failed = draw(host, scheduler="sleepy")
        assert blamed(failed) == ("sleepy", None)
        assert "scheduler 'sleepy'" in failed.message
        assert draw(host).data == expected
        module("sleepy").go.set()


def test_the_innermost_plugin_is_blamed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outer = """
        @hookimpl
        def modify_call(context):
            if context.request.prompt == "mine":
                picture = context.host.picture(PNG)
                context.host.registry.preprocess("slow", picture, None)

        import io
        from PIL import Image
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "png")
        PNG = file.getvalue()
    """
    inner = """
        import threading
        go = threading.Event()

        def slow(picture, options):
            go.wait()
            return picture

        @hookimpl
        def register(registry):
            registry.add_preprocessor("slow", Strict, slow)
    """
    entries = [plugin(tmp_path, "outer", outer), plugin(tmp_path, "inner", inner)]
    with running_host(engine=QUICK, plugins=entries) as host:
        expected = draw(host).data
        assert blamed(draw(host, prompt="mine")) == ("inner", None)
        assert draw(host).data == expected
        module("inner").go.set()
        assert "'inner' hangs" in caplog.text
        assert "'outer' hangs" not in caplog.text


def test_a_hook_that_waits_for_the_engine_does_not_hang(tmp_path: Path) -> None:
    """A hook may call a shared module, and is at a gate then; its job may even be paused meanwhile."""
    source = """
        import threading

        @hookimpl
        def modify_call(context):
            modules[context.job] = context.components["unet"]

        @hookimpl
        def step_finished(context):
            if context.request.prompt == "mine":
                import torch
                latents = context.latents
                inside.set()
                modules[context.job](latents, 1, torch.zeros(1, 77, modules[context.job].config.cross_attention_dim))

        modules = {}
        inside = threading.Event()
    """
    with running_host(engine=QUICK, plugins=[plugin(tmp_path, "calls", source)]) as host:

        async def run() -> Pictures:
            task = asyncio.create_task(draw_soon(host, prompt="mine", num_inference_steps=2))
            await asyncio.to_thread(module("calls").inside.wait)
            for job in host.jobs.all():
                job.pause(True)
            await asyncio.sleep(4 * TIMEOUT_S)
            for job in host.jobs.all():
                job.pause(False)
            return await task

        assert len(asyncio.run(run()).data) == 1


def test_a_command_that_blocks_the_event_loop_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = """
        import threading
        go = threading.Event()

        async def block(context, params):
            go.wait()
            return {"woke": True}

        @hookimpl
        def register(registry):
            registry.add_command("blocker.block", Strict, block)
    """
    with serving(engine=QUICK, plugins=[plugin(tmp_path, "blocker", source)]) as served:

        def named() -> list[str]:
            return [text for text in map(logging.LogRecord.getMessage, caplog.records) if "'blocker' blocks" in text]

        with connect(served.url, subprotocols=["latentwire.v1.msgpack"]) as socket:  # type: ignore[list-item]
            socket.recv()
            socket.send(msgpack.packb({"id": 1, "command": "blocker.block", "params": {}}))
            wait_for(lambda: bool(named()), "the watchdog")
            assert "blocker.block" in named()[0]
            assert "go.wait()" in named()[0]
            module("blocker").go.set()
            assert msgpack.unpackb(socket.recv())["result"] == {"woke": True}
        assert len(named()) == 1
        assert draw(served.host).data


# Three strikes.

FICKLE = """
    class Field(Strict):
        how: str = "well"

    async def command(context, params):
        do(params.how)
        return {}

    def do(how):
        if how == "refuse":
            raise InvalidParams("not like this")
        if how == "fail":
            raise ValueError("on purpose")

    called = []

    @hookimpl
    def register(registry):
        registry.add_field("fickle", Field)
        registry.add_command("fickle.do", Field, command)

    @hookimpl
    def modify_call(context):
        called.append(context.job)
        if context.request.fickle:
            do(context.request.fickle.how)
"""


@pytest.fixture
def fickle(tmp_path: Path) -> Iterator[Host]:
    with running_host(plugins=[plugin(tmp_path, "fickle", FICKLE)]) as host:
        yield host


def test_a_plugin_that_fails_three_jobs_in_a_row_is_disabled(fickle: Host, caplog: pytest.LogCaptureFixture) -> None:
    expected = draw(fickle, mode="exact").data
    for _ in range(MOST):
        assert reports(fickle)["fickle"]["state"] == "loaded"
        assert draw(fickle, fickle={"how": "fail"}).code == "plugin_failed"
    row = reports(fickle)["fickle"]
    assert row["state"] == "disabled"
    assert "disabled after three failures" in row["error"]
    assert "on purpose" not in row["error"]  # it may quote one client's request, and this is told to all
    said = next(record.getMessage() for record in caplog.records if "fickle is disabled" in record.getMessage())
    assert "on purpose" in said
    calls = len(module("fickle").called)
    assert draw(fickle, mode="exact").data == expected  # all others go on without it
    assert len(module("fickle").called) == calls
    with pytest.raises(PluginError, match="disabled after three failures"):
        ask(fickle, "fickle.do")
    # what only it could do is refused, not left out of the picture
    refused = draw(fickle, fickle={})
    assert (refused.code, refused.message[:17]) == ("plugin_failed", "plugin 'fickle' i")
    assert len(module("fickle").called) == calls


def test_what_a_plugin_refuses_on_purpose_is_no_strike(fickle: Host) -> None:
    for _ in range(2 * MOST):
        assert draw(fickle, fickle={"how": "refuse"}).code == "invalid_params"
        with pytest.raises(InvalidParams):
            ask(fickle, "fickle.do", how="refuse")
        with pytest.raises(InvalidParams):
            ask(fickle, "fickle.do", how=7)
    assert reports(fickle)["fickle"]["state"] == "loaded"


def test_a_job_that_finishes_in_between_forgives(fickle: Host) -> None:
    for _ in range(MOST):
        for _ in range(MOST - 1):
            assert draw(fickle, fickle={"how": "fail"}).code == "plugin_failed"
        assert draw(fickle, client="somebody else").data
    assert reports(fickle)["fickle"]["state"] == "loaded"


def test_a_command_that_works_forgives_its_own_failures_alone(fickle: Host) -> None:
    for _ in range(MOST - 1):
        with pytest.raises(PluginError):
            ask(fickle, "fickle.do", how="fail")
    ask(fickle, "fickle.do")
    for _ in range(MOST - 1):
        assert draw(fickle, fickle={"how": "fail"}).code == "plugin_failed"
    ask(fickle, "fickle.do")
    assert reports(fickle)["fickle"]["state"] == "loaded"
    assert draw(fickle, fickle={"how": "fail"}).code == "plugin_failed"
    assert reports(fickle)["fickle"]["state"] == "disabled"


def test_a_job_of_many_pictures_is_one_strike(tmp_path: Path) -> None:
    entry = plugin(tmp_path, "odd", MINE.format(hook="image_finished", does="raise ValueError('on purpose')"))
    with running_host(plugins=[entry]) as host:
        assert draw(host, prompt="mine", num_images=4).code == "plugin_failed"
        assert reports(host)["odd"]["state"] == "loaded"


@pytest.mark.parametrize("hanging", ["modify_call"], indirect=True)
def test_three_hangs_disable_a_plugin_whatever_works_in_between(hanging: Host) -> None:
    for _ in range(MOST):
        assert draw(hanging, prompt="mine").code == "plugin_failed"
        assert draw(hanging).data
    row = reports(hanging)["sleepy"]
    assert row["state"] == "disabled"
    assert "disabled after three failures" in row["error"]
    assert draw(hanging, prompt="mine").data  # nothing of it runs any more


def test_a_built_in_plugin_can_be_disabled_as_well(fickle: Host) -> None:
    for number in range(MOST):
        fickle.guard.strikes.count("lora", JOB, number, "on purpose")
    assert reports(fickle)["lora"]["state"] == "disabled"
    assert draw(fickle, lora=[{"name": "x"}]).code == "plugin_failed"
    assert draw(fickle).data


def test_the_hosts_own_faults_disable_nothing() -> None:
    strikes = Strikes()
    for number in range(2 * MOST):
        strikes.count("latentwire", JOB, number, "on purpose")
    strikes.check("latentwire")


def test_memory_that_runs_out_in_a_hook_is_no_strike(tmp_path: Path) -> None:
    entry = plugin(tmp_path, "large", MINE.format(hook="modify_call", does="raise MemoryError"))
    with running_host(plugins=[entry]) as host:
        for _ in range(MOST):
            assert draw(host, prompt="mine").code == "plugin_failed"
        assert reports(host)["large"]["state"] == "loaded"


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["step_finished", "modify_call", "image_finished"])
def test_ctrl_c_ends_a_host_in_which_a_plugin_hangs(tmp_path: Path, hook: str) -> None:
    """A plugin's own KeyboardInterrupt does not; what hangs does so for longer than anybody waits."""
    source = f"""
        import time

        @hookimpl
        def {hook}(context):
            if context.request.prompt == "mine":
                print("inside", flush=True)
                time.sleep(1000)
            raise KeyboardInterrupt
    """
    plugin(tmp_path, "sleepy", source)
    (tmp_path / "plugins.toml").write_text(
        'discover = false\nengine = {device = "cpu", max_batch_rows = 8}\nserver = {shutdown_grace_s = 1}\n'
        'plugins = [{name = "sleepy", path = "sleepy.py"}]\n'
    )
    command = [sys.executable, "-m", "latentwire", "serve", "--port", "0", "--config", str(tmp_path / "plugins.toml")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            url = next(found[1] for line in lines if (found := re.search(r"socket  (\S+)", line)))
            with connect(url, subprotocols=["latentwire.v1.msgpack"], close_timeout=0.1) as socket:  # type: ignore[list-item]
                socket.recv()
                for number, prompt in enumerate(("theirs", "mine")):
                    params = SMALL | {"prompt": prompt}
                    socket.send(msgpack.packb({"id": number, "command": "generate", "params": params}))
                assert any("inside" in line for line in lines)
                process.send_signal(signal.SIGINT)
                process.wait(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0
