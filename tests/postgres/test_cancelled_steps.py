"""Each await of each way to use the pool, cancelled in turn: no connection is lost or changed."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any

import psycopg
import pytest

from asyncpool import AsyncConnectionPool, Connection
from tests._tools import few

from ._tools import BOTH_LOOPS, all_usable, at_rest, in_time

LOOPS = BOTH_LOOPS
Pool = AsyncConnectionPool[Any]


@coroutine
def cancelled_at(work: Coroutine[Any, Any, Any], steps: set[int]) -> Generator[Any, Any, int]:
    """Run work, whose task is cancelled at these of its suspensions; return their number."""
    error: BaseException | None = None
    number = 0
    while True:
        try:
            suspended_on = work.send(None) if error is None else work.throw(error)
        except StopIteration:
            return number
        number, error = number + 1, None
        if number in steps:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        try:
            yield suspended_on
        except BaseException as raised:  # noqa: BLE001 - the work gets it
            error = raised


async def execute(pool: Pool) -> None:
    await pool.execute("SELECT 1")


async def fetch(pool: Pool) -> None:
    assert await pool.fetchval("SELECT %s::int", [7]) == 7


async def executemany(pool: Pool) -> None:
    await pool.executemany("SELECT %s::int", [(1,), (2,)])


async def batch(pool: Pool) -> None:
    await pool.batch(["SELECT 1", ("SELECT %s::int", [2])])


async def block(pool: Pool) -> None:
    async with pool.connection() as conn:
        await conn.execute("SELECT 1")


async def transaction(pool: Pool) -> None:
    async with pool.transaction(read_only=True) as conn:
        await conn.execute("SELECT 1")


async def cursor(pool: Pool) -> None:
    async with pool.cursor(autocommit=True) as cur:
        await cur.execute("SELECT 1")


async def session(pool: Pool) -> None:
    async with pool.session():
        await pool.execute("SELECT 1")
        async with pool.cursor(autocommit=True) as cur:
            await cur.execute("SELECT 1")
        async with pool.transaction() as conn:
            await conn.execute("SELECT 1")


async def by_hand(pool: Pool) -> None:
    async with pool.acquire() as conn:
        await conn.execute("SELECT 1")


async def retried(pool: Pool) -> None:
    async def work(conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.execute("SELECT 1")

    await pool.run_transaction(work)


WAYS = [execute, fetch, executemany, batch, block, transaction, cursor, session, by_hand, retried]


# psycopg's own pipeline, cancelled twice, ends its generators when they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(
    "kind", few([Connection, psycopg.AsyncConnection]), ids=["asyncpool", "psycopg"]
)
@pytest.mark.parametrize("autocommit", few([False, True]))
async def test_each_await_cancelled_once_and_twice(
    dsn: str,
    way: Callable[[Pool], Coroutine[Any, Any, None]],
    kind: type[psycopg.AsyncConnection[Any]],
    autocommit: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Afterwards each connection is idle or replaced, and in its own mode."""
    # psycopg's wait yields where the loop was busy for so many seconds: here always.
    monkeypatch.setattr("psycopg.waiting.MAX_BUSY_TIME", 0.0, raising=False)
    options: dict[str, Any] = {"connection_class": kind, "kwargs": {"autocommit": autocommit}}
    async with AsyncConnectionPool(dsn, min_size=2, max_size=2, **options) as pool:
        await pool.wait()
        for again in (0, 1, 2):
            number, count = 0, 1
            while number < count:
                number += 1
                cut = cancelled_at(way(pool), {number, number + again})
                task = asyncio.create_task(in_time(cut))
                await asyncio.wait([task])
                count = number + 1 if task.cancelled() else task.result()
                await in_time(at_rest(pool))
                conns = [await pool.acquire() for _ in range(pool.max_size)]
                assert {conn.autocommit for conn in conns} == {autocommit}, (number, again)
                for conn in conns:
                    await pool.release(conn)
                await all_usable(pool)
    gc.collect()
