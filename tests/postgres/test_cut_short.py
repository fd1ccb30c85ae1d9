"""Cancellations in waits that psycopg does not have, while it changes the connection's state.

psycopg's own waits suspend in fewer places. In the others a cancellation leaves the connection in
the state that it would have without them.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any, cast

import anyio
import psycopg
import pytest
from psycopg import sql

from asyncpool import AsyncConnectionPool, Connection

from ._tools import BOTH_LOOPS, Backends, Proxy, backend_of, eventually, in_time, needs_internals

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

pytestmark = needs_internals

LOOPS = BOTH_LOOPS

SLOW = "SELECT pg_sleep(60)"


async def cancelled_at_once(work: Awaitable[Any]) -> None:
    """Cancel work in the first turn of the event loop after its start, unless it has ended."""
    await asyncio.sleep(0.02)  # longer than work that never waits may run before it yields
    task = asyncio.ensure_future(work)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})


async def by_a_timeout(work: Callable[[], Awaitable[Any]]) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(0.2):
            await work()


async def by_a_scope(work: Callable[[], Awaitable[Any]]) -> None:
    with anyio.move_on_after(0.2):
        await work()


each_way = pytest.mark.parametrize("cut", [by_a_timeout, by_a_scope])


async def test_a_one_shot_cancelled_at_its_start_leaves_no_mode_behind(dsn: str) -> None:
    """The next borrower's block is in a transaction and is rolled back when it fails."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:

        async def fail() -> None:
            async with pool.connection() as conn:
                assert not conn.autocommit
                await conn.execute("INSERT INTO cut VALUES (1)")
                raise ZeroDivisionError

        await pool.execute("CREATE TEMP TABLE cut (x int)")
        await cancelled_at_once(pool.execute("SELECT 1"))
        with pytest.raises(ZeroDivisionError):
            await fail()
        assert await pool.fetchval("SELECT count(*) FROM cut") == 0
        assert pool.stats().connects == 1


async def test_a_pipeline_cancelled_at_its_start_was_entered_or_not(dsn: str) -> None:
    """A statement after the pipeline is outside of it, and runs."""
    conn = await Connection.connect(dsn, autocommit=True)
    await conn.execute("CREATE TEMP TABLE cut (x int)")

    async def use() -> None:
        async with conn.pipeline():
            await conn.execute("SELECT 1")

    await cancelled_at_once(use())
    cur = await conn.execute("INSERT INTO cut VALUES (1)")
    assert cur.rowcount == 1
    with pytest.raises(psycopg.errors.SyntaxError):
        await conn.execute("selectt 1")
    await conn.close()


@each_way
@pytest.mark.parametrize("autocommit", [False, True])
async def test_a_cancelled_transaction_block_is_rolled_back(
    dsn: str, cut: Callable[..., Awaitable[None]], autocommit: bool
) -> None:
    """The rollback may wait for the end of the query, and comes before the next statement."""
    conn = await Connection.connect(dsn, autocommit=autocommit)
    await conn.execute("CREATE TEMP TABLE cut (x int)")
    await conn.rollback() if autocommit else await conn.commit()

    async def work() -> None:
        async with conn.transaction():
            await conn.execute("INSERT INTO cut VALUES (1)")
            await conn.execute(SLOW)

    for _ in range(2):
        await cut(work)
        cur = await conn.execute("SELECT count(*) FROM cut")
        assert await cur.fetchone() == (0,)
        await conn.rollback()
        async with conn.transaction():
            await conn.execute("SELECT 1")
    await conn.close()


@each_way
async def test_a_cancelled_savepoint_is_rolled_back_alone(
    dsn: str, cut: Callable[..., Awaitable[None]]
) -> None:
    """The enclosing block goes on and is committed."""
    conn = await Connection.connect(dsn, autocommit=True)
    await conn.execute("CREATE TEMP TABLE cut (x int)")

    async def work() -> None:
        async with conn.transaction():
            await conn.execute("INSERT INTO cut VALUES (1)")
            await conn.execute(SLOW)

    async with conn.transaction():
        await conn.execute("INSERT INTO cut VALUES (2)")
        await cut(work)
        await conn.execute("INSERT INTO cut VALUES (3)")
    cur = await conn.execute("SELECT x FROM cut ORDER BY x")
    assert await cur.fetchall() == [(2,), (3,)]
    await conn.close()


async def test_a_transaction_cancelled_before_its_start_was_none(
    dsn: str, backends: Backends
) -> None:
    """The cancellation comes while the start waits for the end of another cancelled query."""
    conn = await Connection.connect(dsn, autocommit=True)
    await by_a_timeout(lambda: conn.execute(SLOW))

    async def work() -> None:
        async with conn.transaction():
            await conn.execute("SELECT 1")

    with suppress(asyncio.CancelledError):
        await cancelled_right_after(backends, conn.execute(SLOW), work())
    await work()
    await conn.commit()
    await conn.close()


