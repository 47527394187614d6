"""How errors look over HTTP: `{"detail": a sentence, "code": as on the WebSocket, "details": what is wrong where}`."""

import reprlib
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latentwire import InvalidParams, LatentwireError

STATUS = {
    "bad_message": 400,
    "model_load_failed": 400,
    "unauthorized": 401,
    "not_loaded": 404,
    "unknown_command": 404,
    "unknown_image": 404,
    "unknown_job": 404,
    "unknown_model": 404,
    "cancelled": 409,
    "in_use": 409,
    "message_too_large": 413,
    "invalid_graph": 422,
    "invalid_params": 422,
    "too_many_jobs": 429,
    "job_failed": 500,
    "not_finite": 500,
    "plugin_failed": 500,
    "internal_error": 500,
    "engine_restarted": 503,
    "host_closing": 503,
    "out_of_memory": 507,
}
"""The HTTP status of each error code; 500 for any other."""

MAX_DETAILS = 20


def answer_errors(app: FastAPI) -> None:
    """Let an app answer every error in the one shape."""
    app.add_exception_handler(LatentwireError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _bad_request)


class BodyLimit:
    """Refuses a request body of more than `limit` bytes, before it fills memory or disk."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        announced = headers.get(b"content-length", b"0")
        taken = 0

        async def receive_some() -> Message:
            nonlocal taken
            if announced.isdigit() and int(announced[:20]) > self._limit:
                raise self._too_large()
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._limit:
                raise self._too_large()
            return message

        await self._app(scope, receive_some, send)

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the request's body is larger than {self._limit} bytes, the limit")


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, LatentwireError)
    return _answer(STATUS.get(error.code, 500), error.code, error.message, error.details)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    details = [_detail(problem) for problem in problems[:MAX_DETAILS]]
    first = details[0]
    where = ".".join(str(part) for part in first["path"]) or "the body"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    message = f"{request.url.path.strip('/')}: {where}: {first['message']}, got {first['got']}{more}"
    return _answer(STATUS[InvalidParams.code], InvalidParams.code, message, details)


async def _bad_request(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = "message_too_large" if error.status_code == 413 else "bad_message"
    return _answer(error.status_code, code, error.detail, [], error.headers)


def _detail(problem: Any) -> dict[str, Any]:
    """One complaint of pydantic's; the first part of its place only says which part of the HTTP request it was."""
    path, message, got = list(problem["loc"][1:]), problem["msg"], reprlib.repr(problem["input"])
    if problem["type"] == "missing":
        got = "nothing"
    elif problem["type"] == "json_invalid":  # the place is a position, the input is left out
        path, message, got = [], "it is no JSON", f"{problem['ctx']['error']} at position {path[0]}"
    elif isinstance(problem["input"], bytes):
        message = "it is not sent as application/json"
    return {"path": path, "message": message, "got": got}


def _answer(status: int, code: str, message: str, details: list[dict[str, Any]], headers: Any = None) -> JSONResponse:
    return JSONResponse({"detail": message, "code": code, "details": details}, status, headers)
