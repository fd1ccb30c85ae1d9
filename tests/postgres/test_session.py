"""`pool.session()`: one connection for all blocks and one-shots of a task."""

from __future__ import annotations

import asyncio
import gc
import random
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio
import psycopg
import pytest
from psycopg.pq import TransactionStatus

from asyncpool import (
    AsyncConnectionPool,
    PoolClosed,
    PoolTimeout,
    PoolWrongLoop,
    ReleaseError,
    TooManyRequests,
)
from tests._tools import at_once

from ._tools import (
    LIMIT,
    all_usable,
    at_rest,
    backend_of,
    eventually,
    in_time,
    needs_internals,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine

    from ._tools import Backends

    Conn = psycopg.AsyncConnection[Any]
    Many = Callable[[AsyncConnectionPool, str], Coroutine[Any, Any, Any]]

IDLE, INTRANS = psycopg.pq.TransactionStatus.IDLE, psycopg.pq.TransactionStatus.INTRANS
BEFORE_3_3 = tuple(map(int, psycopg.__version__.split(".")[:2])) < (3, 3)
with_close_returns = pytest.mark.skipif(BEFORE_3_3, reason="psycopg before 3.3 does not ask a pool")
BLOCKS = pytest.mark.parametrize("block", ["connection", "transaction", "session", "cursor"])
OWN = pytest.mark.parametrize("kind", [None, psycopg.AsyncConnection], ids=["ours", "psycopg"])


@pytest.fixture
async def pool(dsn: str) -> AsyncIterator[AsyncConnectionPool]:
    """A pool of one connection, with a table: a block that does not join the session would hang."""
    async with AsyncConnectionPool(dsn, min_size=1, timeout=5) as pool:
        await pool.execute("CREATE TEMP TABLE notes (x int)")
        yield pool
        assert not pool._sessions
        await all_usable(pool)
        stats = pool.stats()
        assert (stats.connects, stats.leased) == (1, 0), "the connection was lost"


async def note(conn: Any, number: int) -> None:
    """Insert a number through a connection, a cursor or the pool."""
    await conn.execute("INSERT INTO notes VALUES (%s)", [number])


async def noted(pool: AsyncConnectionPool) -> list[int]:
    """Return the numbers in the table, sorted."""
    return [x for (x,) in await pool.fetchall("SELECT x FROM notes ORDER BY x")]


async def enter(block: Any) -> Any:
    """Enter a block without ending it."""
    return await block.__aenter__()


async def test_all_that_a_task_borrows_in_a_session_is_one_connection(
    pool: AsyncConnectionPool,
) -> None:
    """Blocks of each kind, one-shots, acquire and getconn use one connection without a deadlock."""
    async with pool.session() as conn:
        pid = await backend_of(conn)
        async with pool.connection() as inner:
            assert inner is conn
            async with pool.transaction() as inmost, pool.cursor() as cur:
                assert inmost is cur.connection is conn
        async with pool.session() as inner:
            assert inner is conn
        async with pool.acquire() as inner:
            assert inner is conn
        assert await pool.acquire() is await pool.getconn() is conn
        assert at_once(pool.acquire(0)) is conn
        assert await pool.fetchval("SELECT pg_backend_pid()") == pid
        assert await pool.fetchone("SELECT pg_backend_pid()") == (pid,)
        assert await pool.fetchall("SELECT pg_backend_pid()") == [(pid,)]
        assert await pool.batch(["SELECT pg_backend_pid()"]) == [[(pid,)]]
        assert await pool.executemany("INSERT INTO notes VALUES (%s)", [[1], [2]]) == 2
        assert await pool.execute("INSERT INTO notes VALUES (3)") == "INSERT 0 1"
        assert pool.stats().leased == 1
    assert await noted(pool) == [1, 2, 3]


async def test_acquire_can_stay_outside_the_session(dsn: str) -> None:
    """With `session=False` it borrows another connection, awaited or as a block."""
    async with (
        AsyncConnectionPool(dsn, min_size=1, max_size=3) as pool,
        pool.session() as conn,
    ):
        other = await pool.acquire(session=False)
        async with pool.acquire(session=False) as third:
            assert len({conn, other, third}) == 3
        await pool.release(other)
        assert await pool.acquire() is conn
        assert pool.stats().leased == 1


async def test_a_session_commits_at_its_end(pool: AsyncConnectionPool) -> None:
    """A session that fails is rolled back, as for `connection()`."""
    async with pool.session() as conn:
        await note(conn, 1)
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with pool.session() as conn:
            await note(conn, 2)
            raise ZeroDivisionError
    assert await noted(pool) == [1]


@BLOCKS
async def test_a_block_inside_with_no_transaction_open_commits_its_own_work(
    pool: AsyncConnectionPool, block: str
) -> None:
    """The outcome of the session does not matter; a block that fails rolls back its own work."""
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with pool.session() as conn:
            async with getattr(pool, block)() as inner:
                await note(inner, 1)
                assert conn.pgconn.transaction_status == INTRANS
            assert conn.pgconn.transaction_status == IDLE
            with suppress(KeyError):
                async with getattr(pool, block)() as inner:
                    await note(inner, 2)
                    raise KeyError
            assert conn.pgconn.transaction_status == IDLE
            await note(conn, 3)
            raise ZeroDivisionError
    assert await noted(pool) == [1]


@BLOCKS
async def test_a_block_inside_a_transaction_is_a_savepoint(
    pool: AsyncConnectionPool, block: str
) -> None:
    """A failure undoes the block's own work; a success is committed with the outer transaction."""
    async with pool.session() as conn:
        await note(conn, 1)
        async with getattr(pool, block)() as inner:
            await note(inner, 2)
        with suppress(KeyError):
            async with getattr(pool, block)() as inner:
                await note(inner, 3)
                async with getattr(pool, block)() as inmost:
                    await note(inmost, 4)
                raise KeyError
        with suppress(psycopg.errors.DivisionByZero):
            async with getattr(pool, block)() as inner:
                await note(inner, 5)
                await inner.execute("SELECT 1/0")
        assert conn.pgconn.transaction_status == INTRANS
        await note(conn, 6)
    assert await noted(pool) == [1, 2, 6]
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with pool.session() as conn:
            await note(conn, 7)
            async with getattr(pool, block)() as inner:
                await note(inner, 8)
            raise ZeroDivisionError
    assert await noted(pool) == [1, 2, 6]


@BLOCKS
async def test_an_error_swallowed_in_an_inner_block_is_raised_at_its_end(
    pool: AsyncConnectionPool, block: str
) -> None:
    """The end of the block raises: the savepoint is lost, the work before it is kept."""
    async with pool.session() as conn:
        await note(conn, 1)
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):  # noqa: PT012
            async with getattr(pool, block)() as inner:
                await note(inner, 2)
                with suppress(psycopg.errors.DivisionByZero):
                    await inner.execute("SELECT 1/0")
        await note(conn, 3)
    assert await noted(pool) == [1, 3]


