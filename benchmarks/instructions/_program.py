"""The program that runs under callgrind: each path in batches, with a mark before and after each.

A mark is a call of the C function `getppid`, which nothing else here calls: callgrind writes what
it has counted since the last one. So neither the start of Python nor that of the pools is counted.
The names of the paths and the connection string come from stdin, as others can read arguments.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys

from asyncpool import AsyncConnectionPool
from benchmarks._sql import Counters
from benchmarks.instructions._paths import PATHS, Pools

MARK = "getppid"
BATCHES = 5


async def run(dsn: str, paths: list[str]) -> None:
    """Run the paths, one after another."""
    counters = Counters(f"asyncpool_instructions_{os.getpid()}")
    async with (
        _pool(dsn) as default,
        _pool(dsn, autocommit=True) as autocommit,
        _pool(dsn, size=10) as ten,
    ):
        for pool in (default, autocommit, ten):
            await pool.wait()
        async with autocommit.connection() as conn:
            await conn.execute(counters.definition())
        pools = Pools(default, autocommit, ten, counters)
        try:
            for name in paths:
                await _batches(name, pools)
        finally:
            async with autocommit.connection() as conn:
                await conn.execute(f"DROP TABLE {counters.table}")


def _pool(dsn: str, *, size: int = 1, autocommit: bool = False) -> AsyncConnectionPool:
    return AsyncConnectionPool(
        dsn, min_size=size, max_size=size, kwargs={"autocommit": autocommit}, open=False
    )


async def _batches(name: str, pools: Pools) -> None:
    path, times = PATHS[name]
    await path(pools, times)  # prepares statements, and fills caches
    gc.collect()
    gc.disable()
    for _ in range(BATCHES):
        os.getppid()
        await path(pools, times)
        os.getppid()
    gc.enable()


if __name__ == "__main__":
    given = json.loads(sys.stdin.readline())
    asyncio.run(run(given["dsn"], given["paths"]))
