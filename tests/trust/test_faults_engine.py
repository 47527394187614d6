"""A device in a bad state costs the jobs under way, not the server: the engine is started anew."""

import asyncio
import logging
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from latentwire import Host
from latentwire.core import engine as engine_module
from latentwire.core.events import Loading, Step
from latentwire.core.faults import is_device, is_memory
from latentwire.core.run import Run

from ..conftest import running_host, serving, wait_for
from .injection import Forward, draw, draw_all, draw_soon, forward_of, gate, plugin, raising

KINDS: dict[str, Callable[[], BaseException]] = {
    "accelerator": partial(torch.AcceleratorError, "CUDA error: an illegal memory access was encountered"),
    "text": lambda: RuntimeError("CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA"),
    "cudnn": lambda: RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
}


def failing_while_others_wait(host: Host) -> Callable[[Forward], Forward]:
    """A forward that the device fails in for as long as the engine's queue is not empty."""

    def wrap(real: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if host.engine.queued:
                raise KINDS["accelerator"]()
            return real(*args, **kwargs)

        return forward

    return wrap


def ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz") as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code == 200


def loaded(host: Host) -> int:
    """How often something has been read."""
    return host.store.shelf.loads


def test_kinds_are_told_apart() -> None:
    for make in KINDS.values():
        assert is_device(make())
        assert not is_memory(make())
    assert is_memory(RuntimeError("CUDA error: out of memory"))
    assert not is_device(RuntimeError("CUDA error: out of memory"))
    # what odd input can bring about, and what the device is none the worse for
    assert not is_device(torch.AcceleratorError("CUDA error: invalid configuration argument"))
    assert not is_device(RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"))
    assert not is_device(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("component", ["unet", "decoder"])
def test_the_engine_is_replaced_and_models_are_loaded_anew(kind: str, component: str) -> None:
    with running_host() as host:
        host.warm_up()
        expected = draw(host, mode="exact").data
        broken = gate(host, "vae", "decoder") if component == "decoder" else gate(host, component)
        loads = loaded(host)
        with forward_of(broken, raising(KINDS[kind])):
            failed = draw(host, mode="exact")
        assert failed.code == "engine_restarted"
        assert "send it again" in failed.message
        wait_for(lambda: host.ready, "the host to be ready again")
        assert loaded(host) > loads
        assert gate(host, "vae", "decoder") is not broken
        assert gate(host, "unet") is not broken
        assert draw(host, mode="exact").data == expected
        assert (host.engine.running, host.engine.queued) == (0, 0)


def test_jobs_under_way_end_and_those_that_had_not_begun_go_on() -> None:
    with running_host(engine={"device": "cpu", "max_batch_rows": 2, "max_running": 1}) as host:
        host.warm_up()
        seeds = range(5)
        expected = [draw(host, mode="exact", seed=seed).data for seed in seeds]

        def wrap(real: Forward) -> Forward:
            def forward(*args: Any, **kwargs: Any) -> Any:
                if host.engine.queued < 4:  # all of them are there
                    return real(*args, **kwargs)
                raise KINDS["accelerator"]()

            return forward

        with forward_of(gate(host, "unet"), wrap):
            requests = [{"mode": "exact", "seed": seed} for seed in seeds]
            made = draw_all(host, {"num_inference_steps": 300, "mode": "exact"}, *requests)
        assert made[0].code == "engine_restarted"
        assert [pictures.data for pictures in made[1:]] == expected
        assert any(isinstance(event, Loading) for pictures in made[1:] for event in pictures.events)


def test_a_job_that_is_prepared_again_begins_with_what_was_asked(tmp_path: Path) -> None:
    """Plugins fill in a request when it is prepared; twice would be once too often."""
    source = """
        @hookimpl
        def modify_build(context):
            prompt = context.request.prompt + ", a green leaf"
            context.request = context.request.model_copy(update={"prompt": prompt})
    """
    engine = {"device": "cpu", "max_batch_rows": 2, "max_running": 1}
    with running_host(engine=engine, plugins=[plugin(tmp_path, "fills_in", source)]) as host:
        host.warm_up()
        expected = draw(host, mode="exact").data
        with forward_of(gate(host, "unet"), failing_while_others_wait(host)):
            first, second = draw_all(host, {"num_inference_steps": 300}, {"mode": "exact"})
        assert first.code == "engine_restarted"
        assert second.data == expected


def test_a_changed_job_that_had_not_begun_keeps_its_changes() -> None:
    with running_host(engine={"device": "cpu", "max_batch_rows": 2, "max_running": 1}) as host:
        host.warm_up()
        expected = draw(host, mode="exact", guidance_scale=3.0).data
        go = False

        def wrap(real: Forward) -> Forward:
            def forward(*args: Any, **kwargs: Any) -> Any:
                if go:
                    raise KINDS["accelerator"]()
                return real(*args, **kwargs)

            return forward

        async def run() -> list[Any]:
            nonlocal go
            first = asyncio.create_task(draw_soon(host, num_inference_steps=1000))
            await asyncio.to_thread(wait_for, lambda: host.engine.running == 1, "the first one to begin")
            second = asyncio.create_task(draw_soon(host, mode="exact"))
            await asyncio.to_thread(wait_for, lambda: host.engine.queued == 1, "the second one to wait")
            job = host.jobs.all()[1].id
            await host.dispatch("jobs.update", {"job": job, "guidance_scale": 3.0}, "test", lambda _: None)
            go = True
            return [await first, await second]

        with forward_of(gate(host, "unet"), wrap):
            first, second = asyncio.run(run())
        assert first.code == "engine_restarted"
        # its PNG also says what was changed; the pixels are those of the other guidance
        assert pixels(second.data[0]) == pixels(expected[0])


def pixels(png: bytes) -> bytes:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(png)).tobytes()


def test_readyz_goes_false_and_true_again() -> None:
    with serving() as served:
        host = served.host
        expected = draw(host).data
        assert ready(served.http)
        hold: list[bool] = [True]

        def wrap(real: Forward) -> Forward:
            def forward(*args: Any, **kwargs: Any) -> Any:
                raise KINDS["accelerator"]()

            return forward

        real_warm_up = host.warm_up

        def slow_warm_up(*args: Any, **kwargs: Any) -> None:
            wait_for(lambda: not hold[0], "the test to have looked")
            real_warm_up(*args, **kwargs)

        host.warm_up = slow_warm_up  # type: ignore[method-assign]
        with forward_of(gate(host, "unet"), wrap):
            assert draw(host).code == "engine_restarted"
        assert not ready(served.http)
        assert draw(host).data == expected  # who asks all the same is served
        hold[0] = False
        wait_for(lambda: ready(served.http), "the host to be ready again")
        assert draw(host).data == expected


def test_a_device_that_keeps_failing_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with running_host() as host:
        host.warm_up()

        def broken(*_: Any, **__: Any) -> Any:
            raise KINDS["accelerator"]()

        monkeypatch.setattr(host.runner, "rehearse", broken)  # the device fails in whatever the host tries
        for _ in range(engine_module.MOST_FAILURES):
            wait_for(lambda: host.engine.failed is not None or host.engine.alive, "a new loop")
            with forward_of(gate(host, "unet"), raising(KINDS["accelerator"])):
                assert draw(host).code == "engine_restarted"
        assert host.engine.failed is not None
        assert not host.engine.alive
        assert not host.ready
        assert any(r.levelno == logging.CRITICAL and "3 times within a minute" in r.message for r in caplog.records)
        failed = draw(host)
        assert failed.code == "engine_restarted"
        assert "start the host anew" in failed.message


def test_a_fault_met_by_a_load_restarts_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    from latentwire.core import model_store

    with running_host() as host:
        host.warm_up()
        expected = draw(host).data
        host.store.make_room()
        real = model_store.to_device
        left = [KINDS["accelerator"]()]

        def to_device(*args: Any, **kwargs: Any) -> None:
            if left:
                raise left.pop()
            real(*args, **kwargs)

        monkeypatch.setattr(model_store, "to_device", to_device)
        generation = host.engine.generation
        assert draw(host).code == "engine_restarted"
        wait_for(lambda: host.engine.generation > generation and host.ready, "the host to be ready again")
        assert draw(host).data == expected


@pytest.mark.slow
def test_the_process_ends_with_a_status_when_the_device_is_beyond_help(tmp_path: Path) -> None:
    """A real server: a plugin's hook plays the device that fails in each job."""
    (tmp_path / "broken.py").write_text(
        "import torch\n"
        "from latentwire import *\n"
        "@hookimpl\n"
        "def step_finished(context):\n"
        "    raise torch.AcceleratorError('CUDA error: an illegal memory access was encountered')\n"
    )
    (tmp_path / "plugins.toml").write_text(
        'discover = false\nengine = {device = "cpu", max_batch_rows = 8}\n'
        'plugins = [{name = "broken", path = "broken.py"}]\n'
    )
    command = [sys.executable, "-m", "latentwire", "serve", "--port", "0", "--config", str(tmp_path / "plugins.toml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = ""
        while not url:
            url = "".join(re.findall(r"socket  (\S+)", process.stdout.readline()))
        command = [sys.executable, "-m", "latentwire", "generate", "apple", "--steps", "2", "--url", url]
        for _ in range(engine_module.MOST_FAILURES):
            subprocess.run([*command, "-o", str(tmp_path / "apple.png")], capture_output=True, check=False)
        assert process.wait(timeout=60) == 1
        assert process.stderr is not None
        assert "the device failed 3 times within a minute" in process.stderr.read()
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


def test_a_fault_of_our_own_loop_ends_its_runs_alone() -> None:
    """What is not the device's and no run's: a listener that raises SystemExit."""
    with running_host() as host:
        expected = draw(host).data

        def began(_: float | None) -> None:
            raise SystemExit

        told: list[Any] = []
        host.engine.submit(Run("fast", lambda: 5, lambda *end: told.append(end), began=began))
        wait_for(lambda: bool(told), "the run's end")
        assert told == [(5, None)]
        assert draw(host).data == expected


def test_steps_of_a_restarted_job_are_not_told_twice() -> None:
    """A job that was displaced shows each of its steps once."""
    with running_host(engine={"device": "cpu", "max_batch_rows": 2, "max_running": 1}) as host:
        host.warm_up()
        with forward_of(gate(host, "unet"), failing_while_others_wait(host)):
            made = draw_all(host, {"num_inference_steps": 300}, {})
        steps = [event.step for event in made[1].events if isinstance(event, Step)]
        assert steps == [1, 2, 3]
