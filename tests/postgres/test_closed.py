"""Every operation on a closed connection raises the error that psycopg's own raises.

None of them ends as if it were complete, hangs, or raises another error, whichever task closes the
connection and at whichever step.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import psycopg
import pytest

from asyncpool import AsyncConnectionPool, Connection
from tests._tools import few

from ._tools import BOTH_LOOPS, Backends, eventually, in_time, needs_internals, run_script

LOOPS = BOTH_LOOPS

AnyConnection = psycopg.AsyncConnection[Any]
Close = Callable[[], Awaitable[object]]
Operation = Callable[[AnyConnection, Close], Awaitable[object]]

CLOSED = "^the connection is closed"
NUMBERS = "SELECT generate_series(1, 5)"
ENDLESS = "SELECT n, CASE WHEN n > 2 THEN pg_sleep(60) END FROM generate_series(1, 9) n"


async def stream(conn: AnyConnection, close: Close, query: str = NUMBERS) -> None:
    """Close between two rows of a stream that have arrived already."""
    async for row in conn.cursor().stream(query):
        if row[0] == 2:
            await close()


async def stream_to_its_end(conn: AnyConnection, close: Close) -> None:
    """Close after the last row, before it is known to be the last."""
    async for row in conn.cursor().stream(NUMBERS):
        if row[0] == 5:
            await close()


async def stream_much(conn: AnyConnection, close: Close) -> None:
    """Close between two rows of a stream larger than the buffers."""
    await stream(conn, close, "SELECT generate_series(1, 500000)")


async def copy_out(conn: AnyConnection, close: Close) -> None:
    """Close between two blocks of a COPY from the server."""
    async with conn.cursor().copy(f"COPY ({NUMBERS}) TO STDOUT") as copy:
        async for block in copy:
            if bytes(block) == b"2\n":
                await close()


async def copy_rows_out(conn: AnyConnection, close: Close) -> None:
    """Close between two rows of a COPY from the server."""
    async with conn.cursor().copy(f"COPY ({NUMBERS}) TO STDOUT") as copy:
        async for row in copy.rows():
            if row == ("2",):
                await close()


async def copy_in(conn: AnyConnection, close: Close) -> None:
    """Close between two blocks of a COPY to the server."""
    await conn.execute("CREATE TEMP TABLE t (x int)")
    async with conn.cursor().copy("COPY t FROM STDIN") as copy:
        await copy.write("1\n")
        await close()
        await copy.write("2\n")


async def copy_in_to_its_end(conn: AnyConnection, close: Close) -> None:
    """Close after the last row of a COPY to the server."""
    await conn.execute("CREATE TEMP TABLE t (x int)")
    async with conn.cursor().copy("COPY t FROM STDIN") as copy:
        await copy.write_row((1,))
        await close()


async def notifies(conn: AnyConnection, close: Close) -> None:
    """Close between two notifications."""
    await conn.set_autocommit(True)
    await conn.execute("LISTEN c")
    await conn.execute("NOTIFY c")
    async with aclosing(conn.notifies()) as each:
        async for _ in each:
            await close()


async def pipeline(conn: AnyConnection, close: Close) -> None:
    """Close between two statements in a pipeline."""
    async with conn.pipeline():
        await conn.execute(NUMBERS)
        await close()
        await conn.execute(NUMBERS)


async def pipeline_to_its_end(conn: AnyConnection, close: Close) -> None:
    """Close after the last statement in a pipeline."""
    async with conn.pipeline():
        await conn.execute(NUMBERS)
        await close()


async def pipeline_sync(conn: AnyConnection, close: Close) -> None:
    """Close before the statements of a pipeline are sent."""
    async with conn.pipeline() as pipe:
        await conn.execute(NUMBERS)
        await close()
        await pipe.sync()


async def pipeline_fetch(conn: AnyConnection, close: Close) -> None:
    """Close before a result of a pipeline is fetched."""
    async with conn.pipeline():
        cur = await conn.execute(NUMBERS)
        await close()
        await cur.fetchone()


async def transaction_in_a_pipeline(conn: AnyConnection, close: Close) -> None:
    """Close before the end of a transaction in a pipeline."""
    async with conn.pipeline(), conn.transaction():
        await conn.execute(NUMBERS)
        await close()


async def server_cursor(conn: AnyConnection, close: Close) -> None:
    """Close between two pages of a server-side cursor."""
    async with conn.cursor("c") as cur:
        cur.itersize = 2
        await cur.execute(NUMBERS)
        async for row in cur:
            if row == (2,):
                await close()


UNDER_WAY = [
    *(stream, stream_to_its_end, stream_much, copy_out, copy_rows_out, copy_in, copy_in_to_its_end),
    *(notifies, pipeline, pipeline_to_its_end, pipeline_sync, pipeline_fetch),
    *(transaction_in_a_pipeline, server_cursor),
]

NEXT: dict[str, Operation] = {
    "execute": lambda conn, _: conn.execute("SELECT 1"),
    "commit": lambda conn, _: conn.commit(),
    "rollback": lambda conn, _: conn.rollback(),
    "set_autocommit": lambda conn, _: conn.set_autocommit(True),
    "set_isolation_level": lambda conn, _: conn.set_isolation_level(None),
    "set_read_only": lambda conn, _: conn.set_read_only(True),
    "set_deferrable": lambda conn, _: conn.set_deferrable(True),
    "tpc_begin": lambda conn, _: conn.tpc_begin("x"),
    "tpc_recover": lambda conn, _: conn.tpc_recover(),
    "notifies": lambda conn, _: anext(conn.notifies()),
    "transaction": lambda conn, _: conn.transaction().__aenter__(),
    "pipeline": lambda conn, _: conn.pipeline().__aenter__(),
}

OF_A_CURSOR: dict[str, Callable[[psycopg.AsyncCursor[Any]], Awaitable[object]]] = {
    "execute": lambda cur: cur.execute("SELECT 1"),
    "executemany": lambda cur: cur.executemany("SELECT %s", [(1,), (2,)]),
    "stream": lambda cur: anext(cur.stream("SELECT 1")),
    "copy": lambda cur: cur.copy("COPY (SELECT 1) TO STDOUT").__aenter__(),
}

OF_A_SERVER_CURSOR: dict[str, Callable[[Any], Awaitable[object]]] = {
    "fetchone": lambda cur: cur.fetchone(),
    "fetchmany": lambda cur: cur.fetchmany(2),
    "fetchall": lambda cur: cur.fetchall(),
    "anext": lambda cur: anext(aiter(cur)),
    "scroll": lambda cur: cur.scroll(1),
}


@pytest.fixture(params=[psycopg.AsyncConnection, Connection], ids=["psycopg", "asyncpool"])
async def either(request: pytest.FixtureRequest, dsn: str) -> AsyncIterator[AnyConnection]:
    """A connection of psycopg's class, and one of `asyncpool.Connection`."""
    conn = await request.param.connect(dsn)
    yield conn
    await conn.close()


