"""Connections that are not returned: reported, taken back, or detected as a deadlock."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import psycopg
import pytest
from psycopg import sql

from asyncpool import AsyncConnectionPool, Connection, PoolDeadlock, PoolTimeout
from tests._tools import few

from ._tools import BOTH_LOOPS, Backends, all_usable, at_rest, eventually, in_time

LOOPS = BOTH_LOOPS

Pool = AsyncConnectionPool[Any]
Block = Callable[[Pool], AbstractAsyncContextManager[Any]]
BLOCKS: dict[str, Block] = {
    "connection": lambda pool: pool.connection(),
    "transaction": lambda pool: pool.transaction(),
    "cursor": lambda pool: pool.cursor(),
    "acquire": lambda pool: pool.acquire(),
}


def warnings(caplog: pytest.LogCaptureFixture, part: str) -> list[str]:
    """Return the warnings that contain a text."""
    messages = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    return [each for each in messages if part in each]


@pytest.mark.parametrize(
    ("outer", "inner"),
    [*zip(BLOCKS, BLOCKS, strict=True), ("connection", "cursor"), ("acquire", "connection")],
)
async def test_a_block_inside_a_block_that_can_never_begin_is_told_so(
    dsn: str, outer: str, inner: str
) -> None:
    """The error has the stack of the task that holds the connection; the pool goes on."""

    async def greedy_handler(pool: Pool) -> None:
        async with BLOCKS[outer](pool), BLOCKS[inner](pool):
            raise AssertionError("there were two")

    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        task = asyncio.create_task(greedy_handler(pool), name="greedy")
        with pytest.raises(PoolDeadlock, match=r"greedy waits at .*greedy_handler"):
            await in_time(task)
        await all_usable(pool)


async def test_what_was_acquired_for_somebody_else_is_no_deadlock(dsn: str) -> None:
    """Any task may release it, so that only the time limit ends the wait."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        conn = await pool.acquire()
        with pytest.raises(PoolTimeout) as caught:
            await pool.acquire(timeout=1.0)
        assert not isinstance(caught.value, PoolDeadlock)
        await pool.release(conn)


@pytest.mark.parametrize("pipeline", [True, False])
async def test_one_shots_inside_a_block_raise_a_deadlock_too(dsn: str, pipeline: bool) -> None:
    """Also one-shots that share a connection, for which another task waits."""
    async with AsyncConnectionPool(dsn, min_size=2, pipeline=pipeline) as pool:
        both = asyncio.Barrier(2)

        async def greedy() -> None:
            async with pool.connection():
                await both.wait()
                await pool.fetchval("SELECT 1")

        ends = await in_time(asyncio.gather(greedy(), greedy(), return_exceptions=True))
        assert [type(end) for end in ends if end is not None] == [PoolDeadlock]
        assert pool.stats().requests_failed == 1
        await all_usable(pool)


async def test_a_block_keeps_its_connection_though_its_task_has_ended(dsn: str) -> None:
    """A block entered by hand, as for an application's lifetime, is no leak."""
    stack = AsyncExitStack()

    async def start(pool: Pool) -> None:
        conn = await stack.enter_async_context(pool.connection())
        await conn.execute("SELECT pg_advisory_lock(42)")

    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        await asyncio.create_task(start(pool))
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=1.0)
        await stack.aclose()
        assert pool.stats().leaks == 0


@pytest.mark.parametrize("kind", few([Connection, psycopg.AsyncConnection]))
async def test_a_connection_that_listens_is_not_taken_back(
    dsn: str, backends: Backends, kind: type[Any]
) -> None:
    """Its notify handlers are in use, although nothing refers to the connection."""
    heard: list[str] = []

    async def start(pool: Pool) -> None:
        conn = await pool.acquire()
        await conn.set_autocommit(True)
        conn.add_notify_handler(lambda notify: heard.append(notify.payload))
        await conn.execute("LISTEN here")

    async with AsyncConnectionPool(dsn, min_size=1, connection_class=kind) as pool:
        await asyncio.create_task(start(pool))
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=1.0)
        assert pool.stats().leaks == 0
        if kind is Connection:
            backends.ask("NOTIFY here, 'still'")
            await eventually(lambda: heard == ["still"])
        (lent,) = pool._core.ledger.leased
        await pool.release(lent)


