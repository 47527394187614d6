"""What the benchmarks' clients share."""

import asyncio

from latentwire.client import Connection


async def until_at_most(connection: Connection, runs: int, pause_s: float) -> None:
    """Until the engine works on no more pictures than so many."""
    while True:
        state = await connection.call("pipeline.state")
        if state["engine"]["runs"] <= runs:
            return
        await asyncio.sleep(pause_s)
