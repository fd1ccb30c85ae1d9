"""Releasing a connection: it never waits, refuses foreign connections, and keeps no open work."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import warnings
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from asyncpool import AsyncConnectionPool, Connection, PoolClosed, PoolTimeout, ReleaseError
from asyncpool._core.background import BackgroundTasks
from asyncpool.testing import ServerUnsupported, postgres
from tests._tools import at_once, few

from ._tools import (
    Backends,
    OwnPutconn,
    all_usable,
    at_rest,
    backend_of,
    eventually,
    in_time,
    needs_internals,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    Conn = psycopg.AsyncConnection[Any]


async def test_returning_never_suspends_even_when_there_is_much_to_clean(dsn: str) -> None:
    """The pool rolls back, so that the borrower cannot be cancelled in it."""
    async with AsyncConnectionPool(dsn, min_size=1, reset="discard") as pool:
        conn = await pool.acquire()
        await conn.execute("CREATE TEMP TABLE scratch (x int)")
        at_once(pool.release(conn))
        assert (pool.stats().leased, pool.stats().cleaning) == (0, 1)
        assert (await at_rest(pool)).connects == 1


async def test_a_second_release_is_refused_and_changes_nothing(dsn: str) -> None:
    """The error names the pool, and the connection stays idle."""
    async with AsyncConnectionPool(dsn, min_size=1, name="books") as pool:
        conn = await pool.acquire()
        await pool.release(conn)
        with pytest.raises(ReleaseError, match=r"'books'.*released already"):
            await pool.release(conn)
        assert (pool.stats().idle, pool.stats().size) == (1, 1)


async def test_a_second_release_does_not_take_it_from_the_next_borrower(dsn: str) -> None:
    """A second release does not interrupt the cleaning."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        conn = await pool.acquire()
        await conn.execute("SELECT 1")
        await pool.release(conn)
        with pytest.raises(ReleaseError):
            await pool.release(conn)
        assert (await at_rest(pool)).connects == 1


async def test_a_foreign_connection_is_refused_and_left_alone(dsn: str) -> None:
    """The pool accepts neither a connection made by psycopg nor one of another pool."""
    async with (
        AsyncConnectionPool(dsn, min_size=1, name="one") as one,
        AsyncConnectionPool(dsn, min_size=1, name="other") as other,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as stranger,
    ):
        with pytest.raises(ReleaseError, match="'one'"):
            await one.release(stranger)
        async with other.connection() as conn:
            with pytest.raises(ReleaseError, match="'other'"):
                await one.release(conn)
            assert await backend_of(conn)
        assert await backend_of(stranger)
        assert (await at_rest(one)).size == (await at_rest(other)).size == 1


async def test_a_value_that_is_no_connection_is_refused(dsn: str) -> None:
    """The error is a ReleaseError, not an AttributeError."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        with pytest.raises(ReleaseError):
            await pool.release(None)  # type: ignore[arg-type]


async def test_release_after_close_says_that_the_work_is_lost(dsn: str) -> None:
    """A borrower that outlasts `close()` gets an error at its release."""
    pool = AsyncConnectionPool(dsn, min_size=1)
    conn = await pool.acquire()
    await pool.close(timeout=0)
    with pytest.raises(PoolClosed, match="lost"):
        await pool.release(conn)
    assert conn.closed


async def test_any_task_may_return_a_connection(dsn: str) -> None:
    """A lease belongs to the connection, not to the task that borrowed it."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        conn = await asyncio.create_task(pool.getconn())
        await asyncio.create_task(pool.putconn(conn))
        assert (await at_rest(pool)).idle == 1


@needs_internals
async def test_a_connection_that_its_borrower_closed_is_replaced(dsn: str) -> None:
    """`conn.close()` is not an error of the block, and the pool opens another connection."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        async with pool.connection() as conn:
            await conn.close()
        async with pool.connection(timeout=10) as again:
            assert again is not conn
            await again.execute("SELECT 1")
        stats = await at_rest(pool)
        assert (stats.connects, stats.returns_bad) == (2, 1)


LEFT: list[Any] = []
"""Objects that a test leaves open, kept alive because their collection would close them."""


@pytest.fixture(autouse=True)
def left() -> Iterator[None]:
    """Drop what a test has left open, and ignore psycopg's warnings about it."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        LEFT.clear()


