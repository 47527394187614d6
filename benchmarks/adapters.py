"""Rows with different LoRAs in one shared forward, against one forward for each set of LoRAs.

Per case the same rows go through the denoiser both ways, and the same jobs through the engine: all submitted at once,
so that they share every forward, or one set's jobs after the other's. Prints JSON with the median ratio of each
round's pair; above 1, sharing is faster. `shared_over_plain` is what the LoRAs cost in a shared forward.

    python benchmarks/adapters.py [--rounds 7] [--steps 4] [--full] [--dtypes float32,bfloat16] [--keep FOLDER]
"""

import argparse
import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from engine_thread import on_engine
from figures import show
from made_model import made_model
from prompts import new_prompts

from latentwire import Host, Settings
from latentwire.core.adapters import Weighted, added
from latentwire.core.build import PipelineBuild, assemble, pipeline_class
from latentwire.core.model_store import Lease
from latentwire.core.run import Run
from latentwire.core.settings import EMBEDDED_MODEL, MODELS_FOLDER
from latentwire.core.threads import compute_alone

Set = tuple[tuple[str, float], ...]

PLAIN: Set = ()
A: Set = (("a", 1.0),)
B: Set = (("b", 0.7),)
BOTH: Set = (("a", 0.6), ("b", 0.4))
CASES: dict[str, list[Set]] = {
    "4 jobs, 4 sets": [PLAIN, A, B, BOTH],
    "8 jobs, 4 sets": [PLAIN, A, B, BOTH] * 2,
    "8 jobs, 2 sets": [A, B] * 4,
}


def grouped(jobs: Sequence[Set]) -> list[list[Set]]:
    """The jobs of each set."""
    return [[job for job in jobs if job == one] for one in dict.fromkeys(jobs)]


class Bench:
    """One model in one dtype."""

    def __init__(self, host: Host, dtype: str, side: int, steps: int) -> None:
        self._host, self._side, self._steps = host, side, steps
        self._build = PipelineBuild(host.settings.defaults.model, "ddim", dtype)
        self._leases = {one: host.store.lease(self._build.with_adapters(*one)) for one in (PLAIN, A, B, BOTH)}
        self._unet = self._leases[PLAIN].components["unet"]
        self._gate = self._unet.forward.__wrapped_gate__
        self._prompts = new_prompts()

    def close(self) -> None:
        for lease in self._leases.values():
            self._host.store.release(lease)

    def forward(self, jobs: Sequence[Set]) -> None:
        """One forward with guidance, so two rows a job; neighbours with equal LoRAs are one group, as in the engine."""
        rows, latents = 2 * len(jobs), self._side // 8
        sample = torch.randn(rows, self._unet.config.in_channels, latents, latents, dtype=self._unet.dtype)
        states = torch.randn(rows, 77, self._unet.config.cross_attention_dim, dtype=self._unet.dtype)
        groups: list[tuple[int, Sequence[Weighted]]] = [
            (2 * len(same), self._leases[same[0]].adapters) for same in grouped(jobs)
        ]

        def work() -> None:
            with added("unet", self._gate.layers, groups):
                self._gate.forward(sample, torch.full((rows,), 500.0), encoder_hidden_states=states)

        on_engine(self._host, work)

    def run(self, jobs: Sequence[Set]) -> None:
        """Whole pipeline calls through the engine, up to their latents."""
        outcomes = []
        for seed, one in enumerate(jobs):
            outcome: Future[Any] = Future()
            self._host.engine.submit(
                Run("fast", self._call(self._leases[one], seed), _told(outcome), self._leases[one].adapters)
            )
            outcomes.append(outcome)
        for outcome in outcomes:
            outcome.result()

    def _call(self, lease: Lease, seed: int) -> Callable[[], Any]:
        scheduler = self._host.registry.new_scheduler(self._build.scheduler, lease.card.scheduler_config)
        pipeline = assemble(pipeline_class(lease.card.family, self._build), lease.components, scheduler, lease.device)
        prompt = next(self._prompts)  # the host may remember what it has made of one
        return lambda: pipeline(
            prompt,
            width=self._side,
            height=self._side,
            num_inference_steps=self._steps,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        )


def _told(outcome: Future[Any]) -> Callable[[Any, BaseException | None], None]:
    def done(result: Any, error: BaseException | None) -> None:
        outcome.set_exception(error) if error else outcome.set_result(result)

    return done


def seconds(work: Callable[[Sequence[Set]], None], batches: Iterable[Sequence[Set]]) -> float:
    begin = perf_counter()
    for batch in batches:
        work(batch)
    return perf_counter() - begin


def measure(bench: Bench, rounds: int) -> list[dict[str, Any]]:
    results = []
    for name, jobs in CASES.items():
        rows = []
        for number in range(rounds + 1):
            row = {}
            for what, work in (("forward", bench.forward), ("jobs", bench.run)):
                row[f"{what}_shared"] = seconds(work, [jobs])
                row[f"{what}_grouped"] = seconds(work, grouped(jobs))
                row[f"{what}_plain"] = seconds(work, [[PLAIN] * len(jobs)])
            if number:  # the first one warms up
                rows.append(row)

        def ratio(what: str, mine: str, theirs: str, rows: Sequence[dict[str, float]] = rows) -> float:
            return round(median(row[f"{what}_{theirs}"] / row[f"{what}_{mine}"] for row in rows), 3)

        results.append(
            {
                "case": name,
                "forward_grouped_over_shared": ratio("forward", "shared", "grouped"),
                "forward_shared_over_plain": ratio("forward", "plain", "shared"),
                "jobs_grouped_over_shared": ratio("jobs", "shared", "grouped"),
                "jobs_shared_over_plain": ratio("jobs", "plain", "shared"),
                "median_seconds": {key: round(median(row[key] for row in rows), 4) for key in rows[0]},
            }
        )
    return results


def bench_model(folder: Path, files: dict[str, Path], side: int, dtypes: Sequence[str], options: Any) -> list[Any]:
    """The figures of one model in each dtype."""
    settings = {
        "discover": False,
        "engine": {"device": "cpu"},
        "models": {"model": {"path": folder}},
        "defaults": {"model": "model"},
        "files": {"roots": [file.parent for file in files.values()]},
    }
    results = []
    host = Host(Settings.model_validate(settings))
    try:
        for name, file in files.items():
            params = {"path": str(file), "name": name}
            asyncio.run(host.dispatch("lora.load", params, "bench", lambda event: None))
        for dtype in dtypes:
            bench = Bench(host, dtype, side, options.steps)
            results += [{"dtype": dtype, **row} for row in measure(bench, options.rounds)]
            bench.close()
    finally:
        host.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--full", action="store_true", help="also Stable Diffusion 1.5 in size, random, 256x256")
    parser.add_argument("--keep", type=Path, help="where switching.py keeps that model")
    options = parser.parse_args()
    dtypes = options.dtypes.split(",")
    compute_alone()  # the engine's thread is what is timed
    loras = MODELS_FOLDER / "loras"
    files = {"a": loras / "emoji-pencil", "b": loras / "emoji-pixel-art"}
    results = {"emoji": bench_model(EMBEDDED_MODEL, files, 128, dtypes, options)}
    if options.full:
        with made_model("full", options.keep and options.keep.resolve()) as folder:
            files = {name: folder / f"{name}.safetensors" for name in ("a", "b")}
            results["full"] = bench_model(folder / "model", files, 256, dtypes, options)
    show("adapters", options, models=results)


if __name__ == "__main__":
    main()
