"""Hang-ups, notices and notifications that `asyncpool.Connection` sees without a query."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.abc import PQGen
from psycopg.conninfo import make_conninfo

from asyncpool import AsyncConnectionPool, Connection
from asyncpool.testing import Server
from tests._tools import few

from ._tools import (
    BOTH_LOOPS,
    Backends,
    Proxy,
    all_usable,
    at_rest,
    eventually,
    in_time,
    needs_internals,
)

pytestmark = needs_internals

LOOPS = BOTH_LOOPS

Kill = Callable[[Backends, Server], Awaitable[None]]

NEVER = 600.0
"""Seconds between pings, so that no ping finds the loss."""


async def terminate(backends: Backends, server: Server) -> None:
    """End the backends, as an administrator does."""
    backends.terminate()


async def stop_fast(backends: Backends, server: Server) -> None:
    """Stop the server as for an upgrade."""
    await server.stop("fast")


async def stop_immediately(backends: Backends, server: Server) -> None:
    """Stop the server as in an emergency."""
    await server.stop("immediate")


async def kill_one(backends: Backends, server: Server) -> None:
    """Kill a backend as the kernel does when memory is short; the postmaster ends all others."""
    if server.source not in ("binaries", "wheel"):
        pytest.skip("the server's processes are not on this machine")
    with closing(psycopg.connect(server.dsn)) as witness:
        os.kill(backends.pids().pop(), signal.SIGKILL)
        # From then on the server refuses connections until it is up again.
        with pytest.raises(psycopg.OperationalError):
            witness.execute("SELECT pg_sleep(15)")


each_kill = pytest.mark.parametrize("kill", [terminate, stop_fast, stop_immediately, kill_one])


@dataclass
class Way:
    """A kind of connection to a server, and the server's view of the backends."""

    name: str
    dsn: str
    backends: Backends
    local: bool

    def kill(self) -> None:
        """End all backends and block until they are gone; the server stops listing them earlier."""
        pids = self.backends.pids()
        self.backends.terminate()
        while self.local and any(Path(f"/proc/{pid}").exists() for pid in pids):
            time.sleep(0.001)

    def is_taken_by(self, conn: psycopg.AsyncConnection[Any]) -> bool:
        """Whether a connection is of this kind."""
        is_tls, is_unix = conn.pgconn.ssl_in_use, conn.info.host.startswith("/")
        return (is_tls, is_unix) == (self.name == "tls", self.name == "unix")


@pytest.fixture(params=["tcp", "unix", "tls"])
def way(request: pytest.FixtureRequest, dsn: str, application: str) -> Iterator[Way]:
    """Each kind of connection in turn."""
    name = request.param
    server: Server = request.getfixturevalue(
        "another_server" if name == "tls" else "asyncpool_server"
    )
    start = server.dsn
    if name == "unix":
        if server.socket_dsn is None:
            pytest.skip("this server has no Unix socket")
        start = server.socket_dsn
    mode = {"tls": "require", "tcp": "disable"}.get(name, "prefer")
    backends = Backends(server.dsn, application)
    way_in = make_conninfo(start, application_name=application, sslmode=mode)
    yield Way(name, way_in, backends, local=server.source in ("binaries", "wheel"))
    backends.see_gone(backends.pids())


@each_kill
async def test_dead_idle_connections_are_replaced_with_no_query_sent(
    dsn: str, backends: Backends, server: Server, kill: Kill
) -> None:
    """The event loop sees the hang-up, also while the server is still down."""
    async with AsyncConnectionPool(dsn, min_size=4, ping_interval=NEVER) as pool:
        await pool.wait()
        before = backends.pids()
        await kill(backends, server)
        await eventually(lambda: pool.stats().lost == 4)
        if server.state == "stopped":
            await server.start()
        stats = await at_rest(pool)
        assert (stats.requests, stats.lost) == (0, 4)
        after = backends.pids()
        assert len(after) == 4
        assert not after & before
        await all_usable(pool)


@each_kill
async def test_a_connection_that_dies_while_leased_is_not_leased_again(
    dsn: str, backends: Backends, server: Server, kill: Kill
) -> None:
    """The borrower can see `closed` without a query; on its return the connection is discarded."""
    async with AsyncConnectionPool(dsn, min_size=1, ping_interval=NEVER) as pool:
        conn = await pool.acquire()
        await kill(backends, server)
        await eventually(lambda: conn.closed)
        assert pool.stats().leased == 1
        await pool.release(conn)
        assert pool.stats().returns_bad == 1
        if server.state == "stopped":
            await server.start()
        assert await in_time(pool.fetchval("SELECT 1")) == 1
        assert pool.stats().lost == 0


