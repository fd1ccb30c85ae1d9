"""A network that falls silent: nothing waits without a limit, and afterwards all is as before.

Where a limit of the pool itself is shown the connections have the limits that they get by default,
of 15 seconds: what is over sooner is not their doing. Where theirs is shown it is a short one.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from asyncpool import AsyncConnectionPool, PoolTimeout, TooManyRequests
from benchmarks._network import Network, NoNetwork
from tests._tools import few

from ._tools import (
    Backends,
    all_usable,
    backend_of,
    descriptors,
    eventually,
    in_time,
    needs_internals,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from asyncpool.testing import Server

    Run = Callable[[Awaitable[None]], None]

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="other systems name them otherwise")

AT_ONCE = 8.0
"""Seconds: far more than the pool's own limits in these tests, far less than those of TCP."""

SHORT = {
    "tcp_user_timeout": 1500,
    "keepalives_idle": 1,
    "keepalives_interval": 1,
    "connect_timeout": 2,
}
"""TCP's limits for a test that waits for them: about two seconds."""


@pytest.fixture
def network(dsn: str, backends: Backends) -> Iterator[Network]:
    """The way to the server, which is to fall silent; afterwards nobody is at either end."""
    try:
        with Network(dsn) as network:
            yield network
    except NoNetwork as error:
        pytest.skip(str(error))
    # A server hears of a client that has gone only when it looks, and in a query it does not.
    backends.terminate()


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a test on an event loop of its own, of each kind; no task of it may be left."""
    factory = None
    if request.param == "uvloop":
        factory = pytest.importorskip("uvloop").new_event_loop

    def run_it(test: Awaitable[None]) -> None:
        async def whole() -> None:
            await in_time(test, 60)
            others = asyncio.all_tasks() - {asyncio.current_task()}
            assert not others, f"tasks are left: {others}"

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(whole())

    return run_it


def tcp_limits(conn: psycopg.AsyncConnection[Any]) -> dict[str, int]:
    """Return the limits that the kernel has for a connection's socket."""
    names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
    with socket.socket(fileno=os.dup(conn.pgconn.socket)) as copy:
        found = {name: copy.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names}
        return {"SO_KEEPALIVE": copy.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), **found}


OURS = {
    "SO_KEEPALIVE": 1,
    "TCP_KEEPIDLE": 10,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 15_000,
}


