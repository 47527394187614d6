"""The plugin `stats`: its command, its subscription, `/metrics`, and its page in docs/."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from latentwire import Host, LatentwireError, connect_sync
from latentwire.testing import call, running_host, serving

from .conftest import Served
from .pages import ROOT, blocks, section, table
from .wire import SMALL, in_loop, wire

PAGE = (ROOT / "docs" / "plugins" / "stats.md").read_text(encoding="utf-8")
MESSAGES: list[dict[str, Any]] = [json.loads(block) for block in blocks(PAGE, "json")]
EXAMPLE: dict[str, Any] = MESSAGES[1]["result"]

CLEAN = {key: value for key, value in os.environ.items() if not key.startswith("LATENTWIRE_")}


def ask(host: Host, command: str, **params: Any) -> dict[str, Any]:
    result: dict[str, Any] = call(host, command, params)
    return result


def scrape(http: str, **headers: str) -> dict[str, Metric]:
    """All metrics of `/metrics`, by the names that the page gives them."""
    with urllib.request.urlopen(urllib.request.Request(f"{http}/metrics", headers=headers)) as answer:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        families = list(text_string_to_metric_families(answer.read().decode()))
    metrics = {metric.name + ("_total" if metric.type == "counter" else ""): metric for metric in families}
    assert len(metrics) == len(families)
    return metrics


def values(metric: Metric) -> dict[tuple[str, ...], float]:
    """A metric's values by those of its labels, in the order of their names."""
    return {tuple(value for _, value in sorted(sample.labels.items())): sample.value for sample in metric.samples}


def value(metric: Metric) -> float:
    (sample,) = metric.samples
    return float(sample.value)


def assert_same_keys(documented: Any, real: Any) -> None:
    """Both have the same keys at every depth; a key "..." stands for more of them."""
    if isinstance(documented, dict):
        named = documented.keys() - {"..."}
        assert named <= real.keys() if "..." in documented else named == real.keys()
        for key in named:
            assert_same_keys(documented[key], real[key])
    elif isinstance(documented, list):
        assert isinstance(real, list)
        for entry in real if documented else ():
            assert_same_keys(documented[0], entry)
    elif isinstance(documented, str):
        assert isinstance(real, str)
    else:
        assert real is None or isinstance(real, int | float)


# The command.


def test_the_figures_make_sense(host: Host) -> None:
    begin = time.monotonic()
    stats = ask(host, "stats")
    cpu, process = stats["cpu"], stats["process"]
    assert time.monotonic() - begin < 5
    assert 0 <= cpu["load"] <= 100
    assert cpu["cores"] == os.cpu_count()
    assert 0 < cpu["memory"]["available"] <= cpu["memory"]["total"]
    assert 0 < cpu["memory"]["used"] + cpu["memory"]["free"] <= cpu["memory"]["total"]
    assert 10 << 20 < process["memory"] < cpu["memory"]["total"]
    assert process["threads"] > 1
    assert 0 < process["uptime"] < 120
    json.dumps(stats, allow_nan=False)


def test_a_new_host_has_done_nothing(host: Host) -> None:
    engine = ask(host, "stats")["engine"]
    assert {name: count for name, count in engine.items() if count} == {"recent": engine["recent"]}
    recent = engine["recent"]
    assert recent == {"seconds": recent["seconds"], "forwards": 0, "rows_per_forward": None, "ms_per_forward": None}
    assert (engine["rows_per_forward"], engine["ms_per_forward"]) == (None, None)


def test_the_engines_figures_follow_a_job(host: Host) -> None:
    begin = time.monotonic()
    ask(host, "generate", prompt="red apple", num_inference_steps=2, guidance_scale=4.0, seed=1)
    seconds = time.monotonic() - begin
    engine = ask(host, "stats")["engine"]
    assert (engine["jobs"], engine["preparing"], engine["running"], engine["runs"]) == (0, 0, 0, 0)
    assert engine["runs_finished"] == 1
    assert engine["forwards"] == engine["calls"] >= 4  # two steps, text encoder, decoder
    assert engine["rows"] >= 6  # two of each step, for guidance
    assert engine["rows_per_forward"] == pytest.approx(engine["rows"] / engine["forwards"], abs=0.001)
    assert 0 < engine["seconds"] < seconds
    assert engine["ms_per_forward"] == pytest.approx(1000 * engine["seconds"] / engine["forwards"], rel=0.02)
    assert engine["recent"]["forwards"] == engine["forwards"]  # nobody read before
    assert engine["recent"]["rows_per_forward"] == engine["rows_per_forward"]
    assert engine["loads"] > 0 == engine["hits"]
    ask(host, "generate", prompt="red apple", num_inference_steps=2, seed=1)
    again = ask(host, "stats")["engine"]
    assert again["loads"] == engine["loads"] == again["hits"]
    assert again["runs_finished"] == 2


