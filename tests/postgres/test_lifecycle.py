"""The life of a pool from open to close, and that nothing is left afterwards."""

from __future__ import annotations

import asyncio
import gc
import time
import warnings
import weakref
from typing import TYPE_CHECKING, Any

import anyio
import psycopg
import pytest

from asyncpool import AsyncConnectionPool, AsyncNullConnectionPool, PoolClosed, PoolTimeout
from tests._tools import at_once

from ._tools import (
    Backends,
    Proxy,
    all_usable,
    at_rest,
    descriptors,
    eventually,
    in_time,
    linux,
    needs_internals,
    sockets,
)

if TYPE_CHECKING:
    from asyncpool.testing import Server


def test_a_pool_is_made_without_a_loop_and_without_cost() -> None:
    """The constructor does not connect, and dropping an unopened pool gives no warning."""
    pool = AsyncConnectionPool("host=nowhere.invalid", min_size=3)
    assert pool.closed
    assert pool.stats().size == 0
    del pool
    gc.collect()


async def test_the_first_use_opens_the_pool(dsn: str) -> None:
    """`open=True`, the default, needs no call of `open()`."""
    pool = AsyncConnectionPool(dsn, min_size=2)
    assert pool.closed
    assert await pool.fetchval("SELECT 1") == 1
    assert not pool.closed
    assert (await at_rest(pool)).size == 2
    await pool.close()


async def test_a_pool_with_open_false_says_how_to_open_it(dsn: str) -> None:
    """With `open=False` a use before `open()` raises an error that says how to open it."""
    pool = AsyncConnectionPool(dsn, min_size=1, open=False)
    for use in (pool.acquire, pool.wait, pool.check, pool.drain):
        with pytest.raises(PoolClosed, match=r"not open yet.*async with pool"):
            await use()
    with pytest.raises(PoolClosed, match="not open yet"):
        async with pool.connection():
            pass
    await pool.open(wait=True)
    assert pool.stats().idle == 1
    await pool.close()


async def test_open_waits_only_if_asked_to(dsn: str) -> None:
    """Without `wait` it does not suspend; with `wait` it returns when `min_size` are open."""
    async with Proxy(dsn) as proxy:
        proxy.delay = 0.05
        pool = AsyncConnectionPool(proxy.dsn, min_size=3)
        at_once(pool.open())
        assert pool.stats().idle == 0
        await pool.open(wait=True)
        assert pool.stats().idle == 3
        await pool.close()


async def test_open_may_be_called_again_while_it_is_open(dsn: str) -> None:
    """Many tasks may open one pool; it is opened once."""
    pool = AsyncConnectionPool(dsn, min_size=2)
    await asyncio.gather(*(pool.open(wait=True) for _ in range(5)))
    async with pool:
        assert pool.stats().connects == 2
    assert pool.closed


async def test_a_closed_pool_is_not_opened_again(dsn: str) -> None:
    """Both `open()` and a use raise PoolClosed."""
    pool = AsyncConnectionPool(dsn, min_size=1)
    await pool.open(wait=True)
    await pool.close()
    for use in (pool.open, pool.wait, pool.acquire, pool.check, pool.drain, pool.__aenter__):
        with pytest.raises(PoolClosed, match="is already closed"):
            await use()
    with pytest.raises(PoolClosed, match="is already closed"):
        await pool.fetchval("SELECT 1")


async def test_wait_may_be_called_by_many_and_at_any_time(dsn: str) -> None:
    """Concurrent calls, repeated calls and calls after a cancelled one work."""
    async with Proxy(dsn) as proxy:
        proxy.delay = 0.05
        async with AsyncConnectionPool(proxy.dsn, min_size=2) as pool:
            cancelled = asyncio.create_task(pool.wait())
            await asyncio.sleep(0)
            cancelled.cancel()
            await asyncio.gather(pool.wait(), pool.wait())
            at_once(pool.wait())


async def test_wait_out_of_time_closes_the_pool(dsn: str) -> None:
    """The connections that were opened are closed too, and the error counts them."""
    async with Proxy(dsn) as proxy:
        proxy.hung = 1
        pool = AsyncConnectionPool(proxy.dsn, min_size=3)
        with pytest.raises(PoolTimeout, match="2 of 3"):
            await pool.open(wait=True, timeout=0.5)
        assert pool.closed
        assert pool.stats().size == 0