async def enter(block: AbstractAsyncContextManager[Any]) -> None:
    LEFT.append(block)
    await block.__aenter__()


async def leave_a_transaction(conn: Conn) -> None:
    await conn.execute("SELECT 1")


async def leave_a_failed_transaction(conn: Conn) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        await conn.execute("SELECT 1/0")


async def leave_inside_a_transaction_block(conn: Conn) -> None:
    await enter(conn.transaction())


async def leave_inside_a_savepoint(conn: Conn) -> None:
    await conn.execute("SAVEPOINT inner_one")


async def leave_a_server_side_cursor(conn: Conn) -> None:
    cur = conn.cursor("portal")
    LEFT.append(cur)
    await cur.execute("SELECT generate_series(1, 1000)")
    await cur.fetchone()


IN_TRANSACTION = [
    leave_a_transaction,
    leave_a_failed_transaction,
    leave_inside_a_savepoint,
    leave_a_server_side_cursor,
]


@pytest.mark.parametrize("level", [None, "rollback", "session", "discard"])
@pytest.mark.parametrize("leave", IN_TRANSACTION)
async def test_what_can_be_rolled_back_is_rolled_back(
    dsn: str, leave: Callable[[Conn], Awaitable[None]], level: Any
) -> None:
    """The next borrower gets the same connection, and can begin, commit and configure it."""
    async with AsyncConnectionPool(dsn, min_size=1, reset=level) as pool:
        conn = await pool.acquire()
        await leave(conn)
        await pool.release(conn)
        async with pool.connection(timeout=10) as same:
            assert same is conn
            await same.set_autocommit(True)
            await same.set_autocommit(False)
            async with same.transaction():
                await same.execute("SELECT 1")
        assert (await at_rest(pool)).connects == 1


@pytest.mark.parametrize("level", [None, "rollback", "session", "discard"])
async def test_a_transaction_block_that_was_never_left_is_not_the_next_borrowers(
    dsn: str, level: Any
) -> None:
    """psycopg counts open transaction blocks; the next borrower starts at zero."""
    async with AsyncConnectionPool(dsn, min_size=1, reset=level) as pool:
        conn = await pool.acquire()
        await leave_inside_a_transaction_block(conn)
        await pool.release(conn)
        async with pool.connection(timeout=10) as fresh:
            async with fresh.transaction():
                await fresh.execute("SELECT 1")
            await fresh.execute("SELECT 1")
            await fresh.commit()


async def leave_a_copy_under_way(conn: Conn) -> None:
    await conn.execute("CREATE TEMP TABLE scratch (x int)")
    await conn.commit()
    await enter(conn.cursor().copy("COPY scratch FROM STDIN"))


async def leave_a_stream_under_way(conn: Conn) -> None:
    stream = conn.cursor().stream("SELECT generate_series(1, 100000)")
    await anext(stream)
    LEFT.append(stream)


async def leave_a_pipeline(conn: Conn) -> None:
    await enter(conn.pipeline())
    await conn.execute("SELECT 1")


async def leave_a_two_phase_transaction(conn: Conn) -> None:
    await conn.tpc_begin("unfinished")


async def leave_a_query_running(conn: Conn) -> None:
    LEFT.append(asyncio.create_task(conn.execute("SELECT pg_sleep(60)")))
    await eventually(lambda: conn.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE)


IN_MID_OPERATION = [
    leave_a_copy_under_way,
    leave_a_stream_under_way,
    leave_a_pipeline,
    leave_a_two_phase_transaction,
    leave_a_query_running,
]