def test_recent_figures_are_of_the_time_since_the_last_reading(host: Host) -> None:
    ask(host, "generate", prompt="red apple", num_inference_steps=2, seed=1)
    first = ask(host, "stats")["engine"]
    time.sleep(1)
    idle = ask(host, "stats")["engine"]
    assert idle["forwards"] == first["forwards"]
    assert idle["recent"]["forwards"] == 0
    assert idle["recent"]["ms_per_forward"] is None
    assert 0.9 <= idle["recent"]["seconds"] < 5


def test_a_busy_process_shows(host: Host) -> None:
    ask(host, "stats")
    end = time.monotonic() + 1
    while time.monotonic() < end:
        pass
    stats = ask(host, "stats")
    assert stats["process"]["cpu"] > 20
    assert stats["cpu"]["load"] > 0


@in_loop
async def test_a_job_is_counted_while_it_runs(served: Served) -> None:
    async with wire(served.url) as client:
        await client.send(1, "generate", **SMALL | {"num_inference_steps": 1000})
        job = (await client.until("step", 1))["job"]
        engine = (await client.ask("stats"))["engine"]
        assert (engine["jobs"], engine["preparing"], engine["running"], engine["runs"]) == (1, 0, 1, 1)
        assert values((await asyncio.to_thread(scrape, served.http))["latentwire_jobs"]) == {
            ("preparing",): 0,
            ("running",): 1,
        }
        await client.ask("cancel", job=job)


@in_loop
async def test_no_reading_holds_up_the_loop(host: Host) -> None:
    """The first one after the start has to measure for a while."""
    reading = asyncio.create_task(host.dispatch("stats", {}, "test", lambda _: None))
    turns = 0
    while not reading.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 20


def test_many_ask_at_once(host: Host) -> None:
    async def all_of_them() -> list[dict[str, Any]]:
        return await asyncio.gather(*(host.dispatch("stats", {}, "test", lambda _: None) for _ in range(50)))

    assert len({stats["cpu"]["cores"] for stats in asyncio.run(all_of_them())}) == 1


# The subscription.


@in_loop
async def test_a_subscription_sends_the_figures_each_period_until_it_is_ended(served: Served) -> None:
    async with wire(served.url) as client, wire(served.url) as other:
        await client.send("sub", "stats.subscribe", period=0.3)
        subscribed = await client.receive()
        assert subscribed["event"] == "subscribed"
        subscription = subscribed["subscription"]
        times = []
        for _ in range(4):
            message = await client.receive()
            assert (message["id"], message["event"]) == ("sub", "stats")
            assert message["stats"].keys() == EXAMPLE.keys()
            times.append(time.monotonic())
        assert 0.4 < times[3] - times[1] < 5

        refused = await other.error(1, "unsubscribe", subscription=subscription)
        assert refused["code"] == "unknown_subscription"
        assert (await client.receive())["event"] == "stats"  # it goes on

        await client.send("end", "unsubscribe", subscription=subscription)
        ends = [message async for message in rest(client, 2) if message["event"] != "stats"]
        assert {message["id"]: message["result"] for message in ends} == {
            "end": {"subscription": subscription},
            "sub": {"subscription": subscription},
        }
        await asyncio.sleep(0.5)
        await client.send("ping", "ping")
        assert (await client.receive())["id"] == "ping"  # nothing came after the result
        refused = await client.error(2, "unsubscribe", subscription=subscription)
        assert refused["code"] == "unknown_subscription"


async def rest(client: Any, ends: int) -> Any:
    """What comes until so many commands have ended."""
    while ends:
        message = await client.receive()
        ends -= message["event"] in ("result", "error")
        yield message


@in_loop
async def test_two_subscriptions_of_one_client_are_apart(served: Served) -> None:
    async with wire(served.url) as client:
        await client.send(1, "stats.subscribe", period=0.1)
        await client.send(2, "stats.subscribe", period=3600)
        first = (await client.until("subscribed", 1))["subscription"]
        await client.until("stats", 2)
        await client.until("stats", 1)
        await client.send(3, "unsubscribe", subscription=first)
        assert (await client.until("result", 1))["result"] == {"subscription": first}


@in_loop
async def test_a_subscription_ends_with_its_connection(served: Served) -> None:
    async with wire(served.url) as client:
        await client.send(1, "stats.subscribe", period=0.1)
        subscription = (await client.until("subscribed"))["subscription"]
        await client.until("stats")
    await asyncio.sleep(1)
    with pytest.raises(LatentwireError) as caught:
        served.host.subscriptions.end(subscription, client.hello["session"])
    assert caught.value.code == "unknown_subscription"


