"""`executemany` is sent as one packet, and does what psycopg's does."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from asyncpool import AsyncConnectionPool, Connection

from ._tools import BOTH_LOOPS, Proxy, backend_of, eventually, in_time, needs_internals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._tools import Backends

LOOPS = BOTH_LOOPS
pytestmark = needs_internals

Conn = psycopg.AsyncConnection[Any]
INSERT = "INSERT INTO many_rows VALUES (%s, %s)"


async def table(conn: Conn) -> None:
    await conn.execute("CREATE TEMP TABLE many_rows (n int UNIQUE, t text)")
    if not conn.autocommit:
        await conn.commit()


async def content(conn: Conn) -> list[Any]:
    """What is committed, or visible in the open transaction."""
    cur = await conn.execute("SELECT n, t FROM many_rows ORDER BY n")
    return await cur.fetchall()


async def several(conn: Conn) -> Any:
    cur = conn.cursor()
    await cur.executemany(INSERT, [(n, str(n)) for n in range(200)])
    return cur.rowcount, cur.statusmessage, cur.description, len(await content(conn))


async def in_tuples_lists_and_dicts(conn: Conn) -> Any:
    cur = conn.cursor()
    await cur.executemany(INSERT, ((1, "a"), (2, "b")))
    await cur.executemany(INSERT, [[3, "c"], [4, "d"]])
    await cur.executemany(
        "INSERT INTO many_rows VALUES (%(n)s, %(t)s)", [{"t": "e", "n": 5}, {"n": 6, "t": "f"}]
    )
    await cur.executemany(INSERT, ((n, "g") for n in (7, 8)))
    await cur.executemany("INSERT INTO many_rows VALUES (9, 'h')", [()])
    return await content(conn)


async def of_no_values(conn: Conn) -> Any:
    cur = conn.cursor()
    await cur.executemany(INSERT, [])
    return cur.rowcount, conn.info.transaction_status


async def of_other_types(conn: Conn) -> Any:
    cur = conn.cursor()
    rows = [(1, "a"), (2, None), (1 << 20, "b"), (None, None), (3, "c")]
    await cur.executemany(INSERT, rows)
    return cur.rowcount, await content(conn)


async def with_an_error_of_the_server(conn: Conn) -> Any:
    cur = conn.cursor()
    try:
        await cur.executemany(INSERT, [(1, "a"), (1, "b"), (2, "c")])
    except psycopg.errors.UniqueViolation as error:
        seen = str(error), conn.info.transaction_status, cur.rowcount
    await conn.rollback()
    await cur.executemany(INSERT, [(5, "e")])
    return seen, await content(conn)


async def with_an_error_of_the_first_values(conn: Conn) -> Any:
    cur = conn.cursor()
    try:
        await cur.executemany(INSERT, [(object(), "a"), (1, "b")])
    except psycopg.ProgrammingError as error:
        seen = str(error)[:20], conn.info.transaction_status
    await conn.rollback()
    return seen, await content(conn)


async def with_values_that_cannot_be_converted(conn: Conn) -> Any:
    cur = conn.cursor()
    try:
        await cur.executemany(INSERT, [(1, "a"), (object(), "b"), (2, "c")])
    except psycopg.ProgrammingError as error:
        seen = str(error)[:20], conn.info.transaction_status
    return seen, await content(conn)


async def with_too_few_values(conn: Conn) -> Any:
    cur = conn.cursor()
    try:
        await cur.executemany(INSERT, [(1, "a"), (2,)])
    except psycopg.ProgrammingError as error:
        seen = str(error)
    return seen, await content(conn)


async def of_a_text_that_is_wrong(conn: Conn) -> Any:
    cur = conn.cursor()
    seen = []
    for query in ("INSERT INTO nowhere VALUES (%s, %s)", "no statement %s %s"):
        for _ in range(2):
            try:
                await cur.executemany(query, [(1, "a"), (2, "b")])
            except psycopg.Error as error:
                seen.append((type(error), str(error)))
            await conn.rollback()
    return seen, len(conn._prepared._names)


async def that_returns(conn: Conn) -> Any:
    cur = conn.cursor()
    await cur.executemany(INSERT + " RETURNING n", [(1, "a"), (2, "b")], returning=True)
    seen = [await cur.fetchall()]
    while cur.nextset():
        seen.append(await cur.fetchall())
    await cur.executemany(INSERT + " RETURNING n", [(3, "a"), (4, "b")])
    return seen, cur.rowcount, cur.rownumber


async def in_a_pipeline(conn: Conn) -> Any:
    async with conn.pipeline():
        cur = conn.cursor()
        await cur.executemany(INSERT, [(1, "a"), (2, "b")])
        other = await conn.execute("SELECT 1")
    return await other.fetchone(), cur.rowcount, await content(conn)


async def in_an_aborted_transaction(conn: Conn) -> Any:
    seen = None
    try:
        async with conn.transaction():
            try:
                await conn.execute("SELECT 1 / 0")
            except psycopg.errors.DivisionByZero:
                await conn.cursor().executemany(INSERT, [(1, "a")])
    except psycopg.errors.InFailedSqlTransaction as error:
        seen = str(error)
    return seen, await content(conn)


async def then_the_cursor_goes_on(conn: Conn) -> Any:
    cur = conn.cursor()
    await cur.executemany(INSERT, [(1, "a"), (2, "b")])
    try:
        await cur.fetchone()
    except psycopg.ProgrammingError as error:
        seen = str(error)
    await cur.execute("SELECT n FROM many_rows ORDER BY n")
    first = await cur.fetchone()
    await cur.executemany("SELECT %s", [(1,), (2,)])
    await cur.execute("SELECT %s", (3,))
    return seen, first, await cur.fetchall()


async def that_is_prepared(conn: Conn) -> Any:
    cur = conn.cursor()
    await cur.executemany(INSERT, [(1, "a"), (2, "b")])
    await cur.executemany("SELECT %s::int", [(1,)])
    query = "SELECT statement FROM pg_prepared_statements ORDER BY prepare_time, name"
    return await (await conn.execute(query)).fetchall(), len(conn._prepared._names)


async def with_preparing_off(conn: Conn) -> Any:
    conn.prepare_threshold = None
    cur = conn.cursor()
    await cur.executemany(INSERT, [(1, "a"), (2, "b")])
    found = await conn.execute("SELECT count(*) FROM pg_prepared_statements")
    return await found.fetchone(), cur.rowcount, await content(conn)


async def of_ddl(conn: Conn) -> Any:
    await conn.execute("SELECT 1", prepare=True)
    await conn.cursor().executemany("DROP TABLE IF EXISTS many_other", [(), ()])
    await conn.execute("SELECT 2")
    found = await conn.execute("SELECT count(*) FROM pg_prepared_statements")
    return await found.fetchone()


async def that_changes_a_setting(conn: Conn) -> Any:
    cur = await conn.execute("SELECT now()")
    one = await cur.fetchone()
    await cur.executemany("SELECT set_config('TimeZone', %s, false)", [("Asia/Tokyo",)])
    cur = await conn.execute("SELECT now()")
    two = await cur.fetchone()
    assert one is not None
    assert two is not None
    return str(two[0].tzinfo), one[0].tzinfo != two[0].tzinfo


CASES: list[Callable[[Conn], Awaitable[Any]]] = [
    several,
    in_tuples_lists_and_dicts,
    of_no_values,
    of_other_types,
    with_an_error_of_the_server,
    with_an_error_of_the_first_values,
    with_values_that_cannot_be_converted,
    with_too_few_values,
    of_a_text_that_is_wrong,
    that_returns,
    in_a_pipeline,
    in_an_aborted_transaction,
    then_the_cursor_goes_on,
    that_is_prepared,
    with_preparing_off,
    of_ddl,
    that_changes_a_setting,
]


@pytest.mark.parametrize("autocommit", [True, False], ids=["autocommit", "transaction"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_it_does_what_psycopgs_does(
    dsn: str, case: Callable[[Conn], Awaitable[Any]], *, autocommit: bool
) -> None:
    """Each case on psycopg's own connection, and on this one."""
    seen = []
    for kind in (psycopg.AsyncConnection, Connection):
        async with await kind.connect(dsn, autocommit=autocommit) as conn:
            await table(conn)
            outcome = await in_time(case(conn))
            rest = conn.info.transaction_status, conn.pgconn.pipeline_status
            await conn.rollback()
            seen.append((outcome, rest, await content(conn)))
    assert seen[0] == seen[1]