@pytest.mark.parametrize("level", few([None, "session", "discard"]))
@pytest.mark.parametrize("leave", IN_MID_OPERATION)
async def test_what_is_returned_in_mid_operation_is_replaced(
    dsn: str, backends: Backends, leave: Callable[[Conn], Awaitable[None]], level: Any
) -> None:
    """The pool closes the connection, ends its query on the server, and serves the waiter."""
    async with AsyncConnectionPool(dsn, min_size=1, reset=level) as pool:
        conn = await pool.acquire()
        await leave(conn)
        waiter = asyncio.create_task(pool.acquire())
        await eventually(lambda: pool.stats().waiting == 1)
        await pool.release(conn)
        fresh = await in_time(waiter)
        assert fresh is not conn
        assert await backend_of(fresh)
        await pool.release(fresh)
        await all_usable(pool)
        assert conn.closed
        await eventually(lambda: not backends.running("pg_sleep"))
    if leave is leave_a_query_running:
        query = LEFT.pop()
        await asyncio.wait({query})
        assert isinstance(query.exception(), psycopg.OperationalError)


async def test_a_finished_pipeline_keeps_its_connection(dsn: str) -> None:
    """A finished pipeline leaves the connection clean."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        async with pool.connection() as conn, conn.pipeline():
            await conn.execute("SELECT 1")
            await conn.execute("SELECT 2")
        assert (await at_rest(pool)).connects == 1


@pytest.mark.exhaustive
async def test_a_prepared_two_phase_transaction_is_not_the_next_borrowers() -> None:
    """psycopg is between the two phases, though the server's transaction has ended."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            server = postgres(settings={"max_prepared_transactions": "2"})
            dsn = (await stack.enter_async_context(server)).dsn
        except ServerUnsupported as error:
            pytest.skip(str(error))
        pool = await stack.enter_async_context(AsyncConnectionPool(dsn, min_size=1))
        conn = await pool.acquire()
        await conn.tpc_begin(conn.xid(1, "left", "behind"))
        await conn.execute("SELECT 1")
        await conn.tpc_prepare()
        await pool.release(conn)
        async with pool.connection(timeout=10) as fresh:
            await fresh.execute("SELECT 1")


async def test_a_block_that_returned_its_connection_does_not_take_it_from_the_next(
    dsn: str,
) -> None:
    """The end of the block raises an error, and the next lease continues."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        with pytest.raises(ReleaseError):
            async with pool.connection() as conn:
                await pool.release(conn)
        with pytest.raises(ReleaseError):  # noqa: PT012 - the block is what is tested
            async with pool.connection() as conn:
                await pool.release(conn)
                other = await pool.acquire()
        assert pool.stats().leased == 1
        await pool.release(other)


@needs_internals
@pytest.mark.parametrize("kind", [AsyncConnectionPool, OwnPutconn])
async def test_a_transaction_that_returned_its_connection_does_not_end_the_next_ones(
    dsn: str, table: str, backends: Backends, kind: type[AsyncConnectionPool]
) -> None:
    """A statement in it was cancelled, after which the connection can be cleaned and is kept."""
    async with kind(dsn, min_size=1, max_size=1) as pool:

        async def interrupted() -> None:
            async with pool.transaction() as conn:
                query = asyncio.create_task(conn.execute("SELECT pg_sleep(60)"))
                await eventually(lambda: backends.running("pg_sleep"))
                query.cancel()
                await asyncio.wait({query})
                await pool.putconn(conn)

        with pytest.raises(ReleaseError, match="inside the block") as caught:
            await interrupted()
        async with pool.transaction() as conn:
            await conn.execute(f"INSERT INTO {table} VALUES (1)")
            del caught
            gc.collect()
            await conn.execute(f"INSERT INTO {table} VALUES (2)")
        assert (await at_rest(pool)).connects == 1
    assert backends.rows(table) == [1, 2]


async def test_a_failing_transaction_leaves_the_users_error_its_traceback(dsn: str) -> None:
    """The roll-back runs in another task, which must not change the traceback."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        with pytest.raises(ZeroDivisionError) as caught:
            async with pool.transaction():
                raise ZeroDivisionError
        await at_rest(pool)
        assert caught.value.__traceback__ is not None
        assert await pool.fetchval("SELECT 1") == 1


SHARED = ("connection", "cursor", "transaction", "session", "acquire")


