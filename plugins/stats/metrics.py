"""The same readings for Prometheus."""

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

from latentwire import Host

from .gpus import Gpu
from .readings import Reader

PREFIX = "latentwire_"

Series = Iterable[tuple[list[str], float | None]]
"""The values of a metric's labels, and its own; None where it is not known."""


class HostCollector(Collector):
    """Takes a reading of one host for each scrape."""

    def __init__(self, host: Host, reader: Reader) -> None:
        self._host = host
        self._reader = reader

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Every metric, once."""
        reading = self._reader.read(self._host)
        cpu, process, engine = reading.cpu, reading.process, reading.engine
        yield _gauge(
            "jobs",
            "Unfinished jobs by state.",
            [([state], engine[state]) for state in ("preparing", "running")],
            ["state"],
        )
        yield _gauge("runs", "Pictures that the engine works on.", _one(engine["runs"]))
        yield _counter("runs_finished", "Pictures that ended, well or not.", engine["runs_finished"])
        yield _counter("forwards", "Forwards of the engine.", engine["forwards"])
        yield _counter("calls", "Calls that the forwards served.", engine["calls"])
        yield _counter("rows", "Rows of the forwards; a picture with guidance has two.", engine["rows"])
        yield _counter("forward_seconds", "Time that the engine's thread spent in forwards.", engine["seconds"])
        yield _counter("loads", "Components and other things that were loaded.", engine["loads"])
        yield _counter("hits", "Components and other things that a job found loaded.", engine["hits"])
        yield _gauge(
            "loaded_bytes", "Memory of what is loaded.", _loaded(self._host), ["kind", "model", "name", "dtype"]
        )
        for name, text, label, counts in self._host.counters.read():
            family = CounterMetricFamily(PREFIX + name, text, labels=[label])
            for value, count in sorted(counts.items()):
                family.add_metric([value], count)
            yield family
        for name, (text, read) in self._host.counters.gauges.items():
            yield _gauge(name, text, _one(read()))
        yield _gauge("ready", "Whether the host takes jobs: 1 or 0.", _one(self._host.is_ready))
        yield _gauge("uptime_seconds", "Time since the host started.", _one(process["uptime"]))
        yield _gauge("process_memory_bytes", "Resident memory of the process.", _one(process["memory"]))
        yield _gauge("process_threads", "Threads of the process.", _one(process["threads"]))
        yield _counter("process_cpu_seconds", "CPU time that the process used.", reading.process_cpu_seconds)
        yield _gauge("cpu_load_ratio", "Recent load of all CPU cores, 0 to 1.", _one(_ratio(cpu["load"])))
        yield _gauge("cpu_cores", "CPU cores.", _one(cpu["cores"]))
        yield _gauge("machine_memory_size_bytes", "The machine's memory.", _one(cpu["memory"]["total"]))
        yield _gauge(
            "machine_memory_available_bytes",
            "The machine's memory that programs can still get.",
            _one(cpu["memory"]["available"]),
        )
        yield from _of_gpus(reading.gpus)


def registry_of(host: Host, reader: Reader) -> CollectorRegistry:
    """A registry for this host alone: there may be several in one process."""
    registry = CollectorRegistry()
    registry.register(HostCollector(host, reader))
    return registry


def _of_gpus(gpus: list[Gpu]) -> Iterator[GaugeMetricFamily]:
    for name, text, values in (
        ("load_ratio", "Load of the GPU, 0 to 1.", [_ratio(gpu.load) for gpu in gpus]),
        ("memory_size_bytes", "The GPU's memory.", [gpu.memory_total for gpu in gpus]),
        ("memory_used_bytes", "Memory of the GPU in use, by all programs.", [gpu.memory_used for gpu in gpus]),
        ("memory_free_bytes", "Memory of the GPU that is free.", [gpu.memory_free for gpu in gpus]),
        ("temperature_celsius", "Temperature of the GPU.", [gpu.temperature for gpu in gpus]),
        ("power_watts", "Power that the GPU draws.", [gpu.power for gpu in gpus]),
    ):
        labels = [[str(gpu.id), gpu.name or ""] for gpu in gpus]
        yield _gauge(f"gpu_{name}", text, zip(labels, values, strict=True), ["id", "name"])


def _loaded(host: Host) -> Series:
    store = host.store
    rows: list[tuple[str, str, dict[str, Any]]] = [("component", row["component"], row) for row in store.loaded()]
    rows += [("controlnet", row["name"], row) for row in store.brought("controlnet")]
    rows += [("adapter", row["name"], row) for row in store.brought("adapter")]
    return [([kind, row["model"], name, row["dtype"]], row["bytes"]) for kind, name, row in rows]


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(PREFIX + name, text, value)


def _gauge(name: str, text: str, series: Series, labels: list[str] = []) -> GaugeMetricFamily:
    family = GaugeMetricFamily(PREFIX + name, text, labels=labels)
    for values, value in series:
        if value is not None:
            family.add_metric(values, value)
    return family


def _one(value: float | None) -> Series:
    return [([], value)]


def _ratio(percent: float | None) -> float | None:
    return None if percent is None else percent / 100