@pytest.mark.parametrize("kind", [AsyncConnectionPool, AsyncNullConnectionPool])
async def test_a_reset_that_takes_long_does_not_close_a_pool_that_is_full(
    dsn: str, kind: Any
) -> None:
    """A connection that is being reset is open: `wait` returns when its time is up."""
    least = int(kind is AsyncConnectionPool)
    async with Proxy(dsn) as proxy, kind(proxy.dsn, min_size=least, max_size=1) as pool:
        conn = await pool.acquire()
        await conn.execute("SELECT 1")
        proxy.open_way.clear()
        waiting = pool.acquire()  # else a pool without idle connections would close this one
        task = asyncio.ensure_future(waiting)
        await asyncio.sleep(0)
        await pool.release(conn)
        await eventually(lambda: pool.stats().cleaning)
        await in_time(pool.wait(timeout=0.05))
        assert not pool.closed
        proxy.open_way.set()
        await pool.release(await in_time(task))


async def test_wait_does_not_count_a_connection_whose_reset_fails_meanwhile(dsn: str) -> None:
    """It was open when the wait began; the one in its place is not open in time."""
    may_fail = asyncio.Event()

    async def reset(_: Any) -> None:
        await may_fail.wait()
        raise LookupError

    async with (
        Proxy(dsn) as proxy,
        AsyncConnectionPool(proxy.dsn, min_size=1, reset=reset) as pool,
    ):
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")
        await eventually(lambda: pool.stats().cleaning)
        waiting = asyncio.create_task(pool.wait(timeout=0.5))
        await asyncio.sleep(0)
        proxy.open_way.clear()
        may_fail.set()
        with pytest.raises(PoolTimeout, match="0 of 1 connections are open"):
            await in_time(waiting)
        assert pool.closed


