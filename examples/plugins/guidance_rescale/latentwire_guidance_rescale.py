"""Request field `guidance_rescale`: strong guidance without its harsh contrast.

{"prompt": "red apple", "guidance_scale": 9, "guidance_rescale": 0.7}

Guidance widens the spread of what the model predicts, which shows as overexposure. Here the spread is brought back to
that of the prediction for the prompt alone, by the given part (Lin et al. 2023, "Common Diffusion Noise Schedules and
Sample Steps are Flawed", section 3.4; their own choice is 0.7).
"""

import inspect
from typing import Annotated

from pydantic import ConfigDict, Field, RootModel

from latentwire import CallContext, InvalidParams, PluginRegistry, hookimpl

LATENTWIRE_API = "1.0"


class GuidanceRescale(RootModel[Annotated[float, Field(ge=0, le=1)]]):
    """How much of the spread that guidance adds is taken back: 0 nothing, 1 all."""

    model_config = ConfigDict(strict=True)


@hookimpl
def register(registry: PluginRegistry) -> None:
    registry.add_field("guidance_rescale", GuidanceRescale)


@hookimpl
def modify_call(context: CallContext) -> None:
    wanted: GuidanceRescale | None = getattr(context.request, "guidance_rescale", None)
    if wanted is None:
        return
    host, build = context.host, context.build
    pipeline = host.registry.pipeline_class(host.store.card(build.model).family, build)
    if "guidance_rescale" not in inspect.signature(pipeline.__call__).parameters:
        message = f"model {build.model!r} cannot do it here: {pipeline.__name__} takes no guidance_rescale"
        raise InvalidParams(message, [{"path": ["guidance_rescale"], "message": message, "got": wanted.root}])
    context.call = context.call.with_extra(guidance_rescale=wanted.root)
