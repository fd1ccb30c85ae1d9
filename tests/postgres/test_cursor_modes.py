"""`pool.cursor(autocommit=...)`: the mode holds for the block only, however the block ends."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import psycopg
import pytest

from asyncpool import AsyncConnectionPool, ReleaseError

from ._tools import Proxy, all_usable, at_rest, backend_of, eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._tools import Backends

    Cursor = psycopg.AsyncCursor[Any]

IDLE, INTRANS = psycopg.pq.TransactionStatus.IDLE, psycopg.pq.TransactionStatus.INTRANS
CLASSES = pytest.mark.parametrize("kind", [None, psycopg.AsyncConnection], ids=["ours", "psycopg"])


def pool_of(dsn: str, kind: Any, **keywords: Any) -> AsyncConnectionPool:
    """Return a pool of one connection of this class."""
    if kind is not None:
        keywords["connection_class"] = kind
    return AsyncConnectionPool(dsn, min_size=1, **keywords)


@pytest.mark.parametrize("usual", [False, True])
async def test_the_mode_is_the_blocks(dsn: str, usual: bool) -> None:
    """In autocommit mode there is no transaction; otherwise the block commits one."""
    async with AsyncConnectionPool(dsn, min_size=1, kwargs={"autocommit": usual}) as pool:
        await pool.execute("CREATE TEMP TABLE told (x int)")
        async with pool.cursor(autocommit=True) as cur:
            await cur.execute("INSERT INTO told VALUES (1)")
            assert cur.connection.pgconn.transaction_status == IDLE
        async with pool.cursor(autocommit=False) as cur:
            await cur.execute("INSERT INTO told VALUES (2)")
            assert cur.connection.pgconn.transaction_status == INTRANS
        async with pool.connection() as conn:
            assert conn.autocommit is usual
        async with pool.cursor() as cur:
            assert cur.connection.autocommit is usual
        assert await pool.fetchval("SELECT sum(x) FROM told") == 3
        assert (await at_rest(pool)).connects == 1


async def test_to_change_the_mode_takes_no_round_trip(dsn: str) -> None:
    """psycopg changes the mode without I/O."""
    async with Proxy(dsn) as proxy, AsyncConnectionPool(proxy.dsn, min_size=1) as pool:
        await pool.wait()
        before = proxy.turns
        async with pool.cursor(autocommit=True) as cur:
            await cur.execute("SELECT 1")
        await at_rest(pool)
        assert proxy.turns == before + 1


async def fail(cur: Cursor) -> None:
    """Fail with the transaction open."""
    await cur.execute("SELECT 1")
    raise ZeroDivisionError


async def fail_on_the_server(cur: Cursor) -> None:
    """Fail with the transaction in an error state."""
    await cur.execute("SELECT 1/0")


async def leave_a_transaction_open(cur: Cursor) -> None:
    """Run BEGIN and do not end the transaction."""
    await cur.execute("BEGIN")


async def fail_in_a_transaction(cur: Cursor) -> None:
    """Fail in a transaction that BEGIN has started."""
    await cur.execute("BEGIN")
    raise ZeroDivisionError


async def fail_in_a_block(cur: Cursor) -> None:
    """Fail in psycopg's transaction block."""
    async with cur.connection.transaction():
        await cur.execute("SELECT 1/0")


async def fail_at_the_commit(cur: Cursor) -> None:
    """Violate a constraint that is checked at the commit."""
    await cur.execute("CREATE TEMP TABLE IF NOT EXISTS late (x int UNIQUE DEFERRABLE)")
    await cur.execute("ALTER TABLE late ALTER CONSTRAINT late_x_key DEFERRABLE INITIALLY DEFERRED")
    await cur.execute("INSERT INTO late VALUES (1), (1)")


async def commit(cur: Cursor) -> None:
    """Commit and run another statement."""
    await cur.connection.commit()
    await cur.execute("SELECT 1")


