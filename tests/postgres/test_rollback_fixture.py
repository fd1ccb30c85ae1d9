"""The rollback pool: tested code uses it like any pool, and all its work is rolled back."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator
from typing import Any

import anyio
import psycopg
import pytest
from fastapi import FastAPI
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row

from asyncpool import AsyncConnectionPool, Connection
from asyncpool.integrations import fastapi
from asyncpool.integrations.starlette import TransactionPerRequest, lifespan
from asyncpool.testing import rollback_pool
from tests._tools import few

from ._tools import (
    BOTH_LOOPS,
    Backends,
    at_rest,
    backend_of,
    client_of,
    eventually,
    in_time,
    sockets,
)

LOOPS = BOTH_LOOPS
IDLE, INTRANS, INERROR = (
    pq.TransactionStatus.IDLE,
    pq.TransactionStatus.INTRANS,
    pq.TransactionStatus.INERROR,
)


@pytest.fixture(params=few(["asyncpool", "psycopg"]))
async def pool(
    request: pytest.FixtureRequest, dsn: str, table: str
) -> AsyncIterator[AsyncConnectionPool[Any]]:
    """A rollback pool, with either class of connections, while the table exists."""
    kind = {"asyncpool": Connection, "psycopg": psycopg.AsyncConnection}[request.param]
    async with rollback_pool(dsn, connection_class=kind, patience=0.3) as pool:
        yield pool


@pytest.fixture
async def nested(dsn: str, table: str) -> AsyncIterator[AsyncConnectionPool[Any]]:
    """A rollback pool in which one transaction may run inside another."""
    async with rollback_pool(dsn, nested=True, patience=0.3) as pool:
        yield pool


def state(conn: psycopg.AsyncConnection[Any]) -> pq.TransactionStatus:
    """psycopg's view of the transaction's status."""
    return pq.TransactionStatus(conn.pgconn.transaction_status)


async def rows(pool: AsyncConnectionPool[Any], table: str) -> list[Any]:
    """Return the rows that the pool's connections see."""
    return [x for (x,) in await pool.fetchall(f"SELECT x FROM {table} ORDER BY x")]


async def test_what_is_committed_is_seen_by_the_pool_and_by_nobody_else(
    pool: AsyncConnectionPool[Any], table: str, backends: Backends
) -> None:
    """Blocks, explicit transactions, one-shots and batches commit; at the end all is gone."""
    async with pool.connection() as conn:
        await conn.execute(f"INSERT INTO {table} VALUES (1)")
    async with pool.transaction() as conn:
        await conn.execute(f"INSERT INTO {table} VALUES (2)")
    assert await pool.execute(f"INSERT INTO {table} VALUES (3)") == "INSERT 0 1"
    await pool.executemany(f"INSERT INTO {table} VALUES (%s)", [(4,), (5,)])
    await pool.batch([f"INSERT INTO {table} VALUES (6)", (f"SELECT %s FROM {table}", [1])])
    async with pool.acquire() as conn:
        await conn.set_autocommit(True)
        await conn.execute(f"INSERT INTO {table} VALUES (7)")
        await conn.set_autocommit(False)
    assert await rows(pool, table) == [1, 2, 3, 4, 5, 6, 7]
    assert backends.rows(table) == []
    await pool.close()
    assert backends.rows(table) == []


async def test_what_is_rolled_back_is_gone_and_what_came_before_is_not(
    pool: AsyncConnectionPool[Any], table: str
) -> None:
    """A block that raises, a nested transaction and a failing one-shot are rolled back."""
    await pool.execute(f"INSERT INTO {table} VALUES (1)")
    with pytest.raises(ValueError, match="on purpose"):  # noqa: PT012
        async with pool.connection() as conn:
            await conn.execute(f"INSERT INTO {table} VALUES (2)")
            raise ValueError("on purpose")
    with pytest.raises(psycopg.errors.DivisionByZero):
        await pool.fetchval(f"INSERT INTO {table} SELECT 1/0 RETURNING x")
    with pytest.raises(psycopg.errors.DivisionByZero):
        await pool.batch([f"INSERT INTO {table} VALUES (3)", "SELECT 1/0"])
    async with pool.connection() as conn:
        await conn.execute(f"INSERT INTO {table} VALUES (4)")
        with pytest.raises(psycopg.errors.DivisionByZero):  # noqa: PT012
            async with conn.transaction():
                await conn.execute(f"INSERT INTO {table} VALUES (5)")
                await conn.execute("SELECT 1/0")
        await conn.commit()
        await conn.execute(f"INSERT INTO {table} VALUES (6)")
        await conn.rollback()
        async with conn.transaction(), conn.transaction():
            await conn.execute(f"INSERT INTO {table} VALUES (7)")
    async with pool.transaction() as conn:
        await conn.execute(f"INSERT INTO {table} VALUES (8)")
        raise psycopg.Rollback
    assert await rows(pool, table) == [1, 4, 7]


