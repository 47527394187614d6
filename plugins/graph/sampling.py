"""What a sampler does: one job of the host, as near to a plain `generate` as what it is asked for allows."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image as PILImage

from latentwire import NodeContext, Remembered, control_image_argument, resized

from .jobs import Jobs, Part
from .on_demand import OnDemand
from .pictures import picture_of, to_pixels
from .refusals import refused
from .samplers import SAMPLERS, scheduler_for
from .values import Conditioning, Control, Latent, Model, Pixels, Prompt, Vae, check_pixels

REMEMBERED_BYTES = 64 << 20  # of embeddings
LEAST, MOST = 64, 4096  # pixels of a side
MOST_STEPS = 1000


@dataclass(frozen=True, slots=True)
class Steps:
    """Which steps are made: from `first` to the one before `end`, of `total`.

    Attributes:
        noise: Whether noise is added before the first one.
        clean: Whether no noise is left after the last one.
    """

    first: int
    end: int
    total: int
    noise: bool = True
    clean: bool = True

    @classmethod
    def of_denoise(cls, steps: int, denoise: float) -> "Steps":
        """The last so many steps of a schedule that is longer the lower `denoise` is.

        Raises:
            InvalidParams: it is longer than a schedule can be.
        """
        total = steps if denoise > 0.9999 else int(min(steps / denoise, 1e9))
        if total > MOST_STEPS:
            message = f"{steps} steps at denoise {denoise:g} are the last of {total:g}; at most {MOST_STEPS} can be"
            raise refused("denoise", message, denoise)
        return cls(total - steps, total, total)

    @property
    def is_whole(self) -> bool:
        return self.first == 0 and self.runs_out

    def strength(self, context: NodeContext, model: Model) -> float:
        """What makes diffusers count these very steps: it rounds, in one direction or the other."""
        between = -0.25 if context.host.store.card(model.name).row.flow else 0.5
        return min(1.0, (self.end - self.first + between) / self.total) if self.first else 1.0

    @property
    def runs_out(self) -> bool:
        """Whether it begins with noise of its own and goes on to the end."""
        return self.end == self.total and self.noise


class Samples:
    """Samples for nodes, encodes and decodes; embeddings that no plain request can say are remembered."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._on_demand = OnDemand()
        self._embeddings = Remembered(
            REMEMBERED_BYTES, lambda pair: sum(part.nbytes for part in pair if part is not None)
        )

    async def sample(
        self,
        context: NodeContext,
        model: Model,
        positive: Conditioning,
        negative: Conditioning,
        latent: Latent,
        *,
        seed: int | None,
        steps: Steps,
        cfg: float,
        sampler: str,
        scheduler: str,
    ) -> Latent:
        """The latents after the steps."""
        if steps.first >= steps.end:
            return latent
        if not steps.clean and steps.end == steps.total:
            steps = replace(steps, clean=True)
        if steps.clean and steps.end < steps.total and not SAMPLERS[sampler].stops:
            names = ", ".join(name for name, row in SAMPLERS.items() if row.stops)
            raise refused(
                "end_at_step", f"{sampler} cannot stop early without noise; samplers that can: {names}", sampler
            )
        if latent.noisy is not None and SAMPLERS[latent.noisy].explodes != SAMPLERS[sampler].explodes:
            explodes = SAMPLERS[latent.noisy].explodes
            fitting = ", ".join(name for name, row in SAMPLERS.items() if row.explodes == explodes)
            message = f"it holds noise of {latent.noisy}, which {sampler} measures otherwise; go on with: {fitting}"
            raise refused("latent_image", message, sampler)
        guided = cfg > 1
        prompts = (negative, positive) if guided else (positive,)
        controls = _controls_of(positive, negative if guided else ())
        adapters, nets = (name for name, _ in model.adapters), (control.net.name for control in controls)
        await self._on_demand.load(context, model.name, adapters, nets)
        extra: dict[str, Any] = {}
        task = await self._start(context, model, latent, steps, extra)
        request: dict[str, Any] = {"prompt": positive[0].text, "negative_prompt": negative[0].text if guided else ""}
        if _is_plain(model, prompts):
            if positive[0].clip.skip:
                extra["clip_skip"] = positive[0].clip.skip
        else:
            combined = await self._embed(context, prompts, extra)
            if combined is not None:
                extra["prompts"] = combined
                task = f"graph_{task.removeprefix('graph_')}"
        request |= {
            "model": model.name,
            "scheduler": scheduler_for(context.host, model.name, sampler, scheduler),
            "num_inference_steps": steps.total,
            "guidance_scale": cfg,
            "width": latent.width,
            "height": latent.height,
            "num_images": latent.batch,
        }
        if seed is not None:
            request["seed"] = seed
        kind = task.removeprefix("graph_")

        def arguments(index: int) -> dict[str, Any]:
            mine = {name: value(index) if callable(value) else value for name, value in extra.items()}
            return mine | _control_arguments(kind, controls, index, latent.width, latent.height)

        part = Part(task, arguments, tuple(control.net.name for control in controls), model.adapters)
        made = await self._jobs.run(context, part, request, (steps.end - steps.first) * latent.batch)
        return latent.with_samples(np.stack(made), noisy=None if steps.clean else sampler)

    async def _start(
        self, context: NodeContext, model: Model, latent: Latent, steps: Steps, extra: dict[str, Any]
    ) -> str:
        """Where the steps begin: the task, and what its pipeline is given for that."""
        _check_size(latent)
        if latent.is_empty and steps.is_whole and latent.mask is None:
            return "text2img"
        if latent.image is not None and steps.runs_out:
            extra["strength"] = steps.strength(context, model)
            extra["image"] = _of_each(latent.image, picture_of)
            if latent.mask is None:
                return "img2img"
            extra["mask_image"] = _of_each(latent.mask, lambda mask: _mask_picture(mask, latent.width, latent.height))
            return "inpaint"
        if latent.image is not None:
            latent = await self.encoded(context, latent)
        extra["image"] = _of_each(
            latent.samples if latent.samples is not None else _zeros(context, model, latent), _tensor
        )
        extra["strength"] = steps.strength(context, model)
        if steps.runs_out and latent.mask is None:
            return "img2img"
        extra |= {
            "window": (steps.first, steps.end),
            "noise": steps.noise,
            "clean": steps.clean,
            "start": "noise" if latent.is_empty and not steps.first else "picture",
        }
        if latent.mask is not None:
            extra["blend"] = _of_each(latent.mask, lambda mask: _latent_mask(mask, latent))
        return "graph_img2img"

    async def _embed(
        self, context: NodeContext, prompts: tuple[Conditioning, ...], extra: dict[str, Any]
    ) -> tuple[Any, Any, list[int]] | None:
        """Give the pipeline embeddings in place of texts; what is to be combined, where a row hears several."""
        import torch

        rows = [[await self._embedding(context, prompt) for prompt in row] for row in prompts]
        for name, row in zip(("", "negative_"), reversed(rows), strict=False):
            embeds, pooled = row[0]
            extra[f"{name}prompt_embeds"] = torch.from_numpy(embeds)
            if pooled is not None:
                extra[f"{name}pooled_prompt_embeds"] = torch.from_numpy(pooled)
        if all(len(row) == 1 for row in rows):
            return None
        every = [pair for row in rows for pair in row]
        pooled_ones = [torch.from_numpy(pooled) for _, pooled in every if pooled is not None]
        embeddings = torch.cat([torch.from_numpy(embeds) for embeds, _ in every])
        return embeddings, torch.cat(pooled_ones) if pooled_ones else None, [len(row) for row in rows]

    async def _embedding(self, context: NodeContext, prompt: Prompt) -> tuple[Pixels, Pixels | None]:
        """A prompt's embeddings, and the pooled ones of models that have them."""
        clip, host = prompt.clip, context.host
        await self._on_demand.load(context, clip.name, (name for name, _ in clip.adapters), ())
        numbers = tuple(host.store.number_of("adapter", name) for name, _ in clip.adapters)
        key = (clip, numbers, prompt.text)
        found = self._embeddings.find(key)
        if found is None:
            kept: list[Any] = []

            def arguments(_: int) -> dict[str, Any]:
                return {"keep": lambda *pair: kept.append(pair), "clip_skip": clip.skip or None}

            part = Part("graph_text", arguments, adapters=clip.adapters)
            request = ONE_STEP | {"prompt": prompt.text, "model": clip.name, "mode": "exact"}
            await self._jobs.run(context, part, request)
            (found,) = kept
            self._embeddings.keep(key, found)
        embeds, pooled = found
        if prompt.zeroed:
            return embeds * 0, None if pooled is None else pooled * 0
        return embeds, pooled

    async def decoded(self, context: NodeContext, vae: Vae, latent: Latent) -> Pixels:
        """The pictures of latents."""
        if latent.is_empty:
            latent = latent.with_samples(_zeros(context, Model(vae.name), latent))
        if latent.samples is None:
            latent = await self.encoded(context, latent)
        check_pixels(context.host, latent.batch, latent.width, latent.height)
        samples = _of_each(latent.samples, _tensor)
        part = Part("graph_decode", lambda index: {"samples": samples(index)})
        request = ONE_STEP | _size_of(latent) | {"prompt": "", "model": vae.name, "num_images": latent.batch}
        made = await self._jobs.run(context, part, request)
        return np.stack(made).transpose(0, 2, 3, 1)

    async def encoded(self, context: NodeContext, latent: Latent) -> Latent:
        """The latents of pictures that a LATENT only names so far."""
        assert latent.image is not None
        assert latent.vae is not None
        picture = _of_each(latent.image, lambda image: _tensor(image.transpose(2, 0, 1)))
        part = Part("graph_encode", lambda index: {"picture": picture(index)})
        request = ONE_STEP | _size_of(latent) | {"prompt": "", "model": latent.vae.name, "num_images": latent.batch}
        return latent.with_samples(np.stack(await self._jobs.run(context, part, request)))


