"""Acquiring a connection: an idle one, or one from the wait queue in order, within a deadline."""

from __future__ import annotations

import asyncio
import time

import psycopg
import pytest
from psycopg.rows import dict_row

from asyncpool import AsyncConnectionPool, PoolTimeout, TooManyRequests
from tests._tools import at_once

from ._tools import (
    Backends,
    Proxy,
    all_usable,
    at_rest,
    backend_of,
    eventually,
    in_time,
)


async def test_an_idle_connection_is_leased_without_suspending(dsn: str) -> None:
    """Without an await there is nothing to cancel between the request and the connection."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        await pool.wait()
        conn = at_once(pool.acquire())
        at_once(pool.release(conn))
        block = pool.connection()
        at_once(block.__aenter__())
        at_once(block.__aexit__(None, None, None))
        assert (await at_rest(pool)).requests == 2


async def test_acquire_can_be_awaited_and_entered(dsn: str) -> None:
    """`await pool.acquire()` leaves the return to the caller; `async with` returns it."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        conn = await pool.acquire()
        assert pool.stats().leased == 1
        await pool.release(conn)
        async with pool.acquire() as again:
            assert again is conn
            assert pool.stats().leased == 1
        assert pool.stats().leased == 0


async def test_acquire_is_a_coroutine_for_asyncio(dsn: str) -> None:
    """`create_task`, `gather` and `wait_for` accept an acquisition."""
    async with AsyncConnectionPool(dsn, min_size=1, max_size=3) as pool:
        first = await asyncio.wait_for(pool.acquire(), 5)
        second = await asyncio.create_task(pool.acquire())
        (third,) = await asyncio.gather(pool.acquire())
        assert len({first, second, third}) == 3
        for conn in (first, second, third):
            await pool.release(conn)


async def test_waiters_are_served_in_the_order_of_their_coming(dsn: str) -> None:
    """The wait queue is strictly first in, first out."""
    served: list[int] = []

    async def borrow(number: int) -> None:
        async with pool.connection() as conn:
            served.append(number)
            await conn.execute("SELECT 1")

    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        await pool.wait()
        async with asyncio.TaskGroup() as group:
            for number in range(30):
                group.create_task(borrow(number))
    assert served == list(range(30))


async def test_a_newcomer_does_not_overtake_a_waiter(dsn: str) -> None:
    """A returned connection belongs to the first waiter even before its task runs."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        conn = await pool.acquire()
        waiter = asyncio.create_task(pool.acquire())
        await eventually(lambda: pool.stats().waiting == 1)
        await pool.release(conn)
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=0)
        assert await waiter is conn
        await pool.release(conn)


async def test_a_timeout_of_zero_takes_an_idle_connection_or_fails_at_once(dsn: str) -> None:
    """A request with `timeout=0` does not join the wait queue."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        await pool.wait()
        conn = at_once(pool.acquire(timeout=0))
        with pytest.raises(PoolTimeout):
            at_once(pool.acquire(timeout=0))
        await pool.release(conn)
        assert pool.stats().requests_queued == 0


async def test_a_request_out_of_time_leaves_with_the_numbers(dsn: str) -> None:
    """PoolTimeout has the sizes and the longest lease, in its message and as attributes."""
    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        await pool.wait()
        async with pool.connection(), pool.connection():
            with pytest.raises(
                PoolTimeout, match=r"within 0\.05 s.*max_size=2.*leased=2"
            ) as caught:
                await pool.acquire(timeout=0.05)
        error = caught.value
        assert (error.timeout, error.max_size, error.size, error.leased) == (0.05, 2, 2, 2)
        assert error.waiting == 1
        assert error.longest_lease >= 0.04
        assert error.__cause__ is None
        assert (await at_rest(pool)).requests_failed == 1


async def test_the_pools_own_timeout_holds_where_a_call_gives_none(dsn: str) -> None:
    """The constructor's `timeout=` is the default of every request."""
    async with AsyncConnectionPool(dsn, min_size=1, timeout=0.05) as pool:
        await pool.wait()
        async with pool.connection():
            with pytest.raises(PoolTimeout, match=r"0\.05 s"):
                await pool.fetchval("SELECT 1")
            waiter = asyncio.create_task(pool.acquire(timeout=60))
            with pytest.raises(PoolTimeout):
                await pool.acquire()
            assert not waiter.done()
        await pool.release(await waiter)


