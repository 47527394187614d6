"""Request field `latents_log`: statistics of the latents after each step, written to a file of the job's.

{"prompt": "red apple", "latents_log": {}}

All jobs wait for `step_finished`, so it only hands the latents on. A thread looks at them and writes; when it falls
behind, as on a slow disk, steps are left out and counted.
"""

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from latentwire import (
    BuildContext,
    CommandContext,
    InvalidParams,
    NoParams,
    PluginRegistry,
    StepContext,
    Strict,
    Whole,
    hookimpl,
)

if TYPE_CHECKING:
    import torch

LATENTWIRE_API = "1.0"

log = logging.getLogger(__name__)


class Settings(Strict):
    """What plugins.toml may set for this plugin."""

    folder: Path | None = Field(None, strict=False, description="of the files; None: nothing is written")
    waiting: int = Field(256, ge=1, description="steps that may wait to be written; more are left out")
    max_mib: int = Field(100, ge=1, description="of all files together; then steps are left out")


class LatentsLog(Strict):
    """Which steps to write."""

    every: Whole = Field(1, ge=1, description="every so many steps, and the last one")


class Plugin:
    def __init__(self, settings: Settings) -> None:
        self.folder = settings.folder
        self._thread = ThreadPoolExecutor(1, "latents-log")
        self._room = threading.BoundedSemaphore(settings.waiting)
        self._counts = {"written": 0, "left_out": 0, "failed": 0}
        self._left = settings.max_mib << 20
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._left -= sum(file.stat().st_size for file in self.folder.glob("*.jsonl"))

    @hookimpl
    def register(self, registry: PluginRegistry) -> None:
        registry.add_field("latents_log", LatentsLog)
        registry.add_command("latents_log.counts", NoParams, self.counts)

    @hookimpl
    def modify_build(self, context: BuildContext) -> None:
        if self.folder is None and getattr(context.request, "latents_log", None) is not None:
            message = "this host has no folder for latents; leave latents_log out"
            raise InvalidParams(message, [{"path": ["latents_log"], "message": message, "got": ""}])

    @hookimpl
    def step_finished(self, context: StepContext) -> None:
        wanted: LatentsLog | None = getattr(context.request, "latents_log", None)
        if wanted is None or (context.step % wanted.every and context.step != context.steps):
            return
        if not self._room.acquire(blocking=False):
            self._counts["left_out"] += 1
            return
        row = {
            "index": context.index,
            "step": context.step,
            "steps": context.steps,
            "timestep": context.timestep,
            "sigma": context.sigma,
        }
        self._thread.submit(self._write, context.job, row, context.latents.detach())

    async def counts(self, context: CommandContext, params: NoParams) -> dict[str, Any]:
        """Tell how many steps were written, left out, and could not be written, since the host was started."""
        return dict(self._counts)

    def _write(self, job: str, row: dict[str, Any], latents: "torch.Tensor") -> None:
        """In the plugin's own thread."""
        try:
            assert self.folder is not None
            # numpy, for torch would start a team of threads here that takes the cores from the engine
            channels = latents[0].float().cpu().numpy().reshape(latents.shape[1], -1)
            figures = {name: getattr(channels, name)(axis=1) for name in ("mean", "std", "min", "max")}
            row |= {name: [round(float(value), 6) for value in values] for name, values in figures.items()}
            line = json.dumps(row) + "\n"
            if len(line) > self._left:
                self._counts["left_out"] += 1
                return
            with (self.folder / f"{job}.jsonl").open("a") as file:
                file.write(line)
            self._left -= len(line)
            self._counts["written"] += 1
        except Exception:
            self._counts["failed"] += 1
            log.exception("latents of job %s could not be written", job)
        finally:
            self._room.release()
