"""Measure the CPU time of a request that gets no connection, its task included."""

from __future__ import annotations

import asyncio
from time import monotonic, process_time

from benchmarks.overload._peers import Peer
from benchmarks.overload._rows import SIZE

LIMIT = 0.25
"""Seconds within which a request must have a connection; few of a crowd can."""
CROWD = 1000
"""Requests that come at once."""
USE = 0.1
"""Seconds for which the tasks that keep the pool busy use a connection."""
PAUSE = 0.05
"""Seconds until a task that keeps the pool busy asks again after it got no connection."""
SETTLE = 0.5
"""Seconds before the measured time."""


async def cost(peer: Peer, seconds: float) -> float:
    """Return the CPU seconds of a request that gets no connection.

    Three times as many tasks as connections keep the pool busy. The CPU time that they use by
    themselves is measured first, and subtracted.
    """
    going = True

    async def keep_busy() -> None:
        while going:
            if not await _ask(peer):
                await asyncio.sleep(PAUSE)  # else it is refused in each turn of the loop

    async with asyncio.TaskGroup() as group:
        for _ in range(3 * SIZE):
            group.create_task(keep_busy())
        await asyncio.sleep(SETTLE)
        start, used = monotonic(), process_time()
        await asyncio.sleep(seconds / 2)
        base = (process_time() - used) / (monotonic() - start)
        missed, start, used = 0, monotonic(), process_time()
        while monotonic() - start < seconds / 2:
            answers = await asyncio.gather(*(_ask(peer) for _ in range(CROWD)))
            missed += answers.count(False)
            await asyncio.sleep(LIMIT)  # until others than the crowd wait again
        extra = process_time() - used - base * (monotonic() - start)
        going = False
    assert missed, "bug: a crowd was served"
    return extra / missed


async def _ask(peer: Peer) -> bool:
    try:
        async with peer.borrow(LIMIT) as conn:
            await peer.sleep(conn, USE)
    except Exception:  # noqa: BLE001 - each pool has its own
        return False
    return True