async def test_a_connection_has_a_transaction_state_of_its_own(
    pool: AsyncConnectionPool[Any],
) -> None:
    """psycopg and the pool see the usual status: idle, in a transaction, in a failed one."""
    async with pool.acquire() as conn:
        assert state(conn) == IDLE
        await conn.execute("SELECT 1")
        assert state(conn) == INTRANS
        with pytest.raises(psycopg.errors.DivisionByZero):
            await conn.execute("SELECT 1/0")
        assert state(conn) == INERROR
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            await conn.execute("SELECT 1")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            await conn.execute("BEGIN")
        await conn.commit()
        assert state(conn) == IDLE
        await conn.set_autocommit(True)
        with pytest.raises(psycopg.errors.DivisionByZero):
            await conn.execute("SELECT 1/0")
        assert state(conn) == IDLE
        await conn.set_autocommit(False)
    assert (await at_rest(pool)).returns_bad == 0


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("BEGIN; {1}; COMMIT", [1]),
        ("begin transaction isolation level serializable; {1}; end", [1]),
        ("START TRANSACTION; {1}; ABORT", []),
        ("{1}; ROLLBACK; {2}", [2]),
        ("{1}; COMMIT; {2}; SELECT 1/0", [1]),
        ("{1}; SELECT 1/0; COMMIT", []),
        ("BEGIN; {1}; SAVEPOINT a; {2}; ROLLBACK TO a; {3}; COMMIT", [1, 3]),
        ("/* COMMIT; /* ; */ */ BEGIN; {1}; -- COMMIT;\n ROLLBACK; SELECT 'x;COMMIT;' ", []),
        ("COMMIT", []),
        ("ROLLBACK", []),
        ("; ;", []),
        ("DO $$ BEGIN PERFORM 1; END $$", []),
        ("BEGIN; {1}; COMMIT AND CHAIN; {2}", []),
        ("BEGIN; {1}; PREPARE TRANSACTION 'x'", []),
        ("BEGIN; {1}; COMMIT PREPARED 'x'", []),
    ],
)
async def test_control_statements_of_the_user_do_not_reach_the_server(
    pool: AsyncConnectionPool[Any], table: str, backends: Backends, text: str, kept: list[int]
) -> None:
    """This holds for several in one text; one that would end the outer transaction is refused."""
    for number in range(1, 4):
        text = text.replace(f"{{{number}}}", f"INSERT INTO {table} VALUES ({number})")
    async with pool.acquire() as conn:
        await conn.set_autocommit(True)
        try:
            await conn.execute(text.encode())
        except (psycopg.errors.DivisionByZero, psycopg.errors.FeatureNotSupported):
            await conn.rollback()
        assert state(conn) == IDLE
        await conn.set_autocommit(False)
    assert await rows(pool, table) == kept
    assert backends.rows(table) == []