async def test_a_rollback_in_a_transaction_inside_goes_no_further(
    pool: AsyncConnectionPool,
) -> None:
    """`transaction()`, nested or not, handles `psycopg.Rollback`; other blocks pass it on."""
    async with pool.session() as conn:
        for number in (1, 2):
            async with pool.transaction() as inner:
                await note(inner, -number)
                raise psycopg.Rollback
            await note(conn, number)
        with pytest.raises(psycopg.Rollback):
            async with pool.connection():
                raise psycopg.Rollback
        async with conn.transaction() as outer:
            await note(conn, 3)
            async with pool.transaction():
                raise psycopg.Rollback(outer)
            raise AssertionError("that was meant for the outer one")
        await note(conn, 4)
    assert await noted(pool) == [1, 2, 4]


async def test_a_one_shot_in_a_transaction_is_part_of_it(pool: AsyncConnectionPool) -> None:
    """A one-shot or batch sees uncommitted work and is rolled back with the transaction."""
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with pool.session() as conn:
            await pool.execute("INSERT INTO notes VALUES (1)")
            assert conn.pgconn.transaction_status == IDLE
            assert not conn.autocommit
            await note(conn, 2)
            assert await noted(pool) == [1, 2]
            await pool.execute("INSERT INTO notes VALUES (3)")
            assert await pool.batch([("INSERT INTO notes VALUES (%s)", [4]), "TABLE notes"]) == [
                "INSERT 0 1",
                [(1,), (2,), (3,), (4,)],
            ]
            await pool.executemany("INSERT INTO notes VALUES (%s)", [[5]])
            assert conn.pgconn.transaction_status == INTRANS
            raise ZeroDivisionError
    assert await noted(pool) == [1]