async def test_a_lease_that_lasts_too_long_is_reported_once_with_all_facts(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The report has the task, place, age, state, and last statement without its values."""

    async def slow_handler(pool: Pool, go_on: asyncio.Event) -> None:
        async with pool.connection() as conn:
            mark = sql.SQL("SELECT {}, %s::text AS {}")
            query = mark.format(sql.Literal("secret"), sql.Identifier("mark"))
            await conn.execute(query, ["secret"])
            await go_on.wait()

    async with AsyncConnectionPool(dsn, min_size=1, leak_timeout=0.2) as pool:
        await pool.fetchval("SELECT 'of another'")
        go_on = asyncio.Event()
        task = asyncio.create_task(slow_handler(pool, go_on), name="slow")
        await eventually(lambda: pool.stats().leaks)
        await asyncio.sleep(0.5)
        (report,) = warnings(caplog, "longer than leak_timeout")
        place = f"{__file__}:{slow_handler.__code__.co_firstlineno + 1} in"
        assert f"borrowed at {place}" in report
        assert "by slow" in report
        assert "its task is at" in report
        assert "transaction status INTRANS" in report
        assert "last statement 'SELECT %s, %s::text AS \"mark\"'" in report
        assert "secret" not in report
        assert f"borrowed at {place}" in str(pool.explain())
        go_on.set()
        await task
        assert pool.stats().leaks == 1


class OwnGetconn(AsyncConnectionPool[Any]):
    """A subclass that changes how a connection is borrowed."""

    async def getconn(self, timeout: float | None = None, **_: Any) -> Any:
        """Borrow."""
        return await super().getconn(timeout)


@pytest.mark.parametrize("kind", [AsyncConnectionPool, OwnGetconn])
@pytest.mark.parametrize("block", BLOCKS)
async def test_each_way_to_borrow_is_traced(
    dsn: str, caplog: pytest.LogCaptureFixture, block: str, kind: type[Pool]
) -> None:
    """Also if the connection is handed over by a releasing task."""

    async def borrower(pool: Pool, leave: asyncio.Event) -> None:
        async with BLOCKS[block](pool):
            await leave.wait()

    async with kind(dsn, min_size=1, leak_timeout=0.2) as pool:
        conn = await pool.acquire()
        leave = asyncio.Event()
        task = asyncio.create_task(borrower(pool, leave))
        await eventually(lambda: pool.stats().waiting)
        await pool.release(conn)
        await eventually(lambda: warnings(caplog, "longer than leak_timeout"))
        line = borrower.__code__.co_firstlineno + 1
        report = "\n".join(warnings(caplog, "longer than leak_timeout"))
        assert f"{__file__}:{line} in" in report
        leave.set()
        await task


ONE_SHOTS: dict[str, Callable[[Pool], Awaitable[Any]]] = {
    "executemany": lambda pool: pool.executemany("SELECT pg_sleep(%s)", [[0.5]]),
    "batch": lambda pool: pool.batch([("SELECT pg_sleep(%s)", [0.5])]),
    "execute": lambda pool: pool.execute("SELECT 1; SELECT pg_sleep(0.5)"),
}


@pytest.mark.parametrize("shot", ONE_SHOTS)
async def test_a_one_shot_is_traced_to_the_program(
    dsn: str, caplog: pytest.LogCaptureFixture, shot: str
) -> None:
    """Not to the library that is between the pool's own frames."""
    async with AsyncConnectionPool(dsn, min_size=1, leak_timeout=0.2) as pool:
        await ONE_SHOTS[shot](pool)
    (told,) = warnings(caplog, "longer than leak_timeout")
    assert f"borrowed at {__file__}:" in told
    assert "contextlib" not in told


async def use_it_in_every_way(pool: Pool) -> None:
    """Use a connection in every way without leaving a reference to it."""
    async with pool.connection() as conn:
        await (await conn.execute("SELECT %s", [1])).fetchone()
        async with conn.cursor() as cur:
            await cur.execute("SELECT 1")
            async with cur.copy("COPY (SELECT 1) TO STDOUT") as copy:
                async for _ in copy:
                    pass
            async for _ in cur.stream("SELECT 1"):
                pass
        async with conn.transaction(), conn.pipeline():
            await conn.execute("SELECT 2")
        with pytest.raises(psycopg.errors.DivisionByZero):
            await conn.execute("SELECT 1/0")
        await conn.rollback()


@pytest.mark.parametrize("kind", few([Connection, psycopg.AsyncConnection]))
async def test_what_was_never_returned_is_taken_back(
    dsn: str, caplog: pytest.LogCaptureFixture, kind: type[Any]
) -> None:
    """The task has ended and nothing refers to the connection; its work is rolled back."""

    async def careless_handler(pool: Pool) -> None:
        conn = await pool.acquire()
        cur = await conn.execute("CREATE TABLE IF NOT EXISTS never_seen (x int)")
        await cur.execute("INSERT INTO never_seen VALUES (1)")

    async with AsyncConnectionPool(
        dsn, min_size=1, leak_timeout=60.0, connection_class=kind
    ) as pool:
        for _ in range(3):
            await pool.fetchval("SELECT 1")
            await use_it_in_every_way(pool)
            await asyncio.create_task(careless_handler(pool), name="careless")
            async with pool.connection(timeout=10.0) as conn:
                cur = await conn.execute("SELECT to_regclass('never_seen')")
                assert await cur.fetchone() == (None,)
            del conn, cur  # references of this frame
        report = warnings(caplog, "was never returned and is reclaimed")
        assert len(report) == pool.stats().leaks == 3
        assert all("by careless (ended)" in each for each in report)
        assert all("careless_handler" in each for each in report)
        assert pool.stats().connects == 1


async def test_a_reclaimed_connection_does_not_keep_its_pool_alive(dsn: str) -> None:
    """It belongs to no pool while it is idle, although it needed no rollback."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:

        async def forget() -> None:
            await pool.acquire()

        await asyncio.create_task(forget())
        pool._core.lease_monitor.reclaim()
        await at_rest(pool)
        (entry,) = pool._core.ledger.idle
        assert entry.conn._pool is None


async def test_what_a_cursor_still_has_is_not_taken_back(dsn: str) -> None:
    """Nor is a connection that another task uses after its borrower has ended."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:

        async def cursor() -> psycopg.AsyncCursor[Any]:
            return (await pool.acquire()).cursor()

        cur = await asyncio.create_task(cursor())
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=1.0)
        await cur.execute("SELECT 1")
        assert await cur.fetchone() == (1,)
        assert pool.stats().leaks == 0
        await pool.release(cur.connection)
        del cur
        await at_rest(pool)


async def test_a_handler_that_died_with_its_connection_is_seen_through(dsn: str) -> None:
    """The exception refers to the connection through its frames for as long as it is kept."""

    async def dies(pool: Pool) -> None:
        conn = await pool.acquire()
        await conn.execute("SELECT 1/0")

    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        task = asyncio.create_task(dies(pool))
        await asyncio.wait({task})
        error = task.exception()
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=1.0)
        assert isinstance(error, psycopg.errors.DivisionByZero)
        del task, error
        async with pool.connection(timeout=10.0):
            assert pool.stats().leaks == 1
