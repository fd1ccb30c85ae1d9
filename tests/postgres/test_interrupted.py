"""A query whose caller is cancelled ends on the server, and its caller does not wait."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import psycopg
import pytest

from asyncpool import AsyncConnectionPool, Connection, TooManyRequests
from asyncpool.testing import Server

from ._tools import (
    BOTH_LOOPS,
    Backends,
    all_usable,
    at_rest,
    backend_of,
    eventually,
    in_time,
    needs_internals,
)

pytestmark = needs_internals

LOOPS = BOTH_LOOPS

ENDLESS = "SELECT pg_sleep(60)"

Interrupt = Callable[[Awaitable[Any], Callable[[], object]], Awaitable[None]]


async def by_the_task(work: Awaitable[Any], under_way: Callable[[], object]) -> None:
    """Cancel the task from outside."""
    task = asyncio.ensure_future(work)
    await eventually(under_way)
    task.cancel()
    await in_time(asyncio.wait({task}))
    assert task.cancelled()


async def by_the_task_twice(work: Awaitable[Any], under_way: Callable[[], object]) -> None:
    """Cancel the task again in the same turn of the loop, and once more a turn later."""
    task = asyncio.ensure_future(work)
    await eventually(under_way)
    task.cancel()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await in_time(asyncio.wait({task}))
    assert task.cancelled()


async def by_a_scope(work: Awaitable[Any], under_way: Callable[[], object]) -> None:
    """Cancel an anyio scope, which cancels each further await until the scope is left."""
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:

            async def cancel() -> None:
                await eventually(under_way)
                scope.cancel()

            group.start_soon(cancel)
            await work
    assert scope.cancelled_caught


async def by_a_timeout(work: Awaitable[Any], under_way: Callable[[], object]) -> None:
    """Let an asyncio timeout expire."""

    async def limited() -> None:
        async with asyncio.timeout(None) as limit, asyncio.TaskGroup() as group:

            async def expire() -> None:
                await eventually(under_way)
                limit.reschedule(0)

            group.create_task(expire())
            await work

    with pytest.raises(TimeoutError):
        await limited()


each_interrupt = pytest.mark.parametrize(
    "interrupt", [by_the_task, by_the_task_twice, by_a_scope, by_a_timeout]
)


@each_interrupt
async def test_a_cancelled_query_ends_and_its_connection_stays(
    conn: Connection[Any], backends: Backends, interrupt: Interrupt
) -> None:
    """The way of the cancellation makes no difference."""
    pid = await backend_of(conn)
    await interrupt(conn.execute(ENDLESS), lambda: backends.running("pg_sleep"))
    assert await in_time(backend_of(conn)) == pid
    assert not backends.running("pg_sleep")


@each_interrupt
async def test_a_borrower_cancelled_in_its_query_leaves_a_connection_that_works(
    dsn: str, backends: Backends, interrupt: Interrupt
) -> None:
    """The borrower is in a transaction block; no new connect is needed afterwards."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:

        async def borrow() -> None:
            async with pool.connection() as conn, conn.transaction():
                await conn.execute(ENDLESS)

        await interrupt(borrow(), lambda: backends.running("pg_sleep"))
        await eventually(lambda: not backends.running("pg_sleep"))
        await all_usable(pool)
        assert pool.stats().connects == 1


DOZE = """
CREATE TEMP TABLE t (x text);
CREATE FUNCTION pg_temp.doze() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_sleep(60); RETURN new; END $$;
CREATE TRIGGER doze BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION pg_temp.doze();
"""
"""A table whose first row keeps the server busy, so that it reads nothing more."""


@each_interrupt
async def test_a_copy_cancelled_on_a_full_socket_leaves_the_connection_usable(
    conn: Connection[Any], interrupt: Interrupt, caplog: pytest.LogCaptureFixture
) -> None:
    """None of the COPY's rows is stored."""
    await conn.execute(DOZE)
    transport = conn._transport
    assert transport is not None

    async def write() -> None:
        async with conn.cursor().copy("COPY t FROM STDIN") as copy:
            await copy.write("line\n" * 4_000_000)

    await interrupt(write(), lambda: transport._writing)
    cur = await in_time(conn.execute("SELECT count(*) FROM t"))
    assert await cur.fetchone() == (0,)
    assert "psycopg" not in [record.name for record in caplog.records]