async def test_control_statements_with_the_extended_protocol_and_in_a_pipeline(
    pool: AsyncConnectionPool[Any], table: str
) -> None:
    """A BEGIN may be parsed and bound, and much may be sent before the first answer."""
    async with pool.acquire() as conn:
        await conn.set_autocommit(True)
        for word, number in (("COMMIT", 1), ("ROLLBACK", 2)):
            await conn.execute("BEGIN", prepare=True)
            await conn.execute(f"INSERT INTO {table} VALUES (%s)", [number], prepare=True)
            await conn.execute(word, prepare=True)
        async with conn.pipeline() as pipeline:
            await conn.execute("BEGIN")
            await conn.execute(f"INSERT INTO {table} VALUES (%s)", [3])
            await conn.execute("COMMIT")
            await conn.execute(f"INSERT INTO {table} VALUES (%s)", [4])
            await pipeline.sync()
            with pytest.raises(psycopg.errors.DivisionByZero):  # noqa: PT012
                async with conn.transaction():
                    await conn.execute(f"INSERT INTO {table} VALUES (%s)", [5])
                    await conn.execute("SELECT 1/0")
                    await pipeline.sync()
            async with conn.transaction():
                cur = await conn.execute(f"SELECT x FROM {table} WHERE x > %s", [2])
                assert await cur.fetchall() == [(3,), (4,)]
        assert state(conn) == IDLE
        await conn.set_autocommit(False)
    assert await rows(pool, table) == [1, 3, 4]


async def test_prepared_statements_of_two_connections_are_not_mixed_up(
    pool: AsyncConnectionPool[Any],
) -> None:
    """Both connections use the same names, and deallocate in different orders."""
    async with pool.acquire() as one, pool.acquire() as other:
        for conn in (one, other):
            await conn.set_autocommit(True)
            conn.prepared_max = 3
        for n in range(8):
            for word, conn in (("one", one), ("other", other)):
                cur = await conn.execute(f"SELECT %s || '{word} {n}'", ["the "], prepare=True)
                assert await cur.fetchone() == (f"the {word} {n}",)
        for conn in (one, other):
            await conn.set_autocommit(False)


@pytest.mark.parametrize("params", [None, ()], ids=["simple", "extended"])
async def test_one_connection_deallocates_its_own_prepared_statements_only(
    pool: AsyncConnectionPool[Any], params: Any
) -> None:
    """Both are one session of the server; psycopg deallocates all after a rollback."""
    async with pool.acquire() as one, pool.acquire() as other:
        for conn in (one, other):
            await conn.set_autocommit(True)
            for _ in range(2):
                await conn.execute("SELECT %s::int", [1], prepare=True)
        cur = await one.execute("DEALLOCATE ALL", params)
        assert cur.statusmessage == "DEALLOCATE ALL"
        cur = await other.execute(
            "SELECT count(*) FROM pg_prepared_statements WHERE statement = 'SELECT $1::int'"
        )
        assert await cur.fetchone() == (1,)
        for conn in (one, other):
            cur = await conn.execute("SELECT %s::int", [2])
            assert await cur.fetchone() == (2,)
            await conn.set_autocommit(False)


async def test_many_tasks_at_once_are_served_in_turn(
    pool: AsyncConnectionPool[Any], table: str
) -> None:
    """Each task's transaction on its connection is atomic, as under a lock."""

    async def add() -> None:
        async with pool.connection() as conn:
            cur = await conn.execute(f"SELECT count(*) FROM {table}")
            ((number,),) = await cur.fetchall()
            await asyncio.sleep(0)
            await conn.execute(f"INSERT INTO {table} VALUES (%s)", [number])
            if number % 5 == 4:
                async with conn.transaction():
                    await conn.execute(f"INSERT INTO {table} VALUES (-1)")
                    raise psycopg.Rollback

    await asyncio.gather(*(add() for _ in range(30)))
    assert await rows(pool, table) == list(range(30))
    ones = await asyncio.gather(*(pool.fetchval("SELECT %s::int", [n]) for n in range(100)))
    assert ones == list(range(100))


async def test_two_connections_of_one_task_work_while_one_is_in_a_transaction_at_a_time(
    pool: AsyncConnectionPool[Any], table: str
) -> None:
    """All connections share one session; a ping does not wait."""
    async with pool.connection() as one, pool.connection() as other:
        await one.execute(f"INSERT INTO {table} VALUES (1)")
        assert (await pool.health()).status == "ok"
        await one.commit()
        await other.execute(f"INSERT INTO {table} VALUES (2)")
        await other.rollback()
        assert await backend_of(one) == await backend_of(other)
    assert await rows(pool, table) == [1]


