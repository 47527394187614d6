"""The cookie of pages that plugins bring: it goes with their requests, which know of no token.

It is made of the token, which cannot be had from it, so a new token ends it. It holds below one path, for requests from
this host's own pages alone, and gives a user's rights, whichever token it was made of.
"""

import hmac
import re
from collections.abc import Iterable

from starlette.requests import HTTPConnection
from starlette.responses import Response

PATH = re.compile(r"/(?:[A-Za-z0-9._~-]+/)+")
LIFE_S = 30 * 86400


def set_cookie(response: Response, connection: HTTPConnection, token: str, path: str) -> None:
    """Give the browser the cookie for all that is below a path."""
    secure = connection.url.scheme == "https"
    name, value = _name(connection), _value(token)
    response.set_cookie(name, value, LIFE_S, path=path, secure=secure, httponly=True, samesite="strict")


def has_cookie(connection: HTTPConnection, tokens: Iterable[str | None]) -> bool:
    """Whether a request brings the cookie of one of these tokens."""
    shown = connection.cookies.get(_name(connection))
    return shown is not None and any(
        hmac.compare_digest(shown.encode(), _value(token).encode()) for token in tokens if token is not None
    )


def _name(connection: HTTPConnection) -> str:
    """With the port that the header has, because browsers share cookies among all ports of a name."""
    port = connection.headers["host"].rpartition(":")[2]
    return f"latentwire-{port if port.isdecimal() else 0}"


def _value(token: str) -> str:
    return hmac.new(token.encode(), b"latentwire cookie", "sha256").hexdigest()
