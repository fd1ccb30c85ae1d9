"""Cancellation, asyncio's and anyio's, once and twice, at every stage: nothing is lost by it.

After each storm the books must add up, nothing may be lent, and every connection has to answer.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import anyio
import psycopg
import pytest

from asyncpool import AsyncConnectionPool, PoolError, TooManyRequests

from ._tools import LIMIT, Backends, Proxy, all_usable, at_rest, eventually, in_time

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from asyncpool.testing import Server

    Conn = psycopg.AsyncConnection[Any]

Kind = Literal["cancel", "cancel twice", "scope", "timeout"]
KINDS: tuple[Kind, ...] = ("cancel", "cancel twice", "scope", "timeout")


async def block(pool: AsyncConnectionPool, query: str) -> None:
    async with pool.connection() as conn:
        await conn.execute(query.encode())


async def transaction(pool: AsyncConnectionPool, query: str) -> None:
    async with pool.transaction() as conn:
        await conn.execute(query.encode())
        async with conn.transaction():
            await conn.execute(query.encode())


async def cursor(pool: AsyncConnectionPool, query: str) -> None:
    async with pool.cursor() as cur:
        await cur.execute(query.encode())


async def by_hand(pool: AsyncConnectionPool, query: str) -> None:
    conn = await pool.acquire()
    try:
        await conn.execute(query.encode())
    finally:
        await pool.release(conn)


async def one_shot(pool: AsyncConnectionPool, query: str) -> None:
    await pool.fetchall(query.encode())


async def stream(pool: AsyncConnectionPool, query: str) -> None:
    async with pool.connection() as conn, conn.cursor() as cur:
        async for _ in cur.stream(query.encode()):
            await asyncio.sleep(0)


WAYS = [block, transaction, cursor, by_hand, one_shot, stream]
QUERIES = ["SELECT 1", "SELECT pg_sleep(0.02)", "SELECT generate_series(1, 500)", "SELECT 1/0"]


async def torment(kind: Kind, work: Awaitable[None], rng: random.Random) -> str:
    """Run work, stop it somewhere on its way, and say how it ended."""
    pause = rng.choice([0, 0.0001, 0.001, 0.005, 0.02, LIMIT])
    if kind == "scope":
        with anyio.move_on_after(pause) as scope:
            with suppress(psycopg.errors.DivisionByZero, TooManyRequests):
                await work
        return "stopped" if scope.cancelled_caught else "done"
    if kind == "timeout":
        try:
            async with asyncio.timeout(pause):
                with suppress(psycopg.errors.DivisionByZero, TooManyRequests):
                    await work
        except TimeoutError:
            return "stopped"
        return "done"
    task = asyncio.ensure_future(work)
    await asyncio.wait({task}, timeout=pause)
    asked = task.cancel()
    if asked and kind == "cancel twice":
        await asyncio.sleep(rng.choice([0, 0, 0.001]))
        task.cancel()
    await asyncio.wait({task})
    if task.cancelled():
        return "stopped"
    error = task.exception()
    if isinstance(error, TooManyRequests) and not asked:
        return "refused"  # as requests in such a storm may be
    assert error is None or isinstance(error, psycopg.errors.DivisionByZero), error
    assert not asked or not isinstance(error, PoolError), "a cancellation was swallowed"
    return "done"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reset", [None, "session"])
async def test_a_storm_of_cancellations_loses_nothing(
    dsn: str, backends: Backends, kind: Kind, reset: Any
) -> None:
    """In the line, at the hand-over, in the query, the commit, the roll-back and the return."""
    rng = random.Random(f"{kind} {reset}")
    async with AsyncConnectionPool(dsn, min_size=2, max_size=4, reset=reset) as pool:
        await pool.wait()

        async def task() -> Counter[str]:
            ends: Counter[str] = Counter()
            for _ in range(15):
                work = rng.choice(WAYS)(pool, rng.choice(QUERIES))
                ends[await torment(kind, work, rng)] += 1
            return ends

        ends = sum(await in_time(asyncio.gather(*(task() for _ in range(20))), 60), Counter())
        assert ends["stopped"] > 20
        assert ends["done"] > 5
        await at_rest(pool)
        assert pool.stats().leased == 0
        assert len(backends.pids()) <= 4
        await eventually(lambda: not backends.running("pg_sleep"))
        await all_usable(pool)


@pytest.mark.parametrize("kind", ["cancel", "scope"])
async def test_cancelled_queries_leave_no_backend_and_no_query_behind(
    dsn: str, backends: Backends, kind: Kind
) -> None:
    """Four long queries given up, five times: never more than four backends."""
    async with AsyncConnectionPool(dsn, min_size=4) as pool:
        await pool.wait()

        async def give_up() -> None:
            if kind == "scope":
                with anyio.move_on_after(0.05):
                    await block(pool, "SELECT pg_sleep(30)")
                return
            task = asyncio.create_task(block(pool, "SELECT pg_sleep(30)"))
            await asyncio.wait({task}, timeout=0.05)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

        async def many() -> None:
            await asyncio.gather(*(give_up() for _ in range(4)))

        try:
            for _ in range(5):
                await many()
                assert len(backends.pids()) <= 4
            await eventually(lambda: not backends.running("pg_sleep"), 5)
            await all_usable(pool)
        finally:
            backends.ask(
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
                " WHERE state = 'active' AND query LIKE %s",
                "SELECT pg_sleep(30)%",
            )


async def test_a_waiter_cancelled_in_the_step_of_its_hand_over_passes_it_on(dsn: str) -> None:
    """The next in the line gets the connection; the cancellation comes out."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        for _ in range(20):
            conn = await pool.acquire()
            first, second = (asyncio.create_task(pool.getconn()) for _ in range(2))
            await eventually(lambda: pool.stats().waiting == 2)
            await pool.release(conn)
            first.cancel()
            assert await in_time(second, 5) is conn
            assert first.cancelled()
            await pool.release(conn)
            assert (pool.stats().idle, pool.stats().leased) == (1, 0)


