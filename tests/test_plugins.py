"""Plugins on a real host: what they may change, and what happens when they fail."""

import asyncio
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from latentwire.core.errors import LatentwireError, PluginError
from latentwire.testing import call, generate, running_host

from .conftest import running_host as any_host  # also one whose plugins fail to load

REQUEST = {"prompt": "red apple", "num_inference_steps": 2, "seed": 1}


def plugin(folder: Path, name: str, source: str, **settings: Any) -> dict[str, Any]:
    """Write a plugin's file; its entry for the settings."""
    path = folder / f"{name}.py"
    path.write_text("from latentwire import *\n" + dedent(source))
    return {"name": name, "path": path, "settings": settings}


RAISES = """
    @hookimpl
    def {hook}({argument}):
        {guard}
        raise {error}("on purpose")
"""


@pytest.mark.parametrize("error", ["ValueError", "SystemExit", "KeyboardInterrupt"])
@pytest.mark.parametrize("hook", ["modify_build", "modify_call", "step_finished", "image_finished", "image_encoded"])
def test_a_plugin_that_raises_fails_only_its_own_job_and_is_named(tmp_path: Path, hook: str, error: str) -> None:
    guard = "if context.request.prompt != 'mine': return"
    source = RAISES.format(hook=hook, argument="context", error=error, guard=guard)
    with running_host(plugin(tmp_path, "broken", source)) as host:
        outcomes: dict[str, Any] = {}

        async def both() -> None:
            async def one(prompt: str) -> None:
                try:
                    fields = REQUEST | {"prompt": prompt}
                    outcomes[prompt] = await host.dispatch("generate", fields, "test", lambda _: None)
                except LatentwireError as caught:
                    outcomes[prompt] = caught

            await asyncio.gather(one("mine"), one("theirs"))

        asyncio.run(both())
        assert isinstance(outcomes["mine"], PluginError)
        assert (outcomes["mine"].plugin, outcomes["mine"].hook) == ("broken", hook)
        assert "broken" in outcomes["mine"].message
        assert "on purpose" in outcomes["mine"].message
        assert outcomes["theirs"]["images"] == 1
        assert generate(host).picture


def test_a_plugin_that_raises_in_register_is_reported_and_unregistered_whole(tmp_path: Path) -> None:
    source = """
        @hookimpl
        def register(registry):
            registry.add_field("half_done", Strict)
            raise ValueError("on purpose")

        @hookimpl
        def modify_call(context):
            raise AssertionError("must never run")
    """
    with any_host(plugins=[plugin(tmp_path, "broken", source)]) as host:
        report = next(report for report in host.plugins.reports if report.name == "broken")
        assert report.state == "failed"
        assert "on purpose" in (report.error or "")
        assert "Traceback" in (report.trace or "")
        assert "half_done" not in host.request_model.model_fields
        assert generate(host).picture


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_package", "no_such_package"),
        ("def broken(:", "SyntaxError"),
        ("@hookimpl\ndef modify_cal(context): ...", "modify_cal"),
        ("@hookimpl\nasync def modify_call(context): ...", "must not be async"),
        ("@hookimpl\ndef modify_call(contxt): ...", "contxt"),
        ("@hookimpl(wrapper=True)\ndef modify_call(context):\n    yield", "must not be a wrapper"),
        ("raise SystemExit(3)", "SystemExit"),
        ("@hookimpl\ndef register(registry): registry.add_scheduler('ddim', None)", "'latentwire'"),
        ("@hookimpl\ndef register(registry): registry.add_field('prompt', Strict)", "prompt"),
        ("@hookimpl\ndef register(registry): registry.add_field('tint', 'text')", "pydantic model"),
        ("@hookimpl\ndef register(registry): registry.add_command('a.b', Strict, print)", "async function"),
        ("@hookimpl\ndef register(registry): registry.add_scheduler(5, print)", "a name must be a text, got 5"),
        ("@hookimpl\ndef register(registry): registry.add_previewer('', print)", "a name must be a text, got ''"),
        ("class Settings(Strict):\n    strength: float = 1.0", "strength"),
        (
            "from typing import Callable\nclass Settings(Strict):\n    strenght: float\n    act: Callable = print",
            "its Settings have no JSON Schema: PydanticInvalidForJsonSchema",
        ),
    ],
)
def test_a_plugin_that_cannot_load_is_reported_and_the_host_runs_on(tmp_path: Path, source: str, said: str) -> None:
    settings = {"strenght": 0.5} if "Settings" in source else {}
    (tmp_path / "broken.py").write_text("from latentwire import *\n" + source)
    entry = {"name": "broken", "path": tmp_path / "broken.py", "settings": settings}
    working = plugin(tmp_path, "working", "@hookimpl\ndef modify_call(context): ...")
    with any_host(plugins=[entry, working]) as host:
        reports = {report.name: report for report in host.plugins.reports}
        assert reports["broken"].state == "failed"
        assert said in (reports["broken"].error or "")
        assert reports["working"].state == "loaded"
        assert "working" in call(host, "describe")["plugins"]
        assert generate(host).picture


def test_hooks_run_in_the_order_of_the_settings(tmp_path: Path) -> None:
    source = """
        from dataclasses import replace

        @hookimpl
        def modify_call(context):
            context.call = replace(context.call, prompt=context.call.prompt + " {name}")

        @hookimpl
        def image_finished(context):
            context.metadata["order"] = context.metadata.get("order", "") + "{name}"
    """
    plugins = [plugin(tmp_path, name, source.format(name=name)) for name in ("second", "first")]
    with running_host(*plugins) as host:
        names = [report.name for report in host.plugins.reports]
        assert names.index("second") < names.index("first")
        assert generate(host).picture.info["order"] == "secondfirst"