@linux_only
async def test_a_connection_has_limits_that_nobody_gave_it(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket has them, not only the connection string."""
    monkeypatch.delenv("PGCONNECT_TIMEOUT", raising=False)
    async with AsyncConnectionPool(dsn, min_size=1) as pool, pool.connection() as conn:
        assert tcp_limits(conn) == OURS
        assert conn.info.get_parameters()["connect_timeout"] == "10"


@linux_only
@pytest.mark.parametrize("place", ["conninfo", "kwargs", "callables"])
async def test_the_users_limits_reach_the_socket(dsn: str, place: str) -> None:
    """The kernel gets the limits, from wherever the user gives them."""
    limits: dict[str, Any] = {
        "keepalives_idle": 60,
        "keepalives_interval": 20,
        "keepalives_count": 6,
        "tcp_user_timeout": 40_000,
        "connect_timeout": 7,
    }
    inside = make_conninfo(dsn, **limits)
    pools = {
        "conninfo": lambda: AsyncConnectionPool(inside, min_size=1),
        "kwargs": lambda: AsyncConnectionPool(dsn, min_size=1, kwargs=limits),
        "callables": lambda: AsyncConnectionPool(
            lambda: make_conninfo(dsn, keepalives_idle=60, keepalives_interval=20),
            min_size=1,
            kwargs=lambda: {k: v for k, v in limits.items() if k[-4:] not in ("idle", "rval")},
        ),
    }
    async with pools[place]() as pool, pool.connection() as conn:
        assert tcp_limits(conn) == {
            "SO_KEEPALIVE": 1,
            "TCP_KEEPIDLE": 60,
            "TCP_KEEPINTVL": 20,
            "TCP_KEEPCNT": 6,
            "TCP_USER_TIMEOUT": 40_000,
        }
        assert conn.info.get_parameters()["connect_timeout"] == "7"


@linux_only
async def test_keepalives_that_the_user_has_turned_off_are_off(dsn: str) -> None:
    """libpq leaves all limits of TCP to the system then."""
    off = make_conninfo(dsn, keepalives=0)
    async with AsyncConnectionPool(off, min_size=1) as pool, pool.connection() as conn:
        limits = tcp_limits(conn)
        assert limits["SO_KEEPALIVE"] == limits["TCP_USER_TIMEOUT"] == 0


@linux_only
async def test_the_limits_of_a_service_file_reach_the_socket(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that it leaves out are ours."""
    limits = {"connect_timeout": 7, "keepalives_count": 6, "tcp_user_timeout": 40_000}
    services = tmp_path / "services"
    services.write_text("\n".join(["[app]", *(f"{key}={limits[key]}" for key in limits), ""]))
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    served = make_conninfo(dsn, service="app")
    async with AsyncConnectionPool(served, min_size=1) as pool, pool.connection() as conn:
        assert tcp_limits(conn) == OURS | {"TCP_KEEPCNT": 6, "TCP_USER_TIMEOUT": 40_000}
        assert conn.info.get_parameters()["connect_timeout"] == "7"


async def test_a_unix_socket_takes_no_harm(asyncpool_server: Server) -> None:
    """libpq leaves the limits of TCP aside there."""
    if asyncpool_server.socket_dsn is None:
        pytest.skip("this server has no Unix socket")
    async with (
        AsyncConnectionPool(asyncpool_server.socket_dsn, min_size=1) as pool,
        pool.connection() as conn,
    ):
        assert await backend_of(conn)
        with socket.socket(fileno=os.dup(conn.pgconn.socket)) as copy:
            assert copy.family == socket.AF_UNIX


async def test_a_short_silence_costs_nothing(network: Network) -> None:
    """Data sent during the silence arrives afterwards, and the connection stays."""
    async with AsyncConnectionPool(network.dsn, min_size=1) as pool:
        before = await pool.fetchval("SELECT pg_backend_pid()")
        network.fall_silent()
        query = asyncio.create_task(pool.fetchval("SELECT pg_backend_pid()"))
        done, _ = await asyncio.wait({query}, timeout=0.1)
        assert not done, "the network is not silent"
        network.speak()
        assert await in_time(query) == before
        assert pool.stats().connects == 1


@pytest.mark.exhaustive
def test_a_query_under_way_ends_with_an_error(
    run: Run, network: Network, backends: Backends
) -> None:
    """The server has it and is working on it: keepalives find out that nobody is there."""

    async def test() -> None:
        async with AsyncConnectionPool(network.dsn, min_size=2, kwargs=SHORT) as pool:
            query = asyncio.create_task(pool.execute("SELECT pg_sleep(600)"))
            await eventually(lambda: backends.running("pg_sleep"))
            network.fall_silent()
            with pytest.raises(psycopg.OperationalError, match="timed out"):
                await in_time(query)
            network.speak()
            await all_usable(pool)

    run(test())


@pytest.mark.exhaustive
async def test_a_query_that_does_not_arrive_ends_with_an_error(network: Network) -> None:
    """The data sent is not acknowledged: tcp_user_timeout ends the connection."""
    # With keepalives that would not notice.
    limits = SHORT | {"keepalives_idle": 60}
    async with AsyncConnectionPool(network.dsn, min_size=1, kwargs=limits) as pool:
        async with pool.connection() as conn:
            await conn.set_autocommit(True)
            network.fall_silent()
            with pytest.raises(psycopg.OperationalError, match="timed out"):
                await in_time(conn.execute("SELECT 1"))
        network.speak()
        await all_usable(pool)


@pytest.mark.exhaustive
@needs_internals
async def test_idle_connections_are_found_and_replaced_with_no_request(network: Network) -> None:
    """No borrower gets one of them; the pool hears of their end from the kernel."""
    async with AsyncConnectionPool(
        network.dsn, min_size=3, kwargs=SHORT, ping_interval=600
    ) as pool:
        await pool.wait()
        network.fall_silent()
        await eventually(lambda: pool.stats().lost == 3)
        assert not pool.stats().idle
        network.speak()
        await all_usable(pool)


@pytest.mark.exhaustive
async def test_a_request_with_a_check_ends_at_its_time(network: Network) -> None:
    """The check waits for an answer that does not come; the request does not."""
    async with AsyncConnectionPool(
        network.dsn, min_size=1, check=AsyncConnectionPool.check_connection
    ) as pool:
        await pool.wait()
        network.fall_silent()
        with pytest.raises(PoolTimeout, match="did not finish"):
            await in_time(pool.acquire(timeout=0.3), AT_ONCE)
        network.speak()
        await all_usable(pool)


async def test_a_request_that_makes_the_pool_grow_ends_at_its_time(network: Network) -> None:
    """The connects that it causes get no answer either."""
    async with AsyncConnectionPool(network.dsn, min_size=1, max_size=3) as pool:
        async with pool.connection():
            network.fall_silent()
            with pytest.raises(PoolTimeout):
                await in_time(pool.acquire(timeout=0.3), AT_ONCE)
            assert pool.stats().opening
            network.speak()
        await in_time(pool.fetchval("SELECT 1"))
        await eventually(lambda: not pool.stats().opening)
        await all_usable(pool)


@pytest.mark.exhaustive
async def test_health_answers_in_time(network: Network) -> None:
    """The one ping gets no answer, and the report says so."""
    async with AsyncConnectionPool(network.dsn, min_size=1, ping_timeout=60) as pool:
        await pool.wait()
        network.fall_silent()
        report = await in_time(pool.health(timeout=0.3), AT_ONCE)
        assert (report.status, report.latency) == ("down", None)
        assert report.reason == "the server did not answer a ping"
        network.speak()
        await all_usable(pool)


@pytest.mark.exhaustive
async def test_a_ping_ends_at_its_limit(network: Network) -> None:
    """The connection is given up without its farewell, and another takes its place."""
    async with AsyncConnectionPool(network.dsn, min_size=1, ping_timeout=0.3) as pool:
        await pool.wait()
        network.fall_silent()
        await in_time(pool.check(), AT_ONCE)
        assert pool.stats().lost == 1
        network.speak()
        await all_usable(pool)


@needs_internals
@pytest.mark.parametrize("pipeline", few([False, True]))
@pytest.mark.exhaustive
def test_a_cancelled_query_raises_at_once(
    run: Run, network: Network, backends: Backends, pipeline: bool
) -> None:
    """The cancel request gets no answer either; the pool waits for it in the background."""

    async def test() -> None:
        async with AsyncConnectionPool(network.dsn, min_size=1, pipeline=pipeline) as pool:
            query = asyncio.create_task(pool.execute("SELECT pg_sleep(600)"))
            await eventually(lambda: backends.running("pg_sleep"))
            network.fall_silent()
            query.cancel()
            await asyncio.wait({query}, timeout=0.9)  # sooner than the request is given up
            assert query.cancelled()
            await eventually(lambda: pool.stats().opening)  # it is replaced
            network.speak()
            await all_usable(pool)

    run(test())


async def test_close_ends_at_its_limit(network: Network, backends: Backends) -> None:
    """Idle, lent, working and opening ones: no farewell is answered, and no socket is left."""
    before = descriptors()
    pool = AsyncConnectionPool(network.dsn, min_size=3, max_size=4)
    await pool.wait()
    await pool.acquire()
    query = asyncio.create_task(pool.execute("SELECT pg_sleep(600)"))
    await eventually(lambda: backends.running("pg_sleep"))
    network.fall_silent()
    await pool.acquire()
    request = asyncio.create_task(pool.acquire())
    await eventually(lambda: pool.stats().opening)
    started = time.monotonic()
    await in_time(pool.close(timeout=0.3), AT_ONCE)
    assert time.monotonic() - started >= 0.3
    assert pool.stats().size == 0
    ends = await in_time(asyncio.gather(query, request, return_exceptions=True), AT_ONCE)
    assert all(isinstance(end, psycopg.OperationalError) for end in ends), ends
    await eventually(lambda: descriptors() == before)


async def becomes(pool: AsyncConnectionPool[Any], fact: Callable[[], bool]) -> None:
    """Wait until it is true of the pool; if it never is, the pool says why."""
    try:
        await eventually(fact, AT_ONCE)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{pool.explain()}\n{pool.stats()}") from None


@pytest.mark.exhaustive
def test_a_pool_under_load_goes_on_after_each_silence(run: Run, network: Network) -> None:
    """Borrowers get errors, never a hang; no place, no descriptor, no turn of the loop is lost."""

    async def test() -> None:
        before = descriptors()
        pool = AsyncConnectionPool(network.dsn, min_size=2, max_size=5, kwargs=SHORT, timeout=1)
        silent = over = False
        served, broken, longest = 0, 0, 0.0

        async def borrow() -> None:
            nonlocal served, broken
            while not over:
                try:
                    async with pool.connection() as conn:
                        await conn.execute("SELECT pg_sleep(0.001)")
                    served += 1
                except (PoolTimeout, TooManyRequests):
                    pass  # a second may be short at other times, too, on a busy machine
                except psycopg.OperationalError:
                    if not silent:
                        raise
                    broken += 1

        async def tick() -> None:
            nonlocal longest
            while not over:
                started = time.monotonic()
                await asyncio.sleep(0.01)
                longest = max(longest, time.monotonic() - started)
                assert pool.stats().size <= pool.max_size, pool.explain()

        async with pool:
            # In a group a borrower that fails ends the test, and no phase waits for it in vain.
            async with asyncio.TaskGroup() as group:
                for work in (*[borrow] * 10, tick):
                    group.create_task(work())
                for connects_fail in (False, True):
                    so_far = served
                    await becomes(pool, lambda: served > so_far + 50)  # noqa: B023
                    # All are lent out, so that the silence catches each of them in use.
                    await becomes(pool, lambda: pool.stats().leased == pool.max_size)
                    silent, broken, failed = True, 0, pool.stats().requests_failed
                    network.fall_silent()
                    # Once none of them is left, whatever is lent is new.
                    await becomes(pool, lambda: broken == pool.max_size)  # noqa: B023
                    now = pool.stats()
                    assert not now.leased, now
                    assert now.requests_failed >= failed + 5, "the others waited for longer"
                    if connects_fail:
                        # All that were begun at once, and then one that was tried again.
                        await becomes(pool, lambda: pool.stats().connects_failed > pool.max_size)
                    network.speak()
                    silent = False
                await becomes(pool, lambda: pool.stats().leased == pool.max_size)
                over = True
            await all_usable(pool)
        assert longest < SHORT["tcp_user_timeout"] / 1000, "the event loop waited for the network"
        assert descriptors() == before

    run(test())