@pytest.mark.parametrize("operation", NEXT.values(), ids=NEXT)
async def test_an_operation_on_a_closed_connection_raises(
    either: AnyConnection, operation: Operation
) -> None:
    """Operations without I/O, such as a change of the mode, raise too."""
    await either.close()
    with pytest.raises(psycopg.OperationalError, match=CLOSED):
        await in_time(operation(either, either.close))


@pytest.mark.parametrize("operation", OF_A_CURSOR.values(), ids=OF_A_CURSOR)
async def test_a_cursor_of_a_closed_connection_raises(
    either: AnyConnection, operation: Callable[[psycopg.AsyncCursor[Any]], Awaitable[object]]
) -> None:
    """The cursor was made before the connection was closed."""
    cur = either.cursor()
    await either.close()
    with pytest.raises(psycopg.OperationalError, match=CLOSED):
        await in_time(operation(cur))


@pytest.mark.parametrize("operation", OF_A_SERVER_CURSOR.values(), ids=OF_A_SERVER_CURSOR)
async def test_a_server_side_cursor_of_a_closed_connection_raises(
    either: AnyConnection, operation: Callable[[Any], Awaitable[object]]
) -> None:
    """Fetching more rows raises too."""
    cur = either.cursor("c")
    await cur.execute(NUMBERS)
    await either.close()
    with pytest.raises(psycopg.OperationalError, match=CLOSED):
        await in_time(operation(cur))
    await cur.close()


@pytest.mark.parametrize("by", few(["its own task", "another", "pgconn.finish()"]))
@pytest.mark.parametrize("operation", UNDER_WAY)
async def test_an_operation_whose_connection_is_closed_between_its_steps_fails(
    either: AnyConnection, operation: Operation, by: str
) -> None:
    """The data that libpq has received may be incomplete, so the operation fails."""

    async def close() -> None:
        if by == "its own task":
            await either.close()
        elif by == "another":
            await asyncio.create_task(either.close())
        else:
            either.pgconn.finish()

    with pytest.raises(psycopg.OperationalError, match=CLOSED):
        await in_time(operation(either, close))
    assert either.closed


async def sleep(conn: AnyConnection, _: Close) -> None:
    """Run a statement that does not end."""
    await conn.execute("SELECT pg_sleep(60)")


async def sleep_many(conn: AnyConnection, _: Close) -> None:
    """Run executemany with statements that do not end."""
    await conn.cursor().executemany("SELECT pg_sleep(%s)", [(60,), (60,)])


