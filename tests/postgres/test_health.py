"""Health, statistics and `explain`: true in every state of the pool, and without side effects."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import psycopg_pool
import pytest
from psycopg.conninfo import make_conninfo

from asyncpool import AsyncConnectionPool, HealthReport, PoolTimeout, TooManyRequests

from ._tools import Backends, at_rest, eventually, in_time

if TYPE_CHECKING:
    from asyncpool.testing import Server


def through_json(report: HealthReport) -> dict[str, object]:
    """Return the report as a client receives it."""
    found: dict[str, object] = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    return found


async def test_a_pool_that_serves_is_ok(dsn: str, backends: Backends) -> None:
    """The report has a latency, the server's version and role, and the sizes."""
    async with AsyncConnectionPool(dsn, min_size=2, max_size=3) as pool:
        await pool.wait()
        await at_rest(pool)
        report = await pool.health()
        assert (report.status, report.reason, report.last_error) == ("ok", "", None)
        assert report.latency is not None
        assert 0 < report.latency < 5
        ((version,),) = backends.ask("SHOW server_version")
        assert report.server_version is not None
        assert version.split()[0] == report.server_version
        assert (report.size, report.max_size, report.idle, report.waiting) == (2, 3, 2, 0)
        assert through_json(report)["status"] == "ok"
        ((number,),) = backends.ask("SHOW server_version_num")
        assert report.role == ("primary" if int(number) >= 140000 else None)


async def test_health_returns_its_connection(dsn: str) -> None:
    """Many concurrent checks use up no connection and count as no request."""
    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        await pool.wait()
        reports = await asyncio.gather(*(pool.health() for _ in range(20)))
        assert {report.status for report in reports} == {"ok"}
        stats = await at_rest(pool)
        assert (stats.connects, stats.requests) == (2, 0)


async def test_a_pool_that_keeps_no_connection_is_not_down_for_having_none(dsn: str) -> None:
    """The reason says so, and that nothing was pinged; if connecting fails, the pool is down."""
    async with AsyncConnectionPool(dsn, min_size=0, max_size=2) as pool:
        report = await pool.health()
        assert (report.status, report.latency, report.size) == ("ok", None, 0)
        assert "min_size is 0" in report.reason
        assert await pool.fetchval("SELECT 1") == 1
        assert (await pool.health()).reason == ""
    nowhere = make_conninfo(dsn, port="1")
    async with AsyncConnectionPool(nowhere, min_size=0, max_size=2) as pool:
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=0.2)
        assert (await pool.health()).status == "down"


