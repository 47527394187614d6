"""`latentwire generate`: every field of the request, many prompts, JSON, and again when a file changes."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage
from PIL import ImageDraw

from latentwire.core.requests import GenerateRequest
from latentwire.server import cli, cli_request

from .conftest import Served, serving, wait_for

TINT = Path(__file__).parents[1] / "examples" / "plugins" / "tint.py"
SMALL = ["--width", "64", "--height", "64", "--steps", "2", "--seed", "7"]


@pytest.fixture(scope="module")
def host() -> Iterator[Served]:
    with serving(plugins=[{"name": "tint", "path": TINT}]) as served:
        yield served


@pytest.fixture
def generate(host: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> int:
        try:
            return cli.main(["generate", *arguments, "--url", host.url])
        except SystemExit as end:  # argparse's way to refuse
            return int(end.code or 0)

    return run


def request_of(path: Path | str) -> dict[str, Any]:
    with PILImage.open(path) as picture:
        request: dict[str, Any] = json.loads(picture.text["latentwire"])  # type: ignore[attr-defined]
    return request


def picture_file(path: str, paint: str = "white") -> Path:
    picture = PILImage.new("RGB", (64, 64))
    ImageDraw.Draw(picture).ellipse((8, 8, 56, 56), outline=paint, width=3)
    picture.save(path)
    return Path(path)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_field_of_the_core_has_an_option() -> None:
    own = {"prompt", "stream"}  # the argument, and what --previews, --preview and --field stream... make
    assert set(cli_request.PLAIN) == set(GenerateRequest.model_fields) - own


def test_every_plain_option_ends_up_in_the_request(
    generate: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--negative-prompt", "leaf", "--model", "emoji", "--scheduler", "euler", "--guidance", "3", "--mode"]
    options += ["reproducible", "--priority", "batch", "--slot", "mine", "--min-steps-shown", "1"]
    assert generate("red apple", *SMALL, *options, "--json") == 0
    assert {event.get("slot") for event in lines(capsys.readouterr().out)} == {"mine"}
    wanted = {
        "prompt": "red apple", "negative_prompt": "leaf", "model": "emoji", "scheduler": "euler", "guidance_scale": 3,
        "mode": "reproducible", "width": 64, "height": 64, "num_inference_steps": 2, "seed": 7,
    }  # fmt: skip
    request = request_of("latentwire.png")
    assert {name: request[name] for name in wanted} == wanted


def test_a_seed_for_each_picture(generate: Callable[..., int]) -> None:
    assert generate("red apple", *SMALL, "--seed", "3,9") == 0
    assert [request_of(f"latentwire-{index}.png")["seed"] for index in (0, 1)] == [3, 9]


def test_final_latents_are_written_as_an_array(generate: Callable[..., int]) -> None:
    assert generate("red apple", *SMALL, "--output-type", "latent", "-o", "x.png") == 0
    assert np.load("x.npy").shape == (4, 8, 8)
    assert not Path("x.png").exists()


def test_a_control_image_with_a_controlnet_that_is_loaded_when_it_is_needed(
    generate: Callable[..., int], host: Served
) -> None:
    picture_file("outline.png")
    for _ in range(2):  # the second time it is loaded already
        options = ["--control", "outline.png", "--control-net", "controlnets/emoji-outline", "--control-scale", "0.5"]
        assert generate("red apple", *SMALL, *options, "--preprocess", "canny") == 0
    (use,) = request_of("latentwire.png")["controlnet"]
    assert (use["name"], use["controlnet_conditioning_scale"]) == ("emoji-outline", 0.5)
    assert use["preprocess"]["name"] == "canny"
    assert len(use["image"]) == 32
    assert generate("red apple", *SMALL, "--control", "outline.png", "--control-net", "emoji-outline") == 0


def test_loras_by_path_and_by_name_with_weights(generate: Callable[..., int]) -> None:
    assert generate("red apple", *SMALL, "--lora", "loras/emoji-pencil:0.5", "--lora", "loras/emoji-pixel-art") == 0
    loras = request_of("latentwire.png")["lora"]
    assert loras == [{"name": "emoji-pencil", "weight": 0.5}, {"name": "emoji-pixel-art", "weight": 1.0}]
    assert generate("red apple", *SMALL, "--lora", "emoji-pencil:-1") == 0
    assert request_of("latentwire.png")["lora"] == [{"name": "emoji-pencil", "weight": -1.0}]


def test_a_picture_to_start_from_and_a_mask(generate: Callable[..., int]) -> None:
    picture_file("a.png", "red")
    picture_file("mask.png")
    assert generate("red apple", *SMALL, "--init", "a.png", "--strength", "0.9", "--mask", "mask.png") == 0
    field = request_of("latentwire.png")["img2img"]
    assert field["strength"] == 0.9
    assert field["image"] != field["mask"]


def test_fields_of_plugins_and_what_is_nested(generate: Callable[..., int]) -> None:
    picture_file("a.png", "red")
    assert generate("red apple", *SMALL, "--field", "tint.color=#ff8800", "--field", "tint.strength=1") == 0
    assert request_of("latentwire.png")["tint"] == {"color": "#ff8800", "strength": 1}
    with PILImage.open("latentwire.png") as picture:
        assert picture.getpixel((32, 32)) == (255, 136, 0)
    options = ["--field", "img2img.image=@a.png", "--field", "img2img.strength=0.9", "--field", "clip_skip.layers=1"]
    assert generate("red apple", *SMALL, *options) == 0
    request = request_of("latentwire.png")
    assert request["img2img"]["strength"] == 0.9
    assert len(request["img2img"]["image"]) == 32


def test_stream_options_are_fields_too(generate: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--field", "stream.previews.size=32", "--field", "stream.steps=false"]
    assert generate("red apple", *SMALL, *options, "--previews", "p", "--json") == 0
    events = lines(capsys.readouterr().out)
    assert not [event for event in events if event["event"] == "step"]
    assert {event["image"]["width"] for event in events if event["event"] == "preview"} == {32}
    for file in Path("p").iterdir():
        with PILImage.open(file) as picture:
            assert picture.size == (32, 32)


def test_put_makes_what_leads_to_a_place() -> None:
    fields: dict[str, Any] = {"controlnet": [{"image": "x"}]}
    cli_request.put(fields, "controlnet.0.guess_mode", True)
    cli_request.put(fields, "controlnet.1.image", "y")
    cli_request.put(fields, "lora.0.name", "pencil")
    assert fields == {
        "controlnet": [{"image": "x", "guess_mode": True}, {"image": "y"}],
        "lora": [{"name": "pencil"}],
    }
    for path in ("controlnet.5.image", "controlnet.first", "lora.0.name.x"):
        with pytest.raises(cli_request.BadInput, match=f"--field {path}: there is no place"):
            cli_request.put(fields, path, 1)


# Many prompts.


def test_prompts_of_a_file_are_numbered(generate: Callable[..., int]) -> None:
    Path("prompts.txt").write_text("red apple\n\n  tiger face \nrocket\n")
    assert generate("--from", "prompts.txt", "-o", "out/a.png", *SMALL) == 0
    assert [request_of(f"out/a-{number}.png")["prompt"] for number in range(3)] == ["red apple", "tiger face", "rocket"]
    assert len(list(Path("out").iterdir())) == 3


def test_numbers_have_as_many_digits_as_the_last_one(generate: Callable[..., int]) -> None:
    Path("prompts.txt").write_text("red apple\n" * 11)
    assert generate("--from", "prompts.txt", *SMALL, "--count", "1") == 0
    assert sorted(file.name for file in Path().glob("*.png"))[::10] == ["latentwire-00.png", "latentwire-10.png"]


def test_prompts_of_standard_input(generate: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("red apple\nrocket\n"))
    assert generate("--from", "-", "--count", "2", *SMALL) == 0
    names = sorted(file.name for file in Path().glob("*.png"))
    assert names == [f"latentwire-{number}-{index}.png" for number in (0, 1) for index in (0, 1)]


def test_a_prompt_that_is_refused_keeps_the_others_from_nothing(
    generate: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("prompts.txt").write_text(f"red apple\n{'x' * 10_001}\nrocket\n")
    assert generate("--from", "prompts.txt", *SMALL) == 1
    assert "latentwire: prompt 1: generate: prompt: String should have at most" in capsys.readouterr().err
    assert sorted(file.name for file in Path().glob("*.png")) == ["latentwire-0.png", "latentwire-2.png"]


# JSON.


def test_json_has_a_line_for_each_event_and_the_result(
    generate: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate("red apple", *SMALL, "--json", "-o", "a.png") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    events = lines(printed.out)
    assert [event["event"] for event in events] == ["accepted", "started", "step", "step", "image", "result"]
    assert (events[-2]["path"], events[-2]["image"]["width"]) == ("a.png", 64)
    assert events[-2]["image"]["data"] == {"bytes": Path("a.png").stat().st_size}
    assert events[-1]["seeds"] == [7]


def test_json_numbers_the_prompts_and_tells_errors(
    generate: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("prompts.txt").write_text(f"red apple\n{'x' * 10_001}\n")
    assert generate("--from", "prompts.txt", *SMALL, "--json") == 1
    ends = {event["number"]: event for event in lines(capsys.readouterr().out) if event["event"] in ("result", "error")}
    assert (ends[0]["event"], ends[1]["event"], ends[1]["code"]) == ("result", "error", "invalid_params")
    assert ends[1]["details"][0]["path"] == ["prompt"]


def test_json_of_models_and_plugins(host: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "--json", "--url", host.url]) == 0
    assert [row["name"] for row in lines(capsys.readouterr().out)] == ["emoji"]
    for arguments in (["plugins", "--json"], ["plugins", "list", "--json"]):
        assert cli.main([*arguments, "--url", host.url]) == 0
        assert {"tint", "clip_skip"} <= {row["name"] for row in lines(capsys.readouterr().out)}
    (tmp_path / "ageless.py").write_text(
        "from latentwire import hookimpl\n\n@hookimpl\ndef image_finished(context): ...\n"
    )
    assert cli.main(["plugins", "check", str(tmp_path / "ageless.py"), "--json"]) == 0  # it says for no API version
    assert {"file", "line", "wrong", "todo", "hint"} == set().union(*lines(capsys.readouterr().out))


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "wanted either a prompt, or --from FILE"),
        (["red apple", "--from", "prompts.txt"], "wanted either a prompt, or --from FILE"),
        (["--from", "none.txt"], "cannot read none.txt: No such file or directory"),
        (["--from", "empty.txt"], "empty.txt has no prompt; wanted one a line"),
        (["--from", "picture.png"], "picture.png is no text in UTF-8"),
        (["red apple", "--control", "none.png"], "cannot read none.png"),
        (["red apple", "--init", "."], "cannot read .: Is a directory"),
        (["red apple", "--control-net", "outline"], "--control-net needs --control PICTURE"),
        (["red apple", "--preprocess", "canny"], "--preprocess needs --control PICTURE"),
        (["red apple", "--strength", "0.5"], "--strength needs --init PICTURE"),
        (["red apple", "--mask", "picture.png"], "--mask needs --init PICTURE"),
        (["red apple", "--lora", "pencil:much"], "wanted NAME or NAME:WEIGHT, such as pencil:0.8, got 'pencil:much'"),
        (["red apple", "--field", "tint"], "wanted PATH=VALUE, such as tint.color=#ff8800, got 'tint'"),
        (["red apple", "--field", "seed=1", "--field", "seed.x=1"], "--field seed.x: there is no place 'x' in seed"),
        (["red apple", "--field", "x=@none.png"], "cannot read none.png"),
        (["red apple", "--steps", "0"], "num_inference_steps: Input should be greater than or equal to 1, got 0"),
        (["red apple", "--field", "tont.color=1"], "tont"),
        (["red apple", "--lora", "loras/emoji-pencel"], "did you mean 'loras/emoji-pencil'?"),
        (["red apple", "--init", "prompts.txt"], "(invalid_params)"),
        (["red apple", "-o", "."], "--output . is a folder; wanted a file, such as latentwire.png"),
        (["red apple", "--seed", "one"], "--seed: wanted a whole number, or several such as 1,2,3, got 'one'"),
        (["red apple", "--watch"], "--watch needs a file to watch: --from, --control, --init, --mask"),
        (["--from", "prompts.txt", "--slot", "x"], "with --slot each prompt would take the place of the one before"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    generate: Callable[..., int], capsys: pytest.CaptureFixture[str], arguments: list[str], error: str
) -> None:
    Path("prompts.txt").write_text("red apple\nrocket\n")
    Path("empty.txt").write_text("\n \n")
    picture_file("picture.png")
    assert generate(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert error in printed.err.splitlines()[-1]
    assert not Path("latentwire.png").exists()


# As processes.


def process(host: Served, folder: Path, *arguments: str, **pipes: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "latentwire", "generate", *arguments]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("LATENTWIRE_")}
    return subprocess.Popen(command, text=True, cwd=folder, env=clean | {"LATENTWIRE_URL": host.url}, **pipes)


def test_ctrl_c_cancels_all_jobs(host: Served, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("red apple\nrocket\n")
    client = process(host, tmp_path, "--from", "prompts.txt", "--steps", "1000", stderr=subprocess.PIPE)
    wait_for(lambda: len(host.host.jobs.all()) == 2, "both jobs to begin")
    client.send_signal(signal.SIGINT)
    _, errors = client.communicate(timeout=30)
    assert client.returncode == 130
    assert "Traceback" not in errors
    wait_for(lambda: not host.host.jobs.all(), "the jobs to be cancelled")


def test_a_reader_that_has_had_enough_ends_it_quietly_and_its_job(host: Served, tmp_path: Path) -> None:
    client = process(
        host, tmp_path, "red apple", "--json", "--steps", "1000", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert client.stdout is not None
    assert client.stderr is not None
    client.stdout.readline()
    client.stdout.close()
    assert client.wait(timeout=30) == 1
    assert client.stderr.read() == ""
    client.stderr.close()
    wait_for(lambda: not host.host.jobs.all(), "the job to be cancelled")


def test_watch_draws_again_when_a_file_changes_and_ctrl_c_ends_it(host: Served, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("red apple\n")
    options = ["--from", "prompts.txt", "--watch", "--json", *SMALL[:-2]]
    client = process(host, tmp_path, *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert client.stdout is not None

    def until_result() -> dict[str, Any]:
        assert client.stdout is not None
        for line in client.stdout:
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "result":
                return event
        raise AssertionError(client.stderr and client.stderr.read())

    try:
        first = until_result()
        (tmp_path / "new.txt").write_text("tiger face\nrocket\n")
        (tmp_path / "new.txt").rename(prompts)  # as editors save
        second, third = until_result(), until_result()
        assert [request_of(tmp_path / f"latentwire-{n}.png")["prompt"] for n in (0, 1)] == ["tiger face", "rocket"]
        assert first["seeds"] == second["seeds"] == third["seeds"]  # the change alone is seen
        assert sorted(end["revision"] for end in (first, second, third)) == [1, 1, 2]
        prompts.write_text("")  # half saved: told, and no end
        for line in client.stdout:
            event = json.loads(line)
            break
        assert (event["event"], event["message"]) == ("error", "prompts.txt has no prompt; wanted one a line")
        prompts.write_text("robot\n")
        assert until_result()["revision"] == 3
    finally:
        client.send_signal(signal.SIGINT)
        _, errors = client.communicate(timeout=30)
    assert (client.returncode, errors) == (130, "")


def test_a_change_takes_the_place_of_a_picture_that_is_under_way(host: Served, tmp_path: Path) -> None:
    picture_file(str(tmp_path / "a.png"), "red")
    options = ["--init", "a.png", "--watch", "--json", "--steps", "1000", "--strength", "1"]
    client = process(host, tmp_path, "red apple", *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: len(host.host.jobs.all()) == 1, "the first job")
        (before,) = host.host.jobs.all()
        picture_file(str(tmp_path / "a.png"), "blue")
        wait_for(lambda: [job.revision for job in host.host.jobs.all()] == [2], "the second one in its place")
        assert before.outcome.done()
    finally:
        client.send_signal(signal.SIGINT)
        _, errors = client.communicate(timeout=30)
    assert (client.returncode, errors) == (130, "")
    wait_for(lambda: not host.host.jobs.all(), "the job to be cancelled")