async def test_a_block_whose_end_was_cancelled_is_not_committed_later(
    dsn: str, backends: Backends
) -> None:
    """The block's end is cancelled while it waits for a query whose cancellation it has caught."""
    conn = await Connection.connect(dsn, autocommit=True)
    await conn.execute("DROP TABLE IF EXISTS cut")
    await conn.execute("CREATE TABLE cut (x int)")

    async def work() -> None:
        async with conn.transaction():
            await conn.execute("INSERT INTO cut VALUES (1)")
            task = asyncio.current_task()
            assert task is not None
            query = asyncio.create_task(conn.execute("SELECT 1 FROM pg_sleep(5)"))
            await eventually(lambda: backends.running("pg_sleep"))
            query.cancel()
            await asyncio.wait({query})
            asyncio.get_running_loop().call_soon(task.cancel)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(work())
    cur = await conn.execute("SELECT count(*) FROM cut")
    assert await cur.fetchone() == (0,)
    await conn.close()


async def cancelled_right_after(
    backends: Backends, first: Awaitable[Any], second: Awaitable[Any]
) -> None:
    """Cancel the first in its query, and the second while it waits for the end of the first."""
    task = asyncio.ensure_future(first)
    await eventually(lambda: backends.running("pg_sleep"))
    task.cancel()
    await asyncio.wait({task})
    task = asyncio.ensure_future(second)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})


async def streams(conn: Connection[Any]) -> list[Any]:
    return [row async for row in conn.cursor().stream("SELECT 1")]


async def declares(conn: Connection[Any]) -> list[Any]:
    async with conn.transaction(), conn.cursor("declared") as cur:
        await cur.execute("SELECT 1")
        return await cur.fetchall()


async def declares_at_once(conn: Connection[Any]) -> list[Any]:
    async with conn.cursor("declared", withhold=True) as cur:
        await cur.execute("SELECT 1")
        return await cur.fetchall()


async def copies(conn: Connection[Any]) -> list[Any]:
    async with conn.cursor().copy("COPY (SELECT 1) TO STDOUT") as copy:
        return [(int(bytes(block)),) async for block in copy]


@each_way
@pytest.mark.parametrize("use", [streams, declares, declares_at_once, copies])
async def test_after_a_cancelled_pipeline_every_operation_works(
    dsn: str,
    cut: Callable[..., Awaitable[None]],
    use: Callable[[Connection[Any]], Awaitable[list[Any]]],
) -> None:
    """The first operation may be one that psycopg refuses in a pipeline."""
    conn = await Connection.connect(dsn, autocommit=True)

    async def work() -> None:
        async with conn.pipeline():
            cur = await conn.execute(SLOW)
            await cur.fetchone()

    await cut(work)
    assert await use(conn) == [(1,)]
    await conn.close()


@pytest.mark.parametrize("others", [0, 2])
async def test_what_a_pipeline_was_cancelled_with_is_not_sent_after_its_end(
    dsn: str, backends: Backends, table: str, others: int
) -> None:
    """The first statement waits for its BEGIN; a scope cuts that, and the pipeline's end."""
    async with Proxy(dsn) as proxy:
        conn = await Connection.connect(proxy.dsn)
        proxy.delay = 0.1  # the cancel request comes after the answer to the BEGIN
        proxy.open_way.clear()
        with anyio.CancelScope() as scope:
            async with AsyncExitStack() as outer:
                for _ in range(others):
                    await outer.enter_async_context(conn.pipeline())
                async with conn.pipeline():
                    asyncio.get_running_loop().call_soon(scope.cancel)
                    await conn.execute(f"INSERT INTO {table} VALUES (%s)", [1])
        assert scope.cancelled_caught
        proxy.open_way.set()
        cur = await in_time(conn.execute(f"SELECT count(*) FROM {table}"))
        assert await cur.fetchone() == (0,)
        await conn.commit()
        assert backends.rows(table) == []
        await conn.close()


async def test_a_pipeline_cancelled_as_it_is_entered_in_another_is_not_entered(dsn: str) -> None:
    """The inner one waits for what the outer one sent; the outer one is left at its own end."""
    async with Proxy(dsn) as proxy:
        conn = await Connection.connect(proxy.dsn, autocommit=True)
        with suppress(psycopg.errors.QueryCanceled):
            async with conn.pipeline():
                await conn.execute("SELECT 1")
                proxy.open_way.clear()
                with anyio.CancelScope() as scope:
                    asyncio.get_running_loop().call_soon(scope.cancel)
                    async with conn.pipeline():
                        raise AssertionError("it was entered")
                assert scope.cancelled_caught
                proxy.open_way.set()
        assert not conn.pgconn.pipeline_status
        assert await backend_of(conn) == conn.pgconn.backend_pid
        await conn.close()


