"""The pipelines of graphs: diffusers' own, which are told more than their calls take, and parts of them alone.

Imported when a graph first needs one of them.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import cache, wraps
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers.utils.torch_utils import randn_tensor


@cache
def with_mixin(mixin: str, base: str) -> type[Any]:
    """A class of diffusers' with one of the classes below before it."""
    kind: type[Any] = getattr(diffusers, base)
    made = type(f"Graph{base}", (globals()[mixin], kind), {"__module__": __name__})
    if mixin == "Sampling":
        setattr(made, "__call__", wraps(kind.__call__)(made.__call__))  # noqa: B010 - whose signature tells what may be given
    return made


class Text:
    """The text encoders alone: `keep` is given a prompt's embeddings, and the pooled ones of models that have them."""

    encode_prompt: Callable[..., Any]
    _execution_device: torch.device

    def __call__(self, *, prompt: str, keep: Callable[..., None], clip_skip: int | None = None, **_: Any) -> Any:
        further = inspect.signature(self.encode_prompt).parameters.keys() & {"prompt_2", "prompt_3"}
        embeds = self.encode_prompt(
            prompt=prompt,
            device=self._execution_device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
            clip_skip=clip_skip,
            **dict.fromkeys(further),
        )
        pooled = embeds[2] if len(embeds) == 4 else None
        keep(_to_array(embeds[0]), None if pooled is None else _to_array(pooled))
        return SimpleNamespace(images=embeds[0])


class Autoencoding:
    """What both directions share."""

    vae: Any
    image_processor: Any
    components: dict[str, Any]
    _execution_device: torch.device

    @property
    def _dtype(self) -> torch.dtype:
        """That of the latents."""
        denoiser = self.components.get("unet") or self.components["transformer"]
        dtype: torch.dtype = denoiser.dtype
        return dtype

    def _norms(self, latents: torch.Tensor) -> tuple[Any, Any]:
        """What is added to latents, and what they are divided by, to be the autoencoder's own."""
        config = self.vae.config
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is not None and std is not None:
            mean, std = (torch.tensor(value).view(1, -1, 1, 1).to(latents) for value in (mean, std))
            return mean, config.scaling_factor / std
        return getattr(config, "shift_factor", None) or 0.0, config.scaling_factor


class Decoding(Autoencoding):
    """The autoencoder alone, from latents to a picture."""

    @torch.no_grad()
    def __call__(self, *, samples: torch.Tensor, generator: torch.Generator | None = None, **_: Any) -> Any:
        latents = samples.to(self._execution_device, self._dtype)
        shift, scale = self._norms(latents)
        own = latents / scale
        if not isinstance(shift, float) or shift:
            own = own + shift
        decoded = self.vae.decode(own, return_dict=False, generator=generator)[0]
        images = self.image_processor.postprocess(decoded, output_type="pt", do_denormalize=[True] * len(decoded))
        return SimpleNamespace(images=images)


class Encoding(Autoencoding):
    """The autoencoder alone, from a picture to latents: the likeliest ones, so that no seed is needed."""

    @torch.no_grad()
    def __call__(self, *, picture: torch.Tensor, **_: Any) -> Any:
        image = self.image_processor.preprocess(picture).to(self._execution_device, self._dtype)
        latents = self.vae.encode(image).latent_dist.mode().to(self._dtype)
        shift, scale = self._norms(latents)
        return SimpleNamespace(images=(latents - shift) * scale)


