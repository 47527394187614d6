"""What a host is compared with: an ordinary diffusers pipeline, and the raw forwards of its denoiser."""

import io
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import diffusers
import torch
import transformers

from latentwire.core.settings import EMBEDDED_MODEL


class Plain:
    """A pipeline as diffusers loads it; for the main thread of a process of its own.

    Args:
        folder: The model, in diffusers' format.
        dtype: Of its weights.
        device: Where it runs.
        compiled: Whether the denoiser's repeated blocks are compiled by torch, each kind once.
    """

    def __init__(
        self, folder: Path = EMBEDDED_MODEL, dtype: str = "float32", device: str = "cpu", compiled: bool = False
    ) -> None:
        for library in (diffusers.utils.logging, transformers.logging):
            library.disable_progress_bar()
            library.set_verbosity_error()
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            local_files_only=True,
            safety_checker=None,
            requires_safety_checker=False,
        )
        pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline.to(device)
        if compiled:
            self.pipeline.unet.compile_repeated_blocks(fullgraph=True)
        self.device = torch.device(device)

    @torch.inference_mode()
    def picture(self, prompt: str, seed: int, steps: int, side: int | None = None) -> float:
        """Seconds for one picture, up to its PNG as a host makes it."""
        begin = perf_counter()
        generator = torch.Generator().manual_seed(seed)
        options = {"guidance_scale": 4.0, "num_inference_steps": steps, "generator": generator}
        image = self.pipeline(prompt, width=side, height=side, **options).images[0]
        image.save(io.BytesIO(), "png", compress_level=1)
        return perf_counter() - begin

    def forward(self, rows: int, times: int, side: int | None = None) -> float:
        """Median seconds of some raw forwards of the denoiser over so many rows."""
        unet = self.pipeline.unet
        inputs = self.inputs(rows, side)
        return self.seconds(lambda: unet(**inputs), times)

    def inputs(self, rows: int, side: int | None = None) -> dict[str, Any]:
        """Arguments for the denoiser.

        Args:
            side: Pixels of a picture's side; the model's own if None.
        """
        config, options = self.pipeline.unet.config, {"dtype": self.pipeline.unet.dtype, "device": self.device}
        size = side // 8 if side else config.sample_size
        return {
            "sample": torch.randn(rows, config.in_channels, size, size, **options),
            "timestep": torch.full((rows,), 500.0, device=self.device),
            "encoder_hidden_states": torch.randn(rows, 77, config.cross_attention_dim, **options),
        }

    @torch.inference_mode()
    def seconds(self, work: Callable[[], Any], times: int) -> float:
        """Median seconds of doing it; once before, to warm up."""
        taken = []
        for _ in range(times + 1):
            begin = perf_counter()
            work()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            taken.append(perf_counter() - begin)
        return median(taken[1:])
