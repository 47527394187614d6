"""Takes a job from its request to its pictures: build, lease, calls, runs, previews, PNGs.

Preparing and finishing happen in worker threads; only the pipeline calls are on the engine's thread.
"""

import inspect
from concurrent.futures import Future
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .build import PipelineBuild, PipelineCall, assemble
from .errors import InvalidParams
from .events import Image, Loading, Started
from .faults import is_device, is_memory, typed
from .finite import not_finite
from .hookspecs import BuildContext, CallContext
from .images import describe_in_png, to_picture, to_tensor
from .jobs import Job
from .log_context import noted
from .model_store import Lease, ModelCard, Progress
from .nearest import nearest
from .pace import Pace, measure_denoiser
from .painter import Painter
from .policy import RANKS
from .publishing import Origin, publish
from .requests import GenerateRequest, Mode
from .run import Run
from .schedulers import DIFFUSERS, suits
from .step_stream import StepStream
from .stepping import watch
from .strikes import JOB
from .threads import Crew
from .tuning import Tuner, tuning_of
from .watchdog import Abandoned

if TYPE_CHECKING:
    from .host import Host


HOW_IT_RAN = {"stream", "num_images", "slot", "min_steps_shown", "priority"}
"""Fields of a request that say nothing of the picture."""


class Runner:
    """Runs the jobs of one host on its engine."""

    def __init__(self, host: "Host") -> None:
        self._host = host
        self._settings = host.settings
        self._registry = host.registry
        self._plugins = host.plugins
        self._store = host.store
        self._engine = host.engine
        # Pools of their own: neither a long load nor slow previews keep finished pictures waiting.
        self._prepare_crew = Crew(32, "prepare")  # most of them wait for one load
        self._finish_crew = Crew(2, "finish")
        self._painter = Painter()

    def start(self, job: Job) -> None:
        """Begin a job; returns at once, the job's outcome and events say how it goes."""
        prepare = noted(self._prepare, client=job.client, job=job.id)
        self._prepare_crew.submit(prepare, job, failed=job.fail)

    def close(self) -> None:
        """Wait for what is in the pools; the engine must be closed already."""
        self._prepare_crew.close(drop=True)
        self._finish_crew.close()
        self._painter.close()

    def build_for(self, request: GenerateRequest) -> PipelineBuild:
        """The build that a request asks for, before plugins see it.

        Raises:
            UnknownModel, ModelLoadError: there is no such model, or no usable one.
            InvalidParams: the scheduler is unknown, or the picture too large.
        """
        model = request.model or self._settings.defaults.model
        card = self._store.card(model)
        scheduler = request.scheduler or self._settings.defaults.scheduler
        if request.scheduler is None and not suits(scheduler, card.row.flow):
            scheduler = card.row.scheduler
        self._check_scheduler(scheduler, card)
        self._check_size(request.width or card.size, request.height or card.size)
        return PipelineBuild(model=model, scheduler=scheduler, dtype=self._store.dtype_of(model))

    def rehearse(self, build: PipelineBuild, progress: Progress, most_rows: int, budget_s: float) -> Pace | None:
        """Load a build, make two steps with it, without plugins, and time its denoiser; blocks until done.

        Raises:
            UnknownModel, ModelLoadError, and whatever the pipeline raises.
        """
        lease = self._store.lease(build, progress)
        try:
            scheduler = self._registry.new_scheduler(build.scheduler, lease.card.scheduler_config)
            pipeline = self._pipeline(build, lease, scheduler)
            denoiser = lease.components[lease.card.row.denoiser]
            outcome: Future[Pace | None] = Future()

            def run() -> Pace | None:
                pipeline("", num_inference_steps=2, output_type="pt")
                return measure_denoiser(denoiser, lease.device, most_rows, budget_s)

            def done(pace: Pace | None, error: BaseException | None) -> None:
                if error is None:
                    outcome.set_result(pace)
                else:
                    outcome.set_exception(error)

            self._engine.submit(Run("fast", run, done))
            return outcome.result()
        finally:
            self._store.release(lease)

    def _pipeline(self, build: PipelineBuild, lease: Lease, scheduler: Any) -> Any:
        kind = self._registry.pipeline_class(lease.card.family, build)
        components = {**lease.components, **lease.modules}
        return assemble(kind, components, scheduler, lease.device, lease.controlnets, lease.card.options)

    def mode_for(self, request: GenerateRequest) -> Mode:
        return request.mode or self._settings.defaults.mode

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._settings.limits.pixels:
            message = f"{width}x{height} is more than {self._settings.limits.pixels} pixels, the host's limit"
            raise InvalidParams(message, [{"path": ["width"], "message": message, "got": width}])

    def _check_scheduler(self, name: str, card: ModelCard) -> None:
        known = {other: make for other, make in self._registry.schedulers.items() if suits(other, card.row.flow)}
        if name not in known:
            message = (
                f"there is no scheduler {name!r} for {card.family}; {nearest(name, known, 'schedulers', DIFFUSERS)}"
            )
            raise InvalidParams(message, [{"path": ["scheduler"], "message": message, "got": name}])

    def _prepare(self, job: Job) -> None:
        """In a worker thread: everything up to the engine."""
        if job.outcome.done():  # cancelled before its turn came
            return
        try:
            generation = self._engine.generation  # before anything is leased
            context = BuildContext(self._host, job.client, job.id, job.request, self.build_for(job.request))
            self._plugins.call("modify_build", context)
            job.take(context.request)
            build = context.build
            card = self._store.card(build.model)
            self._check_scheduler(build.scheduler, card)
            self._registry.pipeline_class(card.family, build)  # refuse it before anything is loaded
            lease = self._store.lease(build, lambda *at: job.emit(Loading(job.id, build.model, *at)))
            job.before_end(partial(self._store.release, lease))  # whoever hears of the end may unload what it used
            calls = [self._call_for(job, index, build, lease) for index in range(len(job.seeds))]
            self._plugins.check_usable("field", job.request)  # again: one may have been disabled meanwhile
            tuning = tuning_of(build, calls[0], lease)
            if job.tuning is job.first_tuning:  # else it was changed before it had to be prepared again
                job.tuning = tuning
            job.first_tuning = tuning
            runs = [self._run_for(job, index, build, call, lease) for index, call in enumerate(calls)]
            for run in runs:
                run.generation = generation
                run.displaced = partial(self._begin_again, job, run)
            job.begin(runs, self._engine.submit)
        except Abandoned:
            raise
        except BaseException as error:
            if is_device(error):
                self._engine.report(error)
            job.fail(error)

    def _begin_again(self, job: Job, run: Run) -> None:
        """What a run was prepared with is gone."""
        if job.begin_again(run):
            self.start(job)

    def _call_for(self, job: Job, index: int, build: PipelineBuild, lease: Lease) -> PipelineCall:
        request, card, defaults = job.request, lease.card, lease.card.defaults
        call = PipelineCall(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            num_inference_steps=_first(request.num_inference_steps, defaults.get("num_inference_steps"), 50),
            guidance_scale=_first(request.guidance_scale, defaults.get("guidance_scale"), 7.5),
            width=request.width or card.size,
            height=request.height or card.size,
            seed=job.seeds[index],
            output_type=request.output_type,
        )
        context = CallContext(self._host, job.emit, job.id, index, request, build, call, lease.components)
        self._plugins.call("modify_call", context)
        self._check_size(context.call.width, context.call.height)
        return context.call

    def _run_for(self, job: Job, index: int, build: PipelineBuild, call: PipelineCall, lease: Lease) -> Run:
        arguments = _accepted(self._registry.pipeline_class(lease.card.family, build), call)
        size = max(call.width, call.height)
        changes: list[dict[str, Any]] = []
        rows = 2 if call.guidance_scale > 1 else 1

        def paint(previewer: str | None, latents: Any) -> Any:
            return lease.previewer.paint(latents) if previewer is None else self._registry.paint(previewer, latents)

        def run_pipeline() -> Any:
            # only now: those of a long queue would take memory, and time from those that run
            scheduler = self._registry.new_scheduler(build.scheduler, lease.card.scheduler_config)
            pipeline = self._pipeline(build, lease, scheduler)
            tuner = Tuner(job, call.guidance_scale, pipeline, run, lease, changes)
            generator = torch.Generator().manual_seed(call.seed)
            follow = StepStream(job, index, size, paint, self._plugins, self._painter, tuner)
            callback = watch(pipeline, follow)
            given = tuner.begin(arguments)
            images = pipeline(**given, generator=generator, callback_on_step_end=callback).images
            return images[0].float().cpu().numpy()  # where a GPU tells of what has gone wrong

        finish = noted(self._finish, client=job.client, job=job.id)

        def done(array: Any, error: BaseException | None) -> None:
            if error is not None:
                job.fail(typed(error, f"{call.width}x{call.height}") if is_memory(error) else error)
                return
            try:
                self._finish_crew.submit(finish, job, index, build, call, array, changes, failed=job.fail)
            except BaseException as raised:
                job.fail(raised)

        def began(seconds: float | None) -> None:
            job.begins(Started(job.id, build.model, build.scheduler, run.mode, seconds))

        run = Run(
            self.mode_for(job.request),
            noted(run_pipeline, client=job.client, job=job.id),
            done,
            lease.adapters,
            client=job.client,
            job=job.id,
            accepted=job.created,
            rank=RANKS[job.request.rank],
            rows=rows,
            work=call.num_inference_steps * rows,
            began=began,
            queued=job.waits,
        )
        return run

    def _finish(
        self, job: Job, index: int, build: PipelineBuild, call: PipelineCall, array: Any, changes: list[dict[str, Any]]
    ) -> None:
        """In a worker thread: a picture's pixels (or latents) to its event, and the last one's job to its end."""
        mode = self.mode_for(job.request)
        try:
            if job.outcome.done():
                return
            if not np.isfinite(array).all():
                raise not_finite("the picture holds")
            if call.output_type == "latent":
                event = Image(job.id, index, call.seed, None, to_tensor(array, "float32"))
            else:
                made = _as_run(job, call, build, mode)
                metadata = describe_in_png(made, call, build.model, build.scheduler, changes)
                origin = Origin(job.client, job.owned_by, job.id, index, call.seed, job.request, made)
                event = publish(self._host, origin, to_picture(array), metadata)
            if job.picture_done(event):
                self._registry.guard.strikes.forgive(JOB)
                job.finish(
                    {
                        "job": job.id,
                        "images": len(job.seeds),
                        "seeds": job.seeds,
                        "model": build.model,
                        "scheduler": build.scheduler,
                        "mode": mode,
                        "seconds": round(monotonic() - job.created, 4),
                    }
                )
        except Abandoned:
            raise
        except BaseException as error:
            if is_device(error):
                self._engine.report(error)
            job.fail(error)


def _accepted(pipeline: type[Any], call: PipelineCall) -> dict[str, Any]:
    """The call's arguments, but for a size that the pipeline takes from its input picture."""
    known = inspect.signature(pipeline.__call__).parameters
    return {name: value for name, value in call.arguments().items() if name in known or name not in ("width", "height")}


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def _as_run(job: Job, call: PipelineCall, build: PipelineBuild, mode: Mode) -> dict[str, Any]:
    """The request that makes this one picture again: every default filled in, its own seed."""
    asked = job.request.model_dump(mode="json", exclude=HOW_IT_RAN, exclude_none=True)
    used = {
        "model": build.model,
        "scheduler": build.scheduler,
        "mode": mode,
        "num_inference_steps": call.num_inference_steps,
        "guidance_scale": call.guidance_scale,
        "width": call.width,
        "height": call.height,
        "seed": call.seed,
    }
    return dict(sorted((asked | used).items()))
