"""What a host tells of itself: health, readiness, metrics and its log; against a real server."""

import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from latentwire import RemoteError, connect_sync
from latentwire.client import Result

from .served import TOKEN, Server, server

FAILING = """
from latentwire import NoParams, hookimpl

async def fail(context, params):
    raise RuntimeError("on purpose")

@hookimpl
def register(registry):
    registry.add_command("failing.fail", NoParams, fail)
"""
TOML = '[[plugins]]\nname = "failing"\npath = "failing.py"\n[[plugins]]\nname = "stats"\n'
SMALL = {"width": 64, "height": 64, "num_inference_steps": 2}


def metrics(started: Server) -> dict[str, float]:
    text = started.get("/metrics", Authorization=f"Bearer {TOKEN}")[1].decode()
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


@pytest.mark.parametrize("kind", ["json", "text"])
def test_each_line_of_the_log_says_whom_and_what_it_is_about(tmp_path: Path, kind: str) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    with server(tmp_path, f"server.log={kind}", f"server.token={TOKEN}", toml=TOML) as started:
        with connect_sync(started.url, token=TOKEN) as client:
            *_, result = client.generate("red apple", **SMALL)
            assert isinstance(result, Result)
            with pytest.raises(RemoteError, match="on purpose"):
                client.call("failing.fail")
            session = client.hello["session"]
        assert started.stop() == 0
    assert not any(TOKEN in line for line in started.log)
    if kind == "text":
        assert any(re.fullmatch(rf"INFO .*\[client={session}, job={result.job}\]", line) for line in started.log)
        return
    lines = [json.loads(line) for line in started.log]
    assert all(line.keys() >= {"time", "level", "logger", "message"} for line in lines)
    job = next(line for line in lines if line.get("job") == result.job)
    assert (job["client"], job["level"]) == (session, "info")
    failed = next(line for line in lines if line.get("command") == "failing.fail")
    assert (failed["client"], failed["level"]) == (session, "error")
    assert "RuntimeError: on purpose" in failed["traceback"]


def test_metrics_count_what_happens_and_health_says_no_more_than_that(tmp_path: Path) -> None:
    with server(tmp_path, f"server.token={TOKEN}", toml=TOML.replace("failing", "gone")) as started:
        assert json.loads(started.get("/healthz")[1])["status"] == "ok"
        assert json.loads(started.get("/readyz")[1]) == {"ready": True}
        before = metrics(started)
        assert before["latentwire_ready"] == 1
        started.get("/", Authorization="Bearer wrong")
        started.get("/", Origin="http://evil.example")
        with connect_sync(started.url, token=TOKEN) as client:
            *_, _ = client.generate("red apple", **SMALL)
            with pytest.raises(RemoteError):
                client.call("generate", prompt="red apple", width=63)
            during = metrics(started)
        after = metrics(started)
        for name in ('refused_connections_total{reason="token"}', 'refused_connections_total{reason="page"}'):
            assert during[f"latentwire_{name}"] - before.get(f"latentwire_{name}", 0) == 1
        assert during['latentwire_jobs_ended_total{outcome="finished"}'] == 1
        assert during['latentwire_messages_total{outcome="taken"}'] == 2
        assert (during["latentwire_sessions"], after["latentwire_sessions"]) == (1, 0)


def test_a_model_that_cannot_be_loaded_is_not_ready_and_the_process_is_healthy(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    toml = '[models.broken]\npath = "broken"\n[defaults]\nmodel = "broken"\n'
    with server(tmp_path, toml=toml, ready=False) as started:
        assert started.get("/healthz")[0] == 200
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"{started.http}/readyz")
        with connect_sync(started.url) as client:
            with pytest.raises(RemoteError, match="model_load_failed"):
                client.call("generate", prompt="x")
            *_, last = client.generate("red apple", model="emoji", **SMALL)
            assert isinstance(last, Result)