async def test_max_waiting_limits_the_wait_queue(dsn: str) -> None:
    """With a full wait queue the next request fails at once."""
    async with AsyncConnectionPool(dsn, min_size=1, max_waiting=2) as pool:
        conn = await pool.acquire()
        waiters = [asyncio.create_task(pool.acquire()) for _ in range(2)]
        await eventually(lambda: pool.stats().waiting == 2)
        with pytest.raises(TooManyRequests) as caught:
            await pool.acquire()
        assert (caught.value.waiting, caught.value.max_waiting) == (2, 2)
        await pool.release(conn)
        for waiter in waiters:
            await pool.release(await waiter)


@pytest.mark.parametrize("leaving", ["cancelled", "out of time"])
async def test_max_waiting_counts_only_those_who_wait(dsn: str, leaving: str) -> None:
    """A waiter that was cancelled or timed out frees its place."""
    async with AsyncConnectionPool(dsn, min_size=1, max_waiting=1) as pool:
        conn = await pool.acquire()
        for _ in range(3):
            waiter = asyncio.create_task(
                pool.acquire(timeout=60 if leaving == "cancelled" else 0.01)
            )
            await eventually(lambda: pool.stats().requests_queued and not pool.stats().idle)
            if leaving == "cancelled":
                await eventually(lambda: pool.stats().waiting == 1)
                waiter.cancel()
            await asyncio.wait({waiter})
            assert pool.stats().waiting == 0
            if not waiter.cancelled():
                assert isinstance(waiter.exception(), PoolTimeout)
        last = asyncio.create_task(pool.acquire())
        await eventually(lambda: pool.stats().waiting == 1)
        await pool.release(conn)
        await pool.release(await last)


async def test_a_requester_that_gives_up_leaves_its_connect_running(dsn: str) -> None:
    """With short deadlines the pool still gets connections."""
    async with Proxy(dsn) as proxy:
        proxy.delay = 0.2
        async with AsyncConnectionPool(proxy.dsn, min_size=0, max_size=1) as pool:
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=0.02)
            cancelled = asyncio.create_task(pool.acquire())
            await eventually(lambda: pool.stats().waiting == 1)
            cancelled.cancel()
            await eventually(lambda: pool.stats().idle == 1)
            assert (proxy.accepted, pool.stats().connects) == (1, 1)


