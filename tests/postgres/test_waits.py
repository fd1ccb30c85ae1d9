"""All of psycopg's operations through the waits of `asyncpool.Connection`, on each event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from asyncpool import Connection
from tests._tools import few

from ._tools import BOTH_LOOPS, eventually, in_time

if TYPE_CHECKING:
    from asyncpool.testing import Server

LOOPS = BOTH_LOOPS

HUGE = 100_000_000
"""Bytes, far more than any buffer in between."""


@pytest.mark.parametrize("rows", few([100_000, 1]))
async def test_a_result_of_100_mb_arrives(conn: Connection[Any], rows: int) -> None:
    """The result arrives as one value and as many rows."""
    query = "SELECT repeat('x', %s) FROM generate_series(1, %s)"
    cur = await in_time(conn.execute(query, [HUGE // rows, rows], binary=True), 60)
    assert sum([len(value) async for (value,) in cur]) == HUGE


async def test_a_parameter_of_10_mb_arrives(conn: Connection[Any]) -> None:
    """The socket is full long before the query is sent."""
    cur = await in_time(conn.execute("SELECT length(%s)", [b"x" * 10_000_000]))
    assert await cur.fetchone() == (10_000_000,)


async def test_executemany_returns_each_result(conn: Connection[Any]) -> None:
    """psycopg runs executemany as a pipeline."""
    await conn.execute("CREATE TEMP TABLE t (n int)")
    cur = conn.cursor()
    many = [[n] for n in range(2000)]
    await in_time(cur.executemany("INSERT INTO t VALUES (%s) RETURNING n", many, returning=True))
    found = [await cur.fetchone()]
    while cur.nextset():
        found.append(await cur.fetchone())
    assert found == [(n,) for n in range(2000)]


async def test_large_objects_go_there_and_back(conn: Connection[Any]) -> None:
    """psycopg has no methods for large objects, so the server's functions are used."""
    content = bytes(range(256)) * 20_000
    cur = await conn.execute("SELECT lo_from_bytea(0, %s)", [content])
    oid = await cur.fetchone()
    cur = await in_time(conn.execute("SELECT lo_get(%s)", oid, binary=True))
    assert await cur.fetchone() == (content,)
    await conn.execute("SELECT lo_unlink(%s)", oid)


async def test_a_pipeline_keeps_its_order(conn: Connection[Any]) -> None:
    """Queries and results are in flight at the same time, more than the socket holds."""
    long = "x" * 10_000
    async with conn.pipeline():
        cursors = [await conn.execute("SELECT %s::int, %s", [n, long]) for n in range(500)]
    assert [await cur.fetchone() for cur in cursors] == [(n, long) for n in range(500)]


async def test_an_error_in_a_pipeline_leaves_the_connection_usable(conn: Connection[Any]) -> None:
    """Statements before the error keep their results; those after it are aborted."""
    before = conn.cursor()

    async def fail() -> None:
        async with conn.pipeline() as pipeline:
            await before.execute("SELECT 1")
            await pipeline.sync()
            await conn.execute("SELECT 1 / 0")
            await conn.execute("SELECT 2")

    with pytest.raises(psycopg.errors.DivisionByZero):
        await fail()
    assert await before.fetchone() == (1,)
    cur = await conn.execute("SELECT 3")
    assert await cur.fetchone() == (3,)


async def test_a_server_side_cursor_fetches_in_parts(conn: Connection[Any]) -> None:
    """The cursor moves forward and backward, and is iterated over."""
    async with conn.transaction(), conn.cursor("named", scrollable=True) as cur:
        cur.itersize = 10
        await cur.execute("SELECT generate_series(1, 105)")
        assert [n async for (n,) in cur] == list(range(1, 106))
        await cur.scroll(0, mode="absolute")
        assert await cur.fetchmany(3) == [(1,), (2,), (3,)]


async def test_a_transaction_is_committed_in_two_phases(
    another_server: Server, application: str
) -> None:
    """Another connection may commit than the one that prepared the transaction."""
    dsn = another_server.dsn
    async with await Connection.connect(dsn, autocommit=True) as conn:
        await conn.execute(f'CREATE TABLE "{application}" (n int)')
    conn = await Connection.connect(dsn)
    xid = conn.xid(1, application, "branch")
    await conn.tpc_begin(xid)
    await conn.execute(f'INSERT INTO "{application}" VALUES (7)')
    await conn.tpc_prepare()
    await conn.close()
    async with await Connection.connect(dsn) as conn:
        assert application in [each.gtrid for each in await conn.tpc_recover()]
        await conn.rollback()
        await conn.tpc_commit(xid)
        cur = await conn.execute(f'SELECT n FROM "{application}"')
        assert await cur.fetchall() == [(7,)]


