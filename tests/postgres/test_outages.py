"""A server that lets nobody in: for want of a right, of a database, or of room."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from asyncpool import AsyncConnectionPool, Fault, PoolTimeout, PoolUnavailable, classify
from asyncpool._core import outage

from ._tools import Proxy, all_usable, at_rest, eventually, in_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from asyncpool.testing import Server

    from ._tools import Backends


@contextmanager
def role(backends: Backends, **rights: Any) -> Iterator[str]:
    """A role that may log in."""
    name = f"r{uuid4().hex[:8]}"
    backends.ask(f"CREATE ROLE {name} {backends.login} CONNECTION LIMIT {rights.get('limit', -1)}")
    try:
        yield name
    finally:
        backends.ask(f"DROP ROLE {name}")


@asynccontextmanager
async def refusing(dsn: str, backends: Backends, **options: Any) -> AsyncIterator[Any]:
    """A pool over a proxy that counts its connects, for a role that may not log in any more."""
    with role(backends) as name:
        backends.ask(f"ALTER ROLE {name} NOLOGIN")
        async with (
            Proxy(make_conninfo(dsn, user=name)) as proxy,
            AsyncConnectionPool(proxy.dsn, min_size=0, max_size=4, **options) as pool,
        ):
            yield pool, proxy, name
            await pool.close()


@pytest.mark.parametrize("pipeline", [True, False])
async def test_a_role_that_may_not_log_in_is_reported_at_once(
    dsn: str, backends: Backends, pipeline: bool
) -> None:
    """With the server's word, whichever way they ask; and served once the right is there."""
    async with refusing(dsn, backends, pipeline=pipeline, timeout=60.0) as (pool, proxy, name):
        for request in (pool.getconn, lambda: pool.fetchval("SELECT 1")):
            six = asyncio.gather(*(request() for _ in range(6)), return_exceptions=True)
            for error in await in_time(six):
                assert isinstance(error, PoolUnavailable)
                assert isinstance(error, PoolTimeout)
                assert "is not permitted to log in" in str(error.__cause__)
        backends.ask(f"ALTER ROLE {name} LOGIN")
        await eventually(lambda: pool._core.runtime.time() > pool._core.outages.outage.retry_at)
        assert await in_time(pool.fetchval("SELECT 1")) == 1
        assert pool.stats().requests_failed == 12
        assert proxy.accepted < 12


async def test_a_request_storm_is_no_storm_of_connects(dsn: str, backends: Backends) -> None:
    """A thousand requests that are turned away made a handful of attempts."""
    async with refusing(dsn, backends) as (pool, proxy, _):
        for _ in range(100):
            await asyncio.gather(*(pool.getconn() for _ in range(10)), return_exceptions=True)
        assert pool.stats().requests_failed == 1000
        assert proxy.accepted <= 8 + 3 * (pool._core.outages.outage.failures)
        assert pool._core.outages.outage.failures < 30


async def test_wait_does_not_wait_for_a_database_that_is_not_there(dsn: str) -> None:
    """And the pool is closed then, as after a time-out."""
    pool = AsyncConnectionPool(make_conninfo(dsn, dbname="nope"), min_size=2)
    with pytest.raises(PoolUnavailable, match='"nope" does not exist'):
        await in_time(pool.open(wait=True, timeout=60.0))
    assert pool.closed


