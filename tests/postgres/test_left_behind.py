"""Work that psycopg leaves behind where it cleans up with more than one wait.

Nobody is to meet it: neither who was cancelled, nor the next borrower, nor another event loop.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import sys
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from asyncpool import AsyncConnectionPool, Connection

from ._tools import (
    BOTH_LOOPS,
    LIMIT,
    Backends,
    all_usable,
    at_rest,
    eventually,
    in_time,
    needs_internals,
)
from .test_interrupted import Interrupt, each_interrupt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LOOPS = BOTH_LOOPS

MANY = "SELECT pg_sleep(60), %s"


async def one_shot(pool: AsyncConnectionPool) -> None:
    await pool.executemany(MANY, [(1,), (2,)])


async def end_of_a_pipeline(pool: AsyncConnectionPool) -> None:
    async with pool.connection() as conn, conn.pipeline():
        await conn.execute(MANY, [1])


@each_interrupt
@pytest.mark.parametrize("work", [one_shot, end_of_a_pipeline])
@pytest.mark.parametrize("autocommit", [True, False])
async def test_a_pipeline_whose_end_was_cancelled_is_left(
    dsn: str,
    backends: Backends,
    interrupt: Interrupt,
    work: Callable[[AsyncConnectionPool], Awaitable[None]],
    autocommit: bool,
) -> None:
    """The cancellation comes out, and the next statement meets no pipeline mode."""
    async with AsyncConnectionPool(dsn, min_size=1, kwargs={"autocommit": autocommit}) as pool:
        await interrupt(work(pool), lambda: backends.running("pg_sleep"))
        assert await in_time(pool.fetchval("SELECT %s::int", [1])) == 1
        await eventually(lambda: not backends.running("pg_sleep"))
        await all_usable(pool)


@needs_internals
async def test_a_copy_cancelled_in_the_tick_of_its_answer_is_ended(
    conn: Connection[Any],
) -> None:
    """No wait is under way then, and the server is in the middle of it."""
    transport = conn._transport
    assert transport is not None

    async def read() -> None:
        query = "COPY (SELECT generate_series(1, 100000)) TO STDOUT"
        async with conn.cursor().copy(query) as copy:
            async for _ in copy:
                pass

    reading = asyncio.create_task(read())
    await eventually(lambda: transport._future)
    answer = transport._future
    assert answer is not None
    while not answer.done():  # noqa: ASYNC110 - it has to be this very tick
        await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait({reading})
    assert reading.cancelled()
    assert await (await in_time(conn.execute("SELECT 1"))).fetchone() == (1,)


@needs_internals
def test_a_query_cancelled_as_its_loop_ends_hangs_no_other_loop(asyncpool_dsn: str) -> None:
    """The clean-up ended with its loop, so the connection is closed."""

    async def leave() -> Connection[Any]:
        conn: Connection[Any] = await Connection.connect(asyncpool_dsn, autocommit=True)
        leave.task = asyncio.create_task(conn.execute("SELECT pg_sleep(60)"))  # type: ignore[attr-defined]
        await eventually(conn.lock.locked)
        return conn

    async def come(conn: Connection[Any]) -> None:
        with pytest.raises(psycopg.OperationalError):
            await in_time(conn.execute("SELECT 1"))
        await in_time(conn.close())

    logging.getLogger("asyncio").disabled = True  # "Task was destroyed but it is pending"
    try:
        asyncio.run(come(asyncio.run(leave())))
        del leave.task  # type: ignore[attr-defined]
        gc.collect()
    finally:
        logging.getLogger("asyncio").disabled = False


@needs_internals
@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks start eagerly since Python 3.12")
async def test_a_cancel_request_that_fails_at_once_is_not_waited_for(
    conn: Connection[Any], backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under tasks that start eagerly it may have failed before anybody knows of it."""

    async def fail(*_: object) -> None:
        raise psycopg.OperationalError("no descriptor is left")

    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.BaseEventLoop):
        pytest.skip("uvloop's tasks do not start eagerly on every Python")
    loop.set_task_factory(asyncio.eager_task_factory)
    monkeypatch.setattr("asyncpool._psycopg.transport.cancel_until_ended", fail)
    query = asyncio.create_task(conn.execute("SELECT pg_sleep(60)"))
    await eventually(lambda: backends.running("pg_sleep"))
    query.cancel()
    await asyncio.wait({query})
    assert query.cancelled()
    await in_time(conn.close())
    backends.terminate()