async def test_a_transaction_in_two_phases_is_rolled_back(conn: Connection[Any]) -> None:
    """The rollback comes before the transaction is prepared."""
    await conn.set_autocommit(False)
    await conn.tpc_begin(conn.xid(1, "one", "branch"))
    await conn.execute("SELECT 1")
    await conn.tpc_rollback()
    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


async def test_rows_that_are_not_asked_for_stay_on_the_server(
    conn: Connection[Any], asyncpool_dsn: str
) -> None:
    """A slow consumer of stream() stops the server and does not fill the client's memory."""
    query = "SELECT repeat('x', 1000) FROM generate_series(1, 50000)"
    rows = conn.cursor().stream(query)
    assert await anext(rows)
    with psycopg.connect(asyncpool_dsn, autocommit=True) as watcher:

        def waits_for_the_client() -> bool:
            row = watcher.execute(
                "SELECT wait_event FROM pg_stat_activity WHERE pid = %s",
                [conn.info.backend_pid],
            ).fetchone()
            return row == ("ClientWrite",)

        await eventually(waits_for_the_client)
    assert sum([1 async for _ in rows]) == 49_999


async def test_a_slow_consumer_of_stream_gets_every_row(conn: Connection[Any]) -> None:
    """The consumer pauses at every tenth row, at times for longer than the server needs."""
    found = []
    async for n, _ in conn.cursor().stream(
        "SELECT n, repeat('x', 9000) FROM generate_series(1, 1000) n"
    ):
        found.append(n)
        if n % 10 == 0:
            await asyncio.sleep(0.001)
    assert found == list(range(1, 1001))
    cur = await conn.execute("SELECT 1")
    assert await cur.fetchone() == (1,)


async def test_a_stream_that_is_left_early_leaves_the_connection_usable(
    conn: Connection[Any],
) -> None:
    """The next query gets none of the remaining rows."""
    rows = conn.cursor().stream("SELECT generate_series(1, 1000000)")
    assert await anext(rows) == (1,)
    await rows.aclose()  # type: ignore[attr-defined]
    cur = await in_time(conn.execute("SELECT 'next'"))
    assert await cur.fetchall() == [("next",)]


async def test_notifies_ends_at_its_timeout(conn: Connection[Any]) -> None:
    """The notifications that came before are returned."""
    await conn.execute("LISTEN here")
    await conn.execute("NOTIFY here, 'one'")
    assert [n.payload async for n in conn.notifies(timeout=0.05)] == ["one"]
    assert [n async for n in conn.notifies(timeout=0)] == []


async def test_notifies_gets_notifications_that_come_while_it_waits(
    conn: Connection[Any], dsn: str
) -> None:
    """Notifications from another session arrive one after the other."""
    await conn.execute("LISTEN here")
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:

        async def tell() -> None:
            for n in range(10):
                await other.execute(f"NOTIFY here, '{n}'")
                await asyncio.sleep(0.001)

        telling = asyncio.create_task(tell())
        got = [n.payload async for n in conn.notifies(timeout=10, stop_after=10)]
        await telling
    assert got == [str(n) for n in range(10)]


async def test_a_slow_consumer_of_notifies_misses_none(conn: Connection[Any], dsn: str) -> None:
    """Notifications that arrive while the consumer is busy are kept."""
    await conn.execute("LISTEN here")
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
        got = []
        await other.execute("NOTIFY here, '0'")
        async for notify in conn.notifies(timeout=10, stop_after=5):
            got.append(notify.payload)
            if len(got) < 5:
                await other.execute(f"NOTIFY here, '{len(got)}'")
                await asyncio.sleep(0.01)
    assert got == ["0", "1", "2", "3", "4"]


async def test_an_interval_wakes_a_wait(conn: Connection[Any]) -> None:
    """psycopg uses an interval where it enforces a time limit itself."""
    await conn.execute("LISTEN here")
    started = asyncio.get_running_loop().time()
    assert [n async for n in conn.notifies(timeout=0.2)] == []
    assert asyncio.get_running_loop().time() - started >= 0.19


def test_a_connection_may_move_to_another_loop(asyncpool_dsn: str) -> None:
    """A connection may be used on one loop after the other, as psycopg's."""
    with asyncio.Runner() as first:
        conn = first.run(Connection.connect(asyncpool_dsn, autocommit=True))
        first.run(conn.execute("SELECT 1"))
        with asyncio.Runner(loop_factory=LOOPS["uvloop"]) as second:
            second.run(conn.execute("SELECT 1"))
        first.run(conn.execute("SELECT 1"))
        first.run(conn.close())
