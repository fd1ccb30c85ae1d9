"""Sessions held by async generators that are suspended, closed early or abandoned."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from asyncpool import AsyncConnectionPool, ReleaseError

from ._tools import BOTH_LOOPS, Backends, all_usable, at_rest, backend_of, eventually, in_time

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

LOOPS = BOTH_LOOPS


@pytest.fixture
async def pool(dsn: str) -> AsyncIterator[AsyncConnectionPool]:
    """A pool of two connections."""
    async with AsyncConnectionPool(dsn, min_size=2, timeout=10) as pool:
        yield pool
        assert not pool._sessions
        await all_usable(pool)


async def rows(pool: AsyncConnectionPool, table: str) -> AsyncGenerator[int]:
    """Yield numbers from inside a transaction of the generator's session."""
    async with pool.session() as conn:
        await conn.execute(f"INSERT INTO {table} VALUES (-1)")
        await pool.execute(f"INSERT INTO {table} VALUES (-2)")
        for number in range(3):
            yield number


def errors_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Remove the logged errors from the log and return them."""
    records = caplog.get_records("call")
    found = [each.getMessage() for each in records if each.levelno >= logging.ERROR]
    records[:] = [each for each in records if each.levelno < logging.ERROR]
    return found


async def test_what_is_done_after_an_abandoned_generator_stays(
    pool: AsyncConnectionPool, backends: Backends, table: str
) -> None:
    """From the next statement on the task no longer joins the generator's session."""
    for number in range(1, 4):
        async for _ in rows(pool, table):
            break
        await pool.execute(f"INSERT INTO {table} VALUES ({number})")
        async with pool.connection() as conn:
            await conn.execute(f"INSERT INTO {table} VALUES ({number * 10})")
    await at_rest(pool)
    assert backends.rows(table) == [1, 2, 3, 10, 20, 30]


async def test_a_generator_around_an_abandoned_one_goes_on(
    pool: AsyncConnectionPool, backends: Backends, table: str
) -> None:
    """Only the inner generator's session ends."""

    async def outer() -> AsyncGenerator[int]:
        async for number in rows(pool, table):
            if number == 1:
                break
            yield number
        await pool.execute(f"INSERT INTO {table} VALUES (1)")
        yield -1

    assert [number async for number in outer()] == [0, -1]
    await at_rest(pool)
    assert backends.rows(table) == [1]


async def test_what_is_done_while_a_generator_is_suspended_is_part_of_its_session(
    pool: AsyncConnectionPool, backends: Backends, table: str
) -> None:
    """The work is committed with the session when the generator ends."""
    async for number in rows(pool, table):
        await pool.execute(f"INSERT INTO {table} VALUES ({number})")
    assert backends.rows(table) == [-2, -1, 0, 1, 2]


