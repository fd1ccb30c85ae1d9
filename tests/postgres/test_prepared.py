"""A statement is prepared after enough runs on any of a pool's connections."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from asyncpool import AsyncConnectionPool, AsyncNullConnectionPool
from asyncpool._psycopg.internals import VERSION

from ._tools import BOTH_LOOPS, needs_internals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LOOPS = BOTH_LOOPS
pytestmark = needs_internals
NOTICED = pytest.mark.skipif(VERSION < (3, 3), reason="this psycopg does not notice the command")

TEN = 10
QUERY, PARAMS = "SELECT %s::int4 + 1", (1,)
COUNT = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE %s"


@contextlib.asynccontextmanager
async def pool_of(dsn: str, size: int = TEN, **kwargs: Any) -> AsyncIterator[AsyncConnectionPool]:
    async with AsyncConnectionPool(
        dsn, min_size=size, max_size=size, kwargs={"autocommit": True, **kwargs}, open=False
    ) as pool:
        await pool.wait()
        yield pool


@contextlib.asynccontextmanager
async def all_of(pool: AsyncConnectionPool) -> AsyncIterator[list[psycopg.AsyncConnection]]:
    """Borrow all connections of a pool, always in the same order."""
    conns = [await pool.acquire() for _ in range(pool.max_size)]
    try:
        yield sorted(conns, key=lambda conn: conn.info.backend_pid)
    finally:
        for conn in conns:
            await pool.release(conn)


async def prepared(conn: psycopg.AsyncConnection, like: str = "SELECT $1::int4 + 1") -> int:
    """How many statements the server has prepared for the pool on a connection."""
    cur = await conn.execute(COUNT, [like], prepare=False)
    row = await cur.fetchone()
    assert row is not None
    return int(row[0])


async def counts(pool: AsyncConnectionPool, like: str = "SELECT $1::int4 + 1") -> list[int]:
    async with all_of(pool) as conns:
        return [await prepared(conn, like) for conn in conns]


async def run_on_each(
    pool: AsyncConnectionPool, query: str, params: Any = None, *, prepare: bool | None = None
) -> None:
    async with all_of(pool) as conns:
        for conn in conns:
            await conn.execute(query, params, prepare=prepare)


async def test_five_runs_on_any_connections_are_enough(dsn: str) -> None:
    """From the sixth run in the pool on, each connection prepares a statement when it runs it."""
    async with pool_of(dsn) as pool, all_of(pool) as conns:
        for conn in conns[:5]:
            await conn.execute(QUERY, PARAMS)
        assert [await prepared(conn) for conn in conns] == [0] * TEN
        for conn in conns[5:]:
            await conn.execute(QUERY, PARAMS)
        assert [await prepared(conn) for conn in conns] == [0] * 5 + [1] * 5
        for conn in conns:
            cur = await conn.execute(QUERY, PARAMS)
            assert await cur.fetchone() == (2,)
        assert [await prepared(conn) for conn in conns] == [1] * TEN


async def test_one_shots_and_blocks_share_the_count(dsn: str) -> None:
    """Five one-shots on one connection have a block on another prepare the statement."""
    async with pool_of(dsn, 2) as pool:
        for _ in range(5):
            assert await pool.fetchval(QUERY, PARAMS) == 2
        assert await counts(pool) == [0, 0]
        await run_on_each(pool, QUERY, PARAMS)
        assert await counts(pool) == [1, 1]


async def test_a_block_prepares_for_the_next_one_shot(dsn: str) -> None:
    """A one-shot that writes is prepared as soon as five blocks have run its statement."""
    async with pool_of(dsn, 2) as pool:
        await pool.execute("DROP TABLE IF EXISTS written_sooner")
        await pool.execute("CREATE TABLE written_sooner (n int)")
        query, like = "INSERT INTO written_sooner VALUES (%s)", "INSERT INTO written_sooner%"
        async with all_of(pool) as (one, _):
            for n in range(5):
                await one.execute(query, [n])
        assert await pool.execute(query, [5]) == "INSERT 0 1"
        assert sum(await counts(pool, like)) == 1
        assert await pool.fetchval("SELECT count(*) FROM written_sooner") == 6


async def test_other_types_of_values_are_another_statement(dsn: str) -> None:
    """psycopg prepares a statement for each combination of types."""
    async with pool_of(dsn, 2) as pool:
        for _ in range(5):
            await run_on_each(pool, "SELECT %s", (1,))
        assert await counts(pool, "SELECT $1") == [1, 1]
        await run_on_each(pool, "SELECT %s", ("text",))
        assert await counts(pool, "SELECT $1") == [1, 1]


async def test_prepare_and_the_threshold_decide_as_before(dsn: str) -> None:
    """False never prepares, True does at once; a threshold of None turns preparing off."""
    async with pool_of(dsn, 3) as pool:
        for _ in range(4):
            await run_on_each(pool, QUERY, PARAMS, prepare=False)
        assert await counts(pool) == [0, 0, 0]
        await run_on_each(pool, "SELECT 'at once'", prepare=True)
        assert await counts(pool, "SELECT 'at once'") == [1, 1, 1]
        async with all_of(pool) as conns:
            conns[0].prepare_threshold = None
            conns[1].prepare_threshold = 100
            for conn in conns:
                await conn.execute(QUERY, PARAMS)
            assert [await prepared(conn) for conn in conns] == [0, 0, 1]


async def test_nothing_is_prepared_without_a_threshold(dsn: str) -> None:
    """`prepare_threshold=None`, as for PgBouncer."""
    async with pool_of(dsn, 2, prepare_threshold=None) as pool:
        for _ in range(10):
            await run_on_each(pool, QUERY, PARAMS)
            await pool.fetchval(QUERY, PARAMS)
        assert await counts(pool, "%") == [0, 0]


@pytest.mark.parametrize("query", ["SELECT 1; SELECT 2", "SET application_name = 'me'"])
async def test_what_is_no_single_read_or_write_is_counted_by_each_connection(
    dsn: str, query: str
) -> None:
    """Several statements, which the server cannot prepare, and commands."""
    async with pool_of(dsn, 4) as pool:
        for _ in range(4):
            await run_on_each(pool, query)
        assert await counts(pool, query) == [0] * 4


@pytest.mark.parametrize(
    "query",
    [
        "DROP TABLE IF EXISTS never_was",
        pytest.param("ALTER ROLE CURRENT_USER RESET work_mem", marks=NOTICED),
    ],
)
async def test_ddl_still_makes_a_connection_forget(dsn: str, query: str) -> None:
    """Its first run on a connection does so, however often the others have run it."""
    async with pool_of(dsn, 2) as pool, all_of(pool) as (one, other):
        for _ in range(6):
            await one.execute(query)
            await other.execute(QUERY, PARAMS)
        assert await prepared(other) == 1
        await other.execute(query)
        await other.execute("SELECT 'next'")  # psycopg deallocates before the next statement
        assert await prepared(other, "%") == 0


@pytest.mark.parametrize("how", [pytest.param("DEALLOCATE ALL", marks=NOTICED), "rollback"])
async def test_what_a_connection_has_forgotten_it_counts_by_itself(dsn: str, how: str) -> None:
    """A statement is prepared again after five more runs there, as psycopg does."""
    async with pool_of(dsn, 2) as pool:
        for _ in range(6):
            await run_on_each(pool, QUERY, PARAMS)
        async with all_of(pool) as (one, other):
            if how == "rollback":
                async with one.transaction(force_rollback=True):
                    await one.execute(QUERY, PARAMS)
            else:
                await one.execute(how)
            for _ in range(5):
                await one.execute(QUERY, PARAMS)
                assert (await prepared(one), await prepared(other)) == (0, 1)
            await one.execute(QUERY, PARAMS)
            assert (await prepared(one), await prepared(other)) == (1, 1)


async def test_an_evicted_statement_is_not_prepared_at_every_run(dsn: str) -> None:
    """With more statements than `prepared_max`, a connection counts the evicted ones by itself."""
    queries = [f"SELECT {n}" for n in range(4)]
    async with pool_of(dsn, 1) as pool, pool.connection() as conn:
        conn.prepared_max = 2
        for query in queries:
            for _ in range(6):
                await conn.execute(query)
        for number in range(5):
            assert await prepared(conn, queries[0]) == 0, number
            await conn.execute(queries[0])
        await conn.execute(queries[0])
        assert await prepared(conn, queries[0]) == 1
        assert await prepared(conn, "SELECT _") <= 3  # psycopg evicts at the next new statement


async def test_a_name_that_the_server_does_not_know_is_not_prepared_at_every_run(dsn: str) -> None:
    """A one-shot whose statement was deallocated by name runs, and is counted again."""
    async with pool_of(dsn, 1) as pool:
        for _ in range(6):
            await pool.fetchval(QUERY, PARAMS)
        name = await pool.fetchval(
            "SELECT name FROM pg_prepared_statements WHERE statement LIKE %s",
            ["SELECT $1::int4 + 1"],
        )
        await pool.execute(f'DEALLOCATE "{name}"')
        for _ in range(5):
            assert await pool.fetchval(QUERY, PARAMS) == 2
            assert await counts(pool) == [0]


async def test_a_failing_statement_is_not_counted(dsn: str) -> None:
    """psycopg counts a statement from its first success on."""
    async with pool_of(dsn, 1) as pool, pool.connection() as conn:
        for _ in range(8):
            with pytest.raises(psycopg.errors.DivisionByZero):
                await conn.execute("SELECT 1 / %s::int4", (0,))
        for _ in range(5):
            await conn.execute("SELECT 1 / %s::int4", (1,))
        assert await prepared(conn, "SELECT 1 /%") == 0
        await conn.execute("SELECT 1 / %s::int4", (1,))
        assert await prepared(conn, "SELECT 1 /%") == 1


async def test_a_new_connection_prepares_at_its_first_run(dsn: str) -> None:
    """A connection that replaces another needs no five runs of its own."""
    async with pool_of(dsn, 1) as pool:
        for _ in range(6):
            await run_on_each(pool, QUERY, PARAMS)
        await pool.drain()
        await run_on_each(pool, QUERY, PARAMS)
        assert await counts(pool) == [1]


async def test_a_connection_that_is_not_kept_prepares_by_itself(dsn: str) -> None:
    """In a null pool preparing would cost a round trip for each use."""
    async with AsyncNullConnectionPool(dsn, kwargs={"autocommit": True}) as pool:
        for _ in range(8):
            async with pool.connection() as conn:
                await conn.execute(QUERY, PARAMS)
                assert await prepared(conn) == 0


async def test_many_texts_do_not_pile_up(dsn: str) -> None:
    """A statement is counted again after so many others that the counts were emptied."""
    async with pool_of(dsn, 1) as pool:
        texts = [f"SELECT {n}" for n in range(600)]
        for start in range(0, 600, 100):
            await asyncio.gather(*map(pool.fetchval, texts[start : start + 100]))
        for _ in range(6):
            assert await pool.fetchval("SELECT 0") == 0
        assert await counts(pool, "SELECT 0") == [1]