async def test_it_takes_one_round_trip_once_it_is_prepared(dsn: str) -> None:
    """A BEGIN goes with it, and so does a PREPARE; a COMMIT too where the pool adds it."""
    async with (
        Proxy(dsn) as proxy,
        AsyncConnectionPool(proxy.dsn, min_size=1, max_size=1, open=False) as pool,
    ):
        await pool.wait()
        await pool.execute("CREATE TABLE IF NOT EXISTS many_rows (n int, t text)")
        before = proxy.turns
        assert await pool.executemany(INSERT, [(n, "a") for n in range(50)]) == 50
        assert proxy.turns - before == 1
        async with pool.connection() as conn:
            before = proxy.turns
            await conn.cursor().executemany(INSERT, [(n, "a") for n in range(50)])
            assert proxy.turns - before == 1


async def test_many_rows_let_other_tasks_run(dsn: str) -> None:
    """The event loop has its turns while a hundred thousand rows are sent."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with await Connection.connect(dsn, autocommit=True) as conn:
        await table(conn)
        counter = asyncio.create_task(count())
        cur = conn.cursor()
        await cur.executemany(INSERT, [(n, "x" * 100) for n in range(50_000)])
        counter.cancel()
        assert cur.rowcount == 50_000
        assert turns > 20
        found = await conn.execute("SELECT count(*) FROM many_rows")
        assert await found.fetchone() == (50_000,)


async def test_large_answers_do_not_deadlock(dsn: str) -> None:
    """The server's answers are read while values are still being sent."""
    async with await Connection.connect(dsn, autocommit=True) as conn:
        cur = conn.cursor()
        rows = [("x" * 10_000,)] * 2_000
        await in_time(cur.executemany("SELECT %s::text || repeat('y', 10000)", rows))
        assert cur.rowcount == 2_000


