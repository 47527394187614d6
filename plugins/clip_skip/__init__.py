"""Request field `clip_skip`: take the prompt's embedding from an earlier layer of the text encoder."""

from pydantic import Field

from latentwire import CallContext, InvalidParams, PluginRegistry, Strict, hookimpl


class ClipSkip(Strict):
    """How many of the text encoder's last layers to leave out; many anime models were trained with 1."""

    layers: int = Field(ge=1, le=11)


@hookimpl
def register(registry: PluginRegistry) -> None:
    registry.add_field("clip_skip", ClipSkip)


@hookimpl
def modify_call(context: CallContext) -> None:
    section = getattr(context.request, "clip_skip", None)
    if section is None:
        return
    layers = context.components["text_encoder"].config.num_hidden_layers
    if section.layers >= layers:
        message = (
            f"clip_skip.layers is {section.layers}; the text encoder of {context.build.model!r} has {layers} layers"
        )
        path = ["clip_skip", "layers"]
        raise InvalidParams(message, [{"path": path, "message": message, "got": section.layers}])
    context.call = context.call.with_extra(clip_skip=section.layers)