@pytest.mark.parametrize("period", [0.05, 0, -1, 3601, float("nan"), float("inf"), "1", True, None, [1.0]])
def test_a_wrong_period_is_refused_with_its_place(host: Host, period: Any) -> None:
    with pytest.raises(LatentwireError, match=r"stats\.subscribe: period: ") as caught:
        ask(host, "stats.subscribe", period=period)
    assert caught.value.code == "invalid_params"
    assert caught.value.details[0]["path"] == ["period"]


@pytest.mark.parametrize("command", ["stats", "stats.subscribe"])
def test_unknown_params_are_refused(host: Host, command: str) -> None:
    with pytest.raises(LatentwireError, match="unknown key") as caught:
        ask(host, command, perod=1)
    assert caught.value.code == "invalid_params"


def test_describe_lists_commands_and_event(host: Host) -> None:
    told = ask(host, "describe")
    assert {name for name, entry in told["commands"].items() if entry["plugin"] == "stats"} == {
        "stats",
        "stats.subscribe",
    }
    assert told["events"]["stats"]["latest_wins"] is True


# Metrics.


def test_the_metrics_documented_are_those_of_a_host(served: Served) -> None:
    metrics = scrape(served.http)
    documented = table(section(PAGE, "`GET /metrics`"))
    assert documented.keys() == metrics.keys()
    for name, (kind, labels, *_) in documented.items():
        assert metrics[name].type == kind, name
        assert metrics[name].documentation.endswith("."), name
        for sample in metrics[name].samples:
            assert set(re.findall(r"`(\w+)`", labels)) == sample.labels.keys(), name


def test_metrics_agree_with_the_command() -> None:
    with serving("stats") as served:
        ask(served.host, "generate", prompt="red apple", num_inference_steps=2, seed=1)
        engine, metrics = ask(served.host, "stats")["engine"], scrape(served.http)
        for name in ("runs_finished", "forwards", "calls", "rows", "loads", "hits"):
            assert value(metrics[f"latentwire_{name}_total"]) == engine[name] > 0
        assert value(metrics["latentwire_forward_seconds_total"]) == pytest.approx(engine["seconds"])
        assert value(metrics["latentwire_runs"]) == 0
        loaded = {
            (row["dtype"], "component", "emoji", row["component"]): row["bytes"] for row in served.host.store.loaded()
        }
        assert values(metrics["latentwire_loaded_bytes"]) == loaded
        assert ("float32", "component", "emoji", "unet") in loaded
        assert 0 <= value(metrics["latentwire_cpu_load_ratio"]) <= 1
        assert 0 < value(metrics["latentwire_process_cpu_seconds_total"]) < 10_000
        assert value(metrics["latentwire_machine_memory_size_bytes"]) > value(
            metrics["latentwire_process_memory_bytes"]
        )
        ask(served.host, "generate", prompt="red apple", num_inference_steps=2, seed=1)
        later = scrape(served.http)
        for name in ("runs_finished", "forwards", "forward_seconds", "hits", "process_cpu_seconds"):
            assert value(later[f"latentwire_{name}_total"]) > value(metrics[f"latentwire_{name}_total"])


def test_two_hosts_of_one_process_count_apart(served: Served) -> None:
    with serving("stats") as fresh:
        ask(served.host, "generate", prompt="red apple", num_inference_steps=2, seed=1)
        assert value(scrape(served.http)["latentwire_runs_finished_total"]) >= 2
        assert value(scrape(fresh.http)["latentwire_runs_finished_total"]) == 1  # its own first one


def test_metrics_are_for_those_who_may_use_the_host() -> None:
    with serving("stats", server={"token": "sixteen letters!"}) as served:
        with pytest.raises(urllib.error.HTTPError, match="401") as caught:
            scrape(served.http)
        caught.value.close()
        assert scrape(served.http, Authorization="Bearer sixteen letters!")
        request = urllib.request.Request(f"{served.http}/metrics", b"", {"Authorization": "Bearer sixteen letters!"})
        with pytest.raises(urllib.error.HTTPError, match="405") as caught:
            urllib.request.urlopen(request)
        caught.value.close()


def test_it_can_be_switched_off() -> None:
    with running_host() as host:
        assert not host.registry.routes.keys() & {"stats"}
        with pytest.raises(LatentwireError, match="there is no command 'stats'"):
            ask(host, "stats")


# GPUs.