async def test_waiting_for_an_idle_transaction_ends_in_an_error(
    pool: AsyncConnectionPool[Any], table: str
) -> None:
    """No test hangs, and the work of the idle transaction is not lost."""
    async with pool.connection() as one:
        await one.execute(f"INSERT INTO {table} VALUES (1)")
        with pytest.raises(psycopg.errors.LockNotAvailable, match="only one connection at a time"):
            async with pool.connection() as other:
                await in_time(other.execute(f"INSERT INTO {table} VALUES (2)"))
        with pytest.raises(psycopg.errors.LockNotAvailable):
            await in_time(pool.fetchval("SELECT 1"))
    assert await rows(pool, table) == [1]
    assert (await at_rest(pool)).lost == 0


async def test_patience_does_not_limit_a_running_statement(pool: AsyncConnectionPool[Any]) -> None:
    """Others wait for a long statement longer than for an idle transaction."""
    first = asyncio.create_task(pool.fetchval("SELECT 1 FROM pg_sleep(1)"))
    await eventually(lambda: pool.stats().leased)
    assert await asyncio.gather(*(pool.fetchval("SELECT 2") for _ in range(6)), first) == [
        2
    ] * 6 + [1]


@pytest.mark.exhaustive
async def test_nested_transactions_see_each_other_and_end_together(
    nested: AsyncConnectionPool[Any], table: str
) -> None:
    """With `nested`, after `patience` one runs inside another and is rolled back with it."""
    async with nested.connection() as one:
        await one.execute(f"INSERT INTO {table} VALUES (1)")
        assert await nested.fetchval(f"SELECT x FROM {table}") == 1
        async with nested.connection() as other:
            await other.execute(f"INSERT INTO {table} VALUES (2)")
        await one.execute(f"INSERT INTO {table} VALUES (3)")
    assert await rows(nested, table) == [1, 2, 3]
    with pytest.raises(ValueError, match="on purpose"):  # noqa: PT012
        async with nested.connection() as one:
            await one.execute(f"INSERT INTO {table} VALUES (4)")
            await nested.execute(f"INSERT INTO {table} VALUES (5)")
            raise ValueError("on purpose")
    assert await rows(nested, table) == [1, 2, 3]
    with pytest.raises(psycopg.OperationalError, match="the connection is closed"):  # noqa: PT012
        async with nested.acquire() as one, nested.acquire() as other:
            await one.execute(f"INSERT INTO {table} VALUES (6)")
            await other.execute(f"INSERT INTO {table} VALUES (7)")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                await in_time(one.execute("SELECT 1"))
            assert one.closed
    assert await rows(nested, table) == [1, 2, 3]


async def test_constraints_that_are_deferred_are_checked_at_each_commit(
    pool: AsyncConnectionPool[Any], table: str
) -> None:
    """A failing commit is rolled back and raises in its client at once."""
    await pool.execute(f"ALTER TABLE {table} ADD UNIQUE (x) DEFERRABLE INITIALLY DEFERRED")
    for _ in range(2):
        with pytest.raises(psycopg.errors.UniqueViolation):
            async with pool.connection() as conn:
                await conn.execute(f"INSERT INTO {table} VALUES (1), (1)")
        with pytest.raises(psycopg.errors.UniqueViolation):
            await pool.execute(f"INSERT INTO {table} VALUES (2), (2)")
        with pytest.raises(psycopg.errors.UniqueViolation):
            await pool.batch([f"INSERT INTO {table} VALUES (2), (2)"])
        async with pool.connection() as conn:
            await conn.execute(f"INSERT INTO {table} VALUES (3), (3)")
            await conn.execute(f"DELETE FROM {table} WHERE x = 3")
    await pool.execute(f"INSERT INTO {table} VALUES (4)")
    assert await rows(pool, table) == [4]


