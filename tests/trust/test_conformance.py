"""RFC 6455 to the letter: the Autobahn suite's cases, by kosoku, against the host's WebSocket in an echo server."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

KNOWN = ["7.1.5"]
"""Fails with the library `websockets` itself: a close in the middle of a message is answered as a broken one."""

RUN = """
import asyncio, json, os, sys
from kosoku import FailureError, run_fuzzingclient
async def run():
    try:
        results = await run_fuzzingclient(sys.argv[1], cases=sys.argv[2:], concurrency=4)
    except FailureError as error:
        results = error.results
    print(json.dumps([[r.case_id, r.passed, r.behavior.value, f"{r.result} {r.result_close}"] for r in results]))
asyncio.run(run())
sys.stdout.flush()
os._exit(0)  # its own threads abort the process now and then when the interpreter ends
"""


@contextmanager
def echo() -> Iterator[str]:
    """An echo server's address."""
    command = [sys.executable, "-m", "latentwire.tests.trust.echo"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        yield f"ws://127.0.0.1:{process.stdout.readline().strip()}/"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def outcomes(url: str, *cases: str) -> list[tuple[str, bool, str, str]]:
    """Id, whether it passed, how it behaved, and why; in a process of its own, for kosoku changes the interpreter's."""
    ended = subprocess.run([sys.executable, "-c", RUN, url, *cases], capture_output=True, text=True, check=True)
    return [(case, passed, behavior, why) for case, passed, behavior, why in json.loads(ended.stdout)]


@pytest.mark.slow
def test_all_cases_without_compression_pass_but_one() -> None:
    with echo() as url:
        rows = outcomes(url, *(f"{group}.*" for group in (1, 2, 3, 4, 5, 6, 7, 9, 10)))
    assert len(rows) == 301
    assert {case: why for case, passed, _, why in rows if not passed}.keys() == set(KNOWN)


def test_compression_is_declined_as_the_standard_has_it() -> None:
    """A host never negotiates it; what is sent without is echoed, and every connection ends well."""
    with echo() as url:
        rows = outcomes(url, "12.*", "13.*")
    assert len(rows) == 216
    assert {behavior for *_, behavior, _ in rows} == {"UNIMPLEMENTED"}
    assert [case for case, *_, why in rows if "Connection was properly closed" not in why] == []
