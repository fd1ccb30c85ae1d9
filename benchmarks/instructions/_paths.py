"""The hot paths: each runs one piece of work a number of times."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from asyncpool import AsyncConnectionPool, TooManyRequests
from benchmarks._sql import ONE_SHOTS, THREE, Counters

QUERY, PARAMS = ONE_SHOTS["key"]


@dataclass(frozen=True)
class Pools:
    """Two pools of one connection each, one of ten, and a table to write to."""

    default: AsyncConnectionPool
    autocommit: AsyncConnectionPool
    ten: AsyncConnectionPool
    counters: Counters


Path = Callable[[Pools, int], Awaitable[None]]


async def borrow(pools: Pools, times: int) -> None:
    """Borrow an idle connection and return it."""
    await _borrow(pools.default, times)


async def hand_over(pools: Pools, times: int) -> None:
    """Hand ten connections from one new task to the next, all of which wait."""
    pool = pools.ten
    async with AsyncExitStack() as held:
        for _ in range(pool.max_size):
            await held.enter_async_context(pool.connection())
        tasks = [asyncio.create_task(_borrow(pool, 1)) for _ in range(times)]
        await asyncio.sleep(0)
        assert pool.stats().waiting == times, "bug: not every task waits"
    await asyncio.gather(*tasks)


async def refuse(pools: Pools, times: int) -> None:
    """Refuse a request that could not be served within its time limit."""
    pool, end = pools.ten, asyncio.Event()

    async def keep() -> None:
        async with pool.connection():
            await end.wait()

    async with AsyncExitStack() as held:
        for _ in range(pool.max_size - 1):
            await held.enter_async_context(pool.connection())
        async with pool.connection():
            # The first wait makes the rate known, the second lasts, and so do those behind it.
            tasks = [asyncio.create_task(_borrow(pool, 1)) for _ in range(20)]
            tasks += [asyncio.create_task(keep()) for _ in range(6)]
            await asyncio.sleep(0)
        await asyncio.gather(*tasks[:20])
        refused = 0
        for _ in range(times):
            try:
                await pool.acquire(timeout=0.001)
            except TooManyRequests:
                refused += 1
        assert refused == times, "bug: not every request was refused"
        end.set()
    await asyncio.gather(*tasks)


async def select_in_transaction(pools: Pools, times: int) -> None:
    """Read a row by its key on a borrowed connection, in the default transaction."""
    await _select(pools.default, times)


async def select_in_block(pools: Pools, times: int) -> None:
    """Read a row by its key in a `transaction` block."""
    for _ in range(times):
        async with pools.default.transaction() as conn:
            cur = await conn.execute(QUERY, PARAMS)
            await cur.fetchone()


async def select_in_autocommit(pools: Pools, times: int) -> None:
    """Read a row by its key on a borrowed connection in autocommit."""
    await _select(pools.autocommit, times)


async def read_once(pools: Pools, times: int) -> None:
    """Read a row by its key as a one-shot."""
    for _ in range(times):
        await pools.autocommit.fetchall(QUERY, PARAMS)


async def write_once(pools: Pools, times: int) -> None:
    """Update a row by its key as a one-shot."""
    for _ in range(times):
        await pools.autocommit.execute(pools.counters.query, [pools.counters.next_key()])


async def three_statements(pools: Pools, times: int) -> None:
    """Run a transaction of three statements on a borrowed connection."""
    for _ in range(times):
        async with pools.default.connection() as conn:
            for statement in THREE:
                cur = await conn.execute(statement)
                await cur.fetchone()


PATHS: dict[str, tuple[Path, int]] = {
    "cycle": (borrow, 500),
    "hand-over": (hand_over, 200),
    "refusal": (refuse, 500),
    "select, default transaction": (select_in_transaction, 200),
    "select, pool.transaction()": (select_in_block, 200),
    "select, autocommit": (select_in_autocommit, 200),
    "one-shot read": (read_once, 200),
    "one-shot write": (write_once, 200),
    "transaction of three statements": (three_statements, 100),
}
"""Each path, and how many times it runs in a batch."""


async def _borrow(pool: AsyncConnectionPool, times: int) -> None:
    for _ in range(times):
        async with pool.connection():
            pass


async def _select(pool: AsyncConnectionPool, times: int) -> None:
    for _ in range(times):
        async with pool.connection() as conn:
            cur = await conn.execute(QUERY, PARAMS)
            await cur.fetchone()
