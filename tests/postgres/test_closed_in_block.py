"""The work of a block whose connection ends while it runs is never reported as done.

psycopg lets such a block end with no error. `asyncpool.Connection` does so only where the block's
own task has closed the connection.
"""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from asyncpool import AsyncConnectionPool, Connection, PoolClosed

from ._tools import BOTH_LOOPS, Backends, eventually, in_time, needs_internals

LOOPS = BOTH_LOOPS

LOST = "^the connection is closed: the work of this block was not committed"


@needs_internals
async def test_a_transaction_whose_connection_another_task_closes_fails_at_its_end(
    conn: Connection[Any], backends: Backends, table: str
) -> None:
    """The rows of the block are not stored."""

    async def work() -> None:
        async with conn.transaction():
            await conn.execute(f"INSERT INTO {table} VALUES (1)")
            await asyncio.create_task(conn.close())

    with pytest.raises(psycopg.OperationalError, match=LOST):
        await in_time(work())
    assert backends.rows(table) == []


@needs_internals
async def test_a_savepoint_whose_connection_another_task_closes_fails_at_its_end(
    conn: Connection[Any],
) -> None:
    """The savepoint's block raises itself, not only the enclosing one."""
    errors = []

    async def work() -> None:
        async with conn.transaction():
            try:
                async with conn.transaction():
                    await asyncio.create_task(conn.close())
            except psycopg.OperationalError:
                errors.append(conn.closed)

    with pytest.raises(psycopg.OperationalError, match=LOST):
        await in_time(work())
    assert errors == [True]


@needs_internals
async def test_a_transaction_that_hides_the_loss_of_its_connection_fails_at_its_end(
    conn: Connection[Any], backends: Backends
) -> None:
    """The block has caught the error of a statement in it."""

    async def work() -> None:
        async with conn.transaction():
            backends.terminate()
            with pytest.raises(psycopg.OperationalError):
                await conn.execute("SELECT 1")

    with pytest.raises(psycopg.OperationalError, match=LOST):
        await in_time(work())


@needs_internals
async def test_a_transaction_whose_cancelled_statement_does_not_end_fails_at_its_end(
    conn: Connection[Any], monkeypatch: pytest.MonkeyPatch, backends: Backends
) -> None:
    """The connection is closed in the background, without an error at that time."""
    monkeypatch.setattr("asyncpool._psycopg.transport.DRAIN_TIMEOUT", 0.0)

    async def work() -> None:
        async with conn.transaction():
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await conn.execute("SELECT pg_sleep(60)")
            await eventually(lambda: conn.closed)

    with pytest.raises(psycopg.OperationalError, match=LOST):
        await in_time(work())
    backends.terminate()


async def test_a_transaction_that_closes_its_connection_itself_ends_as_in_psycopg(
    conn: Connection[Any], backends: Backends, table: str
) -> None:
    """The block raises nothing, and is rolled back."""
    async with conn.transaction(), conn.transaction():
        await conn.execute(f"INSERT INTO {table} VALUES (1)")
        await conn.close()
    assert backends.rows(table) == []


async def test_a_transaction_with_force_rollback_raises_nothing_for_the_loss(
    conn: Connection[Any],
) -> None:
    """A block with `force_rollback` raises nothing, as it has nothing to commit."""
    async with conn.transaction(force_rollback=True):
        await asyncio.create_task(conn.close())


async def test_an_error_in_a_block_is_not_replaced_by_that_of_the_loss(
    conn: Connection[Any],
) -> None:
    """The block's own error is raised, by a transaction and by the connection's block."""

    async def work() -> None:
        async with conn, conn.transaction():
            await asyncio.create_task(conn.close())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await in_time(work())


@needs_internals
async def test_a_connection_block_fails_whose_open_transaction_another_task_has_ended(
    dsn: str, backends: Backends, table: str
) -> None:
    """psycopg commits at the end of the block only if the connection is open."""

    async def work() -> None:
        async with await Connection.connect(dsn) as conn:
            await conn.execute(f"INSERT INTO {table} VALUES (1)")
            await asyncio.create_task(conn.close())

    with pytest.raises(psycopg.OperationalError, match=LOST):
        await in_time(work())
    assert backends.rows(table) == []


@needs_internals
async def test_a_connection_block_fails_that_hides_the_loss_of_its_connection(
    dsn: str, backends: Backends
) -> None:
    """Whether a transaction was open is unknown, and any statement would have opened one."""

    async def work() -> None:
        async with await Connection.connect(dsn) as conn:
            await conn.execute("SELECT 1")
            backends.terminate()
            with pytest.raises(psycopg.OperationalError):
                await conn.execute("SELECT 1")

    with pytest.raises(psycopg.OperationalError, match=LOST):
        await in_time(work())


@needs_internals
@pytest.mark.parametrize("autocommit", [True, False])
async def test_a_connection_block_with_nothing_to_commit_raises_nothing_for_the_loss(
    dsn: str, backends: Backends, autocommit: bool
) -> None:
    """All of its work is committed."""
    async with await Connection.connect(dsn, autocommit=autocommit) as conn:
        await conn.execute("SELECT 1")
        await conn.commit()
        await asyncio.create_task(conn.close())
    async with await Connection.connect(dsn, autocommit=autocommit) as conn:
        await conn.execute("SELECT 1")
        await conn.commit()
        backends.terminate()
        await eventually(lambda: conn.closed)


async def test_a_connection_block_that_closes_its_connection_itself_ends_as_in_psycopg(
    dsn: str,
) -> None:
    """The block raises nothing."""
    async with await Connection.connect(dsn) as conn:
        await conn.execute("SELECT 1")
        await conn.close()


async def test_a_pools_transaction_fails_when_the_pool_is_closed_in_it(
    dsn: str, backends: Backends, table: str
) -> None:
    """The block raises even if its own task closes the pool, which closes the connection."""
    pool = AsyncConnectionPool(dsn, min_size=1)
    await pool.open()

    async def work() -> None:
        async with pool.transaction() as conn:
            await conn.execute(f"INSERT INTO {table} VALUES (1)")
            await pool.close(timeout=0)

    with pytest.raises(PoolClosed, match="uncommitted work is lost"):
        await in_time(work())
    assert backends.rows(table) == []