ONE_STEP: dict[str, Any] = {"num_inference_steps": 1, "guidance_scale": 1.0, "seed": 0}
"""Of a job that makes none: it counts as little."""


def _is_plain(model: Model, prompts: tuple[Conditioning, ...]) -> bool:
    """Whether texts say it all: one prompt a row, read by the text encoders that the model itself would use."""
    first = prompts[0][0].clip
    return (first.name, first.adapters) == (model.name, model.adapters) and all(
        len(row) == 1 and row[0].clip == first and not row[0].zeroed for row in prompts
    )


def _controls_of(positive: Conditioning, negative: Conditioning) -> tuple[Control, ...]:
    """The ControlNets of a sampler, which lead both of its rows.

    Raises:
        InvalidParams: its prompts have different ones.
    """
    controls = positive[0].controls
    for name, prompts in (("positive", positive[1:]), ("negative", negative)):
        for prompt in prompts:
            same = list(map(_use_of, prompt.controls)) == list(map(_use_of, controls))
            if not same and not (name == "negative" and not prompt.controls):
                message = (
                    "its prompts have different ControlNets, and a sampler takes one set for all of them; apply the "
                    "same ones to each (ControlNetApplyAdvanced does so for positive and negative)"
                )
                raise refused(name, message, [control.net.name for control in prompt.controls])
    return controls


