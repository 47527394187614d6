"""Request field `clip_skip`: take the prompt's embedding from an earlier layer of the text encoder."""

from latentwire import CallContext, PluginRegistry, Strict, hookimpl
from pydantic import Field


class ClipSkip(Strict):
    """How many of the text encoder's last layers to leave out; many anime models were trained with 1."""

    layers: int = Field(ge=1, le=11)


@hookimpl
def register(registry: PluginRegistry) -> None:
    registry.add_field("clip_skip", ClipSkip)


@hookimpl
def modify_call(context: CallContext) -> None:
    section = getattr(context.request, "clip_skip", None)
    if section is not None:
        context.call = context.call.with_extra(clip_skip=section.layers)
