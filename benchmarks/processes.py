"""A process of its own, whose main thread does what it is told and rests in between.

torch's CPU kernels run on OpenMP. Every thread that runs one gets a team, and as soon as the teams of one process have
more threads than the machine has cores, all of them sleep between kernels, so that small forwards take three times as
long. So no two that are compared may share a process, and each computes on its main thread alone.
"""

import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")

REST_S = 0.05  # OpenMP's threads stay awake for some ms after a kernel; whoever is timed next must not meet them


class Worker(Generic[T]):
    """Holds an object that it makes of `kind(*args)`, and calls its methods.

    Raises:
        RuntimeError: the object could not be made; with the other process's traceback.
    """

    def __init__(self, kind: Callable[..., T], *args: Any) -> None:
        context = get_context("spawn")  # a fork would inherit locks in any state
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, kind, args), daemon=True)
        self._process.start()
        theirs.close()  # so that its end is heard of
        self._receive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join()

    def call(self, method: Callable[Concatenate[T, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a method there, with both processes at rest before and after.

        Raises:
            RuntimeError: it raised; with its traceback.
        """
        time.sleep(REST_S)
        self._pipe.send((method, args, kwargs))
        result: R = self._receive()
        time.sleep(REST_S)
        return result

    def _receive(self) -> Any:
        try:
            result, problem = self._pipe.recv()
        except EOFError:
            problem = "it ended without a word"
        if problem:
            raise RuntimeError(f"the other process failed: {problem}")
        return result


def _work(pipe: "Connection[Any, Any]", kind: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """The other process, until the pipe is closed."""
    with suppress(EOFError, KeyboardInterrupt):
        try:
            held = kind(*args)
        except Exception:
            pipe.send((None, traceback.format_exc()))
            return
        pipe.send((None, None))
        while True:
            method, given, named = pipe.recv()
            answer: tuple[Any, str | None]
            try:
                answer = (method(held, *given, **named), None)
            except Exception:
                answer = (None, traceback.format_exc())
            pipe.send(answer)