async def test_a_copy_cancelled_between_two_writes_is_ended_on_the_server(
    conn: Connection[Any], backends: Backends
) -> None:
    """The server is busy and does not read psycopg's message that ends the COPY."""
    await conn.execute(DOZE)
    begun = asyncio.Event()

    async def write() -> None:
        async with conn.cursor().copy("COPY t FROM STDIN") as copy:
            await copy.write("line\n" * 20_000)  # enough for the server to start on it
            begun.set()
            while True:
                await copy.write("line\n")  # the socket has room, so this only yields at times

    writing = asyncio.create_task(write())
    await in_time(begun.wait())
    await asyncio.sleep(0)
    writing.cancel()
    await in_time(asyncio.wait({writing}))
    assert writing.cancelled()
    assert not backends.running("COPY")
    cur = await in_time(conn.execute("SELECT count(*) FROM t"))
    assert await cur.fetchone() == (0,)


@each_interrupt
async def test_a_cancelled_copy_to_the_client_leaves_the_connection_usable(
    conn: Connection[Any], interrupt: Interrupt, caplog: pytest.LogCaptureFixture
) -> None:
    """The next query gets none of the remaining rows."""
    begun = asyncio.Event()

    async def read() -> None:
        rows = "SELECT repeat('x', 9000), pg_sleep(n / 100) FROM generate_series(1, 9000) n"
        async with conn.cursor().copy(f"COPY ({rows}) TO STDOUT") as copy:
            async for _ in copy:
                begun.set()

    await interrupt(read(), begun.is_set)
    cur = await in_time(conn.execute("SELECT 'next'"))
    assert await cur.fetchall() == [("next",)]
    assert "psycopg" not in [record.name for record in caplog.records]


@each_interrupt
async def test_a_cancelled_stream_leaves_the_connection_usable(
    conn: Connection[Any], interrupt: Interrupt
) -> None:
    """The next query gets none of the remaining rows."""
    begun = asyncio.Event()

    async def read() -> None:
        query = "SELECT repeat('x', 9000), pg_sleep(n / 100) FROM generate_series(1, 9000) n"
        async for _ in conn.cursor().stream(query):
            begun.set()

    await interrupt(read(), begun.is_set)
    cur = await in_time(conn.execute("SELECT 'next'"))
    assert await cur.fetchall() == [("next",)]


ROWS = "SELECT pg_sleep(n), repeat('x', 9000) FROM unnest(ARRAY[0, 0, 0.2, 60]) n"
"""Row 1 comes immediately, row 2 soon, row 3 never; the end of a row is sent with the next."""


@pytest.mark.parametrize("way", ["copy", "stream"])
async def test_a_stream_cancelled_as_a_row_arrives_is_ended_on_the_server(
    conn: Connection[Any], backends: Backends, way: str
) -> None:
    """The row ends the wait but not the query."""
    begun = asyncio.Event()

    async def read() -> None:
        cur = conn.cursor()
        if way == "stream":
            async for _ in cur.stream(ROWS):
                begun.set()
        else:
            async with cur.copy(f"COPY ({ROWS}) TO STDOUT") as copy:
                async for _ in copy:
                    begun.set()

    task = asyncio.create_task(read())
    await in_time(begun.wait())
    await eventually(lambda: backends.running("pg_sleep"))
    time.sleep(0.5)  # noqa: ASYNC251 - the row and the cancellation must be seen in one turn
    task.cancel()
    await in_time(asyncio.wait({task}))
    assert task.cancelled()
    assert not backends.running("pg_sleep")
    assert await in_time(backend_of(conn)) == conn.pgconn.backend_pid