@pytest.mark.parametrize("kind", [AsyncConnectionPool, OwnPutconn])
@pytest.mark.parametrize("traced", [None, 60.0])
@pytest.mark.parametrize("method", SHARED)
async def test_a_block_that_is_in_use_cannot_be_entered_again(
    method: str, traced: float | None, kind: Any, dsn: str
) -> None:
    """Else the first to leave it would return the connection of another task."""
    async with kind(dsn, min_size=3, leak_timeout=traced) as pool:
        await pool.wait()
        block = getattr(pool, method)()

        async def enter() -> None:
            async with block:
                pass

        async with block:
            for use in (enter(), asyncio.create_task(enter())):
                with pytest.raises(RuntimeError, match="method again"):
                    await in_time(use)
            assert pool.stats().leased == 1
        assert pool.stats().leased == 0
        await all_usable(pool)


@pytest.mark.parametrize("method", SHARED)
async def test_a_block_that_waits_for_its_connection_cannot_be_entered(
    method: str, dsn: str
) -> None:
    """Two tasks that wait would get two connections, and one block would return one of them."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        block = getattr(pool, method)()

        async def enter() -> None:
            async with block:
                pass

        async with pool.connection():
            waits = asyncio.create_task(enter())
            await eventually(lambda: pool.stats().waiting == 1)
            with pytest.raises(RuntimeError, match="method again"):
                await in_time(enter())
        await in_time(waits)
        await all_usable(pool)


@pytest.mark.parametrize("method", ["connection", "cursor", "transaction"])
async def test_a_joined_block_that_is_in_use_cannot_be_entered_again(method: str, dsn: str) -> None:
    """In a session and outside of it: the block belongs to the task that is inside."""
    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        await pool.wait()
        block = getattr(pool, method)()

        async def enter() -> None:
            async with block:
                pass

        async with pool.session() as conn, block:
            await conn.execute("SELECT 1")
            for use in (enter(), asyncio.create_task(enter())):
                with pytest.raises(RuntimeError, match="method again"):
                    await in_time(use)
            assert pool.stats().leased == 1
        assert pool.stats().leased == 0
        await all_usable(pool)


@pytest.mark.parametrize("kind", [AsyncConnectionPool, OwnPutconn])
@pytest.mark.parametrize("method", ["connection", "cursor", "transaction", "session"])
async def test_a_block_that_has_ended_may_be_entered_again(
    method: str, kind: Any, dsn: str
) -> None:
    """Also after a wait that failed, an error inside, or an end in a session."""
    async with kind(dsn, min_size=1) as pool:
        block = getattr(pool, method)(timeout=0.01)
        await pool.wait()
        async with block:
            pass
        with pytest.raises(ZeroDivisionError):
            async with block:
                raise ZeroDivisionError
        await at_rest(pool)
        async with pool.acquire():
            with pytest.raises(PoolTimeout):
                await block.__aenter__()
        async with pool.session():
            async with block:
                pass
            async with block:
                pass
        async with block:
            pass
        await all_usable(pool)


@pytest.mark.parametrize("kind", [Connection, psycopg.AsyncConnection])
async def test_a_close_of_a_busy_connection_may_be_cancelled_too(
    dsn: str, backends: Backends, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it runs is ended on the server before another request has its place."""
    struck: list[bool] = []
    spawn = BackgroundTasks.spawn

    def strike(self: BackgroundTasks, work: Any, job: str, *rest: Any, **options: Any) -> Any:
        task = spawn(self, work, job, *rest, **options)
        if job == "close" and not struck:
            struck.append(task.cancel())
        return task

    monkeypatch.setattr(BackgroundTasks, "spawn", strike)
    async with AsyncConnectionPool(dsn, min_size=0, max_size=1, connection_class=kind) as pool:
        conn = await pool.getconn()
        running = asyncio.ensure_future(conn.execute("SELECT pg_sleep(60)"))
        await eventually(lambda: backends.running("pg_sleep"))
        await pool.putconn(conn)
        assert await in_time(pool.fetchval("SELECT 1")) == 1
        assert struck == [True]
        assert not backends.running("pg_sleep")
        with pytest.raises(psycopg.Error):
            await in_time(running)