def _use_of(control: Control) -> tuple[Any, ...]:
    """What makes one use of a ControlNet another one."""
    return control.net, id(control.image), control.strength, control.start, control.end


def _control_arguments(kind: str, controls: tuple[Control, ...], index: int, width: int, height: int) -> dict[str, Any]:
    if not controls:
        return {}

    def image_of(control: Control) -> Any:
        picture = resized(picture_of(control.image[index % len(control.image)]), width, height, "fill")
        return _tensor(to_pixels(picture).transpose(0, 3, 1, 2)[0])

    # one ControlNet takes plain values, several take lists
    many: Any = list if len(controls) > 1 else lambda values: values[0]
    return {
        control_image_argument(kind): many([image_of(control) for control in controls]),
        "controlnet_conditioning_scale": many([control.strength for control in controls]),
        "control_guidance_start": many([control.start for control in controls]),
        "control_guidance_end": many([control.end for control in controls]),
    }


def _of_each(values: Any, make: Callable[[Any], Any]) -> Callable[[int], Any]:
    """What is made of a batch's entry for a picture; a batch that is too short begins again."""
    return lambda index: make(values[index % len(values)])


def _tensor(array: Any) -> Any:
    """`(1, ...)`, of its own memory."""
    import torch

    return torch.from_numpy(np.array(array[None], np.float32))


def _zeros(context: NodeContext, model: Model, latent: Latent) -> Pixels:
    channels = context.host.store.card(model.name).configs.get("vae", {}).get("latent_channels", 4)
    return np.zeros((latent.batch, channels, latent.height // 8, latent.width // 8), np.float32)


def _mask_picture(mask: Any, width: int, height: int) -> PILImage.Image:
    return resized(picture_of(mask), width, height, "fill", PILImage.Resampling.NEAREST)


def _latent_mask(mask: Any, latent: Latent) -> Any:
    """White where any of a latent pixel's own is made anew, as diffusers' inpainting has it."""
    picture = _mask_picture(mask, latent.width, latent.height)
    small = np.asarray(picture.resize((latent.width // 8, latent.height // 8), PILImage.Resampling.NEAREST))
    return _tensor((small >= 128).astype(np.float32)[None])


def _size_of(latent: Latent) -> dict[str, int]:
    """For the host's own limits, and what it says where memory runs out."""
    return {"width": max(LEAST, latent.width), "height": max(LEAST, latent.height)}


def _check_size(latent: Latent) -> None:
    for name, side in (("width", latent.width), ("height", latent.height)):
        if not LEAST <= side <= MOST:
            raise refused("latent_image", f"its {name} is {side} pixels; a sampler takes {LEAST} to {MOST}", side)