def test_a_plugin_that_cannot_forget_a_client_keeps_no_other_from_it(tmp_path: Path) -> None:
    first = plugin(
        tmp_path,
        "first",
        """
        @hookimpl
        def client_left(context):
            raise SystemExit("on purpose")
    """,
    )
    second = plugin(
        tmp_path,
        "second",
        """
        gone = []

        @hookimpl
        def client_left(context):
            gone.append(context.client)
    """,
    )
    with running_host(first, second) as host:
        host.client_left("somebody")
        assert sys.modules["latentwire_plugin_second"].gone == ["somebody"]


def test_a_disabled_plugin_does_not_run(tmp_path: Path) -> None:
    entry = plugin(tmp_path, "broken", "raise ValueError") | {"enabled": False}
    with any_host(plugins=[entry, {"name": "clip_skip", "enabled": False}]) as host:
        states = {report.name: report.state for report in host.plugins.reports}
        assert (states["broken"], states["clip_skip"]) == ("disabled", "disabled")
        assert "clip_skip" not in host.request_model.model_fields


def test_a_plugin_class_gets_its_settings_and_adds_a_command(tmp_path: Path) -> None:
    source = """
        class Settings(Strict):
            answer: int

        class Plugin:
            def __init__(self, settings):
                self.settings = settings

            @hookimpl
            def register(self, registry):
                registry.add_command("answers.get", Strict, self.get)

            async def get(self, context, params):
                "Give the answer."
                return {"answer": self.settings.answer}
    """
    with running_host(plugin(tmp_path, "answers", source, answer=42)) as host:
        assert call(host, "answers.get") == {"answer": 42}
        described = call(host, "describe")
        assert described["commands"]["answers.get"]["plugin"] == "answers"
        assert described["commands"]["answers.get"]["summary"] == "Give the answer."


def test_a_replaced_latent_changes_the_picture_and_a_wrong_shape_fails_the_job(tmp_path: Path) -> None:
    source = """
        @hookimpl
        def step_finished(context):
            if context.request.prompt == "wrong":
                context.latents = context.latents[:, :2]
            elif context.request.prompt == "zero" and context.step == context.steps:
                assert context.original.shape == context.latents.shape
                context.latents = context.latents * 0
    """
    with running_host(plugin(tmp_path, "changes", source)) as host:
        assert not generate(host, "zero", output_type="latent").latents.any()
        with pytest.raises(PluginError, match=r"'changes' failed in step_finished.*shape"):
            generate(host, "wrong")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("@hookimpl\ndef modify_build(context): context.build = 'unet'", "modify_build"),
        ("@hookimpl\ndef modify_call(context): context.call = None", "modify_call"),
        ("@hookimpl\ndef image_finished(context): context.image = None", "image_finished"),
        ("@hookimpl\ndef image_finished(context): context.metadata['seed'] = 7", "image_finished"),
    ],
)
def test_a_hook_that_leaves_nonsense_behind_is_named(tmp_path: Path, source: str, said: str) -> None:
    (tmp_path / "careless.py").write_text("from latentwire import *\n" + source)
    wanted = f"'careless' failed in {said}: TypeError: context"
    with (
        running_host(tmp_path / "careless.py") as host,
        pytest.raises(PluginError, match=wanted),
    ):
        generate(host)


@pytest.mark.parametrize("raised", ["SystemExit(1)", "KeyboardInterrupt()", "asyncio.CancelledError()", "ValueError()"])
def test_whatever_a_plugins_command_raises_is_an_error_that_names_it(tmp_path: Path, raised: str) -> None:
    source = f"""
        import asyncio

        async def fail(context, params):
            raise {raised}

        @hookimpl
        def register(registry):
            registry.add_command("broken.fail", Strict, fail)
    """
    with running_host(plugin(tmp_path, "broken", source)) as host:
        with pytest.raises(PluginError, match=r"'broken' failed in command broken\.fail"):
            call(host, "broken.fail")
        assert generate(host).picture


def test_a_pipeline_argument_of_a_plugin_cannot_break_the_hosts_own(tmp_path: Path) -> None:
    source = """
        @hookimpl
        def modify_call(context):
            context.call = context.call.with_extra(output_type="np", prompt="another")
    """
    with running_host(plugin(tmp_path, "careless", source)) as host:
        assert generate(host).picture


def test_nan_in_the_picture_is_an_error_not_a_black_picture(tmp_path: Path) -> None:
    source = """
        @hookimpl
        def step_finished(context):
            context.latents = context.latents * float("nan")
    """
    with (
        running_host(plugin(tmp_path, "nan", source)) as host,
        pytest.raises(LatentwireError, match="NaN"),
    ):
        generate(host)


def test_a_slow_hook_of_one_plugin_does_not_lose_steps_of_other_jobs(tmp_path: Path) -> None:
    source = """
        import time

        @hookimpl
        def image_finished(context):
            time.sleep(0.2)
    """
    with running_host(plugin(tmp_path, "slow", source)) as host:
        done = generate(host, num_images=3, mode="fast")
        assert len(done.events.named("step")) == 6
        assert len(done.pictures) == 3


def test_a_package_that_has_a_built_in_plugins_name_takes_nothing_from_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "lw_taken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lw-taken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[latentwire]\nlora = lw_taken\n")
    monkeypatch.syspath_prepend(tmp_path)
    with any_host(discover=True) as host:
        states = [report.state for report in host.plugins.reports if report.name == "lora"]
        assert states == ["loaded", "failed"]
        assert call(host, "lora.list")["loras"] == []
        assert "lora" in host.request_model.model_fields