@pytest.mark.parametrize("use", ["acquire", "wait"])
async def test_close_wakes_all_who_wait(dsn: str, use: str) -> None:
    """Each waiter gets PoolClosed at once, despite a hung connect and a leased connection."""
    async with Proxy(dsn) as proxy:
        proxy.hung = 1
        pool = AsyncConnectionPool(proxy.dsn, min_size=2)
        conn = await pool.acquire()
        waiters = [asyncio.create_task(getattr(pool, use)()) for _ in range(5)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(pool.close(timeout=30))
        try:
            ends = await in_time(asyncio.gather(*waiters, return_exceptions=True), 3)
            assert {type(end) for end in ends} == {PoolClosed}
            assert not closing.done()
        finally:
            await pool.release(conn)
            await in_time(closing)


async def test_close_waits_for_leased_connections(dsn: str) -> None:
    """The borrower commits its work, and then the pool closes without delay."""
    pool = AsyncConnectionPool(dsn, min_size=2)
    async with pool.connection() as conn:
        await conn.execute("DROP TABLE IF EXISTS last_words")
        await conn.execute("CREATE TABLE last_words (x int)")
        closing = asyncio.create_task(pool.close(timeout=30))
        await eventually(lambda: pool.closed)
        await conn.execute("INSERT INTO last_words VALUES (1)")
        assert not closing.done()
    await in_time(closing, 10)
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        cur = await conn.execute("SELECT count(*) FROM last_words")
        assert await cur.fetchone() == (1,)
        await conn.execute("DROP TABLE last_words")


async def test_close_ends_leases_at_its_limit(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    """After `timeout` the connection is closed, and the borrower's block raises PoolClosed."""
    pool = AsyncConnectionPool(dsn, min_size=1)
    with pytest.raises(PoolClosed, match="lost"):  # noqa: PT012
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")
            await in_time(pool.close(timeout=0.05), 5)
            assert conn.closed
    assert "closed while in use" in caplog.text


async def test_close_ends_a_query_that_runs_for_too_long(dsn: str, backends: Backends) -> None:
    """The borrower gets psycopg's error, and the query ends on the server."""
    pool = AsyncConnectionPool(dsn, min_size=1)

    async def work() -> None:
        async with pool.connection() as conn:
            await conn.execute("SELECT pg_sleep(60)")

    task = asyncio.create_task(work())
    await eventually(lambda: backends.running("pg_sleep"))
    await in_time(pool.close(timeout=0.05), 10)
    await in_time(asyncio.wait({task}), 5)
    assert isinstance(task.exception(), psycopg.OperationalError)
    await eventually(lambda: not backends.pids())


async def test_close_does_not_block_the_loop_where_nothing_can_be_cancelled(
    dsn: str, backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with libpq before 17: the one-shot's statement goes on when `close` has returned."""
    monkeypatch.setattr("asyncpool._psycopg.handle.prepare", lambda _: None)
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        await pool.wait()
        task = asyncio.create_task(pool.fetchval("SELECT pg_sleep(5)"))
        await eventually(lambda: backends.running("pg_sleep") == 1)
        await in_time(pool.close(0))
        assert backends.running("pg_sleep") == 1
        backends.terminate(*backends.pids())
        with pytest.raises((psycopg.OperationalError, PoolClosed)):
            await in_time(task)


async def test_what_a_borrower_does_after_that_fails_and_does_not_hang(
    dsn: str, backends: Backends
) -> None:
    """The next statement, the rollback and the end of the block find the connection closed."""

    async def work(pool: AsyncConnectionPool) -> None:
        async with pool.connection() as conn:
            with pytest.raises(psycopg.OperationalError):
                await conn.execute("SELECT pg_sleep(60)")
            await conn.execute("SELECT 1")

    for _ in range(20):
        pool = AsyncConnectionPool(dsn, min_size=2)
        await pool.wait()
        tasks = [asyncio.create_task(work(pool)), asyncio.create_task(pool.execute("SELECT 1"))]
        await in_time(tasks[1])
        tasks.append(asyncio.create_task(pool.execute("SELECT pg_sleep(60)")))
        await eventually(lambda: backends.running("pg_sleep") == 2)
        await in_time(pool.close(timeout=0), 5)
        ends = await in_time(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert isinstance(ends[0], psycopg.OperationalError)
        assert ends[1] == "SELECT 1"
        assert isinstance(ends[2], psycopg.OperationalError)


async def test_closing_many_connections_lets_other_tasks_run(dsn: str) -> None:
    """At most four in five milliseconds, however fast or slow the machine is."""
    pool = AsyncConnectionPool(dsn, min_size=20)
    await pool.open(wait=True)
    conns = [await pool.acquire() for _ in range(20)]
    for conn in conns:
        await pool.release(conn)
    began, closing, closed = time.monotonic(), asyncio.ensure_future(pool.close()), 0
    while not closing.done():
        await asyncio.sleep(0)
        closed = sum(conn.closed for conn in conns)
        # A loop that is held up closes more in one turn, but none sooner than this.
        assert closed <= 4 + 4 * (time.monotonic() - began) / 0.005
    assert closed == 20


async def test_close_twice_and_at_the_same_time(dsn: str) -> None:
    """All callers of `close()` wait for the same end."""
    pool = AsyncConnectionPool(dsn, min_size=2)
    conn = await pool.acquire()
    closings = [asyncio.create_task(pool.close(timeout=5)) for _ in range(3)]
    await eventually(lambda: pool.closed)
    await asyncio.sleep(0.05)
    assert not any(closing.done() for closing in closings)
    await pool.release(conn)
    await in_time(asyncio.gather(*closings))
    await pool.close()
    assert pool.stats().size == 0


async def test_a_pool_never_opened_may_be_closed(dsn: str) -> None:
    """The pool is closed from then on, without a connect."""
    pool = AsyncConnectionPool(dsn)
    await pool.close()
    await pool.close()
    for use in (pool.acquire, pool.open):
        with pytest.raises(PoolClosed, match="is already closed"):
            await use()


async def test_close_goes_on_under_a_cancelled_scope(dsn: str, backends: Backends) -> None:
    """A cancelled anyio scope does not interrupt `close()`."""
    pool = AsyncConnectionPool(dsn, min_size=3)
    await pool.wait()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await pool.close()
    assert pool.stats().size == 0
    assert not backends.pids()


async def test_a_block_of_the_pool_in_a_cancelled_scope_closes_it(
    dsn: str, backends: Backends
) -> None:
    """A server cancels such a scope to stop an application."""
    with anyio.move_on_after(0.1):
        async with AsyncConnectionPool(dsn, min_size=2) as pool:
            await pool.wait()
            async with pool.connection() as conn:
                await conn.execute("SELECT 1")
                await anyio.sleep_forever()
    assert pool.stats().size == 0
    assert not backends.pids()


async def test_a_cancelled_close_returns_and_the_pool_closes_by_itself(dsn: str) -> None:
    """task.cancel() ends the call at once; another caller can still wait for the end."""
    pool = AsyncConnectionPool(dsn, min_size=1)
    conn = await pool.acquire()
    closing = asyncio.create_task(pool.close(timeout=30))
    await eventually(lambda: pool.closed)
    closing.cancel()
    await asyncio.wait({closing}, timeout=5)
    assert closing.cancelled()
    await pool.release(conn)
    await in_time(pool.close(), 10)
    assert pool.stats().size == 0


async def test_close_on_a_paused_server_ends_at_its_limit(server: Server, dsn: str) -> None:
    """Idle, leased, cleaning and opening connections do not wait for an answer for ever."""
    pool = AsyncConnectionPool(dsn, min_size=3, max_size=5, ping_timeout=60)
    await pool.wait()
    await pool.acquire()
    to_clean = await pool.acquire()
    await to_clean.execute("SELECT 1")
    await server.pause()
    await pool.release(to_clean)
    requests = [asyncio.create_task(pool.acquire()) for _ in range(3)]
    checking = asyncio.create_task(pool.check())
    await eventually(lambda: pool.stats().opening == pool.stats().waiting == 2)
    started = time.monotonic()
    await in_time(pool.close(timeout=0.5))
    assert time.monotonic() - started < 5
    assert pool.stats().size == 0
    await in_time(asyncio.wait([*requests, checking]), 5)
    assert {type(request.exception()) for request in requests[1:]} == {PoolClosed}


async def test_close_while_the_server_is_down_ends_at_once(server: Server) -> None:
    """Neither a connect nor the back-off delays it."""
    await server.stop()
    pool = AsyncConnectionPool(server.dsn, min_size=2)
    await pool.open()
    await eventually(lambda: pool.stats().connects_failed)
    await in_time(pool.close(timeout=30), 3)
    attempts = pool.stats().connects
    await asyncio.sleep(0.3)
    assert pool.stats().connects == attempts


@needs_internals
@pytest.mark.skipif(not linux, reason="descriptors are counted in /proc")
async def test_nothing_is_left_after_close(dsn: str, server: Server, backends: Backends) -> None:
    """No descriptor and no task is left after work, broken connections and cancellation."""

    async def life() -> None:
        async with AsyncConnectionPool(
            dsn, min_size=2, max_size=6, reset="session", ping_interval=0.05, max_idle=0.2
        ) as pool:
            await asyncio.gather(*(pool.fetchval("SELECT 1") for _ in range(30)))
            async with pool.connection() as conn:
                await conn.close()
            task = asyncio.create_task(pool.execute("SELECT pg_sleep(60)"))
            await eventually(lambda: backends.running("pg_sleep"))
            task.cancel()
            await asyncio.wait({task})
            await pool.check()
            await pool.drain()
            await at_rest(pool)
            await server.restart()
            await pool.check()

    await life()
    gc.collect()
    before = set(descriptors())
    await life()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    gc.collect()
    assert set(descriptors()) == before


@pytest.mark.skipif(not linux, reason="descriptors are counted in /proc")
async def test_a_pool_dropped_without_close_is_collected(dsn: str, backends: Backends) -> None:
    """The pool is collected with its sockets and tasks, after one ResourceWarning that names it."""
    before = sockets()

    async def live() -> weakref.ref[AsyncConnectionPool]:
        pool = AsyncConnectionPool(dsn, min_size=3, name="forgotten", ping_interval=0.05)
        await pool.open(wait=True)
        await pool.execute("SELECT 1")
        await asyncio.sleep(0.1)
        await at_rest(pool)
        return weakref.ref(pool)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watch = await live()
        gc.collect()
        await eventually(lambda: not backends.pids())
        await eventually(lambda: len(asyncio.all_tasks()) == 1)
        shown = [(each.category, str(each.message)) for each in caught]
        caught.clear()  # the warnings hold references to the pool
    assert [category for category, _ in shown] == [ResourceWarning]
    assert "'forgotten'" in shown[0][1]
    gc.collect()
    assert watch() is None
    assert sockets() == before


async def test_a_pool_dropped_in_mid_connect_is_collected_too(dsn: str) -> None:
    """A hung connect does not keep the pool alive."""
    async with Proxy(dsn) as proxy:
        proxy.hung = 10
        pool = AsyncConnectionPool(proxy.dsn, min_size=3)
        await pool.open()
        await eventually(lambda: proxy.accepted == 3)
        with pytest.warns(ResourceWarning, match="dropped without close"):  # noqa: PT031
            del pool
            gc.collect()
        await eventually(lambda: len(asyncio.all_tasks() - proxy._tasks) == 1)


async def test_a_pool_dropped_during_a_lease_leaves_the_connection_usable(dsn: str) -> None:
    """A running block keeps its pool alive."""

    async def make() -> Any:
        pool = AsyncConnectionPool(dsn, min_size=1)
        block = pool.connection()
        return block, await block.__aenter__(), weakref.ref(pool)

    block, conn, watch = await make()
    gc.collect()
    assert watch() is not None
    await conn.execute("SELECT 1")
    await block.__aexit__(None, None, None)
    await watch().close()


async def test_open_and_close_may_be_called_in_different_tasks(dsn: str) -> None:
    """Fixtures of frameworks do this; the task that opened may have ended."""
    pool = AsyncConnectionPool(dsn, min_size=1)
    await asyncio.create_task(pool.open(wait=True))
    assert await asyncio.create_task(pool.fetchval("SELECT 1")) == 1
    await all_usable(pool)
    await asyncio.create_task(pool.close())


async def test_close_races_with_all_that_a_pool_does(dsn: str, backends: Backends) -> None:
    """Closed at any moment, every caller returns and nothing is left."""

    async def use(pool: AsyncConnectionPool) -> None:
        while True:
            async with pool.connection() as conn:
                await conn.execute("SELECT 1")

    async def stir(pool: AsyncConnectionPool) -> None:
        while True:
            await pool.drain()
            await pool.check()
            await pool.resize(1, 5)
            await asyncio.sleep(0.001)

    for moment in (0, 0.001, 0.003, 0.006, 0.01, 0.02, 0.05):
        pool = AsyncConnectionPool(dsn, min_size=2, max_size=4)
        tasks = [asyncio.create_task(use(pool)) for _ in range(8)]
        tasks += [asyncio.create_task(stir(pool)), asyncio.create_task(pool.wait())]
        await asyncio.sleep(moment)
        await in_time(pool.close(timeout=2))
        ends = await in_time(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert {type(end) for end in ends} <= {PoolClosed, type(None)}
        assert pool.stats().size == 0
        # The server takes a moment to end the backend of a connect that was cut off.
        await eventually(lambda: not backends.pids())


async def test_a_check_that_hangs_ends_in_pool_closed_when_the_pool_is_closed(dsn: str) -> None:
    """The borrower was not cancelled, so it gets no CancelledError."""

    async def check(conn: object) -> None:
        await asyncio.sleep(60)

    pool = AsyncConnectionPool(dsn, min_size=1, check=check)
    borrower = asyncio.create_task(pool.acquire(timeout=60))
    await eventually(lambda: pool.stats().leased == 1)
    await in_time(pool.close(timeout=0.05))
    with pytest.raises(PoolClosed):
        await in_time(borrower)


async def test_the_pool_may_be_closed_by_its_own_callback() -> None:
    """`reconnect_failed` may close the pool and continue, such as to end the application."""
    went_on = asyncio.Event()

    async def give_up(pool: AsyncConnectionPool) -> None:
        await pool.close()
        went_on.set()

    pool = AsyncConnectionPool(
        "host=127.0.0.1 port=1", min_size=1, reconnect_timeout=0, reconnect_failed=give_up
    )
    await pool.open()
    await in_time(went_on.wait())
    assert pool.closed
