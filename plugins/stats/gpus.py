"""What NVIDIA's driver tells of the machine's GPUs, through NVML."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeVar

import pynvml  # type: ignore[import-untyped]

log = logging.getLogger(__name__)

Value = TypeVar("Value")

SHARED_S = 0.05  # readings closer than this are one: each asks the driver many things


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU; a figure that the driver does not give is None.

    `id` is NVML's number, `load` in percent, memory in bytes, `temperature` in degrees Celsius, `power` in watts.
    """

    id: int
    name: str | None
    load: float | None
    memory_total: int | None
    memory_used: int | None
    memory_free: int | None
    temperature: float | None
    power: float | None

    def plain(self) -> dict[str, Any]:
        """As the command `stats` gives it: GPUtil's names, and memory in MiB as there."""
        return {
            "id": self.id,
            "name": self.name,
            "load": self.load,
            "memoryTotal": _mib(self.memory_total),
            "memoryUsed": _mib(self.memory_used),
            "memoryFree": _mib(self.memory_free),
            "temperature": self.temperature,
            "power": self.power,
        }


class Gpus:
    """All GPUs. For one thread alone; no GPU, no driver and a driver that fails are normal cases."""

    def __init__(self) -> None:
        self._handles: list[tuple[int, Any]] | None = None
        self._last: list[Gpu] = []
        self._read_at = float("-inf")

    def read(self) -> list[Gpu]:
        """Their figures now; an empty list where there are none."""
        if self._handles is None:
            self._handles = _handles()
        if self._handles and monotonic() - self._read_at > SHARED_S:
            self._last = [_read(number, handle) for number, handle in self._handles]
            self._read_at = monotonic()
        return self._last


def _handles() -> list[tuple[int, Any]]:
    """Each GPU's number and NVML's handle of it."""
    try:
        pynvml.nvmlInit()
        count = int(pynvml.nvmlDeviceGetCount())
    except Exception as error:
        log.debug("no GPU figures: %s", error)
        return []
    handles = [(number, _ask(pynvml.nvmlDeviceGetHandleByIndex, number)) for number in range(count)]
    return [(number, handle) for number, handle in handles if handle is not None]


def _read(number: int, handle: Any) -> Gpu:
    load = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
    memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    temperature = _ask(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU)
    milliwatts = _ask(pynvml.nvmlDeviceGetPowerUsage, handle)
    return Gpu(
        id=number,
        name=_ask(pynvml.nvmlDeviceGetName, handle),
        load=load and float(load.gpu),
        memory_total=memory and int(memory.total),
        memory_used=memory and int(memory.used),
        memory_free=memory and int(memory.free),
        temperature=None if temperature is None else float(temperature),
        power=None if milliwatts is None else milliwatts / 1000,
    )


def _ask(question: Callable[..., Value], *args: Any) -> Value | None:
    """NVML's answer, or None: not every GPU knows everything, and a driver may fail in its own ways."""
    try:
        return question(*args)
    except Exception as error:
        log.debug("%s: %s", getattr(question, "__name__", question), error)
        return None


def _mib(nbytes: int | None) -> int | None:
    return None if nbytes is None else nbytes >> 20