class Sampling:
    """A pipeline that makes some of a schedule's steps, hears several prompts at once, or keeps what a mask says.

    Its call takes these beside its class's own arguments:

    - `window`: the first step, and the one after the last.
    - `noise`: whether noise is added before the first one.
    - `start`: from where it begins: `noise` alone, or the picture that it is given.
    - `clean`: whether the last step leaves no noise, though others would follow.
    - `blend`: where a picture is made anew (1), at the latents' size.
    - `prompts`: in place of each row's prompt several ones: their embeddings, row after row, the pooled ones, and how
      many of each row.
    """

    scheduler: Any
    unet: Any

    def __call__(
        self,
        *args: Any,
        window: tuple[int, int] | None = None,
        noise: bool = True,
        start: str = "picture",
        clean: bool = False,
        blend: torch.Tensor | None = None,
        prompts: tuple[torch.Tensor, torch.Tensor | None, Sequence[int]] | None = None,
        **call: Any,
    ) -> Any:
        self._window, self._noise, self._from_noise, self._clean = window, noise, start == "noise", clean
        self._blend = blend
        if prompts is not None:
            self.unet = Combined(self.unet, *prompts)
        return super().__call__(*args, **call)  # type: ignore[misc]  # of diffusers' class

    def get_timesteps(self, num_inference_steps: int, strength: float, device: Any, *more: Any, **named: Any) -> Any:
        if self._window is None:
            return super().get_timesteps(num_inference_steps, strength, device, *more, **named)  # type: ignore[misc]
        scheduler, (first, end) = self.scheduler, self._window
        order = scheduler.order
        if end < num_inference_steps and self._clean:
            scheduler.sigmas = torch.cat([scheduler.sigmas[:end], scheduler.sigmas.new_zeros(1)])
            scheduler.timesteps = scheduler.timesteps[:end]
        last = None if end >= num_inference_steps else end * order
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first * order)
        return scheduler.timesteps[first * order : last], end - first

    def prepare_latents(self, image: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        if self._window is None:
            return super().prepare_latents(image, timestep, *args, **kwargs)  # type: ignore[misc]
        # of img2img: batch_size, num_images_per_prompt, dtype, device, generator
        _, _, dtype, device, generator, *_ = args
        samples = image.to(device, dtype)
        noise = torch.zeros_like(samples)
        latents = samples
        if self._noise:
            noise = randn_tensor(samples.shape, generator=generator, device=device, dtype=dtype)
            if self._from_noise:
                latents = noise * self.scheduler.init_noise_sigma
            else:
                latents = self.scheduler.add_noise(samples, noise, timestep)
        if self._blend is not None:
            self._keep_unmasked(samples, noise, self._blend.to(device, dtype))
        return latents

    def _keep_unmasked(self, samples: torch.Tensor, noise: torch.Tensor, mask: torch.Tensor) -> None:
        """After each step put back what the mask keeps, as noisy as the rest is, as diffusers' inpainting does."""
        scheduler, take_step = self.scheduler, self.scheduler.step

        @wraps(take_step)
        def step(output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            made, *rest = take_step(output, timestep, sample, *args, **kwargs)
            later = scheduler.timesteps[scheduler.timesteps < timestep]
            kept = samples if not len(later) else scheduler.add_noise(samples, noise, later[:1])
            return (mask * made + (1 - mask) * kept, *rest)

        scheduler.step = step


class Combined:
    """A UNet that hears several prompts in place of each row's one, and gives the mean of what it predicts for them."""

    def __init__(self, unet: Any, embeds: torch.Tensor, pooled: torch.Tensor | None, counts: Sequence[int]) -> None:
        self._unet = unet
        self._counts = list(counts)
        self._embeds = embeds
        self._pooled = pooled

    def __getattr__(self, name: str) -> Any:
        return getattr(self._unet, name)

    def __call__(self, sample: torch.Tensor, timestep: Any, encoder_hidden_states: Any = None, **call: Any) -> Any:
        counts = torch.tensor(self._counts, device=sample.device)
        rows = torch.repeat_interleave(torch.arange(len(counts), device=sample.device), counts)

        def spread(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return value[rows] if value.dim() and len(value) == len(counts) else value
            if isinstance(value, dict):
                return {name: spread(part) for name, part in value.items()}
            return type(value)(map(spread, value)) if isinstance(value, list | tuple) else value

        call = {name: spread(value) for name, value in call.items()}
        if self._pooled is not None:
            call["added_cond_kwargs"] = call["added_cond_kwargs"] | {"text_embeds": self._pooled.to(sample)}
        predicted = self._unet(sample[rows], timestep, encoder_hidden_states=self._embeds.to(sample), **call)[0]
        return (torch.stack([part.mean(0) for part in predicted.split(self._counts)]),)


def _to_array(tensor: torch.Tensor) -> Any:
    return tensor.float().cpu().numpy()
