"""`pool.retrying()`: transactions that could not be serialized are run again."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from asyncpool import AsyncConnectionPool, PoolError

from ._tools import Backends, all_usable, at_rest, eventually, in_time

FAIL = "DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '{}'; END $$"


async def test_concurrent_increments_are_all_done(dsn: str, table: str, backends: Backends) -> None:
    """Serializable transactions that conflict are repeated until each has committed once."""
    backends.ask(f"INSERT INTO {table} VALUES (0)")
    attempts = 0
    async with AsyncConnectionPool(dsn, min_size=4) as pool:
        await pool.wait()

        async def increment() -> None:
            nonlocal attempts
            async for attempt in pool.retrying(attempts=50, isolation="serializable"):
                async with attempt as conn:
                    attempts += 1
                    cur = await conn.execute(f"SELECT x FROM {table}")
                    (x,) = await cur.fetchone()  # type: ignore[misc]
                    await asyncio.sleep(0)
                    await conn.execute(f"UPDATE {table} SET x = %s", [x + 1])

        await in_time(asyncio.gather(*(increment() for _ in range(12))), 60.0)
        assert backends.rows(table) == [12]
        assert attempts > 12
        await all_usable(pool)


async def test_a_conflict_found_by_the_commit_is_retried(
    dsn: str, table: str, backends: Backends
) -> None:
    """Both have read what the other writes: one of them cannot be serialized."""
    backends.ask(f"INSERT INTO {table} VALUES (0), (0)")
    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        both_read, numbers = asyncio.Barrier(2), []

        async def insert() -> None:
            async for attempt in pool.retrying(isolation="serializable"):
                async with attempt as conn:
                    cur = await conn.execute(f"SELECT count(*) FROM {table}")
                    (count,) = await cur.fetchone()  # type: ignore[misc]
                    if attempt.number == 1:
                        await both_read.wait()
                    await conn.execute(f"INSERT INTO {table} VALUES (%s)", [count])
                    if attempt.number == 1:
                        await both_read.wait()
                numbers.append((attempt.number, attempt.failed))

        await in_time(asyncio.gather(insert(), insert()))
        assert sorted(backends.rows(table)) == [0, 0, 2, 3]
        assert sorted(numbers) == [(1, False), (1, True), (2, False)]


async def test_a_deadlock_is_retried(dsn: str, table: str, backends: Backends) -> None:
    """The one that the server has chosen runs again, and both are done."""
    backends.ask(f"INSERT INTO {table} VALUES (1), (2)")
    async with AsyncConnectionPool(
        dsn, min_size=2, kwargs={"options": "-c deadlock_timeout=100ms"}
    ) as pool:
        both_hold = asyncio.Barrier(2)

        async def update(*order: int) -> int:
            async for attempt in pool.retrying():
                async with attempt as conn:
                    for x in order:
                        query = f"UPDATE {table} SET x = x + 10 WHERE x %% 10 = %s"
                        await conn.execute(query, [x])
                        if attempt.number == 1 and x == order[0]:
                            await both_hold.wait()
            return attempt.number

        assert sorted(await in_time(asyncio.gather(update(1, 2), update(2, 1)))) == [1, 2]
        assert sorted(backends.rows(table)) == [21, 22]


@pytest.mark.parametrize("code", ["40001", "40P01"])
async def test_the_last_failure_is_raised(dsn: str, code: str) -> None:
    """It says how many attempts there were; the connection is returned in each pause."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        numbers = []
        with pytest.raises(psycopg.OperationalError, match="again") as caught:  # noqa: PT012
            async for attempt in pool.retrying(attempts=3):
                numbers.append(attempt.number)
                assert pool.stats().leased == 0
                async with attempt as conn:
                    await conn.execute(FAIL.format(code))
        assert numbers == [1, 2, 3]
        assert caught.value.sqlstate == code
        assert caught.value.__notes__ == ["gave up after 3 attempts"]
        await at_rest(pool)


@pytest.mark.parametrize("code", ["23505", "40000", "57014", "25P02"])
async def test_no_other_error_is_retried(dsn: str, table: str, code: str) -> None:
    """Neither of the server's nor of the program's."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        numbers = []
        with pytest.raises(psycopg.Error, match="again"):  # noqa: PT012
            async for attempt in pool.retrying():
                numbers.append(attempt.number)
                async with attempt as conn:
                    await conn.execute(f"INSERT INTO {table} VALUES (1)")
                    await conn.execute(FAIL.format(code))
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async for attempt in pool.retrying():
                numbers.append(attempt.number)
                async with attempt as conn:
                    await conn.execute(f"INSERT INTO {table} VALUES (2)")
                    raise ZeroDivisionError
        assert numbers == [1, 1]
        assert await pool.fetchval(f"SELECT count(*) FROM {table}") == 0


async def test_a_failure_that_the_block_has_handled_is_not_retried(dsn: str) -> None:
    """Its transaction cannot be committed; who handles an error decides what comes next."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        numbers = []
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):  # noqa: PT012
            async for attempt in pool.retrying():
                numbers.append(attempt.number)
                async with attempt as conn:
                    with pytest.raises(psycopg.errors.SerializationFailure):
                        await conn.execute(FAIL.format("40001"))
        assert numbers == [1]


async def test_a_rollback_ends_the_loop(dsn: str, table: str, backends: Backends) -> None:
    """It undoes the attempt, which has not failed."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        async for attempt in pool.retrying():
            async with attempt as conn:
                await conn.execute(f"INSERT INTO {table} VALUES (1)")
                raise psycopg.Rollback
        assert (attempt.number, attempt.failed) == (1, False)
        assert backends.rows(table) == []


async def test_a_loop_that_does_not_enter_its_attempt_is_an_error(dsn: str) -> None:
    """It would never end."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        with pytest.raises(PoolError, match="must be `async with attempt`"):
            async for _ in pool.retrying():
                pass
        with pytest.raises(ValueError, match="attempts must be at least 1: got 0"):
            pool.retrying(attempts=0)
        with pytest.raises(TypeError, match="attempts"):
            pool.retrying(attempts="3")  # type: ignore[arg-type]


async def test_a_cancellation_in_a_pause_or_an_attempt_ends_the_loop(
    dsn: str, backends: Backends
) -> None:
    """Nothing is held in a pause, and nothing is left of an attempt."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        states: list[str] = []

        async def run(statement: str) -> None:
            async for attempt in pool.retrying(attempts=100):
                async with attempt as conn:
                    states.append("begun")
                    await conn.execute(statement)

        for statement, begun in ((FAIL.format("40001"), 4), ("SELECT pg_sleep(60)", 1)):
            states.clear()
            task = asyncio.create_task(run(statement))
            await eventually(lambda begun=begun: len(states) >= begun)  # type: ignore[misc]
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await in_time(task)
            await at_rest(pool)
            assert pool.stats().leased == 0
            assert not backends.running("pg_sleep")
        await all_usable(pool)


async def test_a_session_retries_outside_its_transactions(dsn: str) -> None:
    """A savepoint cannot be serialized again; a transaction of its own can."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool, pool.session() as conn:
        numbers: list[Any] = []
        async for attempt in pool.retrying():
            async with attempt as it:
                numbers.append(attempt.number)
                assert it is conn
                if attempt.number < 3:
                    await conn.execute(FAIL.format("40001"))
        assert numbers == [1, 2, 3]
        await conn.execute("SELECT 1")
        with pytest.raises(psycopg.ProgrammingError, match="a transaction is open"):  # noqa: PT012
            async for attempt in pool.retrying():
                async with attempt:
                    raise AssertionError("it was entered")
