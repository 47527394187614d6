"""Graphs of the kinds that people share, in the format that editors write, and requests that make the same pictures."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw

Graph = dict[str, dict[str, Any]]
Link = list[Any]

SIZE, STEPS, CFG, SEED = 64, 4, 4.0, 7
EULER = {"sampler_name": "euler", "scheduler": "normal"}
PROMPT, NEGATIVE = "red apple on a blue background", "leaf"
REQUEST: dict[str, Any] = {
    "prompt": PROMPT,
    "negative_prompt": NEGATIVE,
    "width": SIZE,
    "height": SIZE,
    "num_inference_steps": STEPS,
    "guidance_scale": CFG,
    "scheduler": "euler",
    "seed": SEED,
}
"""What the graphs below ask for where they do not say otherwise."""


def painted(size: int = SIZE) -> PILImage.Image:
    """A yellow disc on green."""
    picture = PILImage.new("RGB", (size, size), (40, 150, 70))
    ImageDraw.Draw(picture).ellipse((size * 0.2, size * 0.2, size * 0.8, size * 0.8), fill=(240, 210, 50))
    return picture


def right_half(size: int = SIZE) -> PILImage.Image:
    """A mask that is white on its right half."""
    mask = PILImage.new("L", (size, size))
    mask.paste(255, (size // 2, 0, size, size))
    return mask


def file_of(picture: PILImage.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


@dataclass
class Draft:
    """A graph in the making; what `add` gives are links to the new node's outputs."""

    nodes: Graph = field(default_factory=dict)

    def add(self, class_type: str, outputs: int = 1, **inputs: Any) -> list[Link]:
        name = str(len(self.nodes) + 1)
        self.nodes[name] = {"class_type": class_type, "inputs": inputs, "_meta": {"title": class_type}}
        return [[name, output] for output in range(outputs)]

    def one(self, class_type: str, **inputs: Any) -> Link:
        return self.add(class_type, **inputs)[0]