async def test_a_release_at_the_moment_of_a_deadline_loses_nothing(dsn: str) -> None:
    """The waiter gets its error or the connection, and the counters add up in both cases."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        await pool.wait()
        outcomes = set()
        for round_ in range(40):
            conn = await pool.acquire()
            waiter = asyncio.create_task(pool.acquire(timeout=0.01))
            await asyncio.sleep(0)
            # Block the loop, so that the timer and this task are due in the same step.
            time.sleep(0.0095 if round_ % 2 else 0.011)  # noqa: ASYNC251
            await asyncio.sleep(0.001 if round_ % 4 < 2 else 0)
            await pool.release(conn)
            try:
                await pool.release(await in_time(waiter))
                outcomes.add("served")
            except PoolTimeout:
                outcomes.add("out of time")
            assert (pool.stats().idle, pool.stats().waiting) == (1, 0)
        assert outcomes == {"served", "out of time"}


async def test_waiters_make_the_pool_grow_in_parallel(dsn: str) -> None:
    """The pool opens one connection for each waiter, all at the same time."""
    async with Proxy(dsn) as proxy, AsyncConnectionPool(proxy.dsn, min_size=0, max_size=8) as pool:
        proxy.delay = 0.1
        conns = await asyncio.gather(*(pool.acquire() for _ in range(8)))
        assert proxy.most_connecting == 8
        for conn in conns:
            await pool.release(conn)
        await all_usable(pool)


async def test_a_hung_connect_takes_no_more_than_its_own_place(dsn: str) -> None:
    """The other connections are opened and serve requests."""
    async with Proxy(dsn) as proxy:
        proxy.hung = 1
        async with AsyncConnectionPool(proxy.dsn, min_size=3) as pool:
            await eventually(lambda: pool.stats().idle == 2)
            conns = [await pool.acquire(timeout=5), await pool.acquire(timeout=5)]
            assert pool.stats().opening == 1
            for conn in conns:
                await pool.release(conn)


async def test_a_hung_connect_starves_no_waiter_while_there_is_room(dsn: str) -> None:
    """For a connect that is late the pool starts another one."""
    async with Proxy(dsn) as proxy:
        proxy.hung = 1
        async with AsyncConnectionPool(proxy.dsn, min_size=0, max_size=3) as pool:
            conns = await asyncio.gather(pool.acquire(timeout=6), pool.acquire(timeout=6))
            for conn in conns:
                await pool.release(conn)


async def test_a_broken_connection_is_replaced_for_the_waiter(dsn: str, backends: Backends) -> None:
    """The pool replaces the broken connection for the waiter."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        conn = await pool.acquire()
        old = await backend_of(conn)
        waiter = asyncio.create_task(pool.acquire())
        await eventually(lambda: pool.stats().waiting == 1)
        backends.terminate(old)
        with pytest.raises(psycopg.OperationalError):
            await conn.execute("SELECT 1")
        await pool.release(conn)
        fresh = await in_time(waiter)
        assert await backend_of(fresh) != old
        await pool.release(fresh)
        assert (await at_rest(pool)).returns_bad == 1


async def test_a_connection_returned_in_a_transaction_is_handed_over_clean(dsn: str) -> None:
    """The waiter gets the connection after the roll-back."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        conn = await pool.acquire()
        await conn.execute("SELECT 1")
        waiter = asyncio.create_task(pool.acquire())
        await eventually(lambda: pool.stats().waiting == 1)
        await pool.release(conn)
        same = await in_time(waiter)
        assert same is conn
        assert same.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE
        await pool.release(same)


async def test_a_nested_request_at_max_size_ends_with_its_deadline(dsn: str) -> None:
    """A task that holds the last connection and waits for one more gets a timeout."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        async with pool.connection():
            with pytest.raises(PoolTimeout, match="longest lease"):
                async with pool.connection(timeout=0.05):
                    raise AssertionError("there is only one")
        await all_usable(pool)


async def test_stale_connections_are_replaced_with_no_pause_between_failed_checks(
    dsn: str, backends: Backends
) -> None:
    """Back-off applies to failed connects only, not to failed checks."""
    async with AsyncConnectionPool(
        dsn, min_size=10, check=AsyncConnectionPool.check_connection
    ) as pool:
        await pool.wait()
        backends.terminate()
        started = asyncio.get_running_loop().time()
        async with pool.connection(timeout=10) as conn:
            await conn.execute("SELECT 1")
        assert asyncio.get_running_loop().time() - started < 5
        stats = pool.stats()
        assert stats.connects_failed == 0
        assert stats.lost >= 1
        await all_usable(pool)
        assert pool.stats().lost == 10


async def test_a_block_commits_at_its_end(dsn: str) -> None:
    """Other connections see the work of the block without an explicit commit."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        async with pool.connection() as conn:
            await conn.execute("DROP TABLE IF EXISTS kept")
            await conn.execute("CREATE TABLE kept (x int)")
        assert await pool.fetchval("SELECT count(*) FROM kept") == 0
        await pool.execute("DROP TABLE kept")


async def test_a_block_that_fails_is_rolled_back(dsn: str) -> None:
    """The block raises its own error, its work is undone, and the connection is reused."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with pool.connection() as conn:
                await conn.execute("CREATE TABLE never_kept (x int)")
                raise ZeroDivisionError
        assert await pool.fetchval("SELECT to_regclass('never_kept')::text") is None
        assert (await at_rest(pool)).connects == 1