@pytest.mark.exhaustive
async def test_a_dropped_database_is_reported_and_found_again(
    dsn: str, backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connections die, requests fail fast after a while, and the pool recovers with it."""
    monkeypatch.setattr(outage, "GRACE", 1.0)
    name = f"d{uuid4().hex[:8]}"
    backends.ask(f"CREATE DATABASE {name}")
    try:
        async with AsyncConnectionPool(make_conninfo(dsn, dbname=name), min_size=2) as pool:
            await at_rest(pool)
            backends.ask(f"DROP DATABASE {name} WITH (FORCE)")

            await eventually(lambda: pool.stats().size == pool.stats().opening)
            with pytest.raises(PoolUnavailable, match="does not exist"):
                await in_time(pool.getconn())
            backends.ask(f"CREATE DATABASE {name}")
            await eventually(lambda: pool._core.runtime.time() > pool._core.outages.outage.retry_at)
            assert await in_time(pool.fetchval("SELECT 1", timeout=10.0)) == 1
            await all_usable(pool)
    finally:
        backends.ask(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


async def test_with_no_room_left_it_keeps_what_it_has_and_waits_for_more(
    dsn: str, backends: Backends
) -> None:
    """Nobody fails, though others have taken the places; when they leave, the pool grows."""
    with role(backends, limit=3) as name:
        dsn = make_conninfo(dsn, user=name)
        other = await psycopg.AsyncConnection.connect(make_conninfo(dsn, application_name="other"))
        async with AsyncConnectionPool(
            dsn, min_size=1, max_size=4, max_lifetime=1.0, ping_interval=0.2
        ) as pool:
            conns = [await pool.acquire(), await pool.acquire()]
            waiting = [asyncio.create_task(pool.acquire()) for _ in range(2)]
            await eventually(lambda: pool.stats().connects_failed >= 4)  # longer than a life
            assert pool._core.outages.outage.fault is Fault.CAPACITY
            assert not any(each.done() for each in waiting)
            pids = {conn.info.backend_pid for conn in conns}
            await pool.release(conns.pop())
            conns.append(await in_time(waiting.pop(0)))
            assert {conn.info.backend_pid for conn in conns} == pids
            await other.close()
            conns.append(await in_time(waiting.pop()))
            for conn in conns:
                await pool.release(conn)
            assert pool.stats().requests_failed == 0


async def test_after_a_long_outage_requests_fail_at_once(server: Server, dsn: str) -> None:
    """Until the server is back; the pool tries by itself, and nobody has to ask."""
    async with AsyncConnectionPool(dsn, min_size=2, fail_fast_after=0.5) as pool:
        await at_rest(pool)
        await server.stop()
        with pytest.raises(PoolUnavailable, match=r"connecting has been failing for \d"):
            await in_time(pool.getconn(), 10.0)
        with pytest.raises(PoolUnavailable):
            await in_time(pool.fetchval("SELECT 1"), 10.0)
        await server.start()
        await all_usable(pool)


async def test_one_that_was_terminated_alone_is_replaced_alone(
    dsn: str, backends: Backends
) -> None:
    """The others answer when they are asked, and stay."""
    async with AsyncConnectionPool(dsn, min_size=4) as pool:
        await all_usable(pool)
        pids = backends.pids()
        backends.terminate(min(pids))
        await eventually(lambda: pool.stats().lost == 1)
        await all_usable(pool)
        assert len(backends.pids() & pids) == 3
        assert pool.stats().lost == 1


FAKE_STANDBY = """
    SET allow_system_table_mods = on;
    ALTER FUNCTION pg_catalog.pg_is_in_recovery() RENAME TO pg_was_in_recovery;
    CREATE FUNCTION pg_catalog.pg_is_in_recovery() RETURNS bool LANGUAGE sql AS 'SELECT true'
"""


@pytest.mark.parametrize("shared", [True, False], ids=["one-shot", "block"])
@pytest.mark.parametrize("autocommit", [True, False])
async def test_a_server_that_has_become_a_standby_is_left_for_good(
    dsn: str, backends: Backends, caplog: pytest.LogCaptureFixture, shared: bool, autocommit: bool
) -> None:
    """Behind a proxy sessions outlive a failover: one write fails, all connections are replaced.

    A session that is read-only by its user's own will is no reason.
    """
    name = f"d{uuid4().hex[:8]}"
    backends.ask(f"CREATE DATABASE {name}")
    dsn = make_conninfo(dsn, dbname=name, options="-c default_transaction_read_only=on")

    async def write(pool: AsyncConnectionPool[Any]) -> None:
        async def in_block() -> None:
            async with pool.connection() as conn:
                await conn.execute("INSERT INTO t VALUES (1)")

        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await (pool.execute("INSERT INTO t VALUES (1)") if shared else in_block())

    try:
        with psycopg.connect(make_conninfo(dsn, options="")) as conn:
            conn.execute("CREATE TABLE t (x int)")
        kwargs = {"autocommit": autocommit}
        async with AsyncConnectionPool(dsn, min_size=3, max_size=4, kwargs=kwargs) as pool:
            await all_usable(pool)
            pids = backends.pids()
            await write(pool)
            await at_rest(pool)
            assert backends.pids() == pids
            with psycopg.connect(make_conninfo(dsn, options="")) as conn:
                conn.execute(FAKE_STANDBY)
            await write(pool)
            await eventually(lambda: not backends.pids() & pids)
            await all_usable(pool)
            assert "replacing all connections" in caplog.text
    finally:
        backends.ask(f"DROP DATABASE {name} WITH (FORCE)")


async def test_a_classify_of_the_users_own_is_asked(dsn: str, backends: Backends) -> None:
    """Of a statement's error as of a connect's."""
    asked: list[BaseException] = []

    def mine(error: BaseException) -> Fault | None:
        asked.append(error)
        if isinstance(error, psycopg.errors.DivisionByZero):
            return Fault.CONNECTION
        return classify(error)

    async with AsyncConnectionPool(dsn, min_size=2, classify=mine) as pool:
        await all_usable(pool)
        for divide in (
            pool.execute("SELECT 1/0"),
            pool.fetchval("SELECT 1/%s", [0]),
        ):
            with pytest.raises(psycopg.errors.DivisionByZero):
                await divide
            await at_rest(pool)
        assert pool.stats().connects == 4
        assert len(asked) == 2
        with pytest.raises(TypeError, match="classify must be a callable"):
            AsyncConnectionPool(dsn, classify=Fault.SERVER)  # type: ignore[arg-type]