async def test_a_one_shot_that_fails_outside_of_a_transaction_leaves_the_mode(
    pool: AsyncConnectionPool, backends: Backends
) -> None:
    """An error, a time limit or a BEGIN of its own does not change the autocommit mode."""
    async with pool.session() as conn:
        with pytest.raises(psycopg.errors.DivisionByZero):
            await pool.execute("SELECT 1/0")
        assert not conn.autocommit
        with pytest.raises(PoolTimeout, match="may have run"):
            await pool.execute("SELECT pg_sleep(60)", timeout=0.05)
        assert not conn.autocommit
        await pool.execute("BEGIN")
        assert not conn.autocommit
        assert conn.pgconn.transaction_status == IDLE
        await note(conn, 1)
    assert not backends.running("pg_sleep")
    assert await noted(pool) == [1]


async def test_a_cursors_mode_in_a_session_is_its_blocks(pool: AsyncConnectionPool) -> None:
    """In an open transaction psycopg refuses to change the mode, and nothing is undone."""
    async with pool.session() as conn:
        async with pool.cursor(autocommit=True) as cur:
            await note(cur, 1)
            assert conn.pgconn.transaction_status == IDLE
        assert not conn.autocommit
        with suppress(ZeroDivisionError):
            async with pool.cursor(autocommit=True) as cur:
                await cur.execute("BEGIN")
                await note(cur, 2)
                raise ZeroDivisionError
        assert not conn.autocommit
        await note(conn, 3)
        with pytest.raises(psycopg.ProgrammingError, match="autocommit"):
            async with pool.cursor(autocommit=True):
                raise AssertionError("a transaction is open")
        async with pool.cursor(autocommit=False) as cur:
            await note(cur, 4)
    assert await noted(pool) == [1, 3, 4]


async def test_cursors_of_either_mode_inside_of_one_another(pool: AsyncConnectionPool) -> None:
    """Each cursor has its own mode, which is restored after an inner cursor."""
    async with pool.session() as conn:
        async with pool.cursor(autocommit=True):
            async with pool.cursor(autocommit=False) as cur:
                await note(cur, 1)
                assert conn.pgconn.transaction_status == INTRANS
            assert conn.autocommit
            with suppress(ZeroDivisionError):
                async with pool.cursor(autocommit=False) as cur, pool.cursor(autocommit=True) as it:
                    await note(it, 2)
                    raise ZeroDivisionError
            assert conn.autocommit
        assert not conn.autocommit
    with pytest.raises(ReleaseError, match="has not ended"):  # noqa: PT012
        async with pool.session():
            left = [pool.cursor(autocommit=True), pool.cursor(autocommit=False)]
            await enter(left[0])
            await enter(left[1])
    async with pool.connection() as conn:
        assert not conn.autocommit
    assert await noted(pool) == [1, 2]


async def test_in_autocommit_mode_a_block_inside_is_no_transaction(dsn: str) -> None:
    """`connection()` stays in autocommit mode; `transaction()` begins a transaction."""
    async with AsyncConnectionPool(dsn, min_size=1, kwargs={"autocommit": True}) as pool:
        await pool.execute("CREATE TEMP TABLE notes (x int)")
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with pool.session() as conn:
                await note(conn, 1)
                async with pool.connection() as inner:
                    await note(inner, 2)
                with suppress(KeyError):
                    async with pool.transaction() as inner:
                        await note(inner, 3)
                        raise KeyError
                async with conn.transaction():
                    await note(conn, 4)
                    with suppress(KeyError):
                        async with pool.connection() as inner:
                            await note(inner, 5)
                            raise KeyError
                raise ZeroDivisionError
        assert await noted(pool) == [1, 2, 4]


@needs_internals
async def test_a_block_after_a_cancelled_statement_is_what_it_is_elsewhere(dsn: str) -> None:
    """A cancelled statement that still runs neither counts as a transaction nor keeps its mode."""
    async with (
        AsyncConnectionPool(dsn, min_size=1, kwargs={"autocommit": True}) as pool,
        pool.session() as conn,
    ):
        for mode in (None, False):
            with anyio.move_on_after(0.01):
                await conn.execute("SELECT pg_sleep(60)")
            async with pool.cursor(autocommit=mode) as cur:
                assert cur.connection.info.transaction_status == TransactionStatus.IDLE
                assert cur.connection.autocommit is (mode is None)
                await cur.execute("SELECT 1")


async def test_tasks_that_are_started_inside_borrow_for_themselves(dsn: str) -> None:
    """Two tasks on one connection would be in each other's transaction."""
    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        async with pool.session() as conn:
            other = await asyncio.create_task(pool.getconn())
            assert other is not conn
            await pool.release(other)
            pids = await asyncio.gather(*(pool.fetchval("SELECT pg_backend_pid()") for _ in "ab"))
            assert await backend_of(conn) not in pids

            async def nested() -> None:
                async with pool.session() as mine, pool.connection() as again:
                    assert mine is again
                    assert mine is not conn

            await asyncio.create_task(nested())
            # By a key another connection is used.
            keyed = await pool.getconn(key="k")
            assert keyed is not conn
            await pool.putconn(keyed, "k")
        await all_usable(pool)


