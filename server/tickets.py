"""Tickets for browsers, which can send no header with a WebSocket, a link or a picture: good once, and not for long."""

import secrets
from time import monotonic

from ..core.caller import Caller
from ..core.errors import Unauthorized

LIFE_S = 30
MOST = 10_000


class Tickets:
    """The tickets of one host that have not been used."""

    def __init__(self) -> None:
        self._valid: dict[str, tuple[float, Caller]] = {}  # until when, and whose; the oldest first

    def issue(self, caller: Caller) -> str:
        """A ticket that admits its bearer as the caller."""
        now = monotonic()
        while self._valid and (len(self._valid) >= MOST or next(iter(self._valid.values()))[0] <= now):
            del self._valid[next(iter(self._valid))]
        ticket = secrets.token_urlsafe(24)
        self._valid[ticket] = (now + LIFE_S, caller)
        return ticket

    def redeem(self, ticket: str) -> Caller:
        """Whom a ticket admits: a new client with the rights of the one that had it issued.

        Raises:
            Unauthorized: it was never issued, has been used, or is too old.
        """
        until, caller = self._valid.pop(ticket, (0.0, None))
        if caller is None or until <= monotonic():
            raise Unauthorized(f"the ticket is wrong, used, or older than {LIFE_S} s; ask for another one")
        return Caller(Caller.nobody_known().client, caller.owner, caller.observer, by_ticket=True)