@each_interrupt
async def test_a_borrower_cancelled_in_a_copy_leaves_a_connection_that_works(
    dsn: str, backends: Backends, interrupt: Interrupt
) -> None:
    """Clean-up that was itself cancelled is done on the return of the connection."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        begun = asyncio.Event()

        async def borrow() -> None:
            rows = "SELECT repeat('x', 9000), pg_sleep(n / 100) FROM generate_series(1, 9000) n"
            async with (
                pool.connection() as conn,
                conn.transaction(),
                conn.cursor().copy(f"COPY ({rows}) TO STDOUT") as copy,
            ):
                async for _ in copy:
                    begun.set()

        await interrupt(borrow(), begun.is_set)
        await eventually(lambda: not backends.running("pg_sleep"))
        await all_usable(pool)
        assert pool.stats().connects == 1


@pytest.mark.parametrize("autocommit", [False, True])
@each_interrupt
async def test_a_cancelled_pipeline_leaves_nothing_running(
    dsn: str, backends: Backends, interrupt: Interrupt, autocommit: bool
) -> None:
    """The server skips statements after an error, and gets the Sync that it waits for."""
    async with AsyncConnectionPool(dsn, min_size=1, reset=None) as pool:

        async def borrow() -> None:
            async with pool.connection() as conn:
                await conn.set_autocommit(autocommit)
                async with conn.pipeline():
                    await work(conn)

        async def work(conn: psycopg.AsyncConnection[Any]) -> None:
            await conn.execute("SELECT 1")
            cur = await conn.execute(ENDLESS)
            await conn.execute("SELECT 2")
            await cur.fetchone()

        await interrupt(borrow(), lambda: backends.running("pg_sleep"))
        await eventually(lambda: not backends.running("pg_sleep"))
        await all_usable(pool)
        assert pool.stats().connects == 1


async def test_a_cancelled_wait_for_notifications_ends_at_once(
    conn: Connection[Any], dsn: str
) -> None:
    """No query has to be cancelled, and later notifications are not lost."""
    await conn.execute("LISTEN here")

    async def listen() -> None:
        async for _ in conn.notifies():
            pass

    for _ in range(3):
        task = asyncio.create_task(listen())
        await eventually(conn.lock.locked)
        task.cancel()
        await in_time(asyncio.wait({task}))
        assert task.cancelled()
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
        await other.execute("NOTIFY here, 'later'")
    assert [n.payload async for n in conn.notifies(timeout=10, stop_after=1)] == ["later"]


async def test_a_cancelled_query_raises_at_once_on_a_server_that_is_stopped(
    dsn: str, server: Server, backends: Backends
) -> None:
    """The caller does not wait for the server."""
    conn = await Connection.connect(dsn, autocommit=True)
    task = asyncio.create_task(conn.execute(ENDLESS))
    await eventually(lambda: backends.running("pg_sleep"))
    await server.pause()
    try:
        task.cancel()
        # One step for the cancellation itself, a few to leave psycopg.
        for _ in range(10):
            await asyncio.sleep(0)
        assert task.cancelled()
    finally:
        await server.resume()
    await conn.close()


async def test_the_next_query_waits_for_the_end_of_the_cancelled_one(
    conn: Connection[Any],
) -> None:
    """The cancel requests never cancel the next query."""
    pid = await backend_of(conn)
    for n in range(60):
        with anyio.move_on_after(0.001 * (n % 5)):
            await conn.execute(ENDLESS)
        assert await in_time(backend_of(conn)) == pid


async def test_a_second_cancellation_changes_nothing(
    conn: Connection[Any], backends: Backends
) -> None:
    """The second cancellation comes while the clean-up of the first one runs."""

    async def work() -> None:
        try:
            await conn.execute(ENDLESS)
        finally:
            await conn.execute("SELECT 1")

    task = asyncio.create_task(work())
    await eventually(lambda: backends.running("pg_sleep"))
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await in_time(asyncio.wait({task}))
    assert task.cancelled()
    assert await in_time(backend_of(conn))


async def test_a_storm_leaves_nothing_behind(dsn: str, backends: Backends) -> None:
    """At most `max_size` backends, no query left, and nearly all connections survive."""
    randomness = random.Random(7)
    most = 0

    async def one(pool: AsyncConnectionPool) -> None:
        pause = randomness.choice([0, 0, 0.001, 0.003, 0.01])
        work = pool.execute(ENDLESS, timeout=30)
        if randomness.random() < 0.5:
            # A request that could not be served in time is refused, in such a storm of them.
            with contextlib.suppress(TooManyRequests), anyio.move_on_after(pause):
                await work
        else:
            task = asyncio.create_task(work)
            await asyncio.sleep(pause)
            task.cancel()
            await in_time(asyncio.wait({task}))
            assert task.cancelled() or isinstance(task.exception(), TooManyRequests)

    async with AsyncConnectionPool(dsn, min_size=4) as pool:
        await pool.wait()

        async def many() -> None:
            nonlocal most
            for n in range(100):
                await one(pool)
                if n % 10 == 0:
                    most = max(most, len(backends.pids()))

        await in_time(asyncio.gather(*(many() for _ in range(8))), 60)
        await eventually(lambda: not backends.running("pg_sleep"))
        await at_rest(pool)
        await all_usable(pool)
        assert most <= 4
        assert pool.stats().connects <= 4 + 20, pool.explain()
