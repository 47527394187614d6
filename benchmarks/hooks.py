"""What the hook system costs a step: `step_finished` of no plugin, of one, and of five.

    python benchmarks/hooks.py [--plugins 5] [--rounds 5]

Prints JSON: microseconds a step, the bare functions called in a loop for comparison, and the share of a real step of
the embedded model that five plugins take.
"""

import argparse
import statistics
import tempfile
import timeit
from pathlib import Path
from typing import Any

import torch
from figures import show

from latentwire import Host
from latentwire.core.hookspecs import StepContext
from latentwire.core.requests import GenerateRequest
from latentwire.testing import generate, running_host

CALLS = 5_000
STEPS = 30

SOURCE = """
from latentwire import StepContext, hookimpl

@hookimpl
def step_finished(context: StepContext) -> None:
    pass
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plugins", type=int, default=5, help="how many listen in the largest case")
    parser.add_argument("--rounds", type=int, default=5, help="of each case, in turns; the median counts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"listener{number}.py" for number in range(options.plugins)]
        for file in files:
            file.write_text(SOURCE)
        with running_host() as none, running_host(files[0]) as one, running_host(*files) as many:
            cases = {"none": none, "one": one, str(options.plugins): many}
            taken: dict[str, list[float]] = {name: [] for name in [*cases, "bare functions"]}
            for _ in range(options.rounds):
                for name, host in cases.items():
                    taken[name].append(step_us(host))
                taken["bare functions"].append(bare_us(options.plugins))
            step_ms = step_of(many)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    most = medians[str(options.plugins)]
    figures = {
        "us_a_step": {name: round(median, 2) for name, median in medians.items()},
        "us_a_step_and_plugin": round((most - medians["none"]) / options.plugins, 2),
        "ratio_to_bare_functions": round(most / medians["bare functions"], 1),
        "ms_of_a_step": round(step_ms, 2),
        "share_of_a_step": round(most / 1000 / step_ms, 5),
    }
    show("hooks", options, **figures)


def step_us(host: Host) -> float:
    """Microseconds that the plugins' turn takes of one step, as `StepStream` gives it to them."""
    latents, request = torch.zeros(1, 4, 16, 16), GenerateRequest(prompt="")

    def step() -> None:
        if host.plugins.listens("step_finished"):
            context = StepContext("job", 0, request, 1, 2, 500.0, None, latents, lambda: latents)
            host.plugins.call("step_finished", context)

    return min(timeit.repeat(step, number=CALLS, repeat=3)) / CALLS * 1e6


def bare_us(plugins: int) -> float:
    """Microseconds of as many empty functions, called in a loop with the same context."""
    latents, request = torch.zeros(1, 4, 16, 16), GenerateRequest(prompt="")

    def listen(context: Any) -> None:
        pass

    listeners = [listen] * plugins

    def step() -> None:
        context = StepContext("job", 0, request, 1, 2, 500.0, None, latents, lambda: latents)
        for listener in listeners:
            listener(context)

    return min(timeit.repeat(step, number=CALLS, repeat=3)) / CALLS * 1e6


def step_of(host: Host) -> float:
    """Milliseconds of a step of one picture, 128x128 with guidance."""
    generate(host)
    made = generate(host, num_inference_steps=STEPS, mode="fast")
    return float(statistics.median(event.seconds for event in made.events.named("step")) * 1000)


if __name__ == "__main__":
    main()