async def test_copy_and_streams(pool: AsyncConnectionPool[Any], table: str) -> None:
    """COPY works in both directions, also when either side aborts it; so do server cursors."""
    copy_in = f"COPY {table} FROM STDIN"
    async with pool.connection() as conn, conn.cursor().copy(copy_in) as copy:
        for number in range(5_000):
            await copy.write_row([number])
    for query in (copy_in, f"COPY {table} (y) FROM STDIN"):
        with pytest.raises((psycopg.errors.InvalidTextRepresentation, psycopg.ProgrammingError)):
            async with pool.connection() as conn, conn.cursor().copy(query) as copy:
                await copy.write("no number\n" * 10_000)
    with pytest.raises(ValueError, match="on purpose"):  # noqa: PT012
        async with pool.connection() as conn, conn.cursor().copy(copy_in) as copy:
            await copy.write_row([1])
            raise ValueError("on purpose")
    async with pool.connection() as conn:
        async with conn.cursor().copy(f"COPY {table} TO STDOUT") as copy:
            assert len([row async for row in copy.rows()]) == 5_000
        assert len([row async for row in conn.cursor().stream(f"SELECT x FROM {table}")]) == 5_000
        async with conn.cursor("on the server") as cur:
            await cur.execute(f"SELECT x FROM {table} ORDER BY x")
            assert await cur.fetchmany(2) == [(0,), (1,)]
    assert await pool.fetchval(f"SELECT count(*) FROM {table}") == 5_000
    await check_all_connections(pool)


async def check_all_connections(pool: AsyncConnectionPool[Any]) -> None:
    """Check that each connection of the pool can be acquired and answers."""
    await eventually(lambda: pool.stats().cleaning == pool.stats().closing == 0)
    conns = [await pool.acquire() for _ in range(pool.max_size)]
    for conn in conns:
        await backend_of(conn)
        await pool.release(conn)
    await at_rest(pool)


@pytest.mark.parametrize("kind", few(["task", "twice", "scope"]))
@pytest.mark.parametrize("moment", ["query", "waiting", "copy"])
async def test_what_is_cancelled_is_rolled_back_and_nothing_else(
    pool: AsyncConnectionPool[Any], table: str, backends: Backends, kind: str, moment: str
) -> None:
    """A running query ends on the server; a waiting one is removed; the others continue."""
    await pool.execute(f"INSERT INTO {table} VALUES (1)")
    scope, begun = anyio.CancelScope(), asyncio.Event()

    async def work() -> None:
        with scope:
            async with pool.connection() as conn:
                if moment == "waiting":
                    begun.set()
                await conn.execute(f"INSERT INTO {table} VALUES (2)")
                if moment == "copy":
                    async with conn.cursor().copy(f"COPY {table} FROM STDIN") as copy:
                        await copy.write_row([3])
                        begun.set()
                        await asyncio.Event().wait()
                begun.set()
                await conn.execute("SELECT pg_sleep(60)")

    for _ in range(3):
        begun.clear()
        holder = await pool.acquire()
        if moment == "waiting":
            await holder.execute("SELECT 1")
        task = asyncio.create_task(work())
        await in_time(begun.wait())
        if moment == "query":
            await eventually(lambda: backends.running("pg_sleep(60)") == 1)
        if kind == "scope":
            scope.cancel()
        else:
            for _ in range(2 if kind == "twice" else 1):
                task.cancel()
                await asyncio.sleep(0)
        await in_time(asyncio.wait([task]))
        await holder.rollback()
        await pool.release(holder)
        scope = anyio.CancelScope()
        await eventually(lambda: not backends.running("pg_sleep(60)"))
        assert await in_time(rows(pool, table)) == [1]
    await check_all_connections(pool)


async def test_one_shots_that_are_cancelled_at_any_moment_harm_no_others(
    pool: AsyncConnectionPool[Any], table: str
) -> None:
    """Each cancelled one-shot has either run or not; one that returned is not lost."""
    for number in range(60):
        task = asyncio.create_task(pool.execute(f"INSERT INTO {table} VALUES (%s)", [number]))
        for _ in range(number % 12):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        done = not task.cancelled()
        found = await in_time(rows(pool, table))
        assert not done or number in found
    await pool.execute(f"INSERT INTO {table} VALUES (-1)")
    assert (await rows(pool, table))[0] == -1
    await check_all_connections(pool)


