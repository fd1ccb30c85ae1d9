"""A task that has a stream(), COPY or notifies() open gets an error from any other call."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, cast

import psycopg
import pytest

from asyncpool import AsyncConnectionPool, PoolDeadlock, PoolTimeout

from ._tools import BOTH_LOOPS, all_usable, backend_of, in_time

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

LOOPS = BOTH_LOOPS

MANY = "SELECT generate_series(1, 5000)"
AUTOCOMMIT = {"autocommit": True}
"""Without autocommit, an unfinished stream() would fail its transaction."""


@asynccontextmanager
async def stream(conn: Any) -> AsyncIterator[Any]:
    async with aclosing(conn.cursor().stream(MANY)) as rows:
        await anext(rows)
        yield


@asynccontextmanager
async def copy(conn: Any) -> AsyncIterator[Any]:
    async with conn.cursor().copy("COPY (VALUES (1), (2)) TO STDOUT") as data:
        await data.read()
        yield
        while await data.read():
            pass


@asynccontextmanager
async def notifies(conn: Any) -> AsyncIterator[Any]:
    await conn.execute("LISTEN here; NOTIFY here")
    if not conn.autocommit:
        await conn.commit()
    async with aclosing(conn.notifies()) as notifications:
        await anext(notifications)
        yield


OPEN = pytest.mark.parametrize("operation", [stream, copy, notifies])


@OPEN
@pytest.mark.parametrize("kind", ["connection", "transaction", "session", "cursor", "acquire"])
async def test_a_block_inside_an_open_operation_of_its_session_is_an_error_at_once(
    dsn: str, operation: Any, kind: str
) -> None:
    """The open operation goes on."""
    async with AsyncConnectionPool(dsn, min_size=1, kwargs=AUTOCOMMIT) as pool:
        async with pool.session() as conn, operation(conn):
            with pytest.raises(PoolDeadlock, match=r"stream\(\), COPY or notifies\(\)"):
                async with asyncio.timeout(10), getattr(pool, kind)():
                    raise AssertionError("it has begun")
        await all_usable(pool)
        assert pool.stats().connects == 1


@OPEN
async def test_a_one_shot_inside_an_open_operation_of_its_session_is_an_error_at_once(
    dsn: str, operation: Any
) -> None:
    """Each one-shot method raises; another task's one-shot is not affected."""
    async with AsyncConnectionPool(dsn, min_size=2, kwargs=AUTOCOMMIT) as pool:
        async with pool.session() as conn, operation(conn):
            for work in (
                pool.execute("SELECT 1"),
                pool.fetchval("SELECT 1"),
                pool.executemany("SELECT %s", [(1,)]),
                pool.batch(["SELECT 1"]),
            ):
                with pytest.raises(PoolDeadlock):
                    await in_time(work)
            assert await asyncio.create_task(pool.fetchval("SELECT 1")) == 1
        await all_usable(pool)


@pytest.mark.parametrize("operation", [stream, notifies])
async def test_a_statement_inside_an_open_operation_of_its_own_task_is_an_error_at_once(
    dsn: str, operation: Any
) -> None:
    """The statement raises outside of sessions too, where psycopg waits for ever."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        async with pool.connection() as conn, operation(conn):
            for work in (conn.execute("SELECT 1"), conn.commit(), conn.cursor().execute("SELECT")):
                with pytest.raises(psycopg.ProgrammingError, match="this task has a stream"):
                    await in_time(work)
        await all_usable(pool)


@pytest.mark.parametrize("kind", ["connection", "transaction", "session"])
async def test_a_block_that_ends_with_a_stream_open_raises(dsn: str, kind: str) -> None:
    """The block cannot be committed, and its connection is replaced."""
    kept: list[Any] = []
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        with pytest.raises(psycopg.ProgrammingError, match="this task has a stream"):  # noqa: PT012
            async with asyncio.timeout(10), getattr(pool, kind)() as conn:
                rows = conn.cursor().stream(MANY)
                kept.append(rows)
                await anext(rows)
        with suppress(psycopg.Error):
            await cast("AsyncGenerator[Any]", kept[0]).aclose()
        await all_usable(pool)


async def test_an_operation_left_by_a_break_is_waited_for(dsn: str) -> None:
    """The event loop closes an abandoned generator a moment later."""
    async with AsyncConnectionPool(dsn, min_size=1, kwargs=AUTOCOMMIT) as pool:
        async with pool.session() as conn:
            for _ in range(5):
                async for _row in conn.cursor().stream(MANY):
                    break
                assert await pool.fetchval("SELECT 1") == 1
                async for _row in conn.cursor().stream(MANY):
                    break
                await conn.execute("SELECT 1")
                async for _row in conn.cursor().stream(MANY):
                    break
                async with pool.connection() as inner:
                    await inner.execute("SELECT 1")
        await all_usable(pool)
        assert pool.stats().connects == 1


async def test_an_operation_of_another_task_is_waited_for_within_the_time_limit(dsn: str) -> None:
    """The operation may end in time. With psycopg's own class its task is unknown."""
    for own in (None, psycopg.AsyncConnection):
        arguments: dict[str, Any] = {} if own is None else {"connection_class": own}
        async with (
            AsyncConnectionPool(dsn, min_size=1, **arguments) as pool,
            pool.session() as conn,
        ):
            opened, go_on = asyncio.Event(), asyncio.Event()

            async def use(conn: Any, opened: asyncio.Event, go_on: asyncio.Event) -> None:
                async with stream(conn):
                    opened.set()
                    await go_on.wait()

            task = asyncio.create_task(use(conn, opened, go_on))
            await opened.wait()
            with pytest.raises(PoolTimeout, match="another operation runs on"):
                await in_time(pool.fetchval("SELECT 1", timeout=0.05))
            one_shot = pool.fetchval("SELECT 1", timeout=10)
            asyncio.get_running_loop().call_soon(go_on.set)
            assert await in_time(one_shot) == 1
            await task
            assert await backend_of(conn)