async def test_an_error_of_the_commit_comes_out_of_the_block(dsn: str) -> None:
    """A deferred constraint fails at the commit, and the block raises its error."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        with pytest.raises(psycopg.errors.UniqueViolation):  # noqa: PT012
            async with pool.connection() as conn:
                await conn.execute(
                    "CREATE TEMP TABLE late (x int UNIQUE DEFERRABLE INITIALLY DEFERRED)"
                )
                await conn.execute("INSERT INTO late VALUES (1), (1)")
        assert (await at_rest(pool)).connects == 1


async def test_a_connection_lost_in_the_block_raises_the_querys_error(
    dsn: str, backends: Backends
) -> None:
    """The block raises the query's error, not one of the clean-up; then the pool recovers."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        with pytest.raises(psycopg.errors.AdminShutdown):  # noqa: PT012
            async with pool.connection() as conn:
                backends.terminate(await backend_of(conn))
                await conn.execute("SELECT 1")
        await all_usable(pool)


async def test_a_connection_lost_before_the_commit_fails_the_block(
    dsn: str, backends: Backends
) -> None:
    """A block whose work was not committed does not end normally."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        with pytest.raises(psycopg.OperationalError):  # noqa: PT012
            async with pool.connection() as conn:
                pid = await backend_of(conn)
                await conn.execute("SELECT 1")
                backends.terminate(pid)
        await all_usable(pool)


@pytest.mark.parametrize("autocommit", [False, True])
async def test_a_transaction_block_is_one_transaction(dsn: str, autocommit: bool) -> None:
    """The work is all or nothing, in autocommit mode too; `Rollback` undoes it without an error."""
    async with AsyncConnectionPool(dsn, min_size=1, kwargs={"autocommit": autocommit}) as pool:
        await pool.execute("CREATE TEMP TABLE sums (x int)")
        async with pool.transaction() as conn:
            await conn.execute("INSERT INTO sums VALUES (1)")
            assert conn.pgconn.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with pool.transaction() as conn:
                await conn.execute("INSERT INTO sums VALUES (2)")
                raise ZeroDivisionError
        async with pool.transaction() as conn:
            await conn.execute("INSERT INTO sums VALUES (4)")
            raise psycopg.Rollback
        assert await pool.fetchval("SELECT sum(x) FROM sums") == 1
        assert (await at_rest(pool)).connects == 1


async def test_a_transaction_that_cannot_begin_keeps_no_connection(
    dsn: str, backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of BEGIN is raised before the block, and ends the lease."""
    unwatched = psycopg.AsyncConnection  # of a watched one the pool notices the loss
    async with AsyncConnectionPool(dsn, min_size=1, connection_class=unwatched) as pool:
        await pool.wait()
        backends.terminate()
        # As if the backend had ended just after the pool checked the socket.
        monkeypatch.setattr(pool._driver, "is_alive", lambda _: True)
        with pytest.raises(psycopg.OperationalError):
            async with pool.transaction():
                raise AssertionError("there is no transaction")
        assert pool.stats().leased == 0
        await all_usable(pool)


async def test_a_cursor_block_has_its_own_row_factory_and_commits(dsn: str) -> None:
    """The row factory does not stay on the connection."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        async with pool.cursor(row_factory=dict_row, binary=True) as cur:
            await cur.execute("CREATE TEMP TABLE numbers AS SELECT 7 AS x")
            await cur.execute("SELECT x FROM numbers")
            assert cur.format == psycopg.pq.Format.BINARY
            assert await cur.fetchall() == [{"x": 7}]
        async with pool.cursor() as cur:
            await cur.execute("SELECT x FROM numbers")
            assert await cur.fetchone() == (7,)
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with pool.cursor() as cur:
                await cur.execute("DELETE FROM numbers")
                raise ZeroDivisionError
        assert await pool.fetchval("SELECT count(*) FROM numbers") == 1


async def test_getconn_and_putconn_are_acquire_and_release(dsn: str) -> None:
    """psycopg_pool's names work, with its `timeout` too."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        conn = await pool.getconn(timeout=5)
        with pytest.raises(PoolTimeout):
            await pool.getconn(0.01)
        await pool.putconn(conn)
        assert (await at_rest(pool)).idle == 1