async def test_what_is_released_in_a_session_stays_the_sessions(pool: AsyncConnectionPool) -> None:
    """Only the task may release, once for each acquire; the end of the block releases the rest."""
    async with pool.session() as conn:
        with pytest.raises(ReleaseError, match="is returned by the end of its block"):
            await pool.release(conn)
        await note(conn, 1)
        inner = await pool.acquire()
        with pytest.raises(ReleaseError, match="may be returned by that task only"):
            await asyncio.create_task(pool.release(inner))
        await pool.release(inner)
        with pytest.raises(ReleaseError, match="end of its block"):
            await pool.putconn(inner)
        async with pool.connection() as inner:
            with pytest.raises(ReleaseError):
                await pool.putconn(inner, close=True)
        with pytest.raises(ReleaseError, match="'k', which holds no connection"):
            await pool.putconn(conn, "k")
        with suppress(ZeroDivisionError):
            async with pool.acquire():
                raise ZeroDivisionError
        await pool.acquire()
        assert pool.stats().leased == 1
    assert await noted(pool) == [1]


async def test_what_is_put_back_to_be_closed_is_closed_with_the_session(dsn: str) -> None:
    """`putconn(close=True)` inside closes the connection only after the session."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        async with pool.session() as conn:
            pid = await backend_of(conn)
            await pool.putconn(await pool.getconn(), close=True)
            assert await pool.fetchval("SELECT pg_backend_pid()") == pid
        assert await pool.fetchval("SELECT pg_backend_pid()") != pid
        assert conn.closed


async def test_blocks_that_do_not_end_in_turn_raise(pool: AsyncConnectionPool) -> None:
    """The outer of two blocks that end out of order is undone; the rest of the session is kept."""
    async with pool.session() as conn:
        await note(conn, 1)
        outer, inner = pool.connection(), pool.transaction()
        await outer.__aenter__()
        await note(conn, 2)
        await inner.__aenter__()
        await note(conn, 3)
        with pytest.raises(ReleaseError, match="ended before a block nested in it"):
            await outer.__aexit__(None, None, None)
        await inner.__aexit__(None, None, None)
        with pytest.raises(ReleaseError, match="ended before a block inside it"):
            await outer.__aexit__(None, None, None)
        await note(conn, 4)
    assert await noted(pool) == [1, 4]


@BLOCKS
async def test_a_block_inside_that_ends_in_another_task_is_told_so(
    pool: AsyncConnectionPool, block: str
) -> None:
    """The block raises, and so does the session, whose work is undone."""
    await note(pool, 1)
    with pytest.raises(ReleaseError, match="a block inside has not ended"):  # noqa: PT012
        async with pool.session() as conn:
            await note(conn, 2)
            kept = getattr(pool, block)()
            await kept.__aenter__()
            await note(conn, 3)
            with pytest.raises(ReleaseError, match="ended in another task"):
                await asyncio.create_task(kept.__aexit__(None, None, None))
    with pytest.raises(ReleaseError, match="ended before a block inside it"):
        await kept.__aexit__(None, None, None)
    assert await noted(pool) == [1]


@BLOCKS
async def test_a_block_inside_that_outlasts_its_session_is_told_so(
    pool: AsyncConnectionPool, block: str
) -> None:
    """If the block has work, the session's work is undone; otherwise nothing is lost."""
    kept = getattr(pool, block)()
    async with pool.session():
        await kept.__aenter__()
        if block == "transaction":
            await kept.__aexit__(None, None, None)
    if block != "transaction":
        with pytest.raises(ReleaseError, match="ended before a block inside it"):
            await kept.__aexit__(None, None, None)
    kept = getattr(pool, block)()
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with pool.session() as conn:
            await note(conn, 1)
            await kept.__aenter__()
            raise ZeroDivisionError
    failure = KeyError()
    assert not await kept.__aexit__(KeyError, failure, None), "its own error comes first"
    assert await noted(pool) == []


async def test_a_session_may_end_in_another_task(pool: AsyncConnectionPool) -> None:
    """A pytest fixture ends so; no other task joins the session meanwhile."""

    block = pool.session()
    conn = await asyncio.create_task(enter(block))
    await note(conn, 1)
    with pytest.raises(PoolTimeout):
        await pool.acquire(timeout=0)
    await block.__aexit__(None, None, None)
    assert await noted(pool) == [1]


