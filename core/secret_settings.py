"""Secrets in a plugin's settings: taken from the environment or a file, and never shown.

A field of type `pydantic.SecretStr` may be written `{ env = "NAME" }` or `{ file = "path" }`. What such a field holds
is struck out of the log and of every message to clients, whoever lets it slip.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr

from .errors import SettingsError

SHORTEST = 6
"""Letters of a secret that is struck out; a shorter one would be found in ordinary words."""

STRUCK_OUT = "[secret]"

Value = TypeVar("Value")

_hidden: tuple[str, ...] = ()
"""As they may stand in a text, the longest first: one may begin as another does."""


def resolved(model: type[BaseModel], values: dict[str, Any], origin: str) -> dict[str, Any]:
    """Settings with their secrets in place.

    Raises:
        SettingsError: a variable is not set, or a file cannot be read. Says which, and nothing of what it holds.
    """
    found = dict(values)
    for name, field in model.model_fields.items():
        if name in values and _is_secret(field.annotation):
            found[name] = _secret(values[name], f"{origin}: {name}")
            if isinstance(found[name], str):
                _hide(found[name])  # now: validation may quote it
    return found


def hide(settings: BaseModel | None) -> None:
    """Strike out from now on what the secrets of these settings are."""
    for secret in _secrets(settings):
        _hide(secret)


def struck_out(value: Value) -> Value:
    """A text without any secret that is known; of maps and lists, all texts in them."""
    plain: Any = value
    if isinstance(plain, str):
        for secret in _hidden:  # never changed in place: any thread may come by
            plain = plain.replace(secret, STRUCK_OUT)
    elif isinstance(plain, dict):
        plain = {key: struck_out(part) for key, part in plain.items()}
    elif isinstance(plain, list | tuple):
        plain = [struck_out(part) for part in plain]
    return plain  # type: ignore[no-any-return]


def _secrets(value: Any) -> Iterator[str]:
    """All secrets in a value, however deep."""
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, BaseModel):
        yield from _secrets(dict(value))
    elif isinstance(value, dict | list | tuple | set | frozenset):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _secrets(part)


def _hide(secret: str) -> None:
    """Look for a secret from now on: as it is, in one line, and as `repr` and JSON write it."""
    global _hidden
    forms = {secret, " ".join(secret.split()), repr(secret)[1:-1], json.dumps(secret)[1:-1]}
    found = {*_hidden, *(form for form in forms if len(form) >= SHORTEST)}
    _hidden = tuple(sorted(found, key=len, reverse=True))


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