async def sleep_streaming(conn: AnyConnection, _: Close) -> None:
    """Wait for a row that never comes."""
    async for _row in conn.cursor().stream(ENDLESS):
        pass


async def sleep_copying(conn: AnyConnection, _: Close) -> None:
    """Wait for a block of a COPY that never comes."""
    async with conn.cursor().copy(f"COPY ({ENDLESS}) TO STDOUT") as copy:
        async for _block in copy:
            pass


async def sleep_in_a_pipeline(conn: AnyConnection, _: Close) -> None:
    """Wait for results of a pipeline that never come."""
    async with conn.pipeline():
        await conn.execute("SELECT pg_sleep(60)")


async def sleep_in_a_transaction(conn: AnyConnection, _: Close) -> None:
    """Run a statement that does not end in a transaction block."""
    async with conn.transaction():
        await conn.execute("SELECT pg_sleep(60)")


WAITING = [sleep, sleep_many, sleep_streaming, sleep_copying, sleep_in_a_pipeline]
WAITING += [sleep_in_a_transaction]


@needs_internals
@pytest.mark.parametrize("operation", WAITING)
async def test_what_waits_for_the_server_fails_when_another_task_closes_the_connection(
    conn: Connection[Any], backends: Backends, operation: Operation
) -> None:
    """The operation fails immediately, and so does a task that waits for the connection's lock."""
    waiting = asyncio.ensure_future(operation(conn, conn.close))
    await eventually(lambda: backends.running("pg_sleep"))
    behind = asyncio.create_task(conn.commit())
    await asyncio.sleep(0)
    await conn.close()
    for task in (waiting, behind):
        with pytest.raises(psycopg.OperationalError, match=CLOSED):
            await in_time(task)
    backends.terminate()  # a backend in pg_sleep does not see that its client is gone


FINISHED_MEANWHILE = """
import asyncio, sys, psycopg
from asyncpool import Connection

SLOW = "SELECT n, pg_sleep(0.02) FROM generate_series(1, 5) n"

async def execute(conn):
    await conn.execute(SLOW)

async def many(conn):
    await conn.cursor().executemany(SLOW + " WHERE n > %s", [(0,), (1,)])

async def stream(conn):
    async for _ in conn.cursor().stream(SLOW):
        pass

async def copy(conn):
    async with conn.cursor().copy(f"COPY ({SLOW}) TO STDOUT") as copy:
        async for _ in copy:
            pass

async def pipeline(conn):
    async with conn.pipeline():
        await conn.execute(SLOW)

async def finish(operation, pause):
    conn = await Connection.connect(sys.argv[1], autocommit=True)
    task = asyncio.create_task(operation(conn))
    await asyncio.sleep(pause)
    conn.pgconn.finish()
    try:
        await task
    except psycopg.OperationalError as error:
        print(operation.__name__, error)
    await conn.close()

async def main():
    async with asyncio.TaskGroup() as tasks:
        for operation in execute, many, stream, copy, pipeline:
            for pause in 0, 0.01, 0.03, 0.05:
                tasks.create_task(finish(operation, pause))

asyncio.run(main())
"""


@needs_internals
async def test_what_waits_when_libpqs_connection_is_finished_fails(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """psycopg's generators have the pointer to it, which must not be used once it is freed."""
    monkeypatch.setenv("MALLOC_PERTURB_", "165")  # glibc: overwrite freed memory
    said = (await run_script(FINISHED_MEANWHILE, dsn)).splitlines()
    for operation in ("execute", "many", "stream", "copy", "pipeline"):
        assert f"{operation} the connection is closed" in said


@needs_internals
async def test_a_wait_for_notifications_fails_when_another_task_closes_the_connection(
    conn: Connection[Any],
) -> None:
    """Otherwise the task would wait for ever."""
    waiting = asyncio.ensure_future(anext(conn.notifies()))
    await eventually(conn.lock.locked)
    await conn.close()
    with pytest.raises(psycopg.OperationalError, match=CLOSED):
        await in_time(waiting)


@pytest.mark.parametrize("operation", [*UNDER_WAY, *WAITING])
async def test_what_is_under_way_when_the_pool_is_closed_fails(
    dsn: str, backends: Backends, operation: Operation
) -> None:
    """The operation raises, so that a part of its data is not taken for all of it."""
    pool = AsyncConnectionPool(dsn, min_size=1, max_size=1)
    await pool.open()

    async def work() -> None:
        async with pool.connection() as conn:
            await operation(conn, lambda: pool.close(timeout=0))

    working = asyncio.create_task(work())
    if operation in WAITING:
        await eventually(lambda: backends.running("pg_sleep"))
        await pool.close(timeout=0)
    with pytest.raises(psycopg.OperationalError):
        await in_time(working)
    await pool.close()