async def test_those_that_the_server_ends_for_idleness_are_replaced(
    dsn: str, backends: Backends
) -> None:
    """They are replaced each time without a request; a busy leased one is not affected."""
    if not backends.ask("SELECT true FROM pg_settings WHERE name = 'idle_session_timeout'"):
        pytest.skip("a server before PostgreSQL 14 ends no idle session")
    limited = make_conninfo(dsn, options="-c idle_session_timeout=200")
    async with AsyncConnectionPool(limited, min_size=3, max_size=4, ping_interval=NEVER) as pool:
        work = asyncio.create_task(pool.execute("SELECT pg_sleep(1)"))
        await eventually(lambda: pool.stats().lost >= 6)
        await in_time(work)
        assert pool.stats().requests == 1


@pytest.mark.parametrize("seen", [False, True], ids=["before it is seen", "once it is seen"])
@pytest.mark.exhaustive
async def test_no_request_fails_after_all_idle_backends_were_killed(way: Way, seen: bool) -> None:
    """None of 1000 concurrent requests fails, even before the loop has seen the hang-up."""
    async with AsyncConnectionPool(way.dsn, min_size=4, max_size=8) as pool:
        await pool.wait()
        way.kill()
        if seen:
            await eventually(lambda: pool.stats().lost == 4)
        results = await asyncio.gather(*(pool.fetchval("SELECT 1") for _ in range(1000)))
        assert results == [1] * 1000
        assert pool.stats().lost == 4
        async with pool.connection() as conn:
            assert way.is_taken_by(conn)


@pytest.mark.exhaustive
async def test_no_request_of_a_sequence_fails_after_the_kill(way: Way) -> None:
    """None of 1000 sequential requests fails; the backends are killed before the first."""
    async with AsyncConnectionPool(way.dsn, min_size=4) as pool:
        await pool.wait()
        way.kill()
        for _ in range(1000):
            async with pool.connection() as conn:
                await conn.execute("SELECT 1")
        assert pool.stats().lost == 4


async def test_a_notification_reaches_an_idle_connection_at_once(way: Way) -> None:
    """The handler is called without a query."""
    got: list[str] = []
    async with await Connection.connect(way.dsn, autocommit=True) as conn:
        conn.add_notify_handler(lambda notify: got.append(notify.payload))
        await conn.execute("LISTEN here")
        async with await psycopg.AsyncConnection.connect(way.dsn, autocommit=True) as other:
            await other.execute("NOTIFY here, 'now'")
        await eventually(lambda: got == ["now"])


async def test_many_notifications_reach_an_idle_connection(way: Way) -> None:
    """There are more than libpq reads at a time, and none stays in a buffer."""
    got: list[str] = []
    async with await Connection.connect(way.dsn, autocommit=True) as conn:
        conn.add_notify_handler(lambda notify: got.append(notify.payload))
        await conn.execute("LISTEN here")
        way.backends.ask(
            "SELECT pg_notify('here', n || repeat('x', 7000)) FROM generate_series(0, 199) n"
        )
        await eventually(lambda: len(got) == 200)
        assert [each.rstrip("x") for each in got] == [str(n) for n in range(200)]


async def test_a_notice_reaches_an_idle_connection_at_once(
    conn: Connection[Any], backends: Backends
) -> None:
    """The notice is the server's trace message about a notification."""
    got: list[str | None] = []
    conn.add_notice_handler(lambda notice: got.append(notice.message_primary))
    await conn.execute("SET trace_notify = on; SET client_min_messages = debug1; LISTEN here")
    got.clear()
    backends.ask("NOTIFY here")
    await eventually(lambda: any(each and "Notify" in each for each in got))


async def test_the_servers_last_message_reaches_an_idle_connection(
    conn: Connection[Any], backends: Backends, server: Server
) -> None:
    """The notice and the end of file arrive together."""
    got: list[str | None] = []
    conn.add_notice_handler(lambda notice: got.append(notice.sqlstate))
    await kill_one_other(backends, server)
    await eventually(lambda: conn.closed)
    assert got == ["57P02"]  # crash_shutdown
    await eventually(lambda: is_up(backends))


