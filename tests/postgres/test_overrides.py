"""Blocks and one-shots use the methods that a subclass of the pool overrides."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from itertools import product
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from asyncpool import AsyncConnectionPool, AsyncNullConnectionPool

from ._tools import BOTH_LOOPS, Backends, all_usable, at_rest, in_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LOOPS = BOTH_LOOPS

INTRANS, INERROR = psycopg.pq.TransactionStatus.INTRANS, psycopg.pq.TransactionStatus.INERROR


def counted(base: type[Any] = AsyncConnectionPool) -> type[Any]:
    """Return a pool class that records the calls of `getconn` and `putconn`."""

    class Counted(base):  # type: ignore[misc]
        calls: list[str]

        async def getconn(self, timeout: float | None = None) -> Any:
            self.calls.append("getconn")
            return await super().getconn(timeout)

        async def putconn(self, conn: Any) -> None:
            assert conn.closed or conn.info.transaction_status not in {INTRANS, INERROR}
            self.calls.append("putconn")
            await super().putconn(conn)

    return Counted


class Shim(AsyncConnectionPool):
    """Overrides asyncpg's names with psycopg_pool's, as tortoise-orm does."""

    calls: list[str]

    async def acquire(self, timeout: float | None = None) -> Any:  # type: ignore[override]
        """Record the call and acquire."""
        self.calls.append("getconn")
        return await self.getconn(timeout)

    async def release(self, conn: Any) -> None:
        """Record the call and release."""
        self.calls.append("putconn")
        await self.putconn(conn)


class Reversed(AsyncConnectionPool):
    """Overrides psycopg_pool's names with asyncpg's."""

    calls: list[str]

    async def getconn(self, timeout: float | None = None, **_: Any) -> Any:
        """Record the call and acquire."""
        self.calls.append("getconn")
        return await self.acquire(timeout)

    async def putconn(self, conn: Any, *_: Any, **__: Any) -> None:
        """Record the call and release."""
        self.calls.append("putconn")
        await self.release(conn)


async def in_connection(pool: Any, query: str) -> None:
    async with pool.connection() as conn:
        await conn.execute(query)


async def in_transaction(pool: Any, query: str) -> None:
    async with pool.transaction() as conn:
        await conn.execute(query)


async def in_cursor(pool: Any, query: str) -> None:
    async with pool.cursor() as cur:
        await cur.execute(query)


async def in_autocommit(pool: Any, query: str) -> None:
    async with pool.cursor(autocommit=True) as cur:
        await cur.execute(query)


async def in_session(pool: Any, query: str) -> None:
    async with pool.session():
        await pool.execute(query)


async def in_block_of_session(pool: Any, query: str) -> None:
    async with pool.session() as conn, pool.transaction() as inner:
        assert inner is conn
        await inner.execute(query)


async def acquired(pool: Any, query: str) -> None:
    async with pool.acquire() as conn:
        await conn.execute(query)
        await conn.commit()


async def released(pool: Any, query: str) -> None:
    conn = await pool.acquire()
    try:
        await conn.execute(query)
        await conn.commit()
    except psycopg.Error:
        await conn.rollback()
        raise
    finally:
        await pool.release(conn)


async def put(pool: Any, query: str) -> None:
    conn = await pool.getconn()
    try:
        await conn.execute(query)
        await conn.commit()
    except psycopg.Error:
        await conn.rollback()
        raise
    finally:
        await pool.putconn(conn)


async def one_shot(pool: Any, query: str) -> None:
    await pool.execute(query)


async def many(pool: Any, query: str) -> None:
    await pool.executemany(query, [()])


async def batch(pool: Any, query: str) -> None:
    await pool.batch([query])


class InTasks(Reversed):
    """Releases in a task of its own, where the calling method is not on the stack."""

    async def putconn(self, conn: Any, *_: Any, **__: Any) -> None:
        """Record the call and release."""
        self.calls.append("putconn")
        await asyncio.create_task(self.release(conn))


BLOCKS = [in_connection, in_transaction, in_cursor, in_autocommit, in_session, in_block_of_session]
SHOTS = [one_shot, many, batch]
BY_HAND = [acquired, released, put]


@pytest.mark.parametrize(
    ("kind", "use"),
    [
        *product([counted(), Reversed, counted(AsyncNullConnectionPool)], BLOCKS + SHOTS + BY_HAND),
        *product([Shim], [*BLOCKS, *SHOTS, released, put]),  # its `acquire` is no block
        *product([InTasks], BLOCKS + SHOTS),
    ],
)
async def test_all_that_borrows_does_so_by_a_subclasss_methods(
    dsn: str, backends: Backends, table: str, kind: Any, use: Any
) -> None:
    """Each method is called once, however the methods call each other; the work is committed."""
    async with kind(dsn, max_size=4) as pool:
        pool.calls = []
        await in_time(use(pool, f"INSERT INTO {table} VALUES (1)"))
        expected = ["getconn", "putconn"]
        if kind is Shim and use is put:
            expected = ["putconn"]  # its `acquire` uses `getconn`
        assert pool.calls == expected
        assert backends.rows(table) == [1]


@pytest.mark.parametrize("kind", [counted(), Shim, Reversed, InTasks])
@pytest.mark.parametrize("use", [*BLOCKS, *SHOTS, released, put])
async def test_what_fails_is_rolled_back_and_returned_by_them(
    dsn: str, backends: Backends, kind: Any, use: Any
) -> None:
    """The connection is rolled back before, and is not lost."""
    async with kind(dsn, min_size=1) as pool:
        pool.calls = []
        with pytest.raises(psycopg.errors.DivisionByZero):
            await in_time(use(pool, "SELECT 1/0"))
        assert pool.calls[-1] == "putconn"
        await all_usable(pool)
        assert pool.stats().connects == 1


class Tagged(AsyncConnectionPool):
    """Sets a setting in the transaction of each block."""

    calls: list[str]

    @asynccontextmanager
    async def connection(self, timeout: float | None = None) -> AsyncIterator[Any]:  # type: ignore[override]
        """Yield a connection with the setting."""
        self.calls.append("connection")
        async with super().connection(timeout) as conn:
            await conn.execute("SELECT set_config('app.tenant', '7', true)")
            yield conn


@pytest.mark.parametrize("use", [in_connection, in_transaction, in_cursor, in_session, *SHOTS])
async def test_all_blocks_and_one_shots_stand_on_a_subclasss_connection(
    dsn: str, backends: Backends, table: str, use: Any
) -> None:
    """The setting is in force in each of them, and their work is committed."""
    async with Tagged(dsn, min_size=1) as pool:
        pool.calls = []
        query = f"INSERT INTO {table} SELECT current_setting('app.tenant')::int"
        await in_time(use(pool, query))
        assert pool.calls == ["connection"]
        assert backends.rows(table) == [7]
        with pytest.raises(psycopg.errors.DivisionByZero):
            await in_time(use(pool, "SELECT 1/0"))
        await all_usable(pool)
        assert pool.stats().connects == 1


async def test_a_session_on_a_subclasss_connection_is_undone_where_it_fails(
    dsn: str, backends: Backends, table: str
) -> None:
    """The session is undone with unfinished blocks inside, and after a handled error."""
    async with Tagged(dsn, min_size=1) as pool:
        pool.calls = []
        with suppress(ZeroDivisionError):
            async with pool.session():
                await pool.execute(f"INSERT INTO {table} VALUES (1)")
                async with pool.connection() as inner:
                    await inner.execute(f"INSERT INTO {table} VALUES (2)")
                raise ZeroDivisionError
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):  # noqa: PT012
            async with pool.session() as conn:
                await pool.execute(f"INSERT INTO {table} VALUES (3)")
                with suppress(psycopg.errors.DivisionByZero):
                    await conn.execute("SELECT 1/0")
        await all_usable(pool)
        assert pool.stats().connects == 1
    assert backends.rows(table) == []


class Nested(AsyncConnectionPool):
    """A pool whose `connection` uses `transaction` and runs a one-shot."""

    @asynccontextmanager
    async def connection(self, timeout: float | None = None) -> AsyncIterator[Any]:  # type: ignore[override]
        """Yield the connection of a transaction."""
        assert await self.fetchval("SELECT 1") == 1
        async with self.transaction(timeout) as conn:
            yield conn


@pytest.mark.parametrize("use", [in_connection, in_transaction, in_cursor, in_session, *SHOTS])
async def test_a_connection_that_is_written_with_other_blocks_does_not_end_in_itself(
    dsn: str, backends: Backends, table: str, use: Any
) -> None:
    """Inside the overriding method the other blocks are the pool's own."""
    async with Nested(dsn, min_size=1) as pool:
        await in_time(use(pool, f"INSERT INTO {table} VALUES (1)"))
        assert backends.rows(table) == [1]
        await at_rest(pool)


