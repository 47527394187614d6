"""The soak in short; `make soak` is the long one."""

import asyncio
import json
import secrets

import pytest

from .soak import soak

SECONDS = 12
MOST_GROWTH = 160 << 20  # bytes: after seconds pools, caches and the allocator are still growing


@pytest.mark.slow
def test_seconds_of_clients_that_churn_lose_nothing_and_leave_nothing_behind() -> None:
    seed = secrets.randbits(32)
    figures = asyncio.run(soak(SECONDS, seed, MOST_GROWTH))
    assert figures["ok"], json.dumps(figures, indent=2)
    # and each of these has been met on the way
    ended, told = figures["jobs"]["ended"], figures["told"]
    assert min(ended.get(end, 0) for end in ("finished", "cancelled", "superseded", "invalid_params")) > 0, ended
    assert min(figures["done"].get(done, 0) for done in ("resumed", "left without a word", "stall")) > 0, figures
    assert min(told.get(event, 0) for event in ("preview", "paused", "error bad_message", "subscribed")) > 0, told
