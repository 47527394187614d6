"""What every benchmark prints: its name, the machine that it ran on, how it was asked, and what it measured."""

import argparse
import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any


def show(benchmark: str, options: argparse.Namespace, **figures: Any) -> None:
    """Print JSON."""
    asked = {name: value for name, value in vars(options).items() if value is not None}
    print(
        json.dumps({"benchmark": benchmark, "machine": machine(), "options": asked, **figures}, indent=2, default=str)
    )


def machine() -> dict[str, Any]:
    """What the figures depend on; `load` tells how busy the machine was in the minute before the end."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else "unknown",
        "cores": os.cpu_count(),
        "torch": version("torch"),
        "load": round(os.getloadavg()[0], 1),
    }


def summary(values: Sequence[float], digits: int = 2) -> dict[str, Any]:
    """Median, 99th percentile and worst, and of how many."""
    ordered = sorted(values)
    high = ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]
    return {
        "median": round(median(ordered), digits),
        "p99": round(high, digits),
        "worst": round(ordered[-1], digits),
        "count": len(ordered),
    }


def middle(values: Sequence[float], digits: int = 3) -> float:
    """The median, rounded."""
    return round(median(values), digits)
