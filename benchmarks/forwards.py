"""The denoiser's raw forward by rows: dtypes, memory formats and, with --compile, torch.compile, side by side.

In each round every variant makes one forward of the same rows; ratios are of each round's pair to the plain variant
(contiguous, not compiled) of the same dtype, above 1 is faster. Compiled is as `models.NAME.compile` does it.
The knee is the batch size from which more rows gain nothing. Prints JSON.

    python benchmarks/forwards.py [--rows 2,4,8,16,32] [--rounds 9] [--dtypes float32,bfloat16] [--compile] [--keep]
"""

import argparse
import json
import platform
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from latentwire.core.compiled import CompiledForward
from latentwire.core.gates import gate_of, install_gate
from latentwire.core.memory import keep_freed_memory
from latentwire.core.pace import Pace, made_up_inputs
from latentwire.core.settings import EMBEDDED_MODEL

CPU = torch.device("cpu")
PLAIN = "contiguous"
Forward = Callable[..., Any]


def variants(dtype: torch.dtype, compiled: bool) -> tuple[UNet2DConditionModel, dict[str, Forward], dict[str, float]]:
    """A denoiser, forwards of equal weights by what is done to them, and how many seconds compiling took."""
    forwards: dict[str, Forward] = {}
    seconds: dict[str, float] = {}
    for name in (PLAIN, "channels_last"):
        unet = UNet2DConditionModel.from_pretrained(EMBEDDED_MODEL / "unet").to(dtype).eval().requires_grad_(False)
        if name != PLAIN:
            unet.to(memory_format=torch.channels_last)
        forwards[name] = unet.forward
        if compiled:
            install_gate(unet, "unet")
            gate = gate_of(unet)
            assert gate is not None
            begin = perf_counter()
            forwards[f"compiled, {name}"] = CompiledForward(gate, unet, CPU, 63)
            seconds[f"compiled, {name}"] = round(perf_counter() - begin, 1)
    return unet, forwards, seconds


def measure(unet: Any, forwards: dict[str, Forward], counts: list[int], rounds: int) -> list[dict[str, Any]]:
    """For each number of rows: milliseconds and ratios of each variant."""
    results = []
    for rows in counts:
        inputs = made_up_inputs(unet, rows, CPU) or {}
        seconds: dict[str, list[float]] = {name: [] for name in forwards}
        for number in range(rounds + 1):
            for name, forward in forwards.items():
                begin = perf_counter()
                forward(**inputs)
                if number:  # the first one fills caches
                    seconds[name].append(perf_counter() - begin)
        row: dict[str, Any] = {"rows": rows, "ms": {}, "rows_per_s": {}, "over_plain": {}}
        for name, taken in seconds.items():
            row["ms"][name] = round(median(taken) * 1000, 2)
            row["rows_per_s"][name] = round(rows / median(taken), 1)
            ratio = median(plain / mine for plain, mine in zip(seconds[PLAIN], taken, strict=True))
            row["over_plain"][name] = round(ratio, 3)
        results.append(row)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="2,4,8,16,32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--compile", action="store_true", help="also compiled: a minute more for each dtype and format")
    parser.add_argument("--keep", action="store_true", help="keep freed memory, as the server does")
    options = parser.parse_args()
    if options.keep:
        keep_freed_memory()
    counts = [int(rows) for rows in options.rows.split(",")]
    results: dict[str, Any] = {}
    with torch.inference_mode():
        for dtype in options.dtypes.split(","):
            unet, forwards, compiling = variants(getattr(torch, dtype), options.compile)
            rows = measure(unet, forwards, counts, options.rounds)
            knees = {name: Pace({row["rows"]: row["ms"][name] for row in rows}).knee for name in forwards}
            results[dtype] = {"knee": knees, "seconds_to_compile": compiling, "forwards": rows}
    settings = {"rounds": options.rounds, "threads": torch.get_num_threads(), "machine": platform.machine()}
    capabilities = {key: value for key, value in torch.cpu.get_capabilities().items() if isinstance(value, bool)}
    settings |= {"cpu_has": sorted(key for key, has in capabilities.items() if has), "keeps_memory": options.keep}
    print(json.dumps({"benchmark": "forwards", **settings, "dtypes": results}, indent=2))


if __name__ == "__main__":
    main()
