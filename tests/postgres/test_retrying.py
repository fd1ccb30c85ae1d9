"""`pool.run_transaction()`: transactions that could not be serialized are run again."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import psycopg
import pytest

from asyncpool import AsyncConnectionPool

from ._tools import Backends, all_usable, at_rest, eventually, in_time


def has(attempts: list[str], statement: str, least: int) -> bool:
    """Whether a statement was attempted so often."""
    return attempts.count(statement) >= least


FAIL = "DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '{}'; END $$"


async def test_concurrent_increments_are_all_done(dsn: str, table: str, backends: Backends) -> None:
    """Serializable transactions that conflict are repeated until each has committed once."""
    backends.ask(f"INSERT INTO {table} VALUES (0)")
    attempts = 0

    async def increment(conn: Any) -> int:
        nonlocal attempts
        attempts += 1
        cur = await conn.execute(f"SELECT x FROM {table}")
        (x,) = await cur.fetchone()
        await asyncio.sleep(0)
        await conn.execute(f"UPDATE {table} SET x = %s", [x + 1])
        return int(x) + 1

    async with AsyncConnectionPool(dsn, min_size=4) as pool:
        await pool.wait()
        runs = (
            pool.run_transaction(increment, attempts=50, isolation="serializable")
            for _ in range(12)
        )
        results = await in_time(asyncio.gather(*runs), 60.0)
        assert sorted(results) == list(range(1, 13))
        assert backends.rows(table) == [12]
        assert attempts > 12
        await all_usable(pool)


async def test_a_conflict_found_by_the_commit_is_retried(
    dsn: str, table: str, backends: Backends
) -> None:
    """Both have read what the other writes: one of them cannot be serialized."""
    backends.ask(f"INSERT INTO {table} VALUES (0), (0)")
    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        both, numbers = asyncio.Barrier(2), []

        async def insert() -> int:
            number = 0

            async def work(conn: Any) -> int:
                nonlocal number
                number += 1
                cur = await conn.execute(f"SELECT count(*) FROM {table}")
                (count,) = await cur.fetchone()
                if number == 1:
                    await both.wait()
                await conn.execute(f"INSERT INTO {table} VALUES (%s)", [count])
                if number == 1:
                    await both.wait()
                return int(count)

            result = await pool.run_transaction(work, isolation="serializable")
            numbers.append(number)
            return result

        # What is returned is what was committed, never what a failed attempt had.
        assert sorted(await in_time(asyncio.gather(insert(), insert()))) == [2, 3]
        assert sorted(backends.rows(table)) == [0, 0, 2, 3]
        assert sorted(numbers) == [1, 2]


async def test_a_deadlock_is_retried(dsn: str, table: str, backends: Backends) -> None:
    """The one that the server has chosen runs again, and both are done."""
    backends.ask(f"INSERT INTO {table} VALUES (1), (2)")
    async with AsyncConnectionPool(
        dsn, min_size=2, kwargs={"options": "-c deadlock_timeout=100ms"}
    ) as pool:
        both_hold = asyncio.Barrier(2)

        async def update(*order: int) -> int:
            number = 0

            async def work(conn: Any) -> None:
                nonlocal number
                number += 1
                for x in order:
                    query = f"UPDATE {table} SET x = x + 10 WHERE x %% 10 = %s"
                    await conn.execute(query, [x])
                    if number == 1 and x == order[0]:
                        await both_hold.wait()

            await pool.run_transaction(work)
            return number

        assert sorted(await in_time(asyncio.gather(update(1, 2), update(2, 1)))) == [1, 2]
        assert sorted(backends.rows(table)) == [21, 22]


@pytest.mark.parametrize("code", ["40001", "40P01"])
async def test_the_last_failure_is_raised(dsn: str, code: str) -> None:
    """It says how many attempts there were; each has the only connection."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        attempts = 0

        async def work(conn: Any) -> None:
            nonlocal attempts
            attempts += 1
            await conn.execute(FAIL.format(code))

        with pytest.raises(psycopg.OperationalError, match="again") as caught:
            await pool.run_transaction(work, attempts=3)
        assert attempts == 3
        assert caught.value.sqlstate == code
        assert caught.value.__notes__ == ["gave up after 3 attempts"]
        await at_rest(pool)


