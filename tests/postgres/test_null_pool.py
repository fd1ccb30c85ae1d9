"""`AsyncNullConnectionPool` on a server: a bound and a line, and no connection that is kept."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import anyio
import psycopg
import psycopg_pool
import pytest

from asyncpool import AsyncNullConnectionPool, PoolClosed, PoolDeadlock, PoolTimeout

from ._tools import BOTH_LOOPS, Proxy, backend_of, eventually, in_time

if TYPE_CHECKING:
    from asyncpool.testing import Server

    from ._tools import Backends

LOOPS = BOTH_LOOPS

Pool = AsyncNullConnectionPool


async def empty(pool: Pool[Any]) -> None:
    """Wait until it has no connection in any state."""
    await eventually(lambda: pool.stats().size == 0)


@pytest.mark.parametrize("kind", [Pool, psycopg_pool.AsyncNullConnectionPool])
async def test_each_request_has_a_connection_of_its_own(
    kind: Any, dsn: str, backends: Backends
) -> None:
    """It is closed when the request is done with it; the next gets another."""
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
        assert (stats["pool_min"], stats["pool_max"]) == (0, 0)
        assert (pool.min_size, pool.max_size) == (0, 0)


@pytest.mark.parametrize("kind", [Pool, psycopg_pool.AsyncNullConnectionPool])
async def test_who_waits_gets_the_connection_that_comes_back(kind: Any, dsn: str) -> None:
    """Rolled back and reset; the reset is called for those that are handed over only."""
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
        assert pool.get_stats()["connections_num"] == 1


@pytest.mark.parametrize("kind", [Pool, psycopg_pool.AsyncNullConnectionPool])
@pytest.mark.parametrize("sizes", [(1, None), (1, 5), (-1, 2)])
async def test_a_minimum_is_refused(kind: Any, sizes: tuple[int, int | None], dsn: str) -> None:
    """In the constructor and by resize, which changes nothing then."""
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
    """It is there to see that the database can be reached."""
    async with kind(dsn, max_size=2) as pool:
        await pool.wait()
        await eventually(lambda: not backends.pids())
        assert pool.get_stats()["connections_num"] == 1
        assert pool.get_stats().get("requests_num", 0) == 0
        await pool.wait()
        assert pool.get_stats()["connections_num"] == 2


@pytest.mark.parametrize("kind", [Pool, psycopg_pool.AsyncNullConnectionPool])
async def test_wait_out_of_time_closes_the_pool(kind: Any) -> None:
    """With `PoolTimeout`, as for a pool that keeps connections."""
    pool = kind("host=127.0.0.1 port=1", open=False)
    await pool.open()
    with pytest.raises(psycopg.OperationalError) as caught:
        await pool.wait(timeout=0.2)
    assert type(caught.value).__name__ == "PoolTimeout"
    assert pool.closed


@pytest.mark.parametrize("kind", [Pool, psycopg_pool.AsyncNullConnectionPool])
async def test_check_does_nothing(kind: Any, dsn: str, backends: Backends) -> None:
    """Nothing is idle, and nothing is opened for it."""
    async with kind(dsn) as pool:
        await pool.check()
        assert pool.get_stats().get("connections_num", 0) == 0
        assert not backends.pids()


async def test_wait_says_what_it_was_waiting_for() -> None:
    """And has the server's or the system's word as its cause."""
    pool = Pool("host=127.0.0.1 port=1")
    with pytest.raises(PoolTimeout, match="no connection was opened") as caught:
        await pool.wait(timeout=0.2)
    assert isinstance(caught.value.__cause__, psycopg.OperationalError)


async def test_several_tasks_may_wait_and_one_be_cancelled(dsn: str) -> None:
    """They share a connect; the others are told all the same, and no wish is left behind."""
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
async def test_wait_while_connections_are_lent(dsn: str, max_size: int | None) -> None:
    """Where all that may be are lent, they are proof enough; the bound holds."""
    async with Pool(dsn, max_size=max_size) as pool, pool.connection(), pool.connection():
        await in_time(pool.wait(timeout=5.0))
        assert pool.stats().connects == (2 if max_size else 3)
        assert not pool.closed


async def test_the_server_never_sees_more_than_the_bound(dsn: str, backends: Backends) -> None:
    """A connection on its way out has its place until the server has let go of it."""
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
    """Nobody waits for another's return; the numbers are those that a person may read."""
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
    """Each borrows one, or those that come together share what there may be."""
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
    """As on any pool, before the connection is closed."""

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


async def test_a_transaction_is_rolled_back_before_the_farewell(dsn: str) -> None:
    """A pooler between would else close the server's connection with it."""

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
    """The server does not work on for nobody."""
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
    """In the line, and while its connect is under way."""
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
    """In the line, for a connect, and in wait()."""
    async with Proxy(dsn) as proxy:
        proxy.open_way.clear()
        pool = Pool(proxy.dsn, max_size=1)
        waiting = [asyncio.create_task(pool.getconn()), asyncio.create_task(pool.wait())]
        await eventually(lambda: proxy.accepted)
        await in_time(pool.close())
        for each in waiting:
            with pytest.raises(PoolClosed):
                await each


async def test_blocks_that_can_never_begin_are_told_so(dsn: str) -> None:
    """The deadlock is seen here too, where there is a bound."""
    async with Pool(dsn, max_size=1) as pool, pool.connection():
        with pytest.raises(PoolDeadlock):
            await in_time(pool.getconn())


async def test_health_opens_a_connection_and_keeps_none(dsn: str, backends: Backends) -> None:
    """Where all are lent it opens none; what it tells is that the database can be reached."""
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
    """Within its time limit, with the error; and ok once it is back."""
    async with Pool(dsn) as pool:
        await server.stop()
        report = await in_time(pool.health(timeout=0.3))
        assert report.status == "down"
        assert report.last_error is not None
        await server.start()
        await eventually(lambda: pool.stats().size == 0)
        report = await in_time(pool.health(timeout=10.0))
        assert report.status == "ok"


async def test_closing_in_a_block_closes(dsn: str) -> None:
    """`close_returns` is taken and has no meaning here, as in psycopg_pool."""
    async with Pool(dsn, close_returns=True) as pool:
        assert pool.close_returns is False
        async with pool.connection() as conn:
            await conn.close()
            assert conn.closed
        await empty(pool)


async def test_drained_and_expired_ones_are_not_handed_over(dsn: str) -> None:
    """Whoever waits gets a new one."""
    async with Pool(dsn, max_size=1) as pool:
        conn = await pool.getconn()
        waiter = asyncio.create_task(pool.getconn())
        await eventually(lambda: pool.stats().waiting)
        await pool.drain()
        await pool.putconn(conn)
        other = await in_time(waiter)
        assert other is not conn
        await pool.putconn(other)
