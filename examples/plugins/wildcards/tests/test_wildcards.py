"""Prompts that choose, on real jobs: what the pipeline gets is what the event and the PNG say."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from latentwire import Host, InvalidParams, PluginError
from latentwire.testing import Events, Generated, assert_same_picture, call, generate, plugin, running_host

LISTS = {"animal": ["cat", "dog"], "fruit": ["{red|green} apple", "pear"], "any": ["__animal__", "__fruit__"]}


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with running_host(plugin("wildcards", lists=LISTS)) as host:
        yield host


def prompts(made: Generated) -> list[str]:
    events = sorted(made.events.named("prompt_chosen"), key=lambda event: event.index)
    return [event.prompt for event in events]


def test_each_picture_chooses_by_its_own_seed(host: Host) -> None:
    made = generate(host, "{red|green|blue} apple", num_images=6, num_inference_steps=1)
    chosen = prompts(made)
    assert len(chosen) == 6
    assert set(chosen) == {"red apple", "green apple", "blue apple"}
    assert [picture.info["parameters"].splitlines()[0] for picture in made.pictures] == chosen


def test_the_picture_is_that_of_the_chosen_prompt(host: Host) -> None:
    made = generate(host, "{red|green} apple", seed=5)
    (prompt,) = prompts(made)
    assert_same_picture(made.picture, generate(host, prompt, seed=5).picture)


def test_the_stored_request_makes_the_same_picture_again(host: Host) -> None:
    first = generate(host, "{red|green|blue} __fruit__", seed=None, num_images=3)
    for picture, prompt in zip(first.pictures, prompts(first), strict=True):
        stored = json.loads(picture.info["latentwire"])
        assert stored["prompt"] == "{red|green|blue} __fruit__"
        again = generate(host, **stored)
        assert prompts(again) == [prompt]
        assert_same_picture(again.picture, picture)


def test_lists_and_braces_stand_in_one_another(host: Host) -> None:
    made = generate(host, "{{a|the} __any__|nothing}", num_images=10, num_inference_steps=1)
    nouns = ["cat", "dog", "red apple", "green apple", "pear"]
    possible = {f"{article} {noun}" for article in ("a", "the") for noun in nouns} | {"nothing"}
    assert set(prompts(made)) <= possible
    assert len(set(prompts(made))) > 3


def test_a_prompt_without_choices_is_left_alone(host: Host, latentwire_host: Callable[..., Host]) -> None:
    prompt = "red apple {one} snake_case __ | __init"
    made = generate(host, prompt)
    assert prompts(made) == []
    assert_same_picture(made.picture, generate(latentwire_host(), prompt).picture)


def test_an_unknown_list_is_refused_and_the_nearest_is_named(host: Host) -> None:
    with pytest.raises(InvalidParams, match="there is no list 'animals'; did you mean 'animal'") as caught:
        generate(host, "an __animals__")
    assert caught.value.details == [{"path": ["prompt"], "message": caught.value.message, "got": "animals"}]
    with pytest.raises(InvalidParams, match="lists: animal, fruit, any"):
        generate(host, "a __zzz__")
    with pytest.raises(InvalidParams, match="there is no list 'zzz'"):
        generate(host, "{__zzz__|__zzz__}")
    assert generate(host).result["images"] == 1  # nothing is the worse for it


def test_it_is_refused_before_a_model_is_loaded_for_it(latentwire_host: Callable[..., Host]) -> None:
    events = Events()
    with pytest.raises(InvalidParams):
        call(latentwire_host("wildcards"), "generate", {"prompt": "an __animal__"}, emit=events)
    assert events.names == ["accepted"]


@pytest.mark.parametrize("entries", [["__round__"], ["__round__ and __round__"]])
def test_lists_that_never_end_are_refused(latentwire_host: Callable[..., Host], entries: list[str]) -> None:
    host = latentwire_host(plugin("wildcards", lists={"round": entries}))
    with pytest.raises(InvalidParams, match="without end"):
        generate(host, "__round__")


@pytest.mark.parametrize("lists", [{"animal": []}, {"no good": ["cat"]}, {"animal": "cat"}])
def test_wrong_lists_are_said_when_the_plugin_is_loaded(lists: Any) -> None:
    with pytest.raises(PluginError, match="lists"), running_host(plugin("wildcards", lists=lists)):
        pass
