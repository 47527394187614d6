"""The denoiser's raw forward by rows: dtypes, memory formats and, with --compile, torch.compile, side by side.

In each round every variant makes one forward of the same rows; ratios are of each round's pair to the plain variant
(eager, contiguous) of the same dtype, above 1 is faster. The knee is the batch size from which more rows gain nothing.
Prints JSON.

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

from latentwire.core.memory import keep_freed_memory
from latentwire.core.pace import Pace, made_up_inputs
from latentwire.core.settings import EMBEDDED_MODEL

PLAIN = "contiguous"
Forward = Callable[..., Any]


def variants(dtype: torch.dtype, compiled: bool) -> dict[str, Any]:
    """Modules of equal weights by what is done to them."""
    made: dict[str, Any] = {}
    names = [PLAIN, "channels_last", *(["compiled", "compiled_channels_last"] if compiled else [])]
    for name in names:
        unet = UNet2DConditionModel.from_pretrained(EMBEDDED_MODEL / "unet").to(dtype).eval().requires_grad_(False)
        if name.endswith("channels_last"):
            unet.to(memory_format=torch.channels_last)
        if name.startswith("compiled"):
            unet.compile(dynamic=False)
        made[name] = unet
    return made


def measure(modules: dict[str, Any], counts: list[int], rounds: int) -> list[dict[str, Any]]:
    """For each number of rows: milliseconds and ratios of each variant."""
    results = []
    for rows in counts:
        inputs = made_up_inputs(modules[PLAIN], rows, torch.device("cpu")) or {}
        seconds: dict[str, list[float]] = {name: [] for name in modules}
        first: dict[str, float] = {}
        for number in range(rounds + 1):
            for name, module in modules.items():
                begin = perf_counter()
                module(**inputs)
                taken = perf_counter() - begin
                if number:
                    seconds[name].append(taken)
                else:  # it compiles, or fills caches
                    first[name] = taken
        row: dict[str, Any] = {"rows": rows, "ms": {}, "rows_per_s": {}, "over_plain": {}, "first_s": {}}
        for name, taken_s in seconds.items():
            row["ms"][name] = round(median(taken_s) * 1000, 2)
            row["rows_per_s"][name] = round(rows / median(taken_s), 1)
            ratio = median(plain / mine for plain, mine in zip(seconds[PLAIN], taken_s, strict=True))
            row["over_plain"][name] = round(ratio, 3)
            if name.startswith("compiled"):
                row["first_s"][name] = round(first[name], 1)
        results.append(row)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="2,4,8,16,32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--compile", action="store_true", help="also compiled: half a minute more for each row count")
    parser.add_argument("--keep", action="store_true", help="keep freed memory, as the server does")
    options = parser.parse_args()
    if options.keep:
        keep_freed_memory()
    counts = [int(rows) for rows in options.rows.split(",")]
    results: dict[str, Any] = {}
    with torch.inference_mode():
        for dtype in options.dtypes.split(","):
            rows = measure(variants(getattr(torch, dtype), options.compile), counts, options.rounds)
            names = rows[0]["ms"]
            knees = {name: Pace({row["rows"]: row["ms"][name] for row in rows}).knee for name in names}
            results[dtype] = {"knee": knees, "forwards": rows}
    settings = {"rounds": options.rounds, "threads": torch.get_num_threads(), "machine": platform.machine()}
    capabilities = {key: value for key, value in torch.cpu.get_capabilities().items() if isinstance(value, bool)}
    settings |= {"cpu_has": sorted(key for key, has in capabilities.items() if has), "keeps_memory": options.keep}
    print(json.dumps({"benchmark": "forwards", **settings, "dtypes": results}, indent=2))


if __name__ == "__main__":
    main()
