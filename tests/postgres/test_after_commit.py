"""A query that is sent in one packet with a block's COMMIT."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import psycopg
import pytest

from asyncpool import AsyncConnectionPool
from asyncpool._psycopg.committing import AfterCommit, ask_after_commit, ask_nothing

from ._tools import Backends, Proxy, at_rest, needs_internals

pytestmark = needs_internals

Conn = psycopg.AsyncConnection[Any]
Block = Callable[[AsyncConnectionPool[Any]], AbstractAsyncContextManager[Any]]
BLOCKS: dict[str, Block] = {
    "connection": lambda pool: pool.connection(),
    "transaction": lambda pool: pool.transaction(),
}
BY_BLOCK = pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)

QUERY = b"SELECT 1, NULL, 'two'"


def asked(conn: Conn, query: bytes = QUERY) -> AfterCommit:
    """Ask for a query after the next COMMIT."""
    question = ask_after_commit(conn, query)
    assert question is not None
    return question


@BY_BLOCK
async def test_it_takes_no_round_trip_of_its_own(
    dsn: str, backends: Backends, table: str, block: Block
) -> None:
    """The transaction is committed, and its row is there."""
    async with Proxy(dsn) as proxy, AsyncConnectionPool(proxy.dsn, min_size=1, max_size=1) as pool:
        await pool.wait()
        turns = {}
        for query in (None, QUERY):
            before = proxy.turns
            async with block(pool) as conn:
                await conn.execute(f"INSERT INTO {table} VALUES (1)")
                question = None if query is None else asked(conn)
            turns[query] = proxy.turns - before
            if question is not None:
                assert question.row == [b"1", None, b"two"]
            ask_nothing(conn)
        assert turns[None] == turns[QUERY]
    assert backends.rows(table) == [1, 1]


@BY_BLOCK
async def test_it_is_asked_once_only_where_it_was_asked_for(
    dsn: str, table: str, block: Block
) -> None:
    """The next borrower of the connection sends COMMIT alone."""
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1) as pool:
        async with block(pool) as conn:
            await conn.execute(f"INSERT INTO {table} VALUES (1)")
            question = asked(conn)
        ask_nothing(conn)
        first, question.row = question.row, None
        async with block(pool) as conn:
            await conn.execute(f"INSERT INTO {table} VALUES (2)")
        assert first is not None
        assert question.row is None


@BY_BLOCK
async def test_the_error_of_a_commit_is_the_commits(
    dsn: str, backends: Backends, table: str, block: Block
) -> None:
    """A deferred constraint is checked at the COMMIT: the block raises it, and there is no row."""
    backends.ask(f"ALTER TABLE {table} ADD UNIQUE (x) DEFERRABLE INITIALLY DEFERRED")
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1) as pool:
        questions = []

        async def work() -> None:
            async with block(pool) as conn:
                await conn.execute(f"INSERT INTO {table} VALUES (1), (1)")
                questions.append(asked(conn))

        with pytest.raises(psycopg.errors.UniqueViolation):
            await work()
        assert [question.row for question in questions] == [None]
        assert (await at_rest(pool)).lost == 0
        assert await pool.fetchval("SELECT 1") == 1
    assert backends.rows(table) == []


@BY_BLOCK
@pytest.mark.parametrize("query", [b"SELECT 1/0", b"SELECT 1 FROM nowhere"])
async def test_a_query_that_fails_does_not_fail_the_commit(
    dsn: str, backends: Backends, table: str, block: Block, query: bytes
) -> None:
    """It has no row; the connection is clean afterwards."""
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1) as pool:
        async with block(pool) as conn:
            await conn.execute(f"INSERT INTO {table} VALUES (1)")
            question = asked(conn, query)
        ask_nothing(conn)
        assert question.row is None
        assert (await at_rest(pool)).size == 1
    assert backends.rows(table) == [1]


async def test_a_failed_transaction_gives_no_row(dsn: str, backends: Backends, table: str) -> None:
    """Its COMMIT is a rollback, as the server's tag says."""
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1) as pool:
        async with pool.connection() as conn:
            await conn.execute(f"INSERT INTO {table} VALUES (1)")
            with pytest.raises(psycopg.errors.DivisionByZero):
                await conn.execute("SELECT 1/0")
            question = asked(conn)
        ask_nothing(conn)
        assert question.row is None
    assert backends.rows(table) == []


@BY_BLOCK
async def test_a_session_that_ends_in_the_query_was_committed(
    dsn: str, backends: Backends, table: str, block: Block
) -> None:
    """The answer to the COMMIT has come before."""
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1) as pool:
        async with block(pool) as conn:
            await conn.execute(f"INSERT INTO {table} VALUES (1)")
            question = asked(conn, b"SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(5)")
        ask_nothing(conn)
        assert question.row is None
        await at_rest(pool)
    assert backends.rows(table) == [1]


@BY_BLOCK
async def test_a_cancelled_end_of_a_block_leaves_a_usable_pool(
    dsn: str, table: str, block: Block
) -> None:
    """The query is ended on the server, as any other."""
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1) as pool:

        async def work() -> None:
            async with block(pool) as conn:
                await conn.execute(f"INSERT INTO {table} VALUES (1)")
                asked(conn, b"SELECT pg_sleep(30)")

        task = asyncio.create_task(work())
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with pool.connection(timeout=10) as conn:
            ask_nothing(conn)
            assert (await (await conn.execute("SELECT 1")).fetchone()) == (1,)


async def test_a_connection_of_another_class_is_not_asked(dsn: str) -> None:
    """Its COMMIT is psycopg's."""
    conn = await psycopg.AsyncConnection.connect(dsn)
    assert ask_after_commit(conn, QUERY) is None
    ask_nothing(conn)
    await conn.close()
