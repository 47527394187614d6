"""Prompts that the embedded model knows."""

import itertools
from collections.abc import Iterator

from latentwire.training.things import COLOURS, THINGS

PROMPT = "red apple on a blue background"


def new_prompts() -> Iterator[str]:
    """2,540 prompts, each once: a host may remember what it has made of a prompt, a plain pipeline does not."""
    for form, colour, thing in itertools.product(("{} on a {} background", "a {} on {} background"), COLOURS, THINGS):
        yield form.format(thing.replace("_", " "), colour)
