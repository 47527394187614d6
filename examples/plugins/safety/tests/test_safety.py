"""What the filter refuses on real jobs, how that looks to a client, and what it lets through."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from latentwire_safety import dhash
from PIL import Image, ImageEnhance

from latentwire import Host, InvalidParams, LatentwireError, PluginError, RemoteError
from latentwire.testing import Events, assert_same_picture, call, generate, plugin, running_host

WORDS = ["poison", "evil (one)", "Größe"]


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with running_host(plugin("safety", words=WORDS)) as host:
        yield host


@pytest.fixture(scope="module")
def apple(host: Host) -> Image.Image:
    return generate(host, num_inference_steps=8).picture


@pytest.mark.parametrize("prompt", ["a Poison apple", "poison", "an EVIL (one), red", "größe"])
def test_a_word_in_the_prompt_is_refused_without_naming_it(host: Host, prompt: str) -> None:
    with pytest.raises(InvalidParams) as caught:
        generate(host, prompt)
    assert caught.value.details[0]["path"] == ["prompt"]
    assert not any(word.lower() in caught.value.message.lower() for word in WORDS)


@pytest.mark.parametrize("prompt", ["a poisonous apple", "antipoison", "evil one", "red apple"])
def test_other_prompts_pass(host: Host, prompt: str) -> None:
    assert generate(host, prompt).result["images"] == 1


def test_a_prompt_that_another_plugin_made_is_looked_at_too(
    latentwire_host: Callable[..., Host], tmp_path: Path
) -> None:
    (tmp_path / "poisons.py").write_text(
        "from dataclasses import replace\n"
        "from latentwire import hookimpl\n"
        "@hookimpl\n"
        "def modify_call(context):\n"
        "    context.call = replace(context.call, prompt='poison ' + context.call.prompt)\n"
    )
    host = latentwire_host(tmp_path / "poisons.py", plugin("safety", words=WORDS))
    with pytest.raises(InvalidParams, match="does not make"):
        generate(host, "apple")


def test_a_picture_that_looks_like_one_of_the_list_is_refused(
    latentwire_host: Callable[..., Host], apple: Image.Image
) -> None:
    host = latentwire_host(plugin("safety", hashes=[f"{dhash(apple):016x}"]))
    events = Events()
    params = {"prompt": "red apple", "num_inference_steps": 8, "seed": 1, "mode": "exact"}
    with pytest.raises(LatentwireError) as caught:
        call(host, "generate", params, emit=events)
    assert caught.value.code == "picture_refused"
    assert "image" not in events.names
    other = generate(host, "green frog", num_inference_steps=8, seed=4).picture  # another one passes
    assert (dhash(other) ^ dhash(apple)).bit_count() > 6


def test_a_client_is_told_the_plugins_own_code(latentwire_client: Callable[..., object], apple: Image.Image) -> None:
    client = latentwire_client(plugin("safety", hashes=[f"{dhash(apple):016x}"]))
    with pytest.raises(RemoteError) as caught:
        list(client.generate("red apple", num_inference_steps=8, seed=1, mode="exact"))  # type: ignore[attr-defined]
    assert caught.value.code == "picture_refused"
    row = next(row for row in client.call("plugins.list")["plugins"] if row["name"] == "safety")  # type: ignore[attr-defined]
    assert row["state"] == "loaded"  # to refuse is no failure


def test_nothing_streams_that_shows_the_picture_before(latentwire_host: Callable[..., Host]) -> None:
    host = latentwire_host(plugin("safety", hashes=["0" * 16]))
    stream = {"previews": {}, "latents": {}}
    assert {"preview", "latents"}.isdisjoint(generate(host, stream=stream).events.names)
    with pytest.raises(InvalidParams) as caught:
        generate(host, output_type="latent")
    assert caught.value.details[0]["path"] == ["output_type"]


def test_without_hashes_everything_streams(host: Host) -> None:
    assert "latents" in generate(host, stream={"latents": {}}).events.names
    assert generate(host, output_type="latent").latents.shape == (4, 16, 16)


def test_a_hash_knows_its_picture_again(apple: Image.Image, tmp_path: Path) -> None:
    apple.save(tmp_path / "apple.jpg", quality=40)
    copies = [
        apple.resize((400, 300)),
        Image.open(tmp_path / "apple.jpg"),
        ImageEnhance.Brightness(apple).enhance(0.7),
    ]
    assert max((dhash(copy) ^ dhash(apple)).bit_count() for copy in copies) <= 6
    assert (dhash(apple.transpose(Image.Transpose.FLIP_TOP_BOTTOM)) ^ dhash(apple)).bit_count() > 6


def test_what_passes_is_not_changed(host: Host, latentwire_host: Callable[..., Host]) -> None:
    assert_same_picture(generate(host).picture, generate(latentwire_host()).picture)


@pytest.mark.parametrize("wrong", [{"hashes": ["xyz"]}, {"words": [""]}, {"word": ["poison"]}])
def test_wrong_settings_are_said_when_the_plugin_is_loaded(wrong: dict[str, list[str]]) -> None:
    with pytest.raises(PluginError, match=r"hashes|words"), running_host(plugin("safety", **wrong)):
        pass