async def test_a_pipeline_refuses_what_psycopgs_refuses(dsn: str) -> None:
    """A pipeline refuses the operations that psycopg's refuses."""
    conn = await Connection.connect(dsn, autocommit=True)
    async with conn.cursor("declared", withhold=True) as cur:
        async with conn.pipeline():
            with pytest.raises(psycopg.ProgrammingError):
                await streams(conn)
            with pytest.raises(psycopg.NotSupportedError):
                await cur.execute("SELECT 1")
        await cur.execute("SELECT 1")
    await conn.close()


async def test_a_copy_in_a_cancelled_pipeline_ends_the_connection(
    dsn: str, backends: Backends
) -> None:
    """A COPY in a pipeline cannot be ended, so the next statement raises without waiting."""
    conn = await Connection.connect(dsn, autocommit=True)
    await conn.execute("CREATE TEMP TABLE cut (x int)")
    swallows = sql.SQL(
        "DO $$BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN NULL; END$$"
    )

    sent = asyncio.Event()

    async def work() -> None:
        async with conn.pipeline():
            await conn.execute(swallows)
            await conn.execute("COPY cut FROM STDIN")
            sent.set()

    task = asyncio.create_task(work())
    await in_time(sent.wait())
    await eventually(lambda: backends.running("pg_sleep"))
    task.cancel()
    await asyncio.wait({task})
    with pytest.raises(psycopg.OperationalError):
        await in_time(conn.execute("SELECT 1"))
    assert conn.closed
    await conn.close()


@pytest.mark.parametrize("kind", [psycopg.AsyncConnection, Connection])
async def test_a_notification_that_comes_with_the_time_out_is_kept(
    dsn: str, kind: type[psycopg.AsyncConnection[Any]]
) -> None:
    """The loop is busy meanwhile, so it sees both in the same turn."""
    conn = await kind.connect(dsn, autocommit=True)
    await conn.execute("LISTEN cut")
    got: list[str] = []

    async def listen() -> None:
        async for notify in conn.notifies():
            got.append(notify.payload)

    def notify_and_keep_the_loop_busy() -> None:
        with psycopg.connect(dsn, autocommit=True) as other:
            other.execute("NOTIFY cut, 'one'")
        time.sleep(0.3)

    asyncio.get_running_loop().call_later(0.1, notify_and_keep_the_loop_busy)
    with suppress(TimeoutError):
        async with asyncio.timeout(0.2):
            await listen()
    got += [notify.payload async for notify in conn.notifies(timeout=0.2)]
    assert got == ["one"]
    await conn.close()


@pytest.mark.exhaustive
async def test_a_cancel_request_that_comes_late_hits_no_other_borrower(dsn: str) -> None:
    """The connection is not leased again, because the request may still arrive."""
    await asyncio.gather(*(leave_behind(dsn, left) for left in ("a COPY", "a stream")))


async def leave_behind(dsn: str, left: str) -> None:
    """Stop reading what the server sends; the cancel request takes longer than the pool waits."""
    async with Proxy(dsn) as proxy, AsyncConnectionPool(proxy.dsn, min_size=1) as pool:
        await pool.wait()
        proxy.delay = 1.6  # like a postmaster that is slow to accept
        with suppress(ZeroDivisionError, psycopg.OperationalError):  # the pool may close it
            async with pool.connection() as conn:
                await conn.set_autocommit(True)
                if left == "a COPY":
                    numbers = "COPY (SELECT generate_series(1, 200000)) TO STDOUT"
                    async with conn.cursor().copy(numbers) as copy:
                        await copy.read()
                        raise ZeroDivisionError
                stream = conn.cursor().stream("SELECT generate_series(1, 200000)")
                await anext(stream)
                await cast("AsyncGenerator[Any]", stream).aclose()
        assert await pool.fetchval("SELECT 1 FROM pg_sleep(2)") == 1


async def test_a_pipeline_that_fails_is_left_however_its_error_arrives(
    conn: Connection[Any],
) -> None:
    """The error arrives with one of the next statements or at the end, as in psycopg."""

    async def fail(others: int) -> None:
        async with conn.pipeline():
            await conn.execute("SELECT 1/0")
            for _ in range(others):
                await conn.execute("SELECT 1")
                await asyncio.sleep(0)

    for n in range(200):
        with pytest.raises(psycopg.errors.DivisionByZero):
            await fail(n % 4)
        assert not conn.pgconn.pipeline_status, n
        assert await backend_of(conn) == conn.pgconn.backend_pid


async def test_a_pipeline_in_the_clean_up_of_a_cancelled_task_is_left_at_its_end(
    conn: Connection[Any],
) -> None:
    """An exception that is being handled around the pipeline makes no difference."""

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            async with conn.pipeline():
                cur = await conn.execute("SELECT 1")
            assert not conn.pgconn.pipeline_status
            assert await cur.fetchone() == (1,)
            raise

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    await in_time(asyncio.wait({task}))
    assert task.cancelled()
