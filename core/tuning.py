"""What may be changed of a picture while it runs, and how the change reaches it between two of its steps."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .run import Run

if TYPE_CHECKING:
    from .build import PipelineBuild, PipelineCall
    from .jobs import Job
    from .model_store import Lease

CONTROLNET_SCALE = "controlnet_conditioning_scale"


@dataclass(frozen=True, slots=True)
class Tuning:
    """The values of a job that may change; `None` or empty where its pipeline has none.

    Attributes:
        guidance_scale: None where the pipeline takes it only at its start.
        adapters: Each adapter of the build and its weight, in order.
        controlnet_scales: Each ControlNet of the build and its conditioning scale, in order.
    """

    guidance_scale: float | None
    adapters: tuple[tuple[str, float], ...] = ()
    controlnet_scales: tuple[tuple[str, float], ...] = ()

    def plain(self) -> dict[str, Any]:
        """As a map, for clients."""
        return {
            "guidance_scale": self.guidance_scale,
            "adapters": dict(self.adapters),
            "controlnet_scales": dict(self.controlnet_scales),
        }


def tuning_of(build: "PipelineBuild", call: "PipelineCall", lease: "Lease") -> Tuning:
    """The values that a picture begins with."""
    denoiser = lease.components[lease.card.row.denoiser]
    embedded = getattr(denoiser.config, "time_cond_proj_dim", None) is not None  # such as LCM: no step looks again
    scales = call.extra.get(CONTROLNET_SCALE, 1.0)
    listed = scales if isinstance(scales, list | tuple) else [scales] * len(build.controlnets)
    return Tuning(
        guidance_scale=None if embedded else call.guidance_scale,
        adapters=build.adapters,
        controlnet_scales=tuple(zip(build.controlnets, map(float, listed), strict=True)),
    )


class Tuner:
    """Brings a job's latest tuning to one of its pictures; on the engine's thread.

    The guidance scale is changed the way that diffusers documents for step callbacks, by the pipeline's own attribute;
    adapters and ControlNet scales are the run's.

    Args:
        changes: Takes down what was changed after which step, for the picture's metadata.
    """

    def __init__(
        self,
        job: "Job",
        guidance_scale: float,
        pipeline: Any,
        run: Run,
        lease: "Lease",
        changes: list[dict[str, Any]],
    ) -> None:
        self._job = job
        self._guided = guidance_scale > 1
        self._pipeline = pipeline
        self._run = run
        self._lease = lease
        self._changes = changes
        self._known = job.first_tuning

    def begin(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The call's arguments, with what was changed before its first step."""
        self.catch_up(0)
        changed = self._changes[-1].get("guidance_scale") if self._changes else None
        return arguments if changed is None else arguments | {"guidance_scale": changed}

    def catch_up(self, step: int) -> None:
        """Take over what has changed, and nothing else: a plugin may have given this picture values of its own."""
        tuning, known = self._job.tuning, self._known
        if tuning is None or known is None or tuning is known:
            return
        self._known = tuning
        change = _difference(known, tuning)
        if not self._guided:  # its rows were laid out without guidance
            change.pop("guidance_scale", None)
        if "guidance_scale" in change:
            self._pipeline._guidance_scale = tuning.guidance_scale
        if "adapters" in change:
            self._run.adapters = tuple(
                (adapter, weight)
                for (adapter, _), (_, weight) in zip(self._lease.adapters, tuning.adapters, strict=True)
                if weight  # 0 adds zeros, which is the same as nothing
            )
        for net, (name, scale) in zip(self._lease.controlnets, tuning.controlnet_scales, strict=True):
            if name in change.get("controlnet_scales", ()):
                self._run.controlnet_scales[id(net)] = scale
        if change:
            self._changes.append({"after_step": step} | change)


def _difference(old: Tuning, new: Tuning) -> dict[str, Any]:
    """The values that changed; the names of adapters and ControlNets, and their order, are the same in both."""
    difference: dict[str, Any] = {}
    if old.guidance_scale != new.guidance_scale:
        difference["guidance_scale"] = new.guidance_scale
    for part in ("adapters", "controlnet_scales"):
        before, after = getattr(old, part), getattr(new, part)
        changed = {name: value for (name, value), entry in zip(after, before, strict=True) if (name, value) != entry}
        if changed:
            difference[part] = changed
    return difference