@needs_internals
@pytest.mark.parametrize("end", ["terminated", "idle in transaction"])
async def test_the_next_use_of_a_leased_connection_raises_why_it_ended(
    dsn: str, backends: Backends, end: str
) -> None:
    """Once, by the error that psycopg has for it; after that the connection is closed."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        conn = await pool.acquire()
        cursor = conn.cursor()
        if end == "terminated":
            kind: type[Exception] = psycopg.errors.AdminShutdown
            await conn.commit()
            backends.terminate()
        else:
            kind = psycopg.errors.IdleInTransactionSessionTimeout
            await conn.execute("SET idle_in_transaction_session_timeout = 20")
        await eventually(lambda: not backends.pids())
        await eventually(lambda: end != "terminated" or conn.closed)
        with pytest.raises(kind) as error:
            await (cursor if end == "terminated" else conn).execute("SELECT 1")
        assert isinstance(error.value, psycopg.Error)
        assert error.value.sqlstate == ("57P01" if end == "terminated" else "25P03")
        assert error.value.diag.severity_nonlocalized == "FATAL"
        with pytest.raises(psycopg.OperationalError, match=r"closed|lost"):
            await conn.execute("SELECT 1")
        await pool.release(conn)


async def of_the_pool(pool: AsyncConnectionPool, die: Callable[[], Awaitable[None]]) -> None:
    async with pool.connection() as conn:
        await conn.execute("SELECT 1")
        await die()


async def explicit(pool: AsyncConnectionPool, die: Callable[[], Awaitable[None]]) -> None:
    async with pool.transaction() as conn:
        await conn.execute("SELECT 1")
        await die()


async def of_psycopg(pool: AsyncConnectionPool, die: Callable[[], Awaitable[None]]) -> None:
    conn = await pool.acquire()
    try:
        async with conn.transaction():
            await conn.execute("SELECT 1")
            await die()
    finally:
        await pool.release(conn)


@pytest.mark.parametrize("block", [of_the_pool, explicit, of_psycopg])
async def test_a_block_whose_server_dies_before_its_commit_does_not_end_as_if_committed(
    dsn: str, backends: Backends, block: Callable[..., Awaitable[None]]
) -> None:
    """The block raises, however early the end of the connection was noticed."""

    async def die() -> None:
        backends.terminate()
        await asyncio.sleep(0.02)  # for the loop to notice

    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        with pytest.raises(psycopg.OperationalError):
            await in_time(block(pool, die))
        assert await in_time(pool.fetchval("SELECT 1")) == 1
        await all_usable(pool)


async def test_a_block_ends_quietly_while_its_returned_connection_is_reset(dsn: str) -> None:
    """`conn.close()` in the block has returned it; what goes on with it is the pool's."""
    if psycopg.__version__.startswith("3.2."):
        pytest.skip("psycopg before 3.3 does not ask a pool")
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def reset(conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.execute("SELECT 1")
        begun.set()
        await go_on.wait()
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        await conn.rollback()

    async with AsyncConnectionPool(dsn, min_size=1, close_returns=True, reset=reset) as pool:
        async with pool.connection() as conn:
            await conn.close()
            await in_time(begun.wait())
        go_on.set()
        await at_rest(pool)
        assert pool.stats().connects == 1


async def test_an_iteration_over_notifications_that_is_kept_is_not_the_next_borrowers(
    dsn: str,
) -> None:
    """The iteration holds the connection's lock: the connection is replaced."""
    async with AsyncConnectionPool(dsn, min_size=1, kwargs={"autocommit": True}) as pool:
        async with pool.connection() as conn:
            await conn.execute("LISTEN here")
            await conn.execute("NOTIFY here")
            kept = conn.notifies()
            await anext(kept)
        async with pool.connection(timeout=LIMIT) as other:
            await in_time(other.execute("SELECT 1"))
            assert other is not conn
        await kept.aclose()


async def test_an_iteration_over_notifications_that_was_left_is_no_harm(dsn: str) -> None:
    """The lock is free a moment later, and the connection stays."""
    async with AsyncConnectionPool(dsn, min_size=1, kwargs={"autocommit": True}) as pool:
        for _ in range(3):
            async with pool.connection() as conn:
                await conn.execute("LISTEN here")
                await conn.execute("NOTIFY here")
                async for _notify in conn.notifies():
                    break
        await at_rest(pool)
        assert pool.stats().connects == 1


@needs_internals
async def test_a_handler_of_notifications_that_fails_holds_up_none_of_the_others(
    conn: Connection[Any], dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The notifications arrive without a statement, and the failure is logged."""
    got: list[str] = []

    def handle(notify: psycopg.Notify) -> None:
        got.append(notify.payload)
        raise ZeroDivisionError

    conn.add_notify_handler(handle)
    conn.add_notice_handler(lambda _: None)
    await conn.execute("LISTEN here")
    async with await psycopg.AsyncConnection.connect(dsn) as other:
        for n in range(3):
            await other.execute(f"NOTIFY here, '{n}'")
    await eventually(lambda: got == ["0", "1", "2"])
    assert [each.exc_info[0] for each in caplog.records if each.exc_info] == [ZeroDivisionError] * 3
    caplog.clear()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="functions are marked since Python 3.12")
def test_execute_passes_for_the_coroutine_function_that_it_is_in_psycopg() -> None:
    """Mocks that follow a specification ask for it."""
    assert inspect.iscoroutinefunction(Connection.execute)