async def test_a_generator_that_was_left_inside_does_no_harm(pool: AsyncConnectionPool) -> None:
    """The generator's block ends later, in a task of the event loop."""

    async def rows() -> AsyncIterator[int]:
        async with pool.connection() as conn:
            cur = await conn.execute("SELECT generate_series(1, 10)")
            while row := await cur.fetchone():
                yield row[0]

    async with pool.session() as conn:
        async for _ in rows():
            break
        await conn.commit()
        gc.collect()
        await asyncio.sleep(0)
        await note(pool, 1)
    assert await noted(pool) == [1]


async def test_a_dependency_that_yields_a_session_serves_its_request(
    pool: AsyncConnectionPool,
) -> None:
    """The error of the request is thrown into the generator, as FastAPI does."""

    async def session() -> AsyncGenerator[Conn]:
        async with pool.session() as conn:
            yield conn

    async def request(number: int, *, fails: bool) -> None:
        dependency = session()
        conn = await dependency.__anext__()
        try:
            await note(conn, number)
            async with pool.transaction() as inner:
                assert inner is conn
                if fails:
                    raise ZeroDivisionError
        except ZeroDivisionError as error:
            with suppress(ZeroDivisionError):
                await dependency.athrow(error)
        else:
            with suppress(StopAsyncIteration):
                await dependency.__anext__()

    await asyncio.gather(*(request(number, fails=number % 3 == 0) for number in range(9)))
    assert await noted(pool) == [1, 2, 4, 5, 7, 8]


@needs_internals
async def test_a_connection_that_breaks_in_a_block_inside_is_told_by_psycopg(
    dsn: str, backends: Backends
) -> None:
    """Each block of the session raises psycopg's error, not one of its own clean-up."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        with pytest.raises(psycopg.errors.AdminShutdown):  # noqa: PT012
            async with pool.session() as conn:
                await conn.execute("SELECT 1")
                async with pool.transaction():
                    backends.terminate(conn.info.backend_pid)
                    await conn.execute("SELECT 1")
        async with pool.session() as conn:
            backends.terminate(await backend_of(conn))
            await eventually(lambda: conn.closed)
            with pytest.raises(psycopg.OperationalError):
                await pool.fetchval("SELECT 1")
            with pytest.raises(psycopg.OperationalError):
                async with pool.transaction():
                    raise AssertionError("there is none")
        await all_usable(pool)


async def test_a_session_that_cannot_begin_leaves_nothing(dsn: str) -> None:
    """The wait for a connection times out, or the pool is closed."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        held = await pool.acquire()
        for timeout in (0, 0.01):
            with pytest.raises(PoolTimeout):
                async with pool.session(timeout):
                    raise AssertionError("there is no connection")
        assert not pool._sessions
        await pool.release(held)
        async with pool.session() as conn:
            for timeout in (-1, float("nan")):
                with pytest.raises(ValueError, match="timeout"):
                    async with pool.connection(timeout):
                        raise AssertionError("that is no time")
            assert await pool.acquire(0) is conn
    with pytest.raises(PoolClosed):
        async with pool.session():
            raise AssertionError("there is no pool")


async def test_a_pool_that_closes_waits_for_a_session(dsn: str) -> None:
    """The session can still acquire; one that takes too long raises and loses its work."""
    pool = AsyncConnectionPool(dsn, min_size=1)
    async with pool.session():
        closing = asyncio.create_task(pool.close(LIMIT))
        await asyncio.sleep(0)
        async with pool.connection() as inner:
            await inner.execute("SELECT 1")
        assert await pool.fetchval("SELECT 1") == 1
    await in_time(closing)
    pool = AsyncConnectionPool(dsn, min_size=1)
    with pytest.raises(PoolClosed):  # noqa: PT012
        async with pool.session() as conn:
            await conn.execute("SELECT 1")
            await pool.close(0)
            with pytest.raises(PoolClosed):
                await pool.fetchval("SELECT 1")
            with pytest.raises(PoolClosed):
                async with pool.connection():
                    raise AssertionError("it is closed")
    assert conn.closed


def test_a_session_ends_with_its_event_loop(asyncpool_dsn: str) -> None:
    """On the next loop there is no session, and ending the old one raises."""
    pool = AsyncConnectionPool(asyncpool_dsn, min_size=1)
    block = pool.session()

    async def first() -> None:
        await block.__aenter__()

    async def second() -> None:
        assert await pool.fetchval("SELECT 1") == 1
        assert not pool._sessions
        with pytest.raises(PoolWrongLoop, match="uncommitted work is lost"):
            await block.__aexit__(None, None, None)
        await pool.close()

    asyncio.run(first())
    asyncio.run(second())


