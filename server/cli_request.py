"""The request that `latentwire generate` makes of its options and of the files that they name."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..client import Connection

PLAIN = (
    "negative_prompt", "model", "scheduler", "num_inference_steps", "guidance_scale", "width", "height", "num_images",
    "seed", "mode", "output_type", "priority", "slot", "min_steps_shown",
)  # fmt: skip


class BadInput(Exception):
    """What was asked for on the command line cannot be; its text says why, in one line."""


def add_request(parser: argparse.ArgumentParser) -> None:
    """Add the options that make the request."""
    core = parser.add_argument_group("the request")
    core.add_argument("--negative-prompt", metavar="TEXT", help="what the picture should not show")
    core.add_argument("--model", metavar="NAME", help="see latentwire models (default: the host's)")
    core.add_argument("--scheduler", metavar="NAME", help="see latentwire describe (default: the host's)")
    core.add_argument("--steps", type=int, dest="num_inference_steps", metavar="N", help="denoising steps")
    core.add_argument("--guidance", type=float, dest="guidance_scale", metavar="SCALE", help="guidance_scale")
    core.add_argument("--width", type=int, metavar="PIXELS", help="a multiple of 8 (default: the model's)")
    core.add_argument("--height", type=int, metavar="PIXELS", help="a multiple of 8 (default: the model's)")
    core.add_argument(
        "--count", type=int, dest="num_images", metavar="N", help="several pictures: NAME-0.png, NAME-1.png, ..."
    )
    core.add_argument("--seed", type=_seed, metavar="N[,N...]", help="of the first picture, or one for each")
    core.add_argument("--mode", choices=("exact", "reproducible", "fast"), help="how forwards may be shared")
    core.add_argument("--priority", choices=("interactive", "normal", "batch"), help="who goes first")
    core.add_argument("--slot", metavar="NAME", help="a newer request of the same slot takes this one's place")
    core.add_argument("--min-steps-shown", type=int, metavar="N", help="with --slot: a newer one waits so many steps")
    core.add_argument("--output-type", choices=("png", "latent"), help="latent: the final latents, as NAME.npy")

    inputs = parser.add_argument_group("pictures, ControlNets, LoRAs, and what plugins take")
    inputs.add_argument("--control", type=Path, metavar="PICTURE", help="a control image")
    inputs.add_argument("--control-net", metavar="NAME", help="for it: a loaded ControlNet, or its path at the host")
    inputs.add_argument("--control-scale", type=float, metavar="SCALE", help="how much it counts (default: 1)")
    inputs.add_argument("--preprocess", metavar="NAME", help="make the control image of a picture, such as canny")
    inputs.add_argument(
        "--lora",
        action="append",
        default=[],
        type=_lora,
        metavar="NAME[:WEIGHT]",
        help="a loaded LoRA, or its path at the host; may be given several times",
    )
    inputs.add_argument("--init", type=Path, metavar="PICTURE", help="start from this picture")
    inputs.add_argument("--strength", type=float, metavar="PART", help="with --init: how much of it goes, up to 1")
    inputs.add_argument("--mask", type=Path, metavar="PICTURE", help="with --init: white is made anew")
    inputs.add_argument(
        "--field",
        action="append",
        default=[],
        type=_field,
        metavar="PATH=VALUE",
        help="any other field, such as tint.color=#ff8800; VALUE is JSON or text, or @FILE for a picture",
    )


def check(options: argparse.Namespace) -> None:
    """Refuse what does not go together, before a host is asked.

    Raises:
        BadInput: something does not.
    """
    if (options.prompt is None) == (options.prompts_file is None):
        raise BadInput("wanted either a prompt, or --from FILE with one prompt a line")
    for option, needed in (
        ("control_net", "control"), ("control_scale", "control"), ("preprocess", "control"),
        ("strength", "init"), ("mask", "init"),
    ):  # fmt: skip
        if getattr(options, option) is not None and getattr(options, needed) is None:
            raise BadInput(f"--{option.replace('_', '-')} needs --{needed} PICTURE")
    if options.output.is_dir():
        example = options.output / "latentwire.png"
        raise BadInput(f"--output {options.output} is a folder; wanted a file, such as {example}")
    prompts_of(options, read_stdin=False)
    for file in picture_files(options):
        _read(file)


def prompts_of(options: argparse.Namespace, read_stdin: bool = True) -> list[str]:
    """The prompts, one or many.

    Raises:
        BadInput: their file cannot be read, or has none.
    """
    if options.prompt is not None:
        return [options.prompt]
    if options.prompts_file == "-":
        text = sys.stdin.read() if read_stdin else "later"
    else:
        try:
            text = _read(Path(options.prompts_file)).decode()
        except UnicodeDecodeError as error:
            raise BadInput(f"{options.prompts_file} is no text in UTF-8: {error}") from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise BadInput(f"{options.prompts_file} has no prompt; wanted one a line")
    return prompts


def picture_files(options: argparse.Namespace) -> list[Path]:
    """The local files that the request sends."""
    named = [options.control, options.init, options.mask, *(value for _, value in options.field)]
    return [file for file in named if isinstance(file, Path)]


async def fields_of(host: "Connection", options: argparse.Namespace) -> dict[str, Any]:
    """The request's fields, but for the prompt; pictures are uploaded, ControlNets and LoRAs loaded where need be.

    Raises:
        BadInput: a file cannot be read, or a --field does not fit the others.
        RemoteError: the host refuses a picture, or cannot load something.
    """
    fields: dict[str, Any] = {name: value for name in PLAIN if (value := getattr(options, name)) is not None}
    if options.control is not None:
        use: dict[str, Any] = {"image": await host.upload(_read(options.control))}
        if options.control_net is not None:
            use["name"] = await _control_net(host, options.control_net, options.model)
        if options.control_scale is not None:
            use["controlnet_conditioning_scale"] = options.control_scale
        if options.preprocess is not None:
            use["preprocess"] = {"name": options.preprocess}
        fields["controlnet"] = [use]
    if options.lora:
        fields["lora"] = [
            {"name": await _lora_name(host, name, options.model), "weight": weight} for name, weight in options.lora
        ]
    if options.init is not None:
        fields["img2img"] = {"image": await host.upload(_read(options.init))}
        if options.mask is not None:
            fields["img2img"]["mask"] = await host.upload(_read(options.mask))
        if options.strength is not None:
            fields["img2img"]["strength"] = options.strength
    for path, value in options.field:
        put(fields, path, await host.upload(_read(value)) if isinstance(value, Path) else value)
    return fields


def put(fields: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a path such as `tint.color` or `controlnet.0.guess_mode`; what leads there is made.

    Raises:
        BadInput: something else is on the way.
    """
    parts = path.split(".")
    place: Any = fields
    for number, part in enumerate(parts):
        key: Any = int(part) if isinstance(place, list) and part.isdecimal() else part
        fits = isinstance(place, dict) if isinstance(key, str) else isinstance(place, list) and key <= len(place)
        if not fits:
            raise BadInput(f"--field {path}: there is no place {part!r} in {'.'.join(parts[:number])}")
        if isinstance(place, list) and key == len(place):
            place.append(None)
        if number == len(parts) - 1:
            place[key] = value
        else:
            inner = place[key] if isinstance(place, list) else place.get(key)
            if inner is None:
                inner = place[key] = [] if parts[number + 1].isdecimal() else {}
            place = inner