class Wrapper:
    """A tracer's wrapper around a connection."""

    def __init__(self, conn: Any) -> None:
        self.conn = conn

    def __getattr__(self, name: str) -> Any:
        return getattr(self.conn, name)


class Wrapping(AsyncConnectionPool):
    """Returns wrappers in place of connections."""

    async def getconn(self, *args: Any, **kwargs: Any) -> Any:
        """Record the call and acquire."""
        return Wrapper(await super().getconn(*args, **kwargs))

    async def putconn(self, conn: Any, *args: Any, **kwargs: Any) -> None:
        """Record the call and release."""
        await super().putconn(conn.conn, *args, **kwargs)


@pytest.mark.parametrize("use", [in_connection, in_transaction, acquired, released, put, one_shot])
async def test_a_subclass_may_lease_a_wrapped_connection(
    dsn: str, backends: Backends, table: str, use: Any
) -> None:
    """The subclass gets the wrapper back at the release."""
    async with Wrapping(dsn, min_size=1) as pool:
        await in_time(use(pool, f"INSERT INTO {table} VALUES (1)"))
        with pytest.raises(psycopg.errors.DivisionByZero):
            await in_time(use(pool, "SELECT 1/0"))
        await at_rest(pool)
        assert backends.rows(table) == [1]
        assert pool.stats().leased == 0