async def kill_one_other(backends: Backends, server: Server) -> None:
    """Kill a backend that does not belong to the test."""
    if server.source not in ("binaries", "wheel"):
        pytest.skip("the server's processes are not on this machine")
    with psycopg.connect(server.dsn) as other:
        os.kill(other.info.backend_pid, signal.SIGKILL)


def is_up(backends: Backends) -> bool:
    """Whether the server answers again."""
    try:
        return bool(backends.ask("SELECT 1"))
    except psycopg.OperationalError:
        return False


async def test_a_pools_idle_connections_get_the_notifications_of_configure(
    dsn: str, backends: Backends
) -> None:
    """A listening connection need not be leased."""
    got: list[str] = []

    async def listen(conn: psycopg.AsyncConnection[Any]) -> None:
        conn.add_notify_handler(lambda notify: got.append(notify.payload))
        await conn.set_autocommit(True)
        await conn.execute("LISTEN here")

    async with AsyncConnectionPool(dsn, min_size=3, configure=listen) as pool:
        await pool.wait()
        backends.ask("NOTIFY here, 'all'")
        await eventually(lambda: got == ["all"] * 3)
        assert pool.stats().requests == 0


@pytest.mark.exhaustive
async def test_an_announced_end_of_the_session_counts_before_the_hang_up(
    dsn: str, backends: Backends
) -> None:
    """Idle connections are replaced, and a leased one is discarded on its return."""
    async with Proxy(dsn) as proxy:
        proxy.tells_of_the_end = False
        async with AsyncConnectionPool(proxy.dsn, min_size=3, ping_interval=NEVER) as pool:
            async with pool.connection() as leased:
                await pool.wait()
                backends.terminate()
                await eventually(lambda: pool.stats().lost == 2)
                await eventually(lambda: leased._transport.phase.name == "ENDING")  # type: ignore[attr-defined]
                assert not leased.closed
            proxy.tells_of_the_end = True
            assert await pool.fetchval("SELECT 1") == 1
            await all_usable(pool)
            proxy.cut()


async def in_a_block(conn: psycopg.AsyncConnection[Any]) -> None:
    async with conn.transaction():
        raise AssertionError("there is no transaction")


async def in_a_pipeline(conn: psycopg.AsyncConnection[Any]) -> None:
    async with conn.pipeline(), conn.transaction():
        await conn.execute("SELECT 1")


@pytest.mark.parametrize("work", few([in_a_block, in_a_pipeline]))
@pytest.mark.exhaustive
async def test_a_block_that_begins_after_the_announced_end_raises_it(
    dsn: str, backends: Backends, work: Callable[[Any], Awaitable[None]]
) -> None:
    """The block raises the server's message even before it hangs up; then the connection closes."""
    async with (
        Proxy(dsn) as proxy,
        AsyncConnectionPool(
            proxy.dsn, min_size=1, ping_interval=NEVER, kwargs={"autocommit": True}
        ) as pool,
    ):
        proxy.tells_of_the_end = False
        async with pool.connection() as leased:
            backends.terminate()
            await eventually(lambda: leased._transport.phase.name == "ENDING")  # type: ignore[attr-defined]
            proxy.tells_of_the_end = True
            with pytest.raises(psycopg.errors.AdminShutdown):
                await work(leased)
            assert leased.closed
        await all_usable(pool)
        proxy.cut()


async def test_an_announced_end_in_the_middle_of_a_generator_is_its_error(
    conn: Connection[Any],
) -> None:
    """Between two statements the connection is checked; the error is not a cancellation."""
    error = psycopg.errors.AdminShutdown("terminating connection")

    def two_statements() -> PQGen[None]:
        yield from conn._exec_command(b"DO $$ BEGIN RAISE NOTICE 'now'; END $$")
        yield from conn._exec_command(b"SELECT 1")

    transport = conn._transport
    assert transport is not None
    conn.add_notice_handler(lambda _: transport.report_session_end(error))
    with pytest.raises(psycopg.errors.AdminShutdown):
        await conn.wait(two_statements())
    assert conn.closed


async def test_an_announced_end_is_a_notice_too(dsn: str, backends: Backends) -> None:
    """Notice handlers get the message as with psycopg."""
    conn = await Connection.connect(dsn, autocommit=True)
    codes: list[Any] = []
    conn.add_notice_handler(lambda notice: codes.append(notice.sqlstate))
    backends.terminate()
    await eventually(lambda: conn.closed)
    assert codes == ["57P01"]
    await conn.close()