@CLASSES
@pytest.mark.parametrize("usual", [False, True])
@pytest.mark.parametrize(
    "use",
    [
        fail,
        fail_on_the_server,
        leave_a_transaction_open,
        fail_in_a_transaction,
        fail_in_a_block,
        fail_at_the_commit,
        commit,
    ],
)
async def test_the_mode_is_put_back_however_the_block_ends(
    dsn: str, kind: Any, usual: bool, use: Callable[[Cursor], Awaitable[None]]
) -> None:
    """A background task restores it where the transaction must be rolled back first."""
    async with pool_of(dsn, kind, kwargs={"autocommit": usual}) as pool:
        with suppress(ZeroDivisionError, psycopg.Error):
            async with pool.cursor(autocommit=not usual) as cur:
                await use(cur)
        async with pool.connection(timeout=10) as conn:
            assert conn.autocommit is usual
            assert conn.pgconn.transaction_status == IDLE
        assert (await at_rest(pool)).connects == 1


@CLASSES
@pytest.mark.parametrize("end", ["cancel", "twice", "scope"])
@pytest.mark.parametrize("usual", [False, True])
async def test_the_mode_is_put_back_after_a_cancellation(
    dsn: str, backends: Backends, kind: Any, usual: bool, end: str
) -> None:
    """The cancellation comes in a query, outside and inside of a transaction block."""
    async with pool_of(dsn, kind, kwargs={"autocommit": usual}) as pool:
        scope = anyio.CancelScope()

        async def use() -> None:
            with scope:
                async with pool.cursor(autocommit=not usual) as cur:
                    if usual:
                        await cur.execute("SELECT pg_sleep(60)")
                    async with cur.connection.transaction():
                        await cur.execute("SELECT pg_sleep(60)")

        task = asyncio.create_task(use())
        await eventually(lambda: backends.running("pg_sleep"))
        if end == "scope":
            scope.cancel()
        else:
            task.cancel()
            if end == "twice":
                await asyncio.sleep(0)
                task.cancel()
        await asyncio.wait({task})
        async with pool.connection(timeout=10) as conn:
            assert conn.autocommit is usual
            assert conn.pgconn.transaction_status == IDLE
            await backend_of(conn)
        await all_usable(pool)


@pytest.mark.parametrize("untidy", [False, True])
async def test_a_return_inside_of_the_block_leaves_no_mode_behind(dsn: str, untidy: bool) -> None:
    """The block raises an error, and the next borrower gets the usual mode."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        with pytest.raises(ReleaseError, match="returned inside the block"):  # noqa: PT012
            async with pool.cursor(autocommit=True) as cur:
                if untidy:
                    await cur.execute("BEGIN")
                await pool.release(cur.connection)
                other = await pool.acquire(10)
                assert not other.autocommit
        assert not other.autocommit
        await pool.release(other)
        assert (await at_rest(pool)).connects == 1


async def test_a_cursor_that_cannot_be_made_leaves_no_mode_behind(dsn: str) -> None:
    """The error of the factory is raised."""

    class Refusing(psycopg.AsyncCursor[Any]):
        def __init__(self, *_: Any, **__: Any) -> None:
            raise ZeroDivisionError

    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        async with pool.connection() as conn:
            conn.cursor_factory = Refusing
        with pytest.raises(ZeroDivisionError):
            async with pool.cursor(autocommit=True):
                raise AssertionError("there is no cursor")
        async with pool.connection() as conn:
            assert not conn.autocommit


@pytest.mark.parametrize("idle", [False, True])
async def test_a_connection_whose_mode_cannot_be_put_back_is_replaced(
    dsn: str, idle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No later borrower gets the wrong mode, and the server ends the transaction."""

    async def refuse(_: bool) -> None:
        raise ZeroDivisionError

    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        async with pool.cursor(autocommit=True) as cur:
            first = cur.connection
            monkeypatch.setattr(first, "set_autocommit", refuse)
            if not idle:
                await cur.execute("BEGIN")
        async with pool.connection(10) as conn:
            assert conn is not first
            assert not conn.autocommit
        assert (await at_rest(pool)).connects == 2


async def test_a_mode_that_is_none_is_an_error_at_the_call(dsn: str) -> None:
    """No connection is leased."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        with pytest.raises(TypeError, match="autocommit must be True, False or None, not 'on'"):
            pool.cursor(autocommit="on")  # type: ignore[call-overload]


async def test_a_block_whose_connection_broke_raises(dsn: str, backends: Backends) -> None:
    """psycopg raises the error, and the pool recovers."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        with pytest.raises(psycopg.errors.AdminShutdown):  # noqa: PT012
            async with pool.cursor(autocommit=True) as cur:
                backends.terminate(await backend_of(cur.connection))
                await cur.execute("SELECT 1")
        await all_usable(pool)
