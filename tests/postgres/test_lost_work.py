"""Work that was not committed is never reported as done, whatever closed its connection."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import psycopg
import pytest

from asyncpool import AsyncConnectionPool, PoolClosed
from tests._tools import few

from ._tools import BOTH_LOOPS, Backends, Proxy, all_usable, at_rest, eventually, needs_internals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Earlier = Callable[[AsyncConnectionPool, Backends], Awaitable[None]]

LOOPS = BOTH_LOOPS

KINDS = ["connection", "transaction", "session", "cursor", "acquire"]
EACH = pytest.mark.parametrize("kind", KINDS)
CLASSES = pytest.mark.parametrize("own", [None, psycopg.AsyncConnection], ids=["ours", "psycopg"])


def connection_of(target: Any) -> Any:
    """Return the connection of a block's target, a connection or cursor."""
    return getattr(target, "connection", target)


def nothing_leased(pool: AsyncConnectionPool) -> bool:
    """Whether no connection is leased."""
    return not pool.stats().leased


def class_of(own: Any) -> dict[str, Any]:
    """Return the pool's arguments for a connection class."""
    return {} if own is None else {"connection_class": own}


@CLASSES
@EACH
async def test_a_block_whose_connection_died_raises_at_its_end(
    dsn: str, backends: Backends, table: str, kind: str, own: Any
) -> None:
    """Also if the statement's error was handled inside."""
    async with AsyncConnectionPool(dsn, min_size=1, **class_of(own)) as pool:
        with pytest.raises(psycopg.OperationalError, match="the connection is closed"):  # noqa: PT012
            async with getattr(pool, kind)() as target:
                await target.execute(f"INSERT INTO {table} VALUES (1)")
                backends.terminate()
                with suppress(psycopg.OperationalError):
                    await target.execute("SELECT 1")
        await all_usable(pool)
        assert backends.rows(table) == []


async def is_notified(pool: AsyncConnectionPool, backends: Backends) -> None:
    """A notification comes to the idle connection."""
    seen: list[Any] = []
    async with pool.connection() as conn:
        conn.add_notify_handler(seen.append)
        await conn.execute("LISTEN lost_work")
    backends.ask("NOTIFY lost_work")
    await eventually(lambda: seen)


async def is_returned_by_close(pool: AsyncConnectionPool, _: Backends) -> None:
    """`close()` returns the connection, with nothing open."""
    conn = await pool.getconn()
    await conn.close()
    await at_rest(pool)


async def is_returned_in_a_transaction(pool: AsyncConnectionPool, _: Backends) -> None:
    """`close()` returns the connection, which the pool rolls back."""
    conn = await pool.getconn()
    await conn.execute("BEGIN")
    await conn.close()
    await at_rest(pool)


EARLIER = pytest.mark.parametrize(
    "earlier",
    [
        pytest.param(is_notified, marks=needs_internals),
        is_returned_by_close,
        is_returned_in_a_transaction,
    ],
)


@EARLIER
@pytest.mark.parametrize("kind", ["connection", "session", "cursor", "acquire"])
async def test_what_happened_before_a_block_does_not_hide_the_loss_of_its_work(
    dsn: str, backends: Backends, table: str, kind: str, earlier: Earlier
) -> None:
    """The connection dies during a statement, when libpq does not say what is open."""
    async with AsyncConnectionPool(dsn, min_size=1, close_returns=True) as pool:
        await earlier(pool, backends)
        with pytest.raises(psycopg.OperationalError, match="the connection is closed"):  # noqa: PT012
            async with getattr(pool, kind)() as target:
                await target.execute(f"INSERT INTO {table} VALUES (1)")
                with suppress(psycopg.OperationalError):
                    await target.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        assert backends.rows(table) == []


@EARLIER
async def test_what_happened_before_a_block_in_autocommit_mode_is_not_lost_in_it(
    dsn: str, backends: Backends, table: str, earlier: Earlier
) -> None:
    """Each of the block's statements has told its own end."""
    keywords = {"autocommit": True}
    async with AsyncConnectionPool(dsn, min_size=1, close_returns=True, kwargs=keywords) as pool:
        await earlier(pool, backends)
        async with pool.connection() as conn:
            await conn.execute(f"INSERT INTO {table} VALUES (1)")
            with suppress(psycopg.OperationalError):
                await conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        assert backends.rows(table) == [1]