@pytest.mark.parametrize("code", ["23505", "40000", "57014", "25P02"])
async def test_no_other_error_is_retried(dsn: str, table: str, code: str) -> None:
    """Neither of the server's nor of the program's."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        attempts = 0

        async def refused(conn: Any) -> None:
            nonlocal attempts
            attempts += 1
            await conn.execute(f"INSERT INTO {table} VALUES (1)")
            await conn.execute(FAIL.format(code))

        async def broken(conn: Any) -> None:
            nonlocal attempts
            attempts += 1
            await conn.execute(f"INSERT INTO {table} VALUES (2)")
            raise ZeroDivisionError

        with pytest.raises(psycopg.Error, match="again"):
            await pool.run_transaction(refused)
        with pytest.raises(ZeroDivisionError):
            await pool.run_transaction(broken)
        assert attempts == 2
        assert await pool.fetchval(f"SELECT count(*) FROM {table}") == 0


async def test_a_failure_that_the_work_has_handled_is_not_retried(dsn: str) -> None:
    """Its transaction cannot be committed; who handles an error decides what comes next."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        attempts = 0

        async def work(conn: Any) -> None:
            nonlocal attempts
            attempts += 1
            with pytest.raises(psycopg.errors.SerializationFailure):
                await conn.execute(FAIL.format("40001"))

        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            await pool.run_transaction(work)
        assert attempts == 1


async def test_a_rollback_is_no_failure(dsn: str, table: str, backends: Backends) -> None:
    """It undoes the work, and there is no result."""

    async def work(conn: Any) -> int:
        await conn.execute(f"INSERT INTO {table} VALUES (1)")
        raise psycopg.Rollback

    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        assert await pool.run_transaction(work) is None
        assert backends.rows(table) == []


async def test_a_rollback_has_no_result_of_an_earlier_attempt(dsn: str) -> None:
    """The first attempt returned one, but its commit failed."""
    attempts = 0

    async def work(conn: Any) -> str:
        nonlocal attempts
        attempts += 1
        if attempts == 2:
            raise psycopg.Rollback
        await conn.execute(
            "CREATE FUNCTION pg_temp.fail() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN RAISE serialization_failure; END';"
            "CREATE TEMPORARY TABLE late (number int);"
            "CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION pg_temp.fail();"
            "INSERT INTO late VALUES (1)"
        )
        return "done"

    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        assert await pool.run_transaction(work) is None
        assert attempts == 2


async def test_bad_arguments_are_errors(dsn: str) -> None:
    """No connection is borrowed."""

    async def work(_: Any) -> None:
        raise AssertionError("it was called")

    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        with pytest.raises(ValueError, match="attempts must be at least 1: got 0"):
            await pool.run_transaction(work, attempts=0)
        with pytest.raises(TypeError, match="attempts"):
            await pool.run_transaction(work, attempts="3")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="work must be an async function"):
            await pool.run_transaction("SELECT 1")  # type: ignore[arg-type]
        assert pool.stats().requests == 0


async def test_a_cancellation_in_a_pause_or_an_attempt_ends_it(
    dsn: str, backends: Backends
) -> None:
    """Nothing is held in a pause, and nothing is left of an attempt."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        attempts: list[str] = []

        async def work(conn: Any, statement: str) -> None:
            attempts.append(statement)
            await conn.execute(statement)

        for statement, least in ((FAIL.format("40001"), 4), ("SELECT pg_sleep(60)", 1)):
            run = pool.run_transaction(partial(work, statement=statement), attempts=100)
            task = asyncio.create_task(run)
            await eventually(partial(has, attempts, statement, least))
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
        attempts = 0

        async def work(it: Any) -> int:
            nonlocal attempts
            attempts += 1
            assert it is conn
            if attempts < 3:
                await it.execute(FAIL.format("40001"))
            return attempts

        assert await pool.run_transaction(work) == 3
        await conn.execute("SELECT 1")
        with pytest.raises(psycopg.ProgrammingError, match="a transaction is open"):
            await pool.run_transaction(work)
        assert attempts == 3
