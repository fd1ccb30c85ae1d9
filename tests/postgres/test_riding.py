"""A block's BEGIN waits for its first statement, and is sent with it.

Whatever comes first in the block is in the transaction, as if BEGIN had been sent on entry.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import anyio
import psycopg
import pytest
from psycopg.pq import TransactionStatus
from psycopg.types import TypeInfo

from asyncpool import AsyncConnectionPool, Connection
from asyncpool._psycopg.riding import UnsentBegin

from ._tools import BOTH_LOOPS, Backends, Proxy, all_usable, at_rest, in_time, needs_internals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

LOOPS = BOTH_LOOPS
Conn = psycopg.AsyncConnection[Any]
Pool = AsyncConnectionPool[Any]

IDLE, INTRANS, INERROR = (
    TransactionStatus.IDLE,
    TransactionStatus.INTRANS,
    TransactionStatus.INERROR,
)
BY_CLASS = pytest.mark.parametrize(
    "kind", [psycopg.AsyncConnection, Connection], ids=["psycopg", "asyncpool"]
)
MODES = pytest.mark.parametrize("autocommit", [False, True])


class Overriding(AsyncConnectionPool[Any]):
    """A pool whose class overrides `getconn`."""

    async def getconn(self, timeout: float | None = None, **kwargs: Any) -> Any:
        return await super().getconn(timeout, **kwargs)


def in_transaction(pool: Pool) -> AbstractAsyncContextManager[Conn]:
    return pool.transaction()


def with_options(pool: Pool) -> AbstractAsyncContextManager[Conn]:
    return pool.transaction(isolation="serializable", settings={"app.tenant": 7})


@asynccontextmanager
async def in_session(pool: Pool) -> AsyncIterator[Conn]:
    async with pool.session(), pool.transaction() as conn:
        yield conn


BLOCKS: list[Callable[[Pool], AbstractAsyncContextManager[Conn]]]
BLOCKS = [in_transaction, with_options, in_session]
EACH_BLOCK = pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.__name__)


async def run_in(block: Any, pool: Pool, work: Callable[[Conn], Awaitable[None]]) -> None:
    """Do work in a block."""
    async with block(pool) as conn:
        await work(conn)


async def execute(conn: Conn, table: str) -> None:
    await conn.execute(f"INSERT INTO {table} VALUES (1)")


async def execute_with_values(conn: Conn, table: str) -> None:
    await conn.execute(f"INSERT INTO {table} VALUES (%s)", (1,))


async def prepared(conn: Conn, table: str) -> None:
    await conn.execute(f"INSERT INTO {table} VALUES (%s)", (1,), prepare=True)


async def never_prepared(conn: Conn, table: str) -> None:
    conn.prepare_threshold = None
    await conn.execute(f"INSERT INTO {table} VALUES (%s)", (1,))


async def binary(conn: Conn, table: str) -> None:
    await conn.execute(f"INSERT INTO {table} VALUES (1) RETURNING x", binary=True)


async def several_in_one_text(conn: Conn, table: str) -> None:
    await conn.execute(f"INSERT INTO {table} VALUES (1); SELECT 1")


async def a_cursor(conn: Conn, table: str) -> None:
    async with conn.cursor() as cur:
        await cur.execute(f"INSERT INTO {table} VALUES (1)")


async def a_client_cursor(conn: Conn, table: str) -> None:
    await psycopg.AsyncClientCursor(conn).execute(f"INSERT INTO {table} VALUES (%s)", (1,))


async def a_raw_cursor(conn: Conn, table: str) -> None:
    await psycopg.AsyncRawCursor(conn).execute(f"INSERT INTO {table} VALUES ($1)", (1,))


async def a_server_cursor(conn: Conn, table: str) -> None:
    async with conn.cursor("named") as cur:
        await cur.execute("SELECT 1")
        assert await cur.fetchall() == [(1,)]
    await execute(conn, table)


async def executemany(conn: Conn, table: str) -> None:
    await conn.cursor().executemany(f"INSERT INTO {table} VALUES (%s)", [(1,), (2,)])


async def copy(conn: Conn, table: str) -> None:
    async with conn.cursor().copy(f"COPY {table} FROM STDIN") as copy:
        await copy.write_row((1,))


async def stream(conn: Conn, table: str) -> None:
    query = f"INSERT INTO {table} VALUES (1) RETURNING x"
    assert [row async for row in conn.cursor().stream(query)] == [(1,)]


async def a_pipeline(conn: Conn, table: str) -> None:
    async with conn.pipeline():
        await execute(conn, table)


async def a_block(conn: Conn, table: str) -> None:
    async with conn.transaction():
        await execute(conn, table)


async def a_block_that_fails(conn: Conn, table: str) -> None:
    with pytest.raises(ZeroDivisionError):
        async with conn.transaction():
            raise ZeroDivisionError
    await execute(conn, table)


async def a_psycopg_block(conn: Conn, table: str) -> None:
    async with psycopg.AsyncTransaction(conn):
        await execute(conn, table)


async def a_type(conn: Conn, table: str) -> None:
    assert await TypeInfo.fetch(conn, "text") is not None
    await execute(conn, table)


async def refused_calls(conn: Conn, table: str) -> None:
    for call in (conn.commit, conn.rollback):
        with pytest.raises(psycopg.ProgrammingError, match="forbidden"):
            await call()
    for change in (conn.set_autocommit, conn.set_read_only, conn.set_deferrable):
        with pytest.raises(psycopg.ProgrammingError, match="now"):
            await change(True)
    with pytest.raises(psycopg.ProgrammingError):
        await conn.tpc_begin(conn.xid(1, "a", "b"))
    await execute(conn, table)


async def a_value_that_cannot_be_sent(conn: Conn, table: str) -> None:
    with pytest.raises(psycopg.ProgrammingError, match="adapt"):
        await conn.execute("SELECT %s", (object(),))
    await execute(conn, table)


async def a_closed_cursor(conn: Conn, table: str) -> None:
    cur = conn.cursor()
    await cur.close()
    with pytest.raises(psycopg.InterfaceError):
        await cur.execute("SELECT 1")
    await execute(conn, table)


async def two_tasks(conn: Conn, table: str) -> None:
    await asyncio.gather(execute(conn, table), execute(conn, table), a_block(conn, table))


FIRST: list[Callable[[Conn, str], Awaitable[None]]] = [
    execute,
    execute_with_values,
    prepared,
    never_prepared,
    binary,
    several_in_one_text,
    a_cursor,
    a_client_cursor,
    a_raw_cursor,
    a_server_cursor,
    executemany,
    copy,
    stream,
    a_pipeline,
    a_block,
    a_block_that_fails,
    a_psycopg_block,
    a_type,
    refused_calls,
    a_value_that_cannot_be_sent,
    a_closed_cursor,
    two_tasks,
]
RIDES = [execute, execute_with_values, never_prepared, binary, a_cursor, executemany]
"""Those that take one round trip."""
MORE = {
    a_block_that_fails,
    a_closed_cursor,
    a_psycopg_block,
    a_server_cursor,
    a_value_that_cannot_be_sent,
    refused_calls,
    two_tasks,
}
"""Those that expect errors of their own, or go on after one."""


@BY_CLASS
@MODES
@EACH_BLOCK
async def test_whatever_comes_first_is_in_the_transaction(  # noqa: PLR0917
    dsn: str, backends: Backends, table: str, kind: type[Conn], autocommit: bool, block: Any
) -> None:
    """It is committed with the block, and rolled back with it."""
    options: dict[str, Any] = {"connection_class": kind, "kwargs": {"autocommit": autocommit}}
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1, **options) as pool:
        for first in FIRST:
            for ends in (psycopg.Rollback, KeyError, None):
                with pytest.raises(KeyError) if ends is KeyError else nullcontext():
                    async with block(pool) as conn:
                        await in_time(first(conn, table))
                        assert conn.info.transaction_status is INTRANS, first
                        assert backends.rows(table) == [], first
                        if ends is not None:
                            raise ends
                await at_rest(pool)
                assert bool(backends.rows(table)) is (ends is None), first
            backends.ask(f"TRUNCATE {table}")
        assert pool.stats().connects == 1
        await all_usable(pool)


@needs_internals
@MODES
@EACH_BLOCK
async def test_begin_rides_with_the_first_statement(
    dsn: str, table: str, autocommit: bool, block: Any
) -> None:
    """A block of one statement takes two round trips: the second is its COMMIT."""
    options: dict[str, Any] = {"kwargs": {"autocommit": autocommit}}
    async with (
        Proxy(dsn) as proxy,
        AsyncConnectionPool(proxy.dsn, min_size=1, **options) as pool,
        Overriding(proxy.dsn, min_size=1, **options) as overriding,
    ):
        await asyncio.gather(pool.wait(), overriding.wait())
        for each in (pool, overriding):
            for first in RIDES:
                proxy.turns = 0
                async with block(each) as conn:
                    await first(conn, table)
                await at_rest(each)
                assert proxy.turns == 2, first


@needs_internals
@MODES
@EACH_BLOCK
async def test_a_block_without_a_statement_costs_nothing(
    dsn: str, autocommit: bool, block: Any
) -> None:
    """Nothing is sent, however the block ends, and its connection needs no reset."""
    options: dict[str, Any] = {"kwargs": {"autocommit": autocommit}}
    async with (
        Proxy(dsn) as proxy,
        AsyncConnectionPool(proxy.dsn, min_size=1, **options) as pool,
        Overriding(proxy.dsn, min_size=1, **options) as overriding,
    ):
        await asyncio.gather(pool.wait(), overriding.wait())
        for each in (pool, overriding):
            proxy.turns = 0
            for ends in (None, psycopg.Rollback, KeyError):
                with pytest.raises(KeyError) if ends is KeyError else nullcontext():
                    async with block(each) as conn:
                        assert conn.info.transaction_status is IDLE
                        if ends is not None:
                            raise ends
                assert each.stats().idle == 1
            assert proxy.turns == 0
            await all_usable(each)


@MODES
async def test_one_shots_and_blocks_in_a_block_that_has_sent_nothing(
    dsn: str, backends: Backends, table: str, autocommit: bool
) -> None:
    """In a session they are a part of its transaction, which is rolled back as a whole."""
    insert = f"INSERT INTO {table} VALUES (%s)"

    async def one_shot(pool: Pool) -> None:
        await pool.execute(insert, (1,))

    async def many(pool: Pool) -> None:
        await pool.executemany(insert, [(1,), (2,)])

    async def batch(pool: Pool) -> None:
        await pool.batch([(insert, (1,)), (insert, (2,))])

    async def connection(pool: Pool) -> None:
        async with pool.connection() as conn:
            await conn.execute(insert, (1,))

    async def transaction(pool: Pool) -> None:
        async with pool.transaction() as conn:
            await conn.execute(insert, (1,))

    async def cursor(pool: Pool) -> None:
        async with pool.cursor() as cur:
            await cur.execute(insert, (1,))

    async def two_deep(pool: Pool) -> None:
        async with pool.transaction(), pool.transaction():
            await pool.execute(insert, (1,))

    async def empty_inside(pool: Pool) -> None:
        async with pool.transaction():
            pass
        await one_shot(pool)

    kwargs = {"autocommit": autocommit}
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1, kwargs=kwargs) as pool:
        for inner in (
            one_shot,
            many,
            batch,
            connection,
            transaction,
            cursor,
            two_deep,
            empty_inside,
        ):
            async with pool.session(), pool.transaction():
                await inner(pool)
                assert backends.rows(table) == [], inner
                raise psycopg.Rollback
            assert backends.rows(table) == [], inner
            async with pool.session(), pool.transaction():
                await inner(pool)
            assert backends.rows(table) != [], inner
            backends.ask(f"TRUNCATE {table}")


@BY_CLASS
@EACH_BLOCK
async def test_a_first_statement_that_fails_leaves_a_failed_transaction(
    dsn: str, kind: type[Conn], block: Any
) -> None:
    """Further statements fail, and a block that has handled the error raises at its end."""

    async def handle_an_error(conn: Conn) -> None:
        with pytest.raises(psycopg.errors.DivisionByZero):
            await conn.execute("SELECT 1 / 0")
        assert conn.info.transaction_status is INERROR
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            await conn.execute("SELECT 1")

    async with AsyncConnectionPool(dsn, min_size=1, connection_class=kind) as pool:
        with pytest.raises(psycopg.errors.InFailedSqlTransaction, match="handled the error"):
            await run_in(block, pool, handle_an_error)
        await all_usable(pool)
        assert pool.stats().connects == 1


@needs_internals
@MODES
@EACH_BLOCK
async def test_no_statement_runs_outside_of_the_transaction_if_begin_is_refused(  # noqa: PLR0917
    dsn: str,
    backends: Backends,
    table: str,
    autocommit: bool,
    block: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each fails with BEGIN's error, and the block does not end as if they had run."""
    options: dict[str, Any] = {"kwargs": {"autocommit": autocommit}}
    refused = (b"BEGIN ISOLATION LEVEL NONSENSE",)

    async def fail(conn: Conn) -> None:
        monkeypatch.setattr(conn, "_unsent_begin", UnsentBegin(refused))
        await in_time(first(conn, table))

    async def handle_errors(conn: Conn) -> None:
        for _ in range(2):
            with pytest.raises(psycopg.errors.SyntaxError):
                await fail(conn)
            assert conn.info.transaction_status is IDLE, first

    async with AsyncConnectionPool(dsn, min_size=1, max_size=1, **options) as pool:
        for first in FIRST:
            if first in MORE:
                continue
            with pytest.raises(psycopg.errors.InFailedSqlTransaction):
                await run_in(block, pool, handle_errors)
            with pytest.raises(psycopg.errors.SyntaxError):
                await run_in(block, pool, fail)
            await at_rest(pool)
            assert backends.rows(table) == [], first
            await all_usable(pool)
        assert pool.stats().connects == 1