async def test_the_block_that_ends_in_mid_work_leaves_nothing(
    dsn: str, table: str, backends: Backends
) -> None:
    """The block may end with a running query, an unreturned connection or a cancellation."""
    before = sockets()
    folders: list[str] = []
    for kind in ("raise", "cancel", "scope"):
        scope = anyio.CancelScope()

        async def test(kind: str, scope: anyio.CancelScope) -> None:
            with scope:
                async with rollback_pool(dsn) as pool:
                    folders.append(str(conninfo_to_dict(str(pool.conninfo))["host"]))
                    await pool.execute(f"INSERT INTO {table} VALUES (1)")
                    conn = await pool.acquire()
                    await conn.execute(f"INSERT INTO {table} VALUES (1)")
                    if kind == "raise":
                        raise ValueError("on purpose")
                    await conn.execute("SELECT pg_sleep(60)")

        task = asyncio.create_task(test(kind, scope))
        if kind != "raise":
            await eventually(lambda: backends.running("pg_sleep") == 1)
        if kind == "cancel":
            task.cancel()
        elif kind == "scope":
            scope.cancel()
        ended = await in_time(asyncio.gather(task, return_exceptions=True))
        kinds: dict[str, Any] = {
            "raise": ValueError,
            "cancel": asyncio.CancelledError,
            "scope": type(None),
        }
        assert isinstance(ended[0], kinds[kind])
        await eventually(lambda: not backends.pids())
        assert backends.rows(table) == []
    gc.collect()
    await eventually(lambda: sockets() <= before)
    assert len(folders) == 3
    assert not any(map(os.path.exists, folders))


@pytest.mark.parametrize("twice", [False, True])
async def test_a_block_that_is_cancelled_at_any_moment_leaves_nothing(
    dsn: str, table: str, backends: Backends, *, twice: bool
) -> None:
    """The moments include entering the block and leaving it."""
    before = sockets()

    async def test() -> None:
        async with rollback_pool(dsn) as pool:
            await pool.execute(f"INSERT INTO {table} VALUES (1)")

    turns, ended = 0, False
    while not ended:
        task = asyncio.create_task(test())
        for _ in range(turns):
            await asyncio.sleep(0.0005)
        for _ in range(1 + twice):
            task.cancel()
            await asyncio.sleep(0)
        await in_time(asyncio.wait([task]))
        ended = not task.cancelled()
        turns += 1
    await eventually(lambda: not backends.pids())
    assert backends.rows(table) == []
    gc.collect()
    await eventually(lambda: sockets() <= before)


async def test_a_source_pool_gives_its_settings_and_is_not_used(dsn: str, table: str) -> None:
    """The source may be open or not; its connection string and keywords may be callables."""

    async def keywords() -> dict[str, Any]:
        return {"row_factory": dict_row, "options": "-c search_path=pg_catalog,public"}

    source = AsyncConnectionPool(lambda: dsn, kwargs=keywords, min_size=3, max_size=7, timeout=3.0)
    async with rollback_pool(source, name="mine") as pool:
        assert (pool.max_size, pool.timeout, pool.name) == (7, 3.0, "mine")
        assert await pool.fetchone("SELECT 1 AS one") == {"one": 1}
        assert await pool.fetchval("SHOW search_path") == "pg_catalog,public"
        assert source.closed
    assert source.stats().connects == 0


async def test_bad_input_is_refused_at_the_call(dsn: str) -> None:
    """The error shows the value; a failed connect raises psycopg's error on entry."""
    with pytest.raises(TypeError, match="from a connection string or a pool, not 3"):
        rollback_pool(3)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="patience must be more than 0 seconds, not 0"):
        rollback_pool(dsn, patience=0)
    with pytest.raises(ValueError, match="requires encryption"):
        async with rollback_pool(make_conninfo(dsn, sslmode="require")):
            raise AssertionError
    with pytest.raises(psycopg.OperationalError, match="refused"):
        async with rollback_pool(make_conninfo(dsn, port="1")):
            raise AssertionError
    with pytest.raises(ValueError, match="conninfo is neither") as malformed:
        async with rollback_pool(f"{dsn} password=two words"):
            raise AssertionError
    assert "words" not in f"{malformed.value} {malformed.value.__context__}"
    kwargs = {"host": "postgresql://user:two-words@nowhere.invalid/db"}
    for source in (
        rollback_pool("", kwargs=kwargs),
        rollback_pool(AsyncConnectionPool("", kwargs=lambda: kwargs, open=False)),
    ):
        with pytest.raises(ValueError, match="cannot be a host") as misplaced:
            async with source:
                raise AssertionError
        assert "words" not in f"{misplaced.value} {misplaced.value.__context__}"
    with pytest.raises(TypeError, match="max_sise"):
        async with rollback_pool(dsn, max_sise=3):
            raise AssertionError