@needs_internals
@pytest.mark.parametrize("copying", [False, True])
async def test_a_transaction_begun_by_hand_in_autocommit_mode_is_not_lost_in_silence(
    dsn: str, backends: Backends, table: str, copying: bool
) -> None:
    """Also where the connection dies between two steps of a COPY."""
    async with AsyncConnectionPool(dsn, min_size=1, kwargs={"autocommit": True}) as pool:
        with pytest.raises(psycopg.OperationalError, match="the connection is closed"):  # noqa: PT012
            async with pool.connection() as conn:
                await conn.execute("BEGIN")
                await conn.execute(f"INSERT INTO {table} VALUES (1)")
                with suppress(psycopg.OperationalError):
                    if copying:
                        async with conn.cursor().copy(f"COPY {table} FROM STDIN") as copy:
                            await copy.write("2\n")
                            backends.terminate()
                    else:
                        await conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        assert backends.rows(table) == []


@EACH
async def test_a_block_whose_connection_was_closed_inside_raises_at_its_end(
    dsn: str, backends: Backends, table: str, kind: str
) -> None:
    """`conn.close()` inside, with a transaction open, makes the end of the block raise."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        with pytest.raises(psycopg.OperationalError, match="the connection is closed"):  # noqa: PT012
            async with getattr(pool, kind)() as target:
                await target.execute(f"INSERT INTO {table} VALUES (1)")
                await connection_of(target).close()
        await all_usable(pool)
        assert backends.rows(table) == []


@needs_internals
@pytest.mark.parametrize("kind", ["connection", "session", "cursor", "acquire"])
@pytest.mark.parametrize("end", ["closed", "terminated"])
async def test_a_connection_that_ended_with_nothing_open_is_no_error_of_its_block(
    dsn: str, backends: Backends, table: str, kind: str, end: str
) -> None:
    """The work was committed before, and nothing else is lost."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        async with getattr(pool, kind)() as target:
            await target.execute(f"INSERT INTO {table} VALUES (1)")
            conn = connection_of(target)
            await conn.commit()
            if end == "closed":
                await conn.close()
            else:
                backends.terminate()
                await eventually(lambda: conn.closed)
        await all_usable(pool)
        assert backends.rows(table) == [1]


@EACH
async def test_a_block_that_the_pool_did_not_wait_for_raises_at_its_end(
    dsn: str, backends: Backends, table: str, kind: str
) -> None:
    """`close(timeout)` took its connection, which may or may not be closed already."""
    for moment in ("while it closes", "afterwards"):
        pool = AsyncConnectionPool(dsn, min_size=1)
        await pool.open(wait=True)
        with pytest.raises(PoolClosed):  # noqa: PT012
            async with getattr(pool, kind)() as target:
                await target.execute(f"INSERT INTO {table} VALUES (1)")
                closing = asyncio.create_task(pool.close(timeout=0))
                await eventually(partial(nothing_leased, pool))
                if moment == "afterwards":
                    await closing
        await closing
        assert backends.rows(table) == []


@needs_internals
@pytest.mark.parametrize("kind", few(["connection", "transaction", "session"]))
async def test_a_savepoint_that_could_not_be_ended_raises_at_the_blocks_end(
    dsn: str, backends: Backends, table: str, kind: str
) -> None:
    """A statement in the savepoint was cancelled, but the server could not be reached."""
    async with Proxy(dsn) as proxy, AsyncConnectionPool(proxy.dsn, min_size=1) as pool:
        with pytest.raises(psycopg.OperationalError, match="closed") as caught:  # noqa: PT012
            async with getattr(pool, kind)() as conn:
                await conn.execute(f"INSERT INTO {table} VALUES (1)")
                with anyio.move_on_after(0.05):
                    async with conn.transaction():
                        proxy.open_way.clear()
                        await conn.execute("SELECT 1")
                await eventually(lambda: conn.closed)
                proxy.open_way.set()
        assert caught.value.__cause__ is not None
        await at_rest(pool)
        assert backends.rows(table) == []