TWICE = [pytest.param(stop, marks=needs_internals) for stop in ("twice", "scope")]
STOPS = pytest.mark.parametrize("stop", ["cancel", *TWICE])


@asynccontextmanager
async def stopped(stop: str, backends: Backends) -> AsyncIterator[None]:
    """Stop the block in one of several ways once its `pg_sleep` runs, and handle the error."""
    task = asyncio.current_task()
    assert task is not None

    async def strike() -> None:
        await eventually(lambda: backends.running("pg_sleep"))
        if stop == "scope":
            scope.cancel()
            return
        task.cancel()
        if stop == "twice":
            await asyncio.sleep(0)
            task.cancel()

    striker = asyncio.create_task(strike())
    with anyio.CancelScope() as scope:
        try:
            yield
        except asyncio.CancelledError:
            if stop == "scope":
                raise
    with suppress(asyncio.CancelledError):  # the second cancellation may still come
        await striker
    while task.cancelling():
        task.uncancel()


@pytest.mark.parametrize("outer", [False, True])
@STOPS
@BLOCKS
async def test_a_block_inside_that_is_stopped_is_undone_before_anything_else(
    pool: AsyncConnectionPool, backends: Backends, outer: bool, stop: str, block: str
) -> None:
    """Nothing of a stopped block is committed when its session goes on."""
    async with pool.session() as conn:
        if outer:
            await note(conn, 1)
        async with stopped(stop, backends), getattr(pool, block)() as inner:
            await note(inner, 2)
            await inner.execute("SELECT pg_sleep(60)")
        await note(conn, 3)
        async with pool.connection() as inner:
            await note(inner, 4)
    assert await noted(pool) == ([1, 3, 4] if outer else [3, 4])
    assert not backends.running("pg_sleep")


@BLOCKS
async def test_psycopgs_own_connection_is_undone_too(
    dsn: str, backends: Backends, block: str
) -> None:
    """psycopg's own connection is lost by an anyio scope: nothing of the session is committed."""
    async with AsyncConnectionPool(
        dsn, min_size=1, connection_class=psycopg.AsyncConnection
    ) as pool:
        await pool.execute("CREATE TEMP TABLE notes (x int)")
        async with pool.session() as conn:
            await note(conn, 1)
            async with stopped("cancel", backends), getattr(pool, block)() as inner:
                await note(inner, 2)
                await inner.execute("SELECT pg_sleep(60)")
            await note(conn, 3)
        assert await noted(pool) == [1, 3]
        with pytest.raises(psycopg.OperationalError):  # noqa: PT012
            async with pool.session() as conn:
                async with stopped("scope", backends), getattr(pool, block)() as inner:
                    await inner.execute("SELECT pg_sleep(60)")
                await conn.execute("SELECT 1")
        await all_usable(pool)
        await eventually(lambda: not backends.running("pg_sleep"))


@STOPS
@BLOCKS
async def test_a_session_that_is_stopped_is_rolled_back(
    pool: AsyncConnectionPool, backends: Backends, stop: str, block: str
) -> None:
    """All blocks inside are rolled back too, and the connection stays usable."""
    async with stopped(stop, backends), pool.session() as conn:
        await note(conn, 1)
        async with getattr(pool, block)() as inner:
            await note(inner, 2)
            await pool.fetchval("SELECT pg_sleep(60)")
    assert await noted(pool) == []


async def use_blocks(pool: AsyncConnectionPool) -> None:
    async with pool.session() as conn:
        await note(conn, 1)
        async with pool.connection() as inner:
            await note(inner, 1)
            async with pool.transaction() as inmost:
                await note(inmost, 1)
        await note(conn, 1)


async def use_one_shots(pool: AsyncConnectionPool) -> None:
    async with pool.session() as conn:
        async with pool.transaction():
            await pool.execute("INSERT INTO notes VALUES (1), (1)")
            await pool.batch([("INSERT INTO notes VALUES (%s)", [1])])
            await pool.executemany("INSERT INTO notes VALUES (%s)", [[1]])
        assert not conn.autocommit


