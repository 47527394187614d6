"""Whom and what a line of the log is about: client, command, job."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

IDS = ("client", "command", "job")

_ids: ContextVar[dict[str, str]] = ContextVar("ids", default={})  # noqa: B039 - never changed in place


@contextmanager
def noting(**ids: str) -> Iterator[None]:
    """What is logged in this block is about these; a thread, task or greenlet has its own."""
    token = _ids.set(_ids.get() | ids)
    try:
        yield
    finally:
        _ids.reset(token)


def noted(work: Callable[P, R], **ids: str) -> Callable[P, R]:
    """The same work, whose log lines are about these."""

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with noting(**ids):
            return work(*args, **kwargs)

    return run


def about(record: logging.LogRecord) -> dict[str, str]:
    """The ids that a record is about: what was given as its `extra` wins."""
    given = {name: str(record.__dict__[name]) for name in IDS if name in record.__dict__}
    return _ids.get() | given