@dataclass
class Model:
    """What every graph begins with: a model, two prompts and where to start."""

    draft: Draft
    skip: int = 0
    loras: tuple[tuple[str, float, float | None], ...] = ()

    def __post_init__(self) -> None:
        self.model, self.clip, self.vae = self.draft.add("CheckpointLoaderSimple", 3, ckpt_name="emoji")
        for name, strength, clip in self.loras:
            given = {"model": self.model, "lora_name": name, "strength_model": strength}
            if clip is None:
                self.model = self.draft.one("LoraLoaderModelOnly", **given)
            else:
                self.model, self.clip = self.draft.add("LoraLoader", 2, **given, clip=self.clip, strength_clip=clip)
        if self.skip:
            self.clip = self.draft.one("CLIPSetLastLayer", clip=self.clip, stop_at_clip_layer=-1 - self.skip)
        self.positive = self.text(PROMPT)
        self.negative = self.text(NEGATIVE)

    def text(self, text: str) -> Link:
        return self.draft.one("CLIPTextEncode", text=text, clip=self.clip)

    def empty(self, batch: int = 1) -> Link:
        return self.draft.one("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=batch)

    def encoded(self, image: Link) -> Link:
        return self.draft.one("VAEEncode", pixels=image, vae=self.vae)

    def sampled(self, latent: Link | None = None, **changes: Any) -> Link:
        settings = {
            "seed": SEED,
            "steps": STEPS,
            "cfg": CFG,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
        }
        sources = {"model": self.model, "positive": self.positive, "negative": self.negative}
        sources["latent_image"] = self.empty() if latent is None else latent
        return self.draft.one("KSampler", **settings | sources | changes)

    def sampled_some(self, latent: Link, **changes: Any) -> Link:
        settings = {
            "add_noise": "enable",
            "noise_seed": SEED,
            "steps": STEPS,
            "cfg": CFG,
            "start_at_step": 0,
            "end_at_step": 10000,
            "return_with_leftover_noise": "disable",
        }
        sources = {"model": self.model, "positive": self.positive, "negative": self.negative, "latent_image": latent}
        return self.draft.one("KSamplerAdvanced", **settings | EULER | sources | changes)

    def decoded(self, latent: Link) -> Link:
        return self.draft.one("VAEDecode", samples=latent, vae=self.vae)

    def saved(self, latent: Link) -> Graph:
        self.draft.add("SaveImage", 0, images=self.decoded(latent), filename_prefix="shared")
        return self.draft.nodes

    def controlled(self, image: Link, advanced: bool = False, **changes: Any) -> None:
        net = self.draft.one("ControlNetLoader", control_net_name="outline")
        given = {"control_net": net, "image": image, "strength": 1.0} | changes
        if advanced:
            window = {"start_percent": 0.0, "end_percent": 1.0}
            self.positive, self.negative = self.draft.add(
                "ControlNetApplyAdvanced", 2, positive=self.positive, negative=self.negative, **window | given
            )
        else:
            self.positive = self.draft.one("ControlNetApply", conditioning=self.positive, **given)


@dataclass(frozen=True)
class Shared:
    """A graph, and the `generate` request that makes the same picture; None where there is no such request.

    `within` grey levels: 1 where the latents of `generate` lie in another order in memory, so that the autoencoder
    rounds the same numbers otherwise; or where predictions are averaged.
    """

    graph: Graph
    request: dict[str, Any] | None = None
    within: int = 0


Put = Callable[[PILImage.Image], str]
"""Uploads a picture; its id."""

SHARED: dict[str, Callable[[Put], Shared]] = {}


def shared(make: Callable[[Put], Shared]) -> Callable[[Put], Shared]:
    SHARED[make.__name__] = make
    return make


def start() -> Model:
    return Model(Draft())


def loaded(model: Model, put: Put, picture: PILImage.Image) -> tuple[Link, Link, str]:
    """A picture, its mask, and its id."""
    name = put(picture)
    image, mask = model.draft.add("LoadImage", 2, image=name)
    return image, mask, name


def strength(denoise: float) -> dict[str, Any]:
    """A request that makes the last `STEPS` steps of a schedule, as `denoise` does."""
    total = int(STEPS / denoise)
    return {"num_inference_steps": total, "strength": min(1.0, (STEPS + 0.5) / total)}


def img2img(image: str, denoise: float, **more: Any) -> dict[str, Any]:
    wanted = strength(denoise)
    return {
        "num_inference_steps": wanted["num_inference_steps"],
        "img2img": {"image": image, "strength": wanted["strength"], **more},
    }


def _sampler(sampler: str, scheduler: str, host: str) -> None:
    def make(put: Put) -> Shared:
        model = start()
        return Shared(model.saved(model.sampled(sampler_name=sampler, scheduler=scheduler)), {"scheduler": host})

    SHARED[f"text_to_image_{sampler}_{scheduler}"] = make


_sampler("euler", "normal", "euler")
_sampler("euler_ancestral", "normal", "euler_ancestral")
_sampler("dpmpp_2m", "karras", "dpmpp_2m_karras")
_sampler("heun", "exponential", "heun_exponential")
_sampler("uni_pc", "simple", "unipc_trailing")
_sampler("ddim", "normal", "ddim")
_sampler("lcm", "sgm_uniform", "lcm_trailing")


@shared
def a_batch(put: Put) -> Shared:
    model = start()
    return Shared(model.saved(model.sampled(model.empty(3))), {"num_images": 3})


@shared
def no_guidance(put: Put) -> Shared:
    model = start()
    return Shared(model.saved(model.sampled(cfg=1.0)), {"guidance_scale": 1.0})


@shared
def image_to_image(put: Put) -> Shared:
    model = start()
    image, _, name = loaded(model, put, painted())
    return Shared(model.saved(model.sampled(model.encoded(image), denoise=0.5)), img2img(name, 0.5), within=1)


@shared
def image_to_image_from_noise(put: Put) -> Shared:
    model = start()
    image, _, name = loaded(model, put, painted())
    return Shared(model.saved(model.sampled(model.encoded(image))), img2img(name, 1.0), within=1)


@shared
def image_to_image_of_a_scaled_picture(put: Put) -> Shared:
    model = start()
    image, _, _ = loaded(model, put, painted(160))
    scaled = model.draft.one("ImageScale", image=image, upscale_method="lanczos", width=SIZE, height=0, crop="disabled")
    name = put(painted(160).resize((SIZE, SIZE), PILImage.Resampling.LANCZOS))
    return Shared(model.saved(model.sampled(model.encoded(scaled), denoise=0.7)), img2img(name, 0.7), within=1)


@shared
def inpaint_with_a_noise_mask(put: Put) -> Shared:
    model = start()
    image, _, name = loaded(model, put, painted())
    mask = put(right_half())
    loaded_mask = model.draft.one("LoadImageMask", image=mask, channel="red")
    latent = model.draft.one("SetLatentNoiseMask", samples=model.encoded(image), mask=loaded_mask)
    return Shared(model.saved(model.sampled(latent, denoise=0.6)), img2img(name, 0.6, mask=mask), within=1)


@shared
def inpaint_what_is_transparent(put: Put) -> Shared:
    """As the mask editors of front ends write it: into the picture's own alpha."""
    model = start()
    picture = painted()
    picture.putalpha(right_half().point(lambda value: 255 - value))
    image, mask, _ = loaded(model, put, picture)
    latent = model.draft.one("SetLatentNoiseMask", samples=model.encoded(image), mask=mask)
    request = img2img(put(painted()), 1.0, mask=put(right_half()))
    return Shared(model.saved(model.sampled(latent)), request, within=1)


@shared
def inpaint_from_grey(put: Put) -> Shared:
    model = start()
    image, _, _ = loaded(model, put, painted())
    mask = put(right_half())
    loaded_mask = model.draft.one("LoadImageMask", image=mask, channel="red")
    given = {"pixels": image, "vae": model.vae, "mask": loaded_mask, "grow_mask_by": 0}
    latent = model.draft.one("VAEEncodeForInpaint", **given)
    grey = PILImage.composite(PILImage.new("RGB", (SIZE, SIZE), (128, 128, 128)), painted(), right_half())
    return Shared(model.saved(model.sampled(latent)), img2img(put(grey), 1.0, mask=mask), within=1)


@shared
def inpaint_with_a_grown_mask(put: Put) -> Shared:
    model = start()
    image, _, _ = loaded(model, put, painted())
    loaded_mask = model.draft.one("LoadImageMask", image=put(right_half()), channel="green")
    given = {"pixels": image, "vae": model.vae, "mask": loaded_mask, "grow_mask_by": 8}
    latent = model.draft.one("VAEEncodeForInpaint", **given)
    grey = PILImage.composite(PILImage.new("RGB", (SIZE, SIZE), (128, 128, 128)), painted(), right_half())
    grown = np.zeros((SIZE, SIZE), np.uint8)
    grown[:, SIZE // 2 - 4 :] = 255
    mask = put(PILImage.fromarray(grown))
    return Shared(model.saved(model.sampled(latent)), img2img(put(grey), 1.0, mask=mask), within=1)


@shared
def a_lora(put: Put) -> Shared:
    model = Model(Draft(), loras=(("pencil", 0.8, 0.8),))
    return Shared(model.saved(model.sampled()), {"lora": [{"name": "pencil", "weight": 0.8}]})


@shared
def a_lora_stack(put: Put) -> Shared:
    model = Model(Draft(), loras=(("pencil", 0.5, 0.5), ("again", 0.25, 0.25), ("pencil", 0.1, 0.1)))
    uses = [{"name": "pencil", "weight": 0.6}, {"name": "again", "weight": 0.25}]
    return Shared(model.saved(model.sampled()), {"lora": uses})


@shared
def a_lora_of_the_model_alone(put: Put) -> Shared:
    """The LoRA changes nothing of the text encoder, so it is the same as one for both."""
    model = Model(Draft(), loras=(("pencil", 0.8, None),))
    return Shared(model.saved(model.sampled()), {"lora": [{"name": "pencil", "weight": 0.8}]})


@shared
def a_lora_of_two_strengths(put: Put) -> Shared:
    model = Model(Draft(), loras=(("pencil", 0.8, 0.3),))
    return Shared(model.saved(model.sampled()), {"lora": [{"name": "pencil", "weight": 0.8}]})


@shared
def a_controlnet(put: Put) -> Shared:
    model = start()
    image, _, name = loaded(model, put, painted())
    model.controlled(image, strength=0.9)
    use = {"name": "outline", "image": name, "controlnet_conditioning_scale": 0.9}
    return Shared(model.saved(model.sampled()), {"controlnet": [use]})


@shared
def a_controlnet_for_a_part_of_the_steps(put: Put) -> Shared:
    model = start()
    image, _, name = loaded(model, put, painted())
    model.controlled(image, advanced=True, start_percent=0.25, end_percent=0.75)
    use = {"name": "outline", "image": name, "control_guidance_start": 0.25, "control_guidance_end": 0.75}
    return Shared(model.saved(model.sampled()), {"controlnet": [use]})


@shared
def a_controlnet_chain(put: Put) -> Shared:
    model = start()
    first, _, one = loaded(model, put, painted())
    second, _, two = loaded(model, put, right_half().convert("RGB"))
    model.controlled(first, advanced=True, strength=0.7, end_percent=0.5)
    model.controlled(second, advanced=True, strength=0.4)
    uses = [
        {"name": "outline", "image": one, "controlnet_conditioning_scale": 0.7, "control_guidance_end": 0.5},
        {"name": "outline", "image": two, "controlnet_conditioning_scale": 0.4},
    ]
    return Shared(model.saved(model.sampled()), {"controlnet": uses})


@shared
def a_controlnet_of_a_larger_cannied_picture(put: Put) -> Shared:
    model = start()
    image, _, name = loaded(model, put, painted(96))
    model.controlled(model.draft.one("Canny", image=image, low_threshold=0.4, high_threshold=0.8))
    return Shared(model.saved(model.sampled()), {"controlnet": [{"name": "outline", "image": f"canny of {name}"}]})


@shared
def a_controlnet_with_a_lora(put: Put) -> Shared:
    model = Model(Draft(), loras=(("pencil", 0.8, 0.8),))
    image, _, name = loaded(model, put, painted())
    model.controlled(image)
    request = {"controlnet": [{"name": "outline", "image": name}], "lora": [{"name": "pencil", "weight": 0.8}]}
    return Shared(model.saved(model.sampled()), request)


@shared
def a_controlnet_for_image_to_image(put: Put) -> Shared:
    model = start()
    image, _, name = loaded(model, put, painted())
    model.controlled(image)
    request = img2img(name, 0.5) | {"controlnet": [{"name": "outline", "image": name}]}
    return Shared(model.saved(model.sampled(model.encoded(image), denoise=0.5)), request, within=1)


@shared
def a_controlnet_for_inpainting(put: Put) -> Shared:
    model = start()
    image, _, name = loaded(model, put, painted())
    mask = put(right_half())
    loaded_mask = model.draft.one("LoadImageMask", image=mask, channel="blue")
    model.controlled(image)
    latent = model.draft.one("SetLatentNoiseMask", samples=model.encoded(image), mask=loaded_mask)
    request = img2img(name, 0.5, mask=mask) | {"controlnet": [{"name": "outline", "image": name}]}
    return Shared(model.saved(model.sampled(latent, denoise=0.5)), request, within=1)


@shared
def clip_skip(put: Put) -> Shared:
    model = Model(Draft(), skip=1)
    return Shared(model.saved(model.sampled()), {"clip_skip": {"layers": 1}})


@shared
def an_autoencoder_of_its_own(put: Put) -> Shared:
    model = start()
    model.vae = model.draft.one("VAELoader", vae_name="emoji")
    return Shared(model.saved(model.sampled()), {})


@shared
def two_samplers_for_one_picture(put: Put) -> Shared:
    """The first leaves its noise, the second goes on with it: the same as one."""
    model = start()
    first = model.sampled_some(model.empty(), end_at_step=2, return_with_leftover_noise="enable")
    return Shared(model.saved(model.sampled_some(first, start_at_step=2, add_noise="disable")), {})


@shared
def a_late_start_is_image_to_image(put: Put) -> Shared:
    model = start()
    image, _, name = loaded(model, put, painted())
    latent = model.sampled_some(model.encoded(image), steps=2 * STEPS, start_at_step=STEPS)
    return Shared(model.saved(latent), img2img(name, 0.5), within=1)


@shared
def two_passes_by_way_of_a_larger_picture(put: Put) -> Shared:
    model = start()
    first = model.decoded(model.sampled())
    larger = model.draft.one("ImageScaleBy", image=first, upscale_method="bicubic", scale_by=1.5)
    request = img2img("first picture at 1.5 times its size", 0.5) | {"width": 96, "height": 96}
    return Shared(model.saved(model.sampled(model.encoded(larger), denoise=0.5)), request, within=1)


@shared
def two_passes_by_way_of_larger_latents(put: Put) -> Shared:
    model = start()
    larger = {"upscale_method": "nearest-exact", "width": 96, "height": 96, "crop": "disabled"}
    second = model.draft.one("LatentUpscale", samples=model.sampled(), **larger)
    return Shared(model.saved(model.sampled(second, denoise=0.5)))


@shared
def prompts_combined(put: Put) -> Shared:
    """One prompt combined with itself is that prompt."""
    model = start()
    model.positive = model.draft.one(
        "ConditioningCombine", conditioning_1=model.positive, conditioning_2=model.positive
    )
    return Shared(model.saved(model.sampled()), {}, within=1)


@shared
def different_prompts_combined(put: Put) -> Shared:
    model = start()
    other = model.text("green frog")
    model.positive = model.draft.one("ConditioningCombine", conditioning_1=model.positive, conditioning_2=other)
    return Shared(model.saved(model.sampled()))


@shared
def a_negative_prompt_of_zeros(put: Put) -> Shared:
    model = start()
    model.negative = model.draft.one("ConditioningZeroOut", conditioning=model.negative)
    return Shared(model.saved(model.sampled()))


@shared
def one_node(put: Put) -> Shared:
    draft = Draft()
    given = REQUEST | {"clip_skip.layers": 1}
    draft.add("PreviewImage", 0, images=draft.one("LatentwireGenerate", **given))
    return Shared(draft.nodes, {"clip_skip": {"layers": 1}})