async def test_all_waiters_but_the_last_cancelled_in_one_step(dsn: str) -> None:
    """The one waiter left gets the connection, whatever their number."""
    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        for _ in range(10):
            lent = [await pool.acquire() for _ in range(2)]
            waiters = [asyncio.create_task(pool.getconn()) for _ in range(10)]
            await eventually(lambda: pool.stats().waiting == 10)
            for conn in lent:
                await pool.release(conn)
            for waiter in waiters[:-1]:
                waiter.cancel()
            await pool.release(await in_time(waiters[-1], 5))
            stats = pool.stats()
            assert (stats.idle, stats.leased, stats.waiting) == (2, 0, 0)


async def test_a_waiter_under_a_cancelled_scope_leaves_the_queue(dsn: str) -> None:
    """anyio cancels again at every await: that must not disturb the leaving."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        async with pool.connection():
            for _ in range(5):
                with anyio.move_on_after(0.005) as scope:
                    await pool.acquire()
                assert scope.cancelled_caught
                assert pool.stats().waiting == 0
        assert (await at_rest(pool)).requests_cancelled == 5


async def test_a_scope_cancelled_before_the_request_leaves_nothing_leased(dsn: str) -> None:
    """Whether or not the request suspends, the block's end gives the connection back."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        await pool.wait()
        with anyio.CancelScope() as scope:
            scope.cancel()
            async with pool.connection() as conn:
                await conn.execute("SELECT 1")
        await all_usable(pool)


async def test_a_commit_is_not_torn_by_a_scope(dsn: str) -> None:
    """A block that came to its end is committed, though its scope was cancelled on the way."""
    async with Proxy(dsn) as proxy, AsyncConnectionPool(proxy.dsn, min_size=1) as pool:
        await pool.execute("DROP TABLE IF EXISTS whole")
        await pool.execute("CREATE TABLE whole (x int)")
        for way in (pool.connection, pool.transaction):
            with anyio.CancelScope() as scope:
                async with way() as conn:
                    await conn.execute("INSERT INTO whole VALUES (1)")
                    scope.cancel()
        assert await pool.fetchval("SELECT count(*) FROM whole") == 2
        await pool.execute("DROP TABLE whole")