async def test_health_of_an_exhausted_pool_does_not_wait_in_its_queue(dsn: str) -> None:
    """The report has the waiters and no latency, as there is no connection to ping."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        async with pool.connection():
            report = await in_time(pool.health(timeout=10), 5)
            assert (report.status, report.latency, report.leased) == ("ok", None, 1)
            waiter = asyncio.create_task(pool.acquire())
            await eventually(lambda: pool.stats().waiting == 1)
            report = await in_time(pool.health(timeout=10), 5)
            assert (report.status, report.waiting) == ("degraded", 1)
            assert report.reason == "1 request waits for a connection"
            assert report.server_version is not None
            assert through_json(report)["waiting"] == 1
        await pool.release(await waiter)


async def until_down(pool: AsyncConnectionPool, *before: str) -> None:
    """Wait until the pool reports itself down; before that, it may be degraded."""
    # The lost connections may be under replacement before the first connect is refused.
    while (status := (await pool.health()).status) != "down":
        assert status in ("degraded", *before)
        await asyncio.sleep(0)


async def test_health_on_a_stopped_server_is_down_with_the_error(server: Server, dsn: str) -> None:
    """The status is down after a failed ping, and ok again once the server is back."""
    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        await pool.wait()
        await server.stop()

        await in_time(until_down(pool))
        await eventually(lambda: pool.explain().last_error)
        for _ in range(3):
            report = await in_time(pool.health(), 5)
            assert report.status == "down"
            assert report.reason
        assert report.last_error
        assert report.last_error_age is not None
        assert report.last_error_age >= 0
        assert through_json(report)["status"] == "down"
        await server.start()
        await at_rest(pool)
        report = await pool.health()
        assert report.status == "ok"
        assert report.last_error is not None, "that it failed once is still worth telling"


async def test_a_connection_in_use_does_not_hide_that_the_server_has_stopped(
    server: Server, dsn: str
) -> None:
    """A connection that will be replaced on its return serves nobody else."""
    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        await pool.wait()
        conn = await pool.acquire()
        await server.stop()

        # Until a connect is refused, the connection in use is not known to be lost.
        await in_time(until_down(pool, "ok"))
        assert (await pool.health()).leased == 1
        await server.start()
        await pool.release(conn)
        await at_rest(pool)
        assert (await pool.health()).status == "ok"


async def test_health_on_a_paused_server_ends_at_its_limit(server: Server, dsn: str) -> None:
    """Without an answer the status is down within about `timeout`; then the pool recovers."""
    async with AsyncConnectionPool(dsn, min_size=1, ping_timeout=30) as pool:
        await pool.wait()
        await server.pause()
        report = await in_time(pool.health(timeout=0.2), 5)
        assert (report.status, report.latency) == ("down", None)
        assert report.reason
        await server.resume()
        await at_rest(pool)
        assert (await pool.health()).status == "ok"


async def test_health_of_a_standby_says_so(server: Server, dsn: str) -> None:
    """The server reports its role, which changes with a promotion."""
    ((number,),) = Backends(server.dsn, "").ask("SHOW server_version_num")
    if int(number) < 140000:
        pytest.skip("servers before PostgreSQL 14 do not report it")
    if server.source == "testcontainers":
        pytest.skip("no standby in a container")
    async with server.standby() as replica, AsyncConnectionPool(replica.dsn, min_size=1) as pool:
        await pool.wait()
        assert (await pool.health()).role == "standby"


@pytest.mark.parametrize("state", ["never opened", "closed", "closed unopened"])
async def test_health_of_a_pool_that_is_not_open(dsn: str, state: str) -> None:
    """The status is down, the reason says why, and nothing is raised or opened."""
    pool = AsyncConnectionPool(dsn, min_size=1, open=False)
    if state == "closed":
        await pool.open(wait=True)
    if state.startswith("closed"):
        await pool.close()
    report = await pool.health()
    assert report.status == "down"
    assert state.split(maxsplit=1)[0].replace("never", "not") in report.reason
    assert through_json(report)["size"] == 0
    assert pool.stats().connects == (1 if state == "closed" else 0)


async def test_health_opens_a_pool_that_opens_on_its_first_use(dsn: str) -> None:
    """A readiness probe may block all other uses until the pool is ready."""
    pool = AsyncConnectionPool(dsn, min_size=1)
    try:
        assert (await pool.health()).status == "degraded"
        await pool.wait()
        assert (await pool.health()).status == "ok"
    finally:
        await pool.close()


async def test_health_before_the_first_connection_says_what_is_going_on(server: Server) -> None:
    """For a server that is down the report has the last error."""
    await server.stop()
    async with AsyncConnectionPool(server.dsn, min_size=1) as pool:
        await eventually(lambda: pool.stats().connects_failed)
        report = await pool.health()
        assert report.status == "down"
        assert "connection failed" in str(report.last_error)
        assert (report.server_version, report.role) == (None, None)


async def test_the_request_counters_add_up(dsn: str) -> None:
    """Every request is counted once, as served, failed, cancelled or waiting."""
    async with AsyncConnectionPool(dsn, min_size=1, max_waiting=2) as pool:
        await pool.wait()
        for _ in range(5):
            async with pool.connection():
                pass
        async with pool.connection():
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=0)
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=0.01)
            waiters = [asyncio.create_task(pool.acquire()) for _ in range(2)]
            await eventually(lambda: pool.stats().waiting == 2)
            with pytest.raises(TooManyRequests):
                await pool.acquire()
            stats = pool.stats()
            assert (stats.requests, stats.requests_failed, stats.waiting) == (11, 3, 2)
            waiters[0].cancel()
            await asyncio.wait({waiters[0]})
        await pool.release(await waiters[1])
        stats = pool.stats()
        assert stats.requests == 11
        assert (stats.requests_failed, stats.requests_cancelled) == (3, 1)
        assert stats.requests_queued == 3
        assert stats.wait_time > 0.01
        assert (stats.connects, stats.connects_failed, stats.lost) == (1, 0, 0)
        assert stats.connect_time > 0


async def test_short_uses_are_not_rounded_away(dsn: str) -> None:
    """The times are summed before they are rounded to milliseconds."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        await pool.wait()
        for _ in range(300):
            async with pool.connection() as conn:
                await conn.execute("SELECT 1")
        assert pool.get_stats()["usage_ms"] >= 10
        assert pool.stats().use_time * 1000 == pytest.approx(pool.get_stats()["usage_ms"], abs=1)


