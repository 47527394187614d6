"""Who gives a command, and whose jobs and results that one may see."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

SCOPE_KEY = "latentwire.caller"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever gives a command.

    Attributes:
        client: One session, or whatever else ends as one: limits count by it, and slots are its own.
        owner: Whose the jobs and results are that it makes: those of a key may come from many sessions.
        observer: Whether it may see everybody's. Only their owner may change or delete them.
        by_ticket: Whether a ticket was all that it has shown.
        operator: Whether it may switch plugins on and off.
    """

    client: str
    owner: str
    observer: bool = False
    by_ticket: bool = False
    operator: bool = False

    @classmethod
    def nobody_known(cls) -> Self:
        """Somebody new, who owns nothing yet."""
        client = secrets.token_hex(8)
        return cls(client, client)

    def may_see(self, owner: str) -> bool:
        """Whether what belongs to `owner` is this one's to see."""
        return self.observer or owner == self.owner


def caller_of(scope: Mapping[str, Any]) -> Caller:
    """Who sent an HTTP request that a plugin's route answers, by the request's ASGI scope."""
    caller: Caller = scope[SCOPE_KEY]
    return caller