async def test_a_lost_server_is_an_error(dsn: str, backends: Backends) -> None:
    """Nothing hangs: the transaction is lost, and every use raises an error."""
    async with rollback_pool(dsn, fail_fast_after=0.0, timeout=2.0) as pool:
        assert await pool.fetchval("SELECT 1") == 1
        backends.terminate()
        for _ in range(2):
            with pytest.raises(psycopg.OperationalError):
                await in_time(pool.fetchval("SELECT 1"))


async def test_an_app_is_tested_with_it(dsn: str, table: str, backends: Backends) -> None:
    """The rollback pool replaces the app's own: commits, rollbacks and disconnects still work."""

    def never() -> AsyncConnectionPool:
        raise AssertionError("the app's own pool is not to be made")

    app = FastAPI(lifespan=lifespan(never))
    app.add_middleware(TransactionPerRequest)

    @app.post("/notes")
    async def write(x: int, conn: fastapi.RequestTransaction) -> int:
        await conn.execute(f"INSERT INTO {table} VALUES (%s)", [x])
        if x < 0:
            raise ValueError("no such colour")
        return x

    @app.get("/notes")
    async def read(pool: fastapi.Pool) -> list[int]:
        return await rows(pool, table)

    @app.get("/slow")
    async def slow(conn: fastapi.ConnectionDep) -> None:
        await conn.execute(f"INSERT INTO {table} VALUES (9)")
        await conn.execute("SELECT pg_sleep(60)")

    for _ in range(2):
        async with rollback_pool(dsn) as pool:
            app.state.pool = pool
            async with (
                app.router.lifespan_context(app),
                client_of(app, raising=False) as client,
            ):
                assert (await client.get("/notes")).json() == []
                answers = await asyncio.gather(
                    *(client.post("/notes", params={"x": x}) for x in (1, 2, -1, 3, -2))
                )
                assert [each.status_code for each in answers] == [200, 200, 500, 200, 500]
                gone = asyncio.create_task(client.get("/slow"))
                await eventually(lambda: backends.running("pg_sleep") == 1)
                gone.cancel()
                await asyncio.wait([gone])
                assert (await client.get("/notes")).json() == [1, 2, 3]
        assert backends.rows(table) == []


PLUGIN_TESTS = """
import pytest

ROUNDS = range(3)

@pytest.mark.parametrize("n", ROUNDS)
{mark}
async def test_each_begins_with_nothing(asyncpool_rollback_pool, n):
    pool = asyncpool_rollback_pool
    assert await pool.fetchval("SELECT to_regclass('of_the_plugin')") is None
    await pool.execute("CREATE TABLE of_the_plugin (x int)")
    await pool.execute("INSERT INTO of_the_plugin VALUES (1)")
    assert await pool.fetchval("SELECT x FROM of_the_plugin") == 1
"""


@pytest.mark.parametrize("plugin", few(["asyncio", "anyio"]))
@pytest.mark.exhaustive
def test_the_fixture_rolls_back_each_tests_work(
    pytester: pytest.Pytester, asyncpool_dsn: str, monkeypatch: pytest.MonkeyPatch, plugin: str
) -> None:
    """The fixture works with pytest-asyncio in its mode "auto", and with anyio's plugin."""
    monkeypatch.setenv("ASYNCPOOL_TEST_DSN", asyncpool_dsn)
    mark = "@pytest.mark.anyio" if plugin == "anyio" else ""
    pytester.makepyfile(PLUGIN_TESTS.replace("{mark}", mark))
    pytester.makeconftest("import pytest\n@pytest.fixture\ndef anyio_backend(): return 'asyncio'")
    options = {"asyncio": ["-o", "asyncio_mode=auto"], "anyio": ["-p", "no:asyncio"]}[plugin]
    options += ["-o", "asyncio_default_fixture_loop_scope=function"] if plugin == "asyncio" else []
    result = pytester.runpytest_subprocess(*options, "-W", "error", "-p", "no:looptime_plugin")
    result.assert_outcomes(passed=3)
