"""What requests ask, with bounds on it, and how their refusal looks: `{"error": a sentence}`."""

import functools
import json
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message

from latentwire import LatentwireError

log = logging.getLogger(__name__)

MAX_JSON = 4 << 20
MAX_DEPTH = 64
MOST_TEXTS = 1000
MAX_FIELD = 64 << 10  # of a form, that is no file

Handler = Callable[[Request], Awaitable[Response]]
Row = tuple[str, str, Handler]
"""A path, a method, and who answers."""


class Refused(Exception):
    """A request that cannot be answered; with the HTTP status, and a sentence for whoever sent it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def reason_of(error: Exception) -> str:
    """What a client is told of an error; an OSError's own text would name the file."""
    return getattr(error, "strerror", None) or str(error)


def answered(handler: Handler) -> Handler:
    """A handler whose refusals are answers."""

    @functools.wraps(handler)
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except Refused as error:
            return JSONResponse({"error": error.message}, error.status)
        except HTTPException as error:  # a form that is none
            return JSONResponse({"error": error.detail}, error.status_code)
        except ConnectionError:
            raise
        except (OSError, sqlite3.Error) as error:  # a full disk is no fault of the plugin's
            log.warning("%s cannot be answered: %s", request.url.path, error)
            return JSONResponse({"error": f"the disk gives no answer: {reason_of(error):.200}"}, 503)
        except LatentwireError as error:
            return JSONResponse({"error": error.message}, 503 if error.code == "host_closing" else 400)

    return answer


async def read_body(request: Request, limit: int) -> bytes:
    """A request's whole body."""
    return await _limited(request, limit).body()


def reading_form(request: Request, limit: int) -> AbstractAsyncContextManager[FormData]:
    """A request's form for the time of a block; its files are on the disk where they are large."""
    return _limited(request, limit).form(max_files=1, max_fields=20, max_part_size=MAX_FIELD)


async def read_json(request: Request) -> Any:
    """The JSON that a request brings; None where it brings nothing."""
    body = await read_body(request, MAX_JSON)
    try:
        value = tellable(body) if body.strip() else None
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON: {error!s:.200}") from error
    if _is_deep(value):
        raise Refused(400, f"the body is nested more than {MAX_DEPTH} levels deep")
    return value


def tellable(text: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none, or has something in it that could not be told to anybody, such as NaN.
        RecursionError: it is nested too deep.
    """
    value = json.loads(text)
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    return value


async def read_map(request: Request) -> dict[str, Any]:
    """The JSON map that a request brings."""
    value = await read_json(request)
    if not isinstance(value, dict):
        raise Refused(400, f"wanted a JSON map, got {value!r:.80}")
    return value


def constant(value: Any) -> Handler:
    """A handler that always gives the same JSON."""

    async def give(_: Request) -> Response:
        return JSONResponse(value)

    return give


def said(text: str | None) -> bool:
    """What a parameter says that is true or false."""
    return text is not None and text.lower() in ("true", "1", "yes")


def whole(request: Request, name: str, default: int, most: int) -> int:
    """A parameter that is a whole number, from 0."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise Refused(400, f"{name} is a whole number from 0, got {text!r:.40}")
    return min(int(text), most)


def texts(value: Any) -> list[str]:
    """A list of texts, such as ids."""
    if not isinstance(value, list) or len(value) > MOST_TEXTS or not all(isinstance(entry, str) for entry in value):
        raise Refused(400, f"wanted a list of at most {MOST_TEXTS} ids, got {value!r:.80}")
    return value


def _limited(request: Request, limit: int) -> Request:
    taken = 0

    async def receive() -> Message:
        nonlocal taken
        message = await request.receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise Refused(413, f"the request's body is larger than {limit} bytes, the limit")
        return message

    return Request(request.scope, receive)


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return False
    return True
