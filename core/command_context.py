"""What the handler of a command is given."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .caller import Caller
from .events import Event
from .requests import Strict

if TYPE_CHECKING:
    from .host import Host


@dataclass(frozen=True, slots=True)
class CommandContext:
    """What a handler may use: the host, who asked, and `emit` for events of this one command."""

    host: "Host"
    caller: Caller
    emit: Callable[[Event], None]

    @property
    def client(self) -> str:
        """The id of the session that the command came from."""
        return self.caller.client


class NoParams(Strict):
    """This command takes no params."""