async def test_a_commit_that_is_cancelled_raises_and_gives_back(server: Server, dsn: str) -> None:
    """task.cancel() in a commit without an answer comes out; the connection is not lost."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        conns: list[psycopg.AsyncConnection[Any]] = []

        async def work() -> None:
            async with pool.connection() as conn:
                await conn.execute("SELECT 1")
                await server.pause()
                conns.append(conn)

        task = asyncio.create_task(work())
        await eventually(lambda: conns and conns[0].lock.locked())
        task.cancel()
        await asyncio.sleep(0)
        await server.resume()
        await in_time(asyncio.wait({task}))
        assert task.cancelled()
        await all_usable(pool)


@pytest.mark.parametrize("callback", ["check", "configure", "reset"])
@pytest.mark.parametrize("times", [1, 2])
async def test_cancelled_in_a_callback_the_cancellation_comes_out(
    dsn: str, callback: str, times: int
) -> None:
    """The callback is not tried again, and the connection is not lost."""
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def wait(conn: Conn) -> None:
        inside.set()
        await go_on.wait()

    given: dict[str, Any] = {callback: wait}
    async with AsyncConnectionPool(dsn, min_size=1, **given) as pool:
        if callback != "configure":
            await pool.wait()
        if callback == "reset":
            await pool.release(await pool.acquire())
        task = asyncio.create_task(pool.getconn())
        await in_time(inside.wait())
        await eventually(lambda: pool.stats().waiting or callback == "check")
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        await in_time(asyncio.wait({task}), 5)
        assert task.cancelled()
        assert (pool.stats().leased, pool.stats().waiting) == (0, 0)
        go_on.set()
        await all_usable(pool)
        assert pool.stats().connects == 1


async def test_a_cancelled_borrower_does_not_wait_for_the_roll_back(
    server: Server, dsn: str
) -> None:
    """On a server that does not answer, leaving the block takes no round trip."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        entered = asyncio.Event()

        async def work() -> None:
            async with pool.connection() as conn:
                await conn.execute("SELECT 1")
                entered.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await in_time(entered.wait())
        await server.pause()
        task.cancel()
        await asyncio.wait({task}, timeout=2)
        assert task.cancelled()
        assert (pool.stats().leased, pool.stats().cleaning) == (0, 1)
        await server.resume()
        await all_usable(pool)


async def test_a_cancelled_opener_does_not_close_the_pool(dsn: str) -> None:
    """`wait()` given up by one is still there for another."""
    async with Proxy(dsn) as proxy, AsyncConnectionPool(proxy.dsn, min_size=2) as pool:
        proxy.delay = 0.1
        first = asyncio.create_task(pool.wait())
        other = asyncio.create_task(pool.wait())
        await eventually(lambda: proxy.connecting == 2)
        first.cancel()
        await in_time(other)
        assert first.cancelled()
        await pool.wait()
        assert pool.stats().idle == 2


async def test_a_cancelled_one_shot_in_autocommit_leaves_the_mode_as_it_was(
    dsn: str, backends: Backends
) -> None:
    """The next borrower's connection begins a transaction, as it should."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        task = asyncio.create_task(pool.execute("SELECT pg_sleep(30)"))
        await eventually(lambda: backends.running("pg_sleep"))
        task.cancel()
        await in_time(asyncio.wait({task}), 10)
        assert task.cancelled()
        async with pool.connection() as conn:
            assert conn.autocommit is False
            await conn.execute("SELECT 1")
            assert conn.pgconn.transaction_status == psycopg.pq.TransactionStatus.INTRANS


async def test_a_cancelled_health_check_keeps_no_connection(server: Server, dsn: str) -> None:
    """The ping goes on in the pool's own task, whoever asked for it."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        await pool.wait()
        await server.pause()
        task = asyncio.create_task(pool.health(timeout=30))
        await eventually(lambda: pool.stats().cleaning)
        task.cancel()
        await asyncio.wait({task}, timeout=5)
        assert task.cancelled()
        await server.resume()
        await all_usable(pool)