@BY_CLASS
@pytest.mark.parametrize("how", ["timeout", "scope"])
@MODES
async def test_a_first_statement_that_is_cancelled_leaves_what_it_left_before(  # noqa: PLR0917
    dsn: str, backends: Backends, table: str, kind: type[Conn], how: str, autocommit: bool
) -> None:
    """What the block does then is in no transaction of its own, and nothing is committed."""
    options: dict[str, Any] = {"connection_class": kind, "kwargs": {"autocommit": autocommit}}

    async def go_on(conn: Conn) -> None:
        if how == "timeout":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(conn.execute("SELECT pg_sleep(5)"), 0.1)
        else:
            with anyio.move_on_after(0.1) as scope:
                await conn.execute("SELECT pg_sleep(5)")
            assert scope.cancelled_caught
        with pytest.raises(psycopg.Error):
            await execute(conn, table)

    async with AsyncConnectionPool(dsn, min_size=1, max_size=1, **options) as pool:
        for block in BLOCKS:
            with pytest.raises(psycopg.Error):
                await run_in(block, pool, go_on)
            await in_time(at_rest(pool))
            assert backends.rows(table) == []
        await all_usable(pool)


@needs_internals
@EACH_BLOCK
async def test_a_begin_that_was_cancelled_before_it_ran_is_sent_again(
    dsn: str, backends: Backends, table: str, block: Any
) -> None:
    """The block may go on: its next statement is in its transaction, or fails."""
    options: dict[str, Any] = {"kwargs": {"autocommit": True}}
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1, **options) as pool:
        for first in (execute, several_in_one_text, copy, executemany, a_pipeline, a_block):
            for turns in range(4):
                try:
                    async with block(pool) as conn:
                        task = asyncio.ensure_future(first(conn, table))
                        for _ in range(turns):
                            await asyncio.sleep(0)
                        task.cancel()
                        await asyncio.wait({task})
                        await execute(conn, table)
                        assert conn.info.transaction_status is INTRANS
                        raise KeyError
                except (KeyError, psycopg.Error):
                    pass
                await in_time(at_rest(pool))
                assert backends.rows(table) == [], (first, turns)
        await all_usable(pool)


@needs_internals
@BY_CLASS
async def test_a_lost_connection_is_an_error_of_the_first_statement(
    dsn: str, backends: Backends, kind: type[Conn]
) -> None:
    """It is no error of a block that has ended before it was noticed, and nothing hangs."""

    async def lose(conn: Conn) -> None:
        backends.terminate(conn.pgconn.backend_pid)
        await in_time(conn.execute("SELECT 1"))

    async with AsyncConnectionPool(dsn, min_size=1, max_size=1, connection_class=kind) as pool:
        for block in BLOCKS:
            with pytest.raises(psycopg.OperationalError):
                await run_in(block, pool, lose)
            await all_usable(pool)


@BY_CLASS
async def test_conn_transaction_sends_begin_on_entry(dsn: str, kind: type[Conn]) -> None:
    """As psycopg's does, whose users may look at the connection's status next."""
    async with await kind.connect(dsn) as conn, conn.transaction():
        assert conn.info.transaction_status is INTRANS