async def in_a_block(pool: AsyncConnectionPool, query: str, rows: list[Any]) -> None:
    async with pool.connection() as conn:
        await conn.cursor().executemany(query, rows)


@pytest.mark.parametrize("count", [2, 1000])
async def test_a_cancelled_one_leaves_nothing(dsn: str, count: int) -> None:
    """The statement under way is cancelled on the server, and the connection is usable."""
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1, open=False) as pool:
        await pool.wait()
        await pool.execute("DROP TABLE IF EXISTS many_cancelled")
        await pool.execute("CREATE TABLE many_cancelled (n int)")
        query = "INSERT INTO many_cancelled SELECT %s FROM pg_sleep(%s)"
        rows = [(n, 60 if n == 1 else 0) for n in range(count)]
        for call in ("pool", "cursor"):
            work = pool.executemany if call == "pool" else partial(in_a_block, pool)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(work(query, rows), 0.2)
            assert await in_time(pool.fetchval("SELECT count(*) FROM many_cancelled")) == 0
        assert await pool.executemany(query, [(1, 0), (2, 0)]) == 2
        assert pool.stats().size == 1


async def test_all_or_nothing_where_the_commit_fails(dsn: str) -> None:
    """A deferred constraint raises at the COMMIT that the pool sends with the rows."""
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1, open=False) as pool:
        await pool.wait()
        await pool.execute("DROP TABLE IF EXISTS many_deferred")
        await pool.execute(
            "CREATE TABLE many_deferred (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)"
        )
        query = "INSERT INTO many_deferred VALUES (%s)"
        with pytest.raises(psycopg.errors.UniqueViolation):
            await pool.executemany(query, [(1,), (1,)])
        assert await pool.fetchval("SELECT count(*) FROM many_deferred") == 0
        assert await pool.executemany(query, [(1,), (2,)]) == 2


async def test_a_lost_connection_raises(dsn: str, backends: Backends) -> None:
    """With the server's own words where it has sent them."""
    async with await Connection.connect(dsn, autocommit=True) as conn:
        pid = await backend_of(conn)
        work = asyncio.create_task(
            conn.cursor().executemany("SELECT pg_sleep(%s)", [(0,), (60,), (0,)])
        )
        await eventually(lambda: backends.running("pg_sleep") == 1)
        await asyncio.to_thread(backends.terminate, pid)
        with pytest.raises(psycopg.errors.AdminShutdown):
            await in_time(work)
        assert conn.closed
