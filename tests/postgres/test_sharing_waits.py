"""No one-shot waits for another caller's statement that waits for a lock."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.errors import UniqueViolation

from asyncpool import AsyncConnectionPool, PoolTimeout, TooManyRequests
from tests._tools import at_once, few

from ._sharing import HEAVY, blocked, started, warm
from ._tools import BOTH_LOOPS, Backends, at_rest, eventually, in_time, needs_internals

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = needs_internals

LOOPS = BOTH_LOOPS


@pytest.fixture
def hot(backends: Backends, table: str) -> Iterator[str]:
    """A table of twenty rows that many tasks update."""
    backends.ask(f"CREATE TABLE hot_{table} (id int PRIMARY KEY, n int NOT NULL DEFAULT 0)")
    backends.ask(f"INSERT INTO hot_{table} SELECT id FROM generate_series(1, 20) id")
    yield f"hot_{table}"
    backends.ask(f"DROP TABLE hot_{table}")


UPDATE = "UPDATE {hot} SET n = n + 1 WHERE id = %s"

LOCKS: dict[str, tuple[str, list[Any], str, list[Any]]] = {
    "row": (UPDATE, [1], UPDATE, [1]),
    "row for update": (
        "SELECT n FROM {hot} WHERE id = %s FOR UPDATE",
        [1],
        "SELECT n FROM {hot} WHERE id = %s FOR UPDATE",
        [1],
    ),
    "advisory lock": (
        "SELECT pg_advisory_xact_lock(%s)",
        [18],
        "SELECT pg_advisory_xact_lock(%s)",
        [18],
    ),
    "unique index": (
        "INSERT INTO {hot} VALUES (%s)",
        [100],
        "INSERT INTO {hot} VALUES (%s) ON CONFLICT DO NOTHING",
        [100],
    ),
    "table": ("LOCK TABLE {hot}", [], UPDATE, [1]),
    "table that is read": ("LOCK TABLE {hot}", [], "SELECT n FROM {hot} WHERE id = %s", [1]),
    "table that is changed": (
        "ALTER TABLE {hot} ADD COLUMN extra int",
        [],
        "SELECT n FROM {hot} WHERE id = %s",
        [1],
    ),
    "table that is emptied": (
        "TRUNCATE {hot}",
        [],
        "SELECT count(*) FROM {hot} WHERE id = %s",
        [1],
    ),
}
"""A block's statement, and a one-shot of another task that it blocks until the block's end."""

QUICK: dict[str, Callable[[AsyncConnectionPool[Any], str], Awaitable[Any]]] = {
    "read": lambda pool, hot: pool.fetchval("SELECT 1"),
    "read by key": lambda pool, hot: pool.fetchval("SELECT relpages FROM pg_class LIMIT 1"),
    "write": lambda pool, hot: pool.execute(f"UPDATE other_{hot} SET n = n + 1"),
}


@pytest.mark.parametrize("quick", few(QUICK))
@pytest.mark.parametrize("lock", LOCKS)
async def test_a_one_shot_in_a_block_does_not_wait_for_one_that_waits_for_the_block(
    dsn: str, backends: Backends, hot: str, lock: str, quick: str
) -> None:
    """The one-shot gets its result while the other still waits, as do those of other tasks."""
    take, values, want, wanted = LOCKS[lock]
    take, want = take.format(hot=hot), want.format(hot=hot)
    backends.ask(f"CREATE TABLE other_{hot} AS SELECT 1 AS n")
    async with AsyncConnectionPool(dsn, min_size=4, max_size=10) as pool:
        await warm(pool, want, *wanted)
        for _ in range(20):
            await QUICK[quick](pool, hot)
            await pool.execute(want, wanted)
        backends.ask(f"DELETE FROM {hot} WHERE id = 100")
        async with started() as tasks:
            async with pool.connection() as conn:
                await conn.execute(take.encode(), values)
                tasks += [asyncio.create_task(pool.execute(want, wanted)) for _ in range(3)]
                await asyncio.sleep(0)  # they are sent, but not known to be slow yet
                await in_time(asyncio.gather(*(QUICK[quick](pool, hot) for _ in range(5))))
                await eventually(lambda: blocked(backends, hot) or blocked(backends, "lock("))
                for _ in range(20):
                    await in_time(QUICK[quick](pool, hot))
                await in_time(asyncio.gather(*(QUICK[quick](pool, hot) for _ in range(20))))
                assert not any(task.done() for task in tasks)
            await in_time(asyncio.gather(*tasks))
        await at_rest(pool)
    backends.ask(f"DROP TABLE other_{hot}")


async def test_a_unique_conflict_is_decided_by_the_block_that_came_first(
    dsn: str, backends: Backends, hot: str
) -> None:
    """The one-shot fails when the block commits; other one-shots do not wait for that."""
    insert = f"INSERT INTO {hot} VALUES (%s)"
    async with AsyncConnectionPool(dsn, min_size=4, max_size=10) as pool:
        for number in range(200, 210):
            await pool.execute(insert, [number])
        async with started() as tasks:
            async with pool.connection() as conn:
                await conn.execute(insert.encode(), [100])
                tasks.append(asyncio.create_task(pool.execute(insert, [100])))
                await asyncio.sleep(0)
                assert await in_time(pool.fetchval("SELECT 1")) == 1
                await eventually(lambda: blocked(backends, "INSERT"))
                for number in range(300, 310):
                    await in_time(pool.execute(insert, [number]))
                    assert await in_time(pool.fetchval("SELECT 1")) == 1
                assert not tasks[0].done()
            with pytest.raises(UniqueViolation):
                await in_time(tasks[0])


async def test_a_session_lock_of_a_block_holds_up_who_wants_it_alone(
    dsn: str, backends: Backends
) -> None:
    """A session-level lock, on a connection in autocommit mode."""
    async with AsyncConnectionPool(dsn, min_size=4, max_size=10) as pool:
        await warm(pool, "SELECT pg_advisory_xact_lock(%s)", 18)
        async with started() as tasks, pool.cursor(autocommit=True) as cur:
            await cur.execute("SELECT pg_advisory_lock(18)")
            want = partial(pool.execute, "SELECT pg_advisory_xact_lock(%s)", [18])
            tasks += [asyncio.create_task(want()) for _ in range(3)]
            await asyncio.sleep(0)
            assert await in_time(pool.fetchval("SELECT 1")) == 1
            await eventually(lambda: blocked(backends, "lock("))
            for _ in range(20):
                assert await in_time(pool.fetchval("SELECT 1")) == 1
            assert not any(task.done() for task in tasks)
            await cur.execute("SELECT pg_advisory_unlock(18)")
            await in_time(asyncio.gather(*tasks))


@pytest.mark.parametrize("slow", few(["SELECT pg_sleep(%s)", HEAVY]))
async def test_a_read_is_answered_before_a_slow_one_shot_that_came_first(
    dsn: str, slow: str
) -> None:
    """The slow one waits or works, and was quick before; the pool has two connections."""
    async with AsyncConnectionPool(dsn, min_size=2, max_size=2) as pool:
        await warm(pool, slow, 1 if slow is HEAVY else 0)
        for _ in range(3):
            await warm(pool, "SELECT 1")
            async with started(pool.execute(slow, [1_000_000])) as (head,):
                shots = [pool.fetchval("SELECT 1") for _ in range(20)]
                assert await in_time(asyncio.gather(*shots)) == [1] * 20
                for _ in range(20):
                    assert await in_time(pool.fetchval("SELECT 1")) == 1
                assert not head.done()
            await at_rest(pool)


async def hot_requests(pool: AsyncConnectionPool[Any], hot: str) -> list[BaseException]:
    """Update random rows in 360 requests, as one-shots or in blocks; return the failures."""
    update, random = UPDATE.format(hot=hot), Random(18)
    for _ in range(20):
        await pool.execute(update, [1])
        await pool.fetchval("SELECT 1")

    async def write(row: int) -> None:
        await pool.execute(update, [row], timeout=3.0)

    async def block(row: int) -> None:
        async with asyncio.timeout(3.0), pool.connection() as conn:
            await conn.execute(update.encode(), [row])
            for _ in range(4):
                await asyncio.sleep(0.004)
                assert await pool.fetchval("SELECT 1") == 1

    tasks = []
    for _ in range(360):
        tasks.append(asyncio.ensure_future(random.choice([write, block])(random.randint(1, 20))))
        await asyncio.sleep(1 / 120)
    outcomes = await in_time(asyncio.gather(*tasks, return_exceptions=True))
    return [outcome for outcome in outcomes if outcome is not None]


@pytest.mark.exhaustive
async def test_updates_of_a_few_hot_rows_time_out_no_more_than_without_sharing(
    dsn: str, hot: str
) -> None:
    """120 requests a second over twenty rows, half of them blocks with a one-shot inside."""
    late = {True: 0, False: 0}
    # On a busy machine a few are late either way, in a bad moment many; with a statement behind a
    # blocked one, many are each time.
    for _ in range(4):
        for pipeline in (True, False):
            async with AsyncConnectionPool(dsn, min_size=4, max_size=10, pipeline=pipeline) as pool:
                failures = await hot_requests(pool, hot)
                late_or_refused = TimeoutError, PoolTimeout, TooManyRequests
                assert all(isinstance(each, late_or_refused) for each in failures), failures
                late[pipeline] = len(failures)
                await at_rest(pool)
        if late[True] <= late[False] + 8:
            break
    else:
        raise AssertionError(late)


async def test_a_time_limit_holds_for_a_wait_and_the_statement_together(dsn: str) -> None:
    """Also if the statement has to run on a cursor, outside the pipeline."""

    async def configure(conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.set_read_only(True)

    async with AsyncConnectionPool(dsn, min_size=1, max_size=1, configure=configure) as pool:
        loop, conn = asyncio.get_running_loop(), await pool.acquire()
        loop.call_later(0.7, lambda: at_once(pool.release(conn)))
        began = loop.time()
        with pytest.raises(PoolTimeout):
            await pool.execute("SELECT pg_sleep(20)", timeout=1)
        spent = loop.time() - began
        assert 0.9 < spent < 1.5, spent
