"""Secrets in a plugin's settings: taken from the environment or a file, and never shown.

A field of type `pydantic.SecretStr` may be written `{ env = "NAME" }` or `{ file = "path" }`. What such a field holds
is struck out of the log and of every message to clients, whoever lets it slip.
"""

import os
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr

from .errors import SettingsError

SHORTEST = 6
"""Letters of a secret that is struck out; a shorter one would be found in ordinary words."""

STRUCK_OUT = "[secret]"

_hidden: set[str] = set()


def resolved(model: type[BaseModel], values: dict[str, Any], origin: str) -> dict[str, Any]:
    """Settings with their secrets in place.

    Raises:
        SettingsError: a variable is not set, or a file cannot be read. Says which, and nothing of what it holds.
    """
    found = dict(values)
    for name, field in model.model_fields.items():
        if name in values and _is_secret(field.annotation):
            found[name] = _secret(values[name], f"{origin}: {name}")
    return found


def hide(settings: BaseModel | None) -> None:
    """Strike out from now on what the secrets of these settings are."""
    for value in dict(settings or {}).values():
        if isinstance(value, SecretStr) and len(value.get_secret_value()) >= SHORTEST:
            _hidden.add(value.get_secret_value())


def struck_out(text: str) -> str:
    """A text without any secret that is known."""
    for secret in _hidden:
        text = text.replace(secret, STRUCK_OUT)
    return text


def _is_secret(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, UnionType):
        return any(_is_secret(part) for part in get_args(annotation))
    return annotation is SecretStr


def _secret(given: Any, where: str) -> Any:
    """The secret that a table means; anything else as it is, for validation to look at."""
    if not isinstance(given, dict):
        return given
    if set(given) == {"env"} and isinstance(given["env"], str):
        value = os.environ.get(given["env"])
        if value is None:
            raise SettingsError(f"{where} is to come from the environment, where {given['env']} is not set")
        return value
    if set(given) == {"file"} and isinstance(given["file"], str | Path):
        try:
            return Path(given["file"]).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, ValueError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise SettingsError(f"{where} is to come from the file {Path(given['file']).name!r}: {reason}") from None
    raise SettingsError(f'{where} is a secret: wanted a text, {{ env = "NAME" }} or {{ file = "path" }}')
