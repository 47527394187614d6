"""Requests of few steps that name no scheduler run on UniPC, which needs fewer steps than DDIM."""

from dataclasses import replace

from latentwire import BuildContext, hookimpl

LATENTWIRE_API = "1.0"

FEW_STEPS = 8


@hookimpl
def modify_build(context: BuildContext) -> None:
    request = context.request
    steps = request.num_inference_steps  # None: the model's own default, which is no small number
    if request.scheduler is None and steps is not None and steps <= FEW_STEPS:
        context.build = replace(context.build, scheduler="unipc")
