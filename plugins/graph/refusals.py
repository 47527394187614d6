"""What a node says that cannot do what it is asked for."""

from typing import Any

from latentwire import InvalidParams


def refused(given: str, message: str, got: Any = None) -> InvalidParams:
    """The error for one of its inputs."""
    return InvalidParams(message, [{"path": [given], "message": message, "got": repr(got)[:80]}])