async def use_what_fails(pool: AsyncConnectionPool) -> None:
    async with pool.session() as conn:
        await note(conn, 1)
        for _ in range(2):
            with suppress(psycopg.errors.DivisionByZero):
                async with pool.connection() as inner:
                    await note(inner, 7)
                    await inner.execute("SELECT 1/0")
        async with pool.cursor() as cur:
            await note(cur, 1)
        for _ in range(2):
            await note(await pool.acquire(), 1)


@OWN
@STOPS
@pytest.mark.parametrize("use", [use_blocks, use_one_shots, use_what_fails])
async def test_a_storm_of_cancellations_keeps_all_or_nothing(
    dsn: str, kind: Any, stop: str, use: Callable[[AsyncConnectionPool], Coroutine[Any, Any, None]]
) -> None:
    """Each session commits all four of its rows or none, wherever it is cancelled."""
    if BEFORE_3_3 and kind is not None and use is use_one_shots:
        pytest.skip("psycopg before 3.3 cannot leave a pipeline that was cancelled")
    rng = random.Random(f"{stop} {use.__name__}")
    lost = () if kind is None else (psycopg.OperationalError,)
    keywords: dict[str, Any] = {} if kind is None else {"connection_class": kind}
    async with AsyncConnectionPool(dsn, min_size=2, **keywords) as pool:
        await pool.execute("DROP TABLE IF EXISTS notes")
        await pool.execute("CREATE TABLE notes (x int)")

        async def one() -> None:
            pause = rng.choice([0, 0.0005, 0.001, 0.002, 0.004, 0.008, LIMIT])
            if stop == "scope":
                with suppress(TooManyRequests), anyio.move_on_after(pause):
                    await use(pool)
                return
            task = asyncio.create_task(use(pool))
            await asyncio.wait({task}, timeout=pause)
            task.cancel()
            if stop == "twice":
                await asyncio.sleep(rng.choice([0, 0, 0.001]))
                task.cancel()
            await asyncio.wait({task})
            failure = None if task.cancelled() else task.exception()
            # psycopg's own connection may be lost by a cancellation. A request that could not be
            # served in time is refused, in such a storm of them.
            assert failure is None or isinstance(failure, (*lost, TooManyRequests)), failure

        async def many() -> None:
            for _ in range(10):
                await one()

        await in_time(asyncio.gather(*(many() for _ in range(6))), 60)
        await all_usable(pool)
        assert not pool._sessions
        found = await noted(pool)
        assert set(found) <= {1}
        assert len(found) % 4 == 0, len(found)
        await pool.execute("DROP TABLE notes")


async def isolate(conn: Conn) -> None:
    """Give a connection's transactions a characteristic of their own."""
    await conn.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)


SLOW = "INSERT INTO {} SELECT 1 FROM pg_sleep(%s)"
MANY: dict[str, Many] = {
    "batch": lambda pool, table: pool.batch([(SLOW.format(table), [n]) for n in (0, 60)]),
    "executemany": lambda pool, table: pool.executemany(SLOW.format(table), [[0], [60]]),
}


@pytest.mark.parametrize("mode", [{"kwargs": {"autocommit": True}}, {"configure": isolate}])
@pytest.mark.parametrize("stop", [pytest.param("scope", marks=needs_internals), "timeout"])
@pytest.mark.parametrize("many", MANY)
async def test_several_statements_that_are_cancelled_in_a_session_are_undone(  # noqa: PLR0917
    dsn: str, backends: Backends, table: str, mode: dict[str, Any], stop: str, many: str
) -> None:
    """Also where no mode is put back after them; what the session does next is committed."""
    async with AsyncConnectionPool(dsn, min_size=1, **mode) as pool:
        async with pool.session():
            if stop == "scope":
                with anyio.CancelScope() as scope:
                    stopping = asyncio.create_task(stop_later(backends, scope.cancel))
                    await MANY[many](pool, table)
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(None) as limit:
                        stopping = asyncio.create_task(
                            stop_later(backends, lambda: limit.reschedule(0))
                        )
                        await MANY[many](pool, table)
            await stopping
            await pool.execute(f"INSERT INTO {table} VALUES (2)")
        assert backends.rows(table) == [2]
        assert (await at_rest(pool)).connects == 1


async def stop_later(backends: Backends, stop: Callable[[], None]) -> None:
    """Stop what runs once the server has come to the statement that lasts."""
    await eventually(lambda: backends.running("pg_sleep"))
    stop()