async def test_what_is_undone_with_an_abandoned_generator_is_an_error_in_the_log(
    pool: AsyncConnectionPool, backends: Backends, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Work that was reported as done is undone with the session, so the log has an error."""
    async for number in rows(pool, table):
        await pool.execute(f"INSERT INTO {table} VALUES ({number})")
        break
    await eventually(lambda: "outside the generator" in caplog.text)
    await at_rest(pool)
    assert backends.rows(table) == []
    found: list[str] = []

    def logged() -> bool:
        found.extend(errors_of(caplog))
        return any("ran outside the generator" in each for each in found)

    await eventually(logged)


async def test_what_is_undone_with_a_generator_that_is_closed_is_an_error_there(
    pool: AsyncConnectionPool, backends: Backends, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    """`aclose()` before the generator's end raises."""
    with pytest.raises(ReleaseError, match="ran outside the generator"):  # noqa: PT012
        async with aclosing(rows(pool, table)) as numbers:
            async for _ in numbers:
                break
            await pool.execute(f"INSERT INTO {table} VALUES (1)")
    await at_rest(pool)
    assert backends.rows(table) == []
    assert len(errors_of(caplog)) == 1


async def test_a_generator_that_is_closed_early_undoes_its_own_work_silently(
    pool: AsyncConnectionPool, backends: Backends, table: str
) -> None:
    """Only work of the generator itself is undone, which is no error."""
    async with aclosing(rows(pool, table)) as numbers:
        async for _ in numbers:
            break
    async for _ in rows(pool, table):
        break
    await at_rest(pool)
    assert backends.rows(table) == []


async def test_what_was_committed_meanwhile_is_not_undone(
    pool: AsyncConnectionPool, backends: Backends, table: str
) -> None:
    """A one-shot in a session without an open transaction commits by itself."""

    async def calm() -> AsyncGenerator[int]:
        async with pool.session():
            yield 1

    async with aclosing(calm()) as numbers:
        async for _ in numbers:
            break
        await pool.execute(f"INSERT INTO {table} VALUES (1)")
        async with pool.transaction() as conn:
            await conn.execute(f"INSERT INTO {table} VALUES (2)")
    assert backends.rows(table) == [1, 2]


@pytest.mark.parametrize("fails", [False, True])
async def test_a_dependency_that_holds_a_session_is_joined_by_what_depends_on_it(
    pool: AsyncConnectionPool, backends: Backends, table: str, fails: bool
) -> None:
    """A web framework runs both in one task, outside the generator."""

    @asynccontextmanager
    async def dependency() -> AsyncIterator[Any]:
        async with pool.session() as conn:
            await conn.execute(f"INSERT INTO {table} VALUES (1)")
            yield conn

    async def request() -> None:
        async with AsyncExitStack() as stack:
            conn = await stack.enter_async_context(dependency())
            await pool.execute(f"INSERT INTO {table} VALUES (2)")
            async with pool.transaction() as inner:
                assert inner is conn
                await inner.execute(f"INSERT INTO {table} VALUES (3)")
            assert await pool.fetchval("SELECT pg_backend_pid()") == pid_of(conn)
            if fails:
                await pool.execute("SELECT 1/0")

    if fails:
        with pytest.raises(psycopg.errors.DivisionByZero):
            await in_time(request())
    else:
        await in_time(request())
    await at_rest(pool)
    assert backends.rows(table) == ([] if fails else [1, 2, 3])


def pid_of(conn: Any) -> int:
    """Return the backend's process ID that a connection received at connect."""
    return int(conn.info.backend_pid)


async def test_a_generator_that_a_caller_keeps_may_be_resumed(
    pool: AsyncConnectionPool, backends: Backends, table: str
) -> None:
    """Some frameworks resume it step by step, with work in between."""
    numbers = rows(pool, table)
    assert await anext(numbers) == 0
    await pool.execute(f"INSERT INTO {table} VALUES (5)")
    assert [number async for number in numbers] == [1, 2]
    assert backends.rows(table) == [-2, -1, 5]
    async with pool.session() as conn:
        assert await pool.fetchval("SELECT pg_backend_pid()") == await backend_of(conn)


async def test_a_task_that_starts_inside_a_generator_is_none_of_its(
    pool: AsyncConnectionPool, backends: Backends, table: str
) -> None:
    """A task keeps its own session when the generator ends, also if it started eagerly."""
    left = asyncio.Event()

    async def other() -> None:
        async with pool.session() as conn:
            await left.wait()
            assert await pool.fetchval("SELECT pg_backend_pid()") == pid_of(conn)
            await pool.execute(f"INSERT INTO {table} VALUES (1)")

    tasks: list[asyncio.Task[None]] = []

    async def generator() -> AsyncGenerator[int]:
        tasks.append(asyncio.create_task(other()))
        yield 1

    loop = asyncio.get_running_loop()
    eager = getattr(asyncio, "eager_task_factory", None)
    # uvloop's tasks do not start eagerly on every Python.
    if eager is not None and isinstance(loop, asyncio.BaseEventLoop):
        loop.set_task_factory(eager)
    async for _ in generator():
        break
    loop.set_task_factory(None)
    await asyncio.sleep(0.01)
    left.set()
    await in_time(tasks[0])
    assert backends.rows(table) == [1]
