"""The end of one-shots: reports, counters, and their connections."""

from __future__ import annotations

import asyncio
import gc
import sys
from contextlib import suppress
from functools import partial
from typing import Any

import psycopg
import pytest

from asyncpool import (
    AsyncConnectionPool,
    AsyncNullConnectionPool,
    PoolTimeout,
    PoolUnavailable,
    TooManyRequests,
)

from ._sharing import all_leased, all_waiting, warm
from ._tools import BOTH_LOOPS, LIMIT, Backends, at_rest, in_time, needs_internals

pytestmark = needs_internals

LOOPS = BOTH_LOOPS


@pytest.mark.parametrize("ends", ["served", "late"])
async def test_a_long_wait_of_a_one_shot_is_reported_in_its_task(dsn: str, ends: str) -> None:
    """One report, as for a block, also if the wait fails."""
    reports: list[tuple[float, str]] = []
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1) as pool:

        def tell(waited: float) -> None:
            task = asyncio.current_task()
            reports.append((waited, "" if task is None else task.get_name()))

        async def call() -> None:
            limit = 0.2 if ends == "late" else LIMIT
            await pool.fetchval("SELECT pg_sleep(0)", timeout=limit)

        await pool.wait()
        pool.on_slow_wait(0.05, tell)
        async with all_leased(pool):
            task = asyncio.create_task(call(), name="who waits")
            await asyncio.wait({task}, timeout=0.1 if ends == "served" else None)
        await asyncio.wait({task})
        assert isinstance(task.exception(), PoolTimeout) == (ends == "late")
        await at_rest(pool)
        await pool.fetchval("SELECT pg_sleep(0.1)")
    ((waited, who),) = reports
    assert waited >= 0.05
    assert who == "who waits"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there are no eager tasks")
@pytest.mark.parametrize("after", ["null pool", "drain"])
async def test_results_are_read_before_their_connection_is_closed(dsn: str, after: str) -> None:
    """Rows and error messages are read in time, also if tasks start eagerly."""

    async def run() -> None:
        pool: AsyncConnectionPool[Any] = (
            AsyncNullConnectionPool(dsn, max_size=2, pipeline=True)
            if after == "null pool"
            else AsyncConnectionPool(dsn, min_size=1, max_size=2)
        )
        async with pool:
            for _ in range(5):
                rows = [pool.fetchval("SELECT now() > '2000-01-01', now()") for _ in range(5)]
                failing = pool.fetchval("SELECT 1 AS é FROM nothing")
                work = asyncio.gather(*rows, failing, return_exceptions=True)
                await asyncio.sleep(0)
                if after == "drain":
                    pool._core.drain()
                *values, error = await in_time(work)
                assert values == [True] * 5
                assert isinstance(error, psycopg.errors.UndefinedTable), error

    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.BaseEventLoop):
        pytest.skip("uvloop's tasks do not start eagerly on every Python")
    loop.set_task_factory(asyncio.eager_task_factory)
    try:
        await asyncio.create_task(run())
    finally:
        loop.set_task_factory(None)


async def test_the_answer_of_a_write_is_read_before_its_connection_is_closed(
    dsn: str, table: str, backends: Backends
) -> None:
    """A write that is done is not reported as failed because nobody keeps its connection."""
    async with AsyncNullConnectionPool(dsn, max_size=2, pipeline=True) as pool:
        for x in range(5):
            query = f"INSERT INTO {table} VALUES (%s) RETURNING now() > '2000-01-01', now()"
            assert await pool.fetchone(query, [x])
    async with AsyncConnectionPool(dsn, min_size=1, max_size=2) as pool:
        for x in range(5, 10):
            write = asyncio.create_task(pool.fetchone(query, [x]))
            await asyncio.sleep(0)
            await pool.drain()
            assert await write
    assert backends.rows(table) == list(range(10))


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there are no eager tasks")
async def test_an_outage_that_is_seen_at_once_leaves_no_error_that_nobody_awaits() -> None:
    """Under tasks that start eagerly a connect may fail before the statement begins to wait."""
    loop, unseen = asyncio.get_running_loop(), list[dict[str, Any]]()
    if not isinstance(loop, asyncio.BaseEventLoop):
        pytest.skip("uvloop's tasks do not start eagerly on every Python")
    loop.set_task_factory(asyncio.eager_task_factory)
    loop.set_exception_handler(lambda _, context: unseen.append(context))
    nobody = "host=/nonexistent"
    async with AsyncConnectionPool(nobody, min_size=0, max_size=1, fail_fast_after=0) as pool:
        with pytest.raises(PoolUnavailable, match="1 attempt"):
            await pool.execute("SELECT 1")
        stats = pool.stats()
        assert (stats.requests_failed, stats.waiting) == (1, 0)
    del pool
    gc.collect()
    assert not unseen


async def test_a_connection_that_its_last_borrower_has_closed_is_not_kept(dsn: str) -> None:
    """A close that bypasses the pool may fail one one-shot; then its place is free again."""
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1) as pool:
        conn = await pool.acquire()
        await pool.release(conn)
        conn.pgconn.finish()
        with suppress(psycopg.OperationalError):  # if the close is not noticed in time
            await pool.fetchval("SELECT 1")
        assert await in_time(pool.fetchval("SELECT 1")) == 1
        await at_rest(pool)


async def test_a_slow_read_is_known_as_slow_on_whichever_connection(dsn: str) -> None:
    """Also on a connection on which another, quick read has just run."""
    slow = "SELECT count(*) FROM generate_series(1, 700000) a"
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1) as pool:
        for _ in range(5):
            await pool.fetchval("SELECT 5")
        for number in range(10):
            pool._dispatcher.profiles._known.pop(slow, None)
            async with all_leased(pool):
                quick = pool.fetchval(f"SELECT count(*) FROM generate_series(1, {number}) b")
                tasks = [asyncio.ensure_future(each) for each in (quick, pool.fetchval(slow))]
                await all_waiting(pool, 2)
            await in_time(asyncio.gather(*tasks))
            assert pool._dispatcher.profiles.get(slow).credit < -1


@pytest.mark.parametrize("autocommit", [True, False])
async def test_who_uses_a_connection_that_was_returned_harms_no_one_shot(
    dsn: str, autocommit: bool
) -> None:
    """A use after the release is refused while one-shots run on the connection."""
    kwargs = {"autocommit": autocommit}
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1, kwargs=kwargs) as pool:
        await warm(pool, "SELECT 1")
        conn = await pool.acquire()
        await pool.release(conn)
        shots = [asyncio.ensure_future(pool.fetchval("SELECT 1")) for _ in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(psycopg.ProgrammingError, match="was returned to its pool"):
            await conn.execute("SELECT %s::int", [42])
        assert await in_time(asyncio.gather(*shots)) == [1] * 5
        await at_rest(pool)


async def test_a_one_shot_that_may_not_wait_is_counted_as_a_block_is(dsn: str) -> None:
    """The one-shot counts as failed and as never queued."""
    counted = []
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1, max_waiting=1) as pool:
        for call in (pool.acquire, partial(pool.fetchval, "SELECT pg_sleep(0)")):
            await at_rest(pool)
            pool.pop_stats()
            async with all_leased(pool):
                first = asyncio.ensure_future(pool.execute("SELECT pg_sleep(0)"))
                await all_waiting(pool, 1)
                with pytest.raises(TooManyRequests):
                    await call()
            await in_time(first)
            stats = pool.get_stats()
            counted.append((stats.get("requests_queued"), stats.get("requests_errors")))
    assert counted == [(1, 1), (1, 1)]
