"""Prompts that choose for themselves: `{red|green|blue} apple` takes one of three, `__animal__` one of a list.

{"prompt": "{red|green} apple, __animal__", "num_images": 4}

The picture's own seed decides, so a stored request makes the same picture again.
"""

import difflib
import random
import re
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from pydantic import Field

from latentwire import BuildContext, CallContext, InvalidParams, JobEvent, PluginRegistry, Strict, hookimpl

LATENTWIRE_API = "1.0"

CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}|__([A-Za-z0-9]+(?:[_-][A-Za-z0-9]+)*)__")
"""The innermost braces with a bar in them, or a list's name."""

MOST_ROUNDS = 20
MOST_LETTERS = 10_000  # as many as a request's prompt may have

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9]+([_-][A-Za-z0-9]+)*$")]
Entries = Annotated[list[str], Field(min_length=1)]


class Settings(Strict):
    """What plugins.toml may set for this plugin."""

    lists: dict[Name, Entries] = Field({}, description="by name; an entry may choose again, `{ripe|sour} __fruit__`")


@dataclass(frozen=True, slots=True)
class PromptChosen(JobEvent):
    """What became of the prompt for one picture, before it begins; only where there was something to choose."""

    name: ClassVar[str] = "prompt_chosen"

    index: int
    prompt: str


class Plugin:
    def __init__(self, settings: Settings) -> None:
        self.lists = settings.lists

    @hookimpl
    def register(self, registry: PluginRegistry) -> None:
        registry.add_event(PromptChosen)

    @hookimpl
    def modify_build(self, context: BuildContext) -> None:
        # before a model is loaded for a prompt that cannot be used
        for _, name in CHOICE.findall(context.request.prompt):
            if name:
                self._entries(name)

    @hookimpl
    def modify_call(self, context: CallContext) -> None:
        prompt = self._chosen(context.call.prompt, context.call.seed)
        if prompt != context.call.prompt:
            context.call = replace(context.call, prompt=prompt)
            context.emit(PromptChosen(context.job, context.index, prompt))

    def _chosen(self, prompt: str, seed: int) -> str:
        drawn = random.Random(seed)

        def choose(found: re.Match[str]) -> str:
            braces, name = found.groups()
            entries = self._entries(name) if braces is None else braces.split("|")
            return entries[int(drawn.random() * len(entries))].strip()  # the same in every version of Python

        for _ in range(MOST_ROUNDS):
            if not CHOICE.search(prompt):
                return prompt
            prompt = CHOICE.sub(choose, prompt)
            if len(prompt) > MOST_LETTERS:
                break
        raise _refused("the prompt's lists name one another without end, or make it too long", prompt)

    def _entries(self, name: str) -> list[str]:
        if name in self.lists:
            return self.lists[name]
        near = difflib.get_close_matches(name, self.lists, n=1)
        known = ", ".join(self.lists) or "none"
        raise _refused(
            f"there is no list {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"lists: {known}"), name
        )


def _refused(message: str, got: str) -> InvalidParams:
    return InvalidParams(message, [{"path": ["prompt"], "message": message, "got": got[:80]}])