async def test_get_stats_has_psycopg_pools_keys(dsn: str) -> None:
    """The keys are those of psycopg_pool, no more and no less, under the same conditions."""
    theirs: dict[str, int] = {}
    async with psycopg_pool.AsyncConnectionPool(
        dsn, min_size=1, max_size=2, open=False, reconnect_timeout=0.1
    ) as other:
        await other.wait()
        conns = [await other.getconn(), await other.getconn()]
        with pytest.raises(psycopg_pool.PoolTimeout):
            await other.getconn(timeout=0.01)
        for conn in conns:
            await conn.close()
            await other.putconn(conn)
        theirs |= other.get_stats()
    async with AsyncConnectionPool(dsn, min_size=1, max_size=2) as pool:
        await pool.wait()
        ours = pool.get_stats()
    assert set(theirs) <= set(ours)
    documented = {
        "pool_min",
        "pool_max",
        "pool_size",
        "pool_available",
        "requests_waiting",
        "usage_ms",
        "requests_num",
        "requests_queued",
        "requests_wait_ms",
        "requests_errors",
        "returns_bad",
        "connections_num",
        "connections_ms",
        "connections_errors",
        "connections_lost",
    }
    assert set(ours) == documented
    assert all(type(value) is int for value in ours.values())


async def test_the_same_day_gives_the_same_figures_as_psycopg_pool(dsn: str) -> None:
    """The counts under psycopg_pool's keys have the same meaning."""

    async def a_day(pool: object) -> dict[str, int]:
        assert isinstance(pool, AsyncConnectionPool | psycopg_pool.AsyncConnectionPool)
        await pool.wait()
        for _ in range(3):
            async with pool.connection() as conn:
                await conn.execute("SELECT 1")
        conn = await pool.getconn()
        with pytest.raises((PoolTimeout, psycopg_pool.PoolTimeout)):
            await pool.getconn(timeout=0.05)
        waiter = asyncio.create_task(pool.getconn())
        await eventually(lambda: pool.get_stats().get("requests_waiting"))
        busy = pool.get_stats()
        await conn.close()
        await pool.putconn(conn)
        await pool.putconn(await in_time(waiter))
        done = pool.get_stats()
        same = ("requests_num", "requests_queued", "requests_errors", "returns_bad")
        now = ("pool_min", "pool_max", "pool_size", "pool_available", "requests_waiting")
        counts = {key: done.get(key, 0) for key in (*same, "connections_num")}
        return {**counts, **{f"busy {key}": busy.get(key, 0) for key in now}}

    async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, open=False) as theirs:
        expected = await a_day(theirs)
    async with AsyncConnectionPool(dsn, min_size=1) as ours:
        assert await a_day(ours) == expected


async def test_pop_stats_starts_the_counters_again(dsn: str) -> None:
    """The sizes stay, the counters restart at zero; `stats()` is not affected."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        await pool.wait()
        for _ in range(3):
            assert await pool.fetchval("SELECT 1") == 1
        popped = pool.pop_stats()
        assert (popped["requests_num"], popped["connections_num"]) == (3, 1)
        after = pool.get_stats()
        assert (after["requests_num"], after["connections_num"], after["usage_ms"]) == (0, 0, 0)
        assert (after["pool_size"], after["pool_available"]) == (1, 1)
        assert await pool.fetchval("SELECT 1") == 1
        assert pool.pop_stats()["requests_num"] == 1
        assert pool.stats().requests == 4


async def test_explain_names_who_holds_what(dsn: str) -> None:
    """The holders with the age of their leases, the waiters, and the advice."""
    async with AsyncConnectionPool(dsn, min_size=1, name="shop", timeout=0.01) as pool:
        await pool.wait()
        released = asyncio.Event()

        async def hold() -> None:
            async with pool.connection():
                await released.wait()

        holder = asyncio.create_task(hold(), name="the till")
        await eventually(lambda: pool.stats().leased)
        waiter = asyncio.create_task(pool.acquire(timeout=30))
        await eventually(lambda: pool.stats().waiting)
        text = str(pool.explain())
        assert "'shop'" in text
        assert "the till" in text
        assert "1 waiting" in text
        assert "resize()" in text
        released.set()
        await holder
        await pool.release(await waiter)
        assert "the till" not in str(pool.explain())
    assert "closed" in str(pool.explain())


async def test_the_repr_has_the_sizes(dsn: str) -> None:
    """The repr has the name, the sizes, and the idle, leased and waiting counts."""
    async with AsyncConnectionPool(dsn, min_size=1, max_size=2, name="shop") as pool:
        await pool.wait()
        async with pool.connection():
            expected = "<AsyncConnectionPool 'shop' size=1/2 idle=0 leased=1 waiting=0>"
            assert repr(pool) == expected


async def test_health_never_takes_a_connection_from_its_borrower(dsn: str) -> None:
    """A connection that is pinged cannot be leased during the ping."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        await pool.wait()
        for _ in range(20):
            asking = asyncio.create_task(pool.health())
            borrowing = [asyncio.create_task(pool.acquire()) for _ in range(2)]
            done, _ = await asyncio.wait(borrowing, return_when=asyncio.FIRST_COMPLETED, timeout=5)
            assert len(done) == 1, "one connection, one owner"
            for task in borrowing:
                await pool.release(await in_time(task))
            assert (await asking).status in {"ok", "degraded"}