DRIVER = """
#include <string.h>

typedef struct { unsigned gpu, memory; } Load;
typedef struct { unsigned long long total, free, used; } Memory;

int nvmlInitWithFlags(unsigned flags) { return 0; }
const char *nvmlErrorString(int code) { return "it does not work"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 3; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **gpu) {
    *gpu = (void *)(index + 1ul);
    return index == 1 ? 15 : 0;
}
int nvmlDeviceGetName(void *gpu, char *name, unsigned size) { strncpy(name, "Test GPU", size); return 0; }
int nvmlDeviceGetUtilizationRates(void *gpu, Load *load) { load->gpu = 42; return gpu == (void *)1 ? 0 : 999; }
int nvmlDeviceGetMemoryInfo(void *gpu, Memory *memory) {
    *memory = (Memory){8ull << 30, 6ull << 30, 2ull << 30};
    return 0;
}
int nvmlDeviceGetTemperature(void *gpu, int sensor, unsigned *celsius) { *celsius = 61; return sensor; }
int nvmlDeviceGetPowerUsage(void *gpu, unsigned *milliwatts) { *milliwatts = 71500; return gpu == (void *)1 ? 0 : 3; }
"""
"""A driver's library as NVML's headers describe it: GPU 1 is lost, and GPU 2 tells neither load nor power."""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with that library, for LD_LIBRARY_PATH."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(DRIVER)
    target = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(target), str(folder / "driver.c")], check=True)
    return folder


@contextmanager
def serving_with(driver: Path, folder: Path) -> Iterator[str]:
    """A server as a process of its own, which finds the driver's library in that folder; the address of its page."""
    command = [sys.executable, "-m", "latentwire", "serve", "--port", "0", "--device", "cpu", "--set", "discover=false"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=folder,
            env=CLEAN | {"LD_LIBRARY_PATH": str(driver)},
        )
    assert process.stdout is not None
    try:
        printed = [process.stdout.readline().split() for _ in range(4)]
        assert printed[1][:1] == ["page"], (folder / "log").read_text()
        yield printed[1][1].rstrip("/")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert "Traceback" not in (folder / "log").read_text()


def read_all(http: str) -> tuple[dict[str, Any], dict[str, Metric]]:
    with connect_sync(http.replace("http", "ws") + "/ws") as host:
        return host.call("stats"), scrape(http)


@pytest.mark.slow
def test_a_machine_without_gpus_has_none(tmp_path: Path) -> None:
    """An empty file is no library, so this is the same on a machine that has GPUs."""
    (tmp_path / "libnvidia-ml.so.1").touch()
    with serving_with(tmp_path, tmp_path) as http:
        stats, metrics = read_all(http)
    assert stats["gpus"] == []
    assert stats["cpu"]["cores"] > 0
    assert [metric.name for metric in metrics.values() if "_gpu_" in metric.name and metric.samples] == []


@pytest.mark.slow
def test_gpus_are_read_and_what_the_driver_does_not_tell_is_null(driver: Path, tmp_path: Path) -> None:
    with serving_with(driver, tmp_path) as http:
        stats, metrics = read_all(http)
    memory = {"memoryTotal": 8192, "memoryUsed": 2048, "memoryFree": 6144}
    assert stats["gpus"] == [
        {"id": 0, "name": "Test GPU", "load": 42.0, **memory, "temperature": 61.0, "power": 71.5},
        {"id": 2, "name": "Test GPU", "load": None, **memory, "temperature": 61.0, "power": None},
    ]
    assert_same_keys(EXAMPLE["gpus"], stats["gpus"])
    both = [("0", "Test GPU"), ("2", "Test GPU")]
    assert values(metrics["latentwire_gpu_load_ratio"]) == {both[0]: 0.42}
    assert values(metrics["latentwire_gpu_memory_used_bytes"]) == dict.fromkeys(both, 2 << 30)
    assert values(metrics["latentwire_gpu_memory_free_bytes"]) == dict.fromkeys(both, 6 << 30)
    assert values(metrics["latentwire_gpu_memory_size_bytes"]) == dict.fromkeys(both, 8 << 30)
    assert values(metrics["latentwire_gpu_temperature_celsius"]) == dict.fromkeys(both, 61)
    assert values(metrics["latentwire_gpu_power_watts"]) == {both[0]: 71.5}


# The page.


@in_loop
async def test_every_example_of_the_page_is_answered_as_it_says(served: Served) -> None:
    """Examples that follow one another are one conversation; the subscription has another id each time."""
    documented: dict[str, str] = {}
    async with wire(served.url) as client:
        for message in MESSAGES:
            if "command" in message:
                params = message["params"]
                if params.get("subscription") in documented:
                    params = params | {"subscription": documented[params["subscription"]]}
                await client.send(message["id"], message["command"], **params)
                continue
            real = await client.until(message["event"], message["id"])
            if message["event"] == "subscribed":
                documented[message["subscription"]] = real["subscription"]
            if message["event"] == "error":
                assert real | {"seq": message["seq"]} == message
            assert_same_keys(message, real)


def test_the_figures_documented_are_those_of_the_command() -> None:
    def paths(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
        for name, entry in values.items():
            inner = entry[0] if isinstance(entry, list) else entry
            yield from paths(inner, f"{prefix}{name}.") if isinstance(inner, dict) else [prefix + name]

    assert list(table(section(PAGE, "`stats`"))) == list(paths(EXAMPLE))
