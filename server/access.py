"""Who may use the host: by token or ticket, under the host's own names, and from no page of another site."""

import base64
import hashlib
import hmac
import ipaddress
import re
import socket
from dataclasses import replace
from urllib.parse import parse_qs

from starlette.requests import HTTPConnection

from ..core.caller import Caller
from ..core.errors import Unauthorized
from ..core.settings import PRINTABLE, ServerSettings
from .cookie import has_cookie
from .tickets import Tickets

LOOPBACK_NAMES = {"localhost", "127.0.0.1", "[::1]"}
MIN_KEY, MAX_KEY = 16, 200  # letters
NAME = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")
MISSING = "the token is missing or wrong; send the header 'Authorization: Bearer TOKEN'"


class Forbidden(Exception):
    """A request that nobody may send, whatever the token; its text says why."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to an address or name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Access:
    """The rules of one host."""

    def __init__(self, server: ServerSettings) -> None:
        self._server = server
        self._names = LOOPBACK_NAMES | {name.lower() for name in server.allowed_hosts}
        if not is_loopback(server.host):
            self._names |= {socket.gethostname().lower(), server.host.lower()}
        self.tickets = Tickets()

    @property
    def asks_for_token(self) -> bool:
        """Whether nobody may use the host without a token."""
        return self._server.token is not None

    def check_page(self, connection: HTTPConnection) -> None:
        """Make sure that a request calls the host by a name of its own, and comes from no foreign page.

        A page whose name was made to point here (DNS rebinding) is of the same origin: so the name itself counts.

        Raises:
            Forbidden: it does not.
        """
        if connection.scope["path"].startswith("//"):  # what a page makes of it may be another host's address
            raise Forbidden("a path begins with one slash")
        hosts, origins = connection.headers.getlist("host"), connection.headers.getlist("origin")
        host = hosts[0].lower() if len(hosts) == 1 else ""
        name = NAME.fullmatch(host)
        if name is None or not (name[1] in self._names or name[1] == _local_address(connection)):
            got = ", ".join(hosts)
            raise Forbidden(f"this host is not called {got!r:.80}; see the setting server.allowed_hosts")
        scheme = "https" if connection.scope["scheme"] in ("https", "wss") else "http"
        own = {f"{scheme}://{host}", *self._server.allowed_origins} - {"null"}
        if origins and (len(origins) > 1 or origins[0] not in own):
            got = ", ".join(origins)
            raise Forbidden(f"a page of {got!r:.80} may not use this host; see the setting server.allowed_origins")

    def caller(self, connection: HTTPConnection) -> Caller | None:
        """Who sends a request; None where that is yet to be shown.

        Raises:
            Unauthorized: what it shows is wrong.
        """
        try:
            query = parse_qs(connection.scope["query_string"].decode("latin-1"), max_num_fields=100)
        except ValueError as error:
            raise Unauthorized("the address has more than 100 parameters") from error
        if tickets := query.get("ticket"):
            return self.tickets.redeem(tickets[0])
        token = self.shown_token(connection)
        key = connection.headers.get("latentwire-key")
        if token is not None:
            return self.log_in(Caller.nobody_known(), token, key)
        if self.asks_for_token:
            known = has_cookie(connection, self._server.tokens)
            return replace(Caller.nobody_known(), by_ticket=True) if known else None
        return self.log_in(Caller.nobody_known(), None, key)

    def shown_token(self, connection: HTTPConnection) -> str | None:
        """The token in a request's header; as a password, too, because an address can have one: `http://any:TOKEN@...`.

        Raises:
            Unauthorized: the header is broken.
        """
        scheme, _, shown = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return shown.strip()
        if scheme.lower() != "basic" or not self.asks_for_token:  # else it is for a proxy
            return None
        try:
            return base64.b64decode(shown, validate=True).decode().partition(":")[2]
        except ValueError as error:
            raise Unauthorized(MISSING) from error

    def log_in(self, caller: Caller, token: str | None, key: str | None) -> Caller:
        """The caller with what it may do by a token, and as the owner that its key means.

        Raises:
            Unauthorized: the token or the key is not acceptable.
        """
        if token is not None:
            observer, operator = self._may(token)
            caller = replace(caller, observer=observer, operator=operator)
        elif self._is_private:
            caller = replace(caller, operator=True)
        if key is not None:
            if not MIN_KEY <= len(key) <= MAX_KEY or not re.fullmatch(PRINTABLE, key):
                raise Unauthorized(f"a key has {MIN_KEY} to {MAX_KEY} letters of ASCII, got {len(key)} letters")
            caller = replace(caller, owner=hashlib.sha256(b"owner " + key.encode()).hexdigest()[:32])
        return caller

    @property
    def _is_private(self) -> bool:
        """Whether whoever can connect is a user of this machine, and nobody has been given more rights than others."""
        server = self._server
        others = server.anyone_may_connect or server.allowed_hosts or server.allowed_origins  # by a proxy, or a page
        return is_loopback(server.host) and not others and server.tokens == (None, None, None)

    def _may(self, token: str) -> tuple[bool, bool]:
        """Whether a token is an observer's, and whether it is an operator's, who is one, too.

        Raises:
            Unauthorized: it is no token of this host.
        """
        tokens = self._server.tokens
        user, observer, operator = (_same(token, known) for known in tokens)
        if not (user or observer or operator) and tokens != (None, None, None):
            raise Unauthorized(MISSING)
        return observer or operator, operator or self._is_private


def _same(given: str, known: str | None) -> bool:
    """Whether a token is the known one; how long that takes says nothing about it."""
    return known is not None and hmac.compare_digest(given.encode(), known.encode())


def _local_address(connection: HTTPConnection) -> str:
    """The address of this machine that a client has connected to, as a Host header has it."""
    address = (connection.scope.get("server") or ("",))[0]
    return f"[{address}]" if ":" in address else address