async def _control_net(host: "Connection", name: str, model: str | None) -> str:
    rows = (await host.call("controlnet.list"))["controlnets"]
    for row in rows:
        if name in (row["name"], row["path"], row["lora_weights_path"]):
            return str(row["name"])
    if not _is_path(name):
        return name  # the host says which there are
    key = "lora_weights_path" if name.endswith(".safetensors") else "path"
    return str((await host.call("controlnet.load", **{key: name, "model": model}))["name"])


async def _lora_name(host: "Connection", name: str, model: str | None) -> str:
    rows = (await host.call("lora.list"))["loras"]
    for row in rows:
        if name in (row["name"], row["path"]):
            return str(row["name"])
    return str((await host.call("lora.load", path=name, model=model))["name"]) if _is_path(name) else name


def _is_path(name: str) -> bool:
    return "/" in name or name.endswith(".safetensors")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {file}: {error.strerror}") from error


def _seed(text: str) -> int | list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"wanted a whole number, or several such as 1,2,3, got {text!r}") from None
    return seeds[0] if len(seeds) == 1 else seeds


def _lora(text: str) -> tuple[str, float]:
    name, colon, weight = text.rpartition(":")
    if not colon:
        return text, 1.0
    try:
        return name, float(weight)
    except ValueError:
        raise argparse.ArgumentTypeError(f"wanted NAME or NAME:WEIGHT, such as pencil:0.8, got {text!r}") from None


def _field(text: str) -> tuple[str, Any]:
    path, equals, value = text.partition("=")
    if not equals or not all(path.split(".")):
        raise argparse.ArgumentTypeError(f"wanted PATH=VALUE, such as tint.color=#ff8800, got {text!r}")
    if value.startswith("@"):
        return path, Path(value[1:])
    try:
        return path, json.loads(value)
    except ValueError:
        return path, value
