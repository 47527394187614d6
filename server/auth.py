"""Who may connect: whoever has the token, and no page of another site."""

import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, Response

from ..core.settings import ServerSettings
from .codec import SUBPROTOCOL


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to an address or name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def refusal(connection: HTTPConnection, settings: ServerSettings) -> Response | None:
    """Why a connection may not use the host, as the answer to send; None when it may."""
    token = settings.token
    host = connection.headers.get("host", "")
    origin = connection.headers.get("origin")
    if origin is not None and origin not in settings.allowed_origins and _host_of(origin) != _host_of(f"//{host}"):
        return PlainTextResponse(f"a page of {origin!r:.80} may not connect to this host\n", 403)
    if token is None:
        # Without a token the host listens on loopback alone. A page whose own name was made to point here
        # (DNS rebinding) is of the same origin, so the name itself must be checked.
        name = _host_of(f"//{host}")[0]
        if not is_loopback(name):
            text = f"this host has no token and answers to loopback names only, got {host!r:.80}; set server.token\n"
            return PlainTextResponse(text, 403)
    else:
        given = connection.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), token.encode()):
            text = "the token is missing or wrong; send the header 'Authorization: Bearer TOKEN'\n"
            return PlainTextResponse(text, 401, {"WWW-Authenticate": "Bearer"})
    offered = connection.scope.get("subprotocols") or []
    if offered and SUBPROTOCOL not in offered:
        return PlainTextResponse(f"this host speaks {SUBPROTOCOL}, got {', '.join(offered):.80}\n", 400)
    return None


def _host_of(url: str) -> tuple[str, str]:
    """The host's name in a URL, and the whole of host and port; empty texts when it is no URL."""
    try:
        parts = urlsplit(url)
        return parts.hostname or "", parts.netloc.lower()
    except ValueError:
        return "", ""
