"""`AsyncNullConnectionPool` on a server: a size limit and a wait queue, but no idle connections."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Self

import anyio
import psycopg
import psycopg_pool
import pytest

from asyncpool import AsyncNullConnectionPool, Connection, PoolClosed, PoolDeadlock, PoolTimeout

from ._tools import BOTH_LOOPS, Proxy, backend_of, eventually, in_time, needs_internals

if TYPE_CHECKING:
    from asyncpool.testing import Server

    from ._tools import Backends

LOOPS = BOTH_LOOPS

Pool = AsyncNullConnectionPool


async def empty(pool: Pool[Any]) -> None:
    """Wait until the pool has no connection in any state."""
    await eventually(lambda: pool.stats().size == 0)


@pytest.mark.parametrize("kind", [Pool, psycopg_pool.AsyncNullConnectionPool])
async def test_each_request_has_a_connection_of_its_own(
    kind: Any, dsn: str, backends: Backends
) -> None:
    """The connection is closed after the request; the next request opens another."""
    async with kind(dsn) as pool:
        pids = set()
        for _ in range(3):
            async with pool.connection() as conn:
                assert conn._pool is pool
                pids.add(await backend_of(conn))
            await eventually(lambda conn=conn: conn.closed)  # type: ignore[misc]
            await eventually(lambda: not backends.pids())
        assert len(pids) == 3
        stats = pool.get_stats()
        assert (stats["connections_num"], stats["requests_num"]) == (3, 3)
        assert stats.get("requests_queued", 0) == stats.get("requests_wait_ms", 0) == 0
        assert (stats["pool_min"], stats["pool_max"]) == (0, 0)
        assert (pool.min_size, pool.max_size) == (0, 0)


@pytest.mark.parametrize("kind", [Pool, psycopg_pool.AsyncNullConnectionPool])
async def test_who_waits_gets_the_connection_that_comes_back(kind: Any, dsn: str) -> None:
    """The connection is rolled back and reset first; `reset` is called only before a hand-over."""
    reset: list[int] = []

    async def note(conn: psycopg.AsyncConnection[Any]) -> None:
        assert conn.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE
        reset.append(conn.info.backend_pid)

    async with kind(dsn, max_size=1, reset=note) as pool:
        conn = await pool.getconn()
        pid = conn.info.backend_pid
        await conn.execute("CREATE TEMP TABLE never_there (x int)")
        waiter = asyncio.create_task(pool.getconn())
        await eventually(lambda: pool.get_stats()["requests_waiting"])
        await pool.putconn(conn)
        same = await in_time(waiter)
        assert same is conn
        cur = await same.execute("SELECT to_regclass('never_there')")
        assert await cur.fetchone() == (None,)
        await pool.putconn(same)
        assert reset == [pid]
        assert pool.get_stats()["connections_num"] == pool.get_stats()["requests_queued"] == 1


@pytest.mark.parametrize("kind", [Pool, psycopg_pool.AsyncNullConnectionPool])
@pytest.mark.parametrize("sizes", [(1, None), (1, 5), (-1, 2)])
async def test_a_minimum_is_refused(kind: Any, sizes: tuple[int, int | None], dsn: str) -> None:
    """The constructor and `resize` raise; a failed `resize` changes nothing."""
    with pytest.raises(ValueError, match="min_size"):
        kind(dsn, min_size=sizes[0], max_size=sizes[1])
    async with kind(dsn, max_size=2) as pool:
        with pytest.raises(ValueError, match="min_size"):
            await pool.resize(*sizes)
        assert (pool.min_size, pool.max_size) == (0, 2)
        await pool.resize(0, 7)
        assert (pool.min_size, pool.max_size) == (0, 7)
        await pool.resize(0)
        assert (pool.min_size, pool.max_size) == (0, 0)


@pytest.mark.parametrize("kind", [Pool, psycopg_pool.AsyncNullConnectionPool])
async def test_wait_opens_one_and_keeps_none(kind: Any, dsn: str, backends: Backends) -> None:
    """`wait` tests whether the database is reachable."""
    async with kind(dsn, max_size=2) as pool:
        await pool.wait()
        assert pool.get_stats()["pool_size"] == 0
        await eventually(lambda: not backends.pids())
        assert pool.get_stats()["connections_num"] == 1
        assert pool.get_stats().get("requests_num", 0) == 0
        await pool.wait()
        assert pool.get_stats()["connections_num"] == 2


@pytest.mark.parametrize("kind", [Pool, psycopg_pool.AsyncNullConnectionPool])
async def test_wait_out_of_time_closes_the_pool(kind: Any) -> None:
    """PoolTimeout is raised, as by a pool that keeps connections."""
    pool = kind("host=127.0.0.1 port=1", open=False)
    await pool.open()
    with pytest.raises(psycopg.OperationalError) as caught:
        await pool.wait(timeout=0.2)
    assert type(caught.value).__name__ == "PoolTimeout"
    assert pool.closed


@pytest.mark.parametrize("kind", [Pool, psycopg_pool.AsyncNullConnectionPool])
async def test_check_does_nothing(kind: Any, dsn: str, backends: Backends) -> None:
    """No connection is idle, and none is opened."""
    async with kind(dsn) as pool:
        await pool.check()
        assert pool.get_stats().get("connections_num", 0) == 0
        assert not backends.pids()


async def test_a_connect_that_follows_at_once_goes_before_the_close(dsn: str) -> None:
    """The server would be busy with the end of the last session first."""
    last: list[Connection] = []
    was_closed: list[bool] = []

    class Noting(Connection):
        @classmethod
        async def connect(cls, conninfo: str = "", **kwargs: Any) -> Self:
            was_closed.extend(conn.closed for conn in last)
            return await super().connect(conninfo, **kwargs)

    async with Pool(dsn, connection_class=Noting) as pool:
        for _ in range(4):
            async with pool.connection() as conn:
                assert all(conn.closed for conn in last)
                last[:] = [conn]
        await eventually(lambda: conn.closed)
    assert was_closed == [False] * 3


async def test_the_timeout_of_wait_says_what_did_not_open() -> None:
    """The cause is the error of the server or the operating system."""
    pool = Pool("host=127.0.0.1 port=1")
    with pytest.raises(PoolTimeout, match="no connection was opened") as caught:
        await pool.wait(timeout=0.2)
    assert isinstance(caught.value.__cause__, psycopg.OperationalError)


async def test_several_tasks_may_wait_and_one_be_cancelled(dsn: str) -> None:
    """The tasks share a connect, whose result the others get, and no demand for one is left."""
    async with Proxy(dsn) as proxy, Pool(proxy.dsn) as pool:
        proxy.delay = 0.2
        tasks = [asyncio.create_task(pool.wait()) for _ in range(4)]
        await eventually(lambda: proxy.accepted)
        tasks[0].cancel()
        tasks[1].cancel()
        tasks[1].cancel()
        with anyio.move_on_after(0) as scope:
            await pool.wait()
        assert scope.cancelled_caught
        await in_time(asyncio.wait(tasks))
        assert [task.cancelled() for task in tasks] == [True, True, False, False]
        await empty(pool)
        assert proxy.accepted == 1
        await pool.wait()
        assert proxy.accepted == 2
        await empty(pool)


@pytest.mark.parametrize("max_size", [2, None])
async def test_wait_while_connections_are_leased(dsn: str, max_size: int | None) -> None:
    """With all connections in use `wait` returns, and `max_size` holds."""
    async with Pool(dsn, max_size=max_size) as pool, pool.connection(), pool.connection():
        await in_time(pool.wait(timeout=5.0))
        assert pool.stats().connects == (2 if max_size else 3)
        assert not pool.closed


async def test_the_server_never_sees_more_than_the_bound(dsn: str, backends: Backends) -> None:
    """A closing connection counts until the server has hung up."""
    most = 0

    async def use(pool: Pool) -> None:
        nonlocal most
        for number in range(10):
            async with pool.connection() as conn:
                await conn.execute("SELECT pg_sleep(0.002)")
            if number % 3 == 0:
                most = max(most, len(backends.pids()))

    async with Pool(dsn, max_size=3) as pool:
        await asyncio.gather(*(use(pool) for _ in range(8)))
        await empty(pool)
        stats = pool.stats()
    assert 0 < most <= 3
    assert stats.requests == 80
    assert stats.connects < 80


async def test_without_a_bound_a_burst_is_served_side_by_side(dsn: str) -> None:
    """No request waits for a return, and the repr and messages show no huge number."""
    async with Pool(dsn) as pool:
        conns = await in_time(asyncio.gather(*(pool.acquire() for _ in range(20))))
        assert pool.stats().leased == 20
        assert pool.stats().max_size == 0
        assert "size=20/unlimited" in repr(pool)
        assert "to unlimited" in str(pool.explain())
        for conn in conns:
            await pool.release(conn)
        await empty(pool)


@pytest.mark.parametrize("pipeline", [False, True])
async def test_one_shots_work(dsn: str, pipeline: bool) -> None:
    """Each borrows a connection, or concurrent ones share the connections."""
    async with Pool(dsn, max_size=4, pipeline=pipeline) as pool:
        assert await pool.fetchval("SELECT 1") == 1
        answers = asyncio.gather(*(pool.fetchval("SELECT %s::int", [n]) for n in range(50)))
        assert await in_time(answers) == list(range(50))
        assert await pool.execute("SELECT 1") == "SELECT 1"
        assert await pool.batch(["SELECT 1", "SELECT 2"]) == [[(1,)], [(2,)]]
        assert pool.stats().requests == 53
        await empty(pool)


@pytest.mark.parametrize("kind", [Pool, psycopg_pool.AsyncNullConnectionPool])
async def test_a_block_commits_and_rolls_back(kind: Any, dsn: str, backends: Backends) -> None:
    """The block ends as on any pool, before the connection is closed."""

    async def insert(pool: Any, number: int) -> None:
        async with pool.connection() as conn:
            await conn.execute("INSERT INTO null_pool_blocks VALUES (%s)", [number])
            if number == 2:
                raise LookupError

    backends.ask("CREATE TABLE null_pool_blocks (x int)")
    try:
        async with kind(dsn) as pool:
            await insert(pool, 1)
            with pytest.raises(LookupError):
                await insert(pool, 2)
        assert backends.ask("SELECT x FROM null_pool_blocks") == [(1,)]
    finally:
        backends.ask("DROP TABLE null_pool_blocks")


async def test_a_transaction_is_rolled_back_before_the_connection_closes(dsn: str) -> None:
    """Otherwise a pooler in front of the server would close its own connection too."""

    async def fail(block: Any) -> None:
        async with block as conn:
            await conn.execute("SELECT 1")
            raise ZeroDivisionError

    def said() -> list[bytes]:
        return re.findall(b"SELECT 1|ROLLBACK", b"".join(proxy.said or ()))

    async with Proxy(dsn) as proxy, Pool(proxy.dsn) as pool:
        for block in (pool.connection, pool.acquire):
            proxy.said = []
            with pytest.raises(ZeroDivisionError):
                await fail(block())
            await empty(pool)
            assert said() == [b"SELECT 1", b"ROLLBACK"]
        proxy.said = []
        async with pool.connection() as conn:
            await conn.set_autocommit(True)
            await conn.execute("SELECT 1")
        await empty(pool)
        assert said() == [b"SELECT 1"]


async def test_what_is_left_in_mid_query_is_cancelled_and_closed(
    dsn: str, backends: Backends
) -> None:
    """The server does not continue a query without a client."""
    async with Pool(dsn) as pool:
        task = asyncio.create_task(pool.execute("SELECT pg_sleep(60)"))
        await eventually(lambda: backends.running("pg_sleep"))
        task.cancel()
        await in_time(asyncio.wait({task}))
        await empty(pool)
        assert not backends.pids()


@pytest.mark.parametrize("how", ["once", "twice", "scope"])
@pytest.mark.parametrize("at", ["line", "connect"])
async def test_a_cancelled_request_loses_nothing(dsn: str, how: str, at: str) -> None:
    """The request is cancelled in the wait queue, or while its connect runs."""
    async with Proxy(dsn) as proxy, Pool(proxy.dsn, max_size=1) as pool:
        scope = anyio.CancelScope()

        async def request() -> None:
            with scope:
                await pool.getconn()

        held = await pool.getconn() if at == "line" else None
        if held is None:
            proxy.delay = 0.1
        task = asyncio.create_task(request())
        await eventually(lambda: pool.stats().waiting)
        if how == "scope":
            scope.cancel()
        else:
            task.cancel()
            if how == "twice":
                task.cancel()
        await in_time(asyncio.wait({task}))
        assert task.cancelled() is (how != "scope")
        if held is not None:
            await pool.release(held)
        await empty(pool)
        assert await pool.fetchval("SELECT 1") == 1


async def test_close_wakes_all_who_wait(dsn: str) -> None:
    """Callers that wait for a connection or in `wait()` get PoolClosed."""
    async with Proxy(dsn) as proxy:
        proxy.open_way.clear()
        pool = Pool(proxy.dsn, max_size=1)
        waiting = [asyncio.create_task(pool.getconn()), asyncio.create_task(pool.wait())]
        await eventually(lambda: proxy.accepted)
        await in_time(pool.close())
        for each in waiting:
            with pytest.raises(PoolClosed):
                await each


async def test_a_deadlock_is_detected(dsn: str) -> None:
    """A pool with a size limit detects a deadlock too."""
    async with Pool(dsn, max_size=1) as pool, pool.connection():
        with pytest.raises(PoolDeadlock):
            await in_time(pool.getconn())


async def test_health_opens_a_connection_and_keeps_none(dsn: str, backends: Backends) -> None:
    """With all connections in use it opens none, and reports that the database is reachable."""
    async with Pool(dsn, max_size=1) as pool:
        report = await pool.health(timeout=10.0)
        assert (report.status, report.reason, report.max_size) == ("ok", "", 1)
        assert report.latency is not None
        await eventually(lambda: not backends.pids())
        async with pool.connection():
            report = await pool.health()
            assert (report.status, report.latency) == ("ok", None)
        assert pool.stats().requests == 1
    assert (await pool.health()).status == "down"


async def test_health_of_a_server_that_is_down(server: Server, dsn: str) -> None:
    """The report arrives within its time limit with the error; the status is ok once it is back."""
    async with Pool(dsn) as pool:
        await server.stop()
        report = await in_time(pool.health(timeout=0.3))
        assert report.status == "down"
        assert report.last_error is not None
        await server.start()
        await eventually(lambda: pool.stats().size == 0)
        report = await in_time(pool.health(timeout=10.0))
        assert report.status == "ok"


@needs_internals
async def test_closing_in_a_block_closes(dsn: str) -> None:
    """`close_returns` is accepted without effect, as in psycopg_pool."""
    async with Pool(dsn, close_returns=True) as pool:
        assert pool.close_returns is False
        async with pool.connection() as conn:
            await conn.close()
            assert conn.closed
        await empty(pool)


async def test_drained_and_expired_ones_are_not_handed_over(dsn: str) -> None:
    """The waiter gets a new connection."""
    async with Pool(dsn, max_size=1) as pool:
        conn = await pool.getconn()
        waiter = asyncio.create_task(pool.getconn())
        await eventually(lambda: pool.stats().waiting)
        await pool.drain()
        await pool.putconn(conn)
        other = await in_time(waiter)
        assert other is not conn
        await pool.putconn(other)


@pytest.mark.parametrize("turns", range(3))
async def test_a_close_that_a_stranger_cancels_frees_its_place(
    dsn: str, backends: Backends, turns: int
) -> None:
    """As code that cancels every task of the loop; before its first step too."""
    options = {"autocommit": True}
    async with Proxy(dsn) as proxy, AsyncNullConnectionPool(proxy.dsn, kwargs=options) as pool:
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")
            proxy.open_way.clear()  # the server is not to see the end before the task is cancelled
        for _ in range(turns):
            await asyncio.sleep(0)
        (closing,) = pool._core.runtime.tasks.running("close")
        closing.cancel()
        await asyncio.wait({closing})
        assert closing.cancelled()
        proxy.open_way.set()
        await eventually(lambda: pool.stats().size == 0)
        await eventually(lambda: not backends.pids())
        assert await pool.fetchval("SELECT 1") == 1