async def test_work_that_cannot_be_undone_costs_the_session_its_connection(dsn: str) -> None:
    """The work must not be committed with the rest: the next use of the session raises."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        with pytest.raises(ReleaseError, match="could not be undone") as caught:  # noqa: PT012
            async with pool.session() as conn:
                with suppress(ZeroDivisionError):
                    async with pool.connection():
                        await conn.tpc_begin("unfinished")
                        raise ZeroDivisionError
                await eventually(lambda: conn.closed)
                with pytest.raises(ReleaseError, match="could not be undone"):
                    await pool.fetchval("SELECT 1")
        assert isinstance(caught.value.__cause__, psycopg.OperationalError)
        await all_usable(pool)


async def test_blocks_inside_a_pipeline_are_savepoints_too(pool: AsyncConnectionPool) -> None:
    """The results of the statements sent before the block are checked first."""
    async with pool.session() as conn:
        async with conn.pipeline():
            await note(conn, 1)
            async with pool.connection() as inner:
                await note(inner, 2)
            with suppress(ZeroDivisionError):
                async with pool.transaction() as inner:
                    await note(inner, 3)
                    raise ZeroDivisionError
            with suppress(psycopg.errors.DivisionByZero):
                async with pool.connection() as inner:
                    await inner.execute("SELECT 1/0")
            assert await pool.fetchval("SELECT count(*) FROM notes") == 2
        await note(conn, 4)
    assert await noted(pool) == [1, 2, 4]


async def test_a_one_shot_inside_a_pipeline_belongs_to_it(pool: AsyncConnectionPool) -> None:
    """Also if it is the pipeline's first statement, which begins a transaction."""
    async with pool.session() as conn:
        async with conn.pipeline():
            assert await pool.fetchval("SELECT 1") == 1
            await pool.execute("INSERT INTO notes VALUES (1)")
        assert not conn.autocommit
        await conn.rollback()
        async with conn.pipeline():
            await pool.batch(["INSERT INTO notes VALUES (2)"])
    assert await noted(pool) == [2]


async def test_a_cursors_mode_does_not_outlast_the_session(pool: AsyncConnectionPool) -> None:
    """Also if the cursor's block did not end before the session."""
    kept = pool.cursor(autocommit=True)
    with pytest.raises(ReleaseError, match="has not ended"):  # noqa: PT012
        async with pool.session() as conn:
            await kept.__aenter__()
            await note(conn, 1)
            with pytest.raises(ReleaseError, match="in another task"):
                await asyncio.create_task(kept.__aexit__(None, None, None))
    async with pool.connection(LIMIT) as conn:
        assert not conn.autocommit


@with_close_returns
async def test_close_returns_what_was_acquired_in_a_session(dsn: str) -> None:
    """`close()` ends an acquire inside; on the connection of the session's block it raises."""
    async with AsyncConnectionPool(dsn, min_size=1, close_returns=True) as pool:
        async with pool.session() as conn:
            inner = await pool.acquire()
            await inner.close()
            assert not conn.closed
            with pytest.raises(ReleaseError, match="is returned by the end of its block"):
                await conn.close()
            assert await pool.fetchval("SELECT 1") == 1
        await all_usable(pool)


async def test_a_block_that_was_made_before_the_session_joins_it(pool: AsyncConnectionPool) -> None:
    """A block joins the session in which it is entered, not where it was created."""
    made: list[Any] = [
        pool.connection(),
        pool.transaction(),
        pool.cursor(),
        pool.acquire(),
        pool.session(),
    ]
    async with pool.session():
        for block in made:
            async with block:
                assert pool.stats().leased == 1
    async with made[0]:
        assert pool.stats().leased == 1


async def test_a_session_is_reported_like_any_lease(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning, with the place where the session began."""
    async with AsyncConnectionPool(dsn, min_size=1, leak_timeout=0.05) as pool:
        async with pool.session():
            async with pool.connection():
                pass
            await eventually(lambda: pool.stats().leaks)
            assert "test_session.py" in str(pool.explain())
        assert pool.stats().leaks == 1
    text = "".join(each.getMessage() for each in caplog.records)
    assert "in test_a_session_is_reported_like_any_lease" in text


async def test_a_session_waits_for_its_connection_no_longer_than_asked(dsn: str) -> None:
    """The background work of a cancelled operation, and an operation of another task, together."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool, pool.session() as conn:
        (session,) = pool._sessions.values()
        session._start(asyncio.sleep(0.3))

        async def operate() -> None:
            async with conn.lock:
                await asyncio.sleep(0.65)

        operation = asyncio.create_task(operate())
        await asyncio.sleep(0)
        with pytest.raises(PoolTimeout, match=r"within 0\.5 s.*another operation runs"):
            await pool.acquire(timeout=0.5)
        await operation