async def test_a_block_inside_a_session_raises_for_its_own_work(
    dsn: str, backends: Backends, table: str
) -> None:
    """The block raises, and so does the session, whose work is lost too."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        with pytest.raises(psycopg.OperationalError, match="closed"):  # noqa: PT012
            async with pool.session() as conn:
                with suppress(psycopg.OperationalError):
                    async with pool.connection() as inner:
                        await inner.execute(f"INSERT INTO {table} VALUES (1)")
                        await conn.close()
                    raise AssertionError("it is lost")
        await all_usable(pool)
        assert backends.rows(table) == []


def warnings_of(caplog: pytest.LogCaptureFixture, event: str) -> list[str]:
    """Return the texts of the warnings with one event kind."""
    return [
        each.getMessage()
        for each in caplog.get_records("call")
        if each.levelno == logging.WARNING and vars(each).get("pool_event") == event
    ]


async def fails(conn: Any) -> None:
    """Run a failing statement and handle its error."""
    with suppress(psycopg.errors.DivisionByZero):
        await conn.execute("SELECT 1/0")


async def is_cancelled(conn: Any) -> None:
    """Run a statement that a scope cancels."""
    with anyio.move_on_after(0.02):
        await conn.execute("SELECT pg_sleep(60)")


HANDLED = pytest.mark.parametrize(
    "handled", [fails, pytest.param(is_cancelled, marks=needs_internals)]
)


@HANDLED
@pytest.mark.parametrize("kind", ["transaction", "session"])
async def test_a_transaction_that_has_failed_raises_at_its_end(
    dsn: str, backends: Backends, table: str, kind: str, handled: Callable[[Any], Awaitable[None]]
) -> None:
    """An error was handled inside, so that COMMIT would silently roll back."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        with pytest.raises(psycopg.errors.InFailedSqlTransaction, match="handled the error"):  # noqa: PT012
            async with getattr(pool, kind)() as conn:
                await conn.execute(f"INSERT INTO {table} VALUES (1)")
                await handled(conn)
        await all_usable(pool)
        assert backends.rows(table) == []
        assert pool.stats().connects == 1


@HANDLED
@pytest.mark.parametrize("kind", ["connection", "cursor"])
async def test_a_block_that_ends_in_a_failed_transaction_is_rolled_back_with_a_warning(  # noqa: PLR0917
    dsn: str,
    backends: Backends,
    table: str,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    handled: Callable[[Any], Awaitable[None]],
) -> None:
    """COMMIT rolls back as in psycopg, with one warning for each place in the program."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        for _ in range(3):
            async with getattr(pool, kind)() as target:
                await target.execute(f"INSERT INTO {table} VALUES (1)")
                await handled(connection_of(target))
        await all_usable(pool)
        assert pool.stats().connects == 1
    assert backends.rows(table) == []
    (warning,) = warnings_of(caplog, "failed transaction")
    assert f"{__file__}:" in warning
    assert "test_a_block_that_ends_in_a_failed_transaction" in warning


@pytest.mark.parametrize("kind", ["transaction", "session"])
async def test_a_block_that_is_a_transaction_raises_in_a_session_too(
    dsn: str, backends: Backends, table: str, kind: str
) -> None:
    """Earlier commits of the session are kept, and later work succeeds."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        async with pool.session() as conn:
            await pool.execute(f"INSERT INTO {table} VALUES (1)")
            with pytest.raises(psycopg.errors.InFailedSqlTransaction):  # noqa: PT012
                async with getattr(pool, kind)() as inner:
                    await inner.execute(f"INSERT INTO {table} VALUES (2)")
                    await fails(inner)
            await conn.execute(f"INSERT INTO {table} VALUES (3)")
        assert backends.rows(table) == [1, 3]


@pytest.mark.parametrize("kind", ["connection", "transaction", "session", "cursor"])
async def test_an_error_handled_in_a_savepoint_is_no_error_of_the_block(
    dsn: str, backends: Backends, table: str, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """Only the savepoint is rolled back, and nothing is logged."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        async with getattr(pool, kind)() as target:
            await target.execute(f"INSERT INTO {table} VALUES (1)")
            conn = connection_of(target)
            with suppress(psycopg.errors.DivisionByZero):
                async with conn.transaction():
                    await conn.execute("SELECT 1/0")
        assert backends.rows(table) == [1]
    assert not warnings_of(caplog, "failed transaction")


@pytest.mark.parametrize("handled", [None, fails])
@pytest.mark.parametrize("way", ["release", "putconn", "acquire"])
async def test_what_is_returned_in_a_transaction_is_rolled_back_with_a_warning(  # noqa: PLR0917
    dsn: str,
    backends: Backends,
    table: str,
    caplog: pytest.LogCaptureFixture,
    way: str,
    handled: Callable[[Any], Awaitable[None]] | None,
) -> None:
    """psycopg_pool does so too; here each place in the program gets one warning."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:

        async def work(conn: Any) -> None:
            await conn.execute(f"INSERT INTO {table} VALUES (1)")
            if handled is not None:
                await handled(conn)

        for _ in range(3):
            if way == "acquire":
                async with pool.acquire() as conn:
                    await work(conn)
            else:
                conn = await pool.getconn()
                await work(conn)
                await getattr(pool, way)(conn)
            await at_rest(pool)
        with suppress(ZeroDivisionError):
            async with pool.acquire() as conn:
                await conn.execute("SELECT 1")
                raise ZeroDivisionError
        async with pool.acquire() as conn:
            await conn.execute("SELECT 1")
            await conn.commit()
    assert backends.rows(table) == []
    (warning,) = warnings_of(caplog, "rolled back")
    assert f"{__file__}:" in warning
