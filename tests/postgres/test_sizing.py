"""How many connections there are, and for how long: never too many, and never too few for long."""

from __future__ import annotations

import asyncio
import random
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from asyncpool import AsyncConnectionPool, PoolTimeout
from tests._tools import few

from ._tools import Backends, Proxy, all_usable, at_rest, backend_of, eventually, in_time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncpool.testing import Server


async def test_the_minimum_is_opened_in_parallel(dsn: str) -> None:
    """All connects that the user has asked for are under way at the same time."""
    async with Proxy(dsn) as proxy:
        proxy.delay = 0.5
        async with AsyncConnectionPool(proxy.dsn, min_size=40) as pool:
            await pool.wait()
            assert proxy.most_connecting == 40


async def test_a_bounded_number_is_opened_at_once(dsn: str) -> None:
    """Connections are not all replaced at once; and the pool still gets all it wants."""
    async with Proxy(dsn) as proxy, AsyncConnectionPool(proxy.dsn, min_size=40) as pool:
        await pool.wait()
        proxy.delay, proxy.most_connecting = 0.5, 0
        await pool.drain()
        assert (await at_rest(pool)).size == 40
        assert proxy.most_connecting == 32


async def test_a_minimum_of_zero_opens_nothing_unasked(dsn: str) -> None:
    """Such a pool is ready at once, and its first request opens the first connection."""
    async with AsyncConnectionPool(dsn, min_size=0, max_size=2) as pool:
        await pool.wait()
        assert pool.stats().connects == 0
        assert await pool.fetchval("SELECT 1") == 1
        assert pool.stats().connects == 1


async def test_no_more_is_opened_than_there_is_demand(dsn: str) -> None:
    """A burst that one connection can serve in turns leaves no surplus behind."""
    async with AsyncConnectionPool(dsn, min_size=1, max_size=10) as pool:
        await pool.wait()
        for _ in range(50):
            assert await pool.fetchval("SELECT 1") == 1
        assert (await at_rest(pool)).connects == 1


@contextmanager
def limited_role(dsn: str, limit: int) -> Iterator[str]:
    """A DSN of a role to which the server gives so many sessions and refuses one more."""
    role = f"limited_{uuid4().hex[:8]}"
    observer = Backends(dsn, role)
    observer.ask(f"CREATE ROLE {role} {observer.login} CONNECTION LIMIT {limit}")
    try:
        yield make_conninfo(dsn, user=role)
    finally:
        observer.ask(f"DROP ROLE {role}")


async def test_the_server_never_sees_more_than_max_size(
    asyncpool_dsn: str, dsn: str, application: str, backends: Backends
) -> None:
    """While connections are broken, closed, retired, drained and resized under load.

    The server itself counts: it refuses the role a session too many, which the pool would
    count as a failed connect. Beside that pg_stat_activity is looked at all the time.
    """
    most, done = 0, threading.Event()

    def look() -> None:
        nonlocal most
        with psycopg.connect(asyncpool_dsn, autocommit=True) as conn:
            query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
            while not done.is_set():
                cur = conn.execute(query, [application])
                most = max(most, *(count for (count,) in cur))

    async def work(pool: AsyncConnectionPool, seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(25):
            with suppress(psycopg.OperationalError, asyncio.TimeoutError):
                async with asyncio.timeout(rng.choice([0.001, 0.01, 5])):
                    async with pool.connection() as conn:
                        match rng.randrange(6):
                            case 0:
                                await conn.close()
                            case 1:
                                backends.ask(
                                    "SELECT pg_terminate_backend(%s)", conn.info.backend_pid
                                )
                            case 2:
                                await conn.execute("SELECT pg_sleep(0.02)")
                            case _:
                                await conn.execute("SELECT 1")

    async def stir(pool: AsyncConnectionPool) -> None:
        while True:
            await asyncio.sleep(0.05)
            await pool.drain()
            await asyncio.sleep(0.05)
            await pool.check()

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        with limited_role(dsn, 5) as limited:
            async with AsyncConnectionPool(
                limited, min_size=2, max_size=5, max_lifetime=0.3, ping_interval=0.1, max_idle=0.2
            ) as pool:
                stirring = asyncio.create_task(stir(pool))
                await in_time(asyncio.gather(*(work(pool, seed) for seed in range(15))), 60)
                stirring.cancel()
                await asyncio.wait({stirring})
                stats = pool.stats()
                assert stats.connects_failed == 0, pool.explain()
                assert stats.connects > 20
                assert pool.stats().leased == pool.stats().waiting == 0
    finally:
        done.set()
        watcher.join()
    assert 2 <= most <= 5


@pytest.mark.parametrize("way", few(["drained", "closed by the borrower", "cancelled in a scope"]))
async def test_a_backend_that_is_slow_to_go_still_counts(dsn: str, way: str) -> None:
    """The backend drops its temporary tables first; the place is free once the server hangs up."""
    many = "DO $$ BEGIN FOR i IN 1..400 LOOP EXECUTE 'CREATE TEMP TABLE t' || i || '(x text)';"
    with limited_role(dsn, 2) as limited:
        async with AsyncConnectionPool(limited, min_size=2) as pool:
            conns = [await pool.acquire(), await pool.acquire()]
            for conn in conns:
                await conn.execute(f"{many} END LOOP; END $$")
                await conn.commit()
            for conn in conns:
                if way == "closed by the borrower":
                    await conn.close()
                elif way == "cancelled in a scope":
                    with anyio.move_on_after(0.02):
                        await conn.execute("SELECT pg_sleep(30)")
                await pool.release(conn)
            if way == "drained":
                await pool.drain()
            await all_usable(pool)
            assert pool.stats().connects_failed == 0, pool.explain()
            # The one that was cancelled survives.
            assert pool.stats().connects == (2 if way == "cancelled in a scope" else 4)


async def test_the_surplus_goes_down_to_exactly_the_minimum(dsn: str, backends: Backends) -> None:
    """All that is too old goes, the server agrees, and what is to stay stays."""
    async with AsyncConnectionPool(dsn, min_size=2, max_size=6, max_idle=0.3) as pool:
        await all_usable(pool)
        await eventually(lambda: pool.stats().size == 2)
        kept = backends.pids()
        assert len(kept) == 2
        await asyncio.sleep(0.7)  # two more rounds, of which nothing may come
        assert backends.pids() == kept
        assert pool.stats().connects == 6


async def test_the_surplus_of_a_busy_pool_ages_too(dsn: str) -> None:
    """The most recently used is lent first, so one borrower does not keep all of them young."""
    async with AsyncConnectionPool(dsn, min_size=1, max_size=5, max_idle=0.3) as pool:
        await all_usable(pool)
        used = set()

        async def use() -> None:
            while pool.stats().size > 1:
                async with pool.connection() as conn:
                    used.add(conn)
                await asyncio.sleep(0.01)

        await in_time(use())
        assert len(used) == 1


async def test_an_idle_connection_past_its_life_is_replaced_before_it_goes(
    dsn: str, backends: Backends
) -> None:
    """With room to spare the pool always has its minimum ready, and nobody has to use it."""
    async with AsyncConnectionPool(dsn, min_size=2, max_size=4, max_lifetime=0.5) as pool:
        await pool.wait()
        await eventually(lambda: pool.stats().idle == 2)
        first = backends.pids()

        def replaced() -> bool:
            stats = pool.stats()
            assert stats.idle >= 2, stats
            assert stats.size <= 4, stats
            return not (backends.pids() & first) and len(backends.pids()) == 2

        await eventually(replaced)


async def test_a_full_pool_replaces_what_is_past_its_life_too(dsn: str, backends: Backends) -> None:
    """With no room to spare the old one goes first."""
    async with AsyncConnectionPool(dsn, min_size=2, max_lifetime=0.4) as pool:
        await pool.wait()
        first = backends.pids()
        await eventually(lambda: len(backends.pids()) == 2 and not backends.pids() & first)


async def test_a_lease_outlives_its_connections_life(dsn: str) -> None:
    """A leased connection is retired at its return, not in the middle of its use."""
    async with AsyncConnectionPool(dsn, min_size=1, max_lifetime=0.2) as pool:
        async with pool.connection() as conn:
            await conn.execute("SELECT pg_sleep(0.5)")
            first = await backend_of(conn)
        async with pool.connection() as conn:
            assert await backend_of(conn) != first
        assert pool.stats().returns_bad == 0


async def test_lives_end_at_different_times(dsn: str) -> None:
    """Connections of one age do not all expire in one moment."""
    async with AsyncConnectionPool(dsn, min_size=20, max_lifetime=100) as pool:
        await pool.wait()
        lives = {round(e.expires_at - e.opened_at, 3) for e in pool._core.ledger.entries}
        assert len(lives) > 10
        assert min(lives) >= 95
        assert max(lives) <= 100


async def test_idle_connections_that_died_are_found_by_pings_and_replaced(
    dsn: str, backends: Backends
) -> None:
    """With no request at all the pool is whole again, and knows why it was not."""
    async with AsyncConnectionPool(dsn, min_size=3, ping_interval=0.2) as pool:
        await pool.wait()
        old = backends.pids()
        backends.terminate()
        await eventually(lambda: len(backends.pids()) == 3)
        assert not backends.pids() & old
        stats = await at_rest(pool)
        assert (stats.lost, stats.connects_failed) == (3, 0)


async def test_pings_leave_used_connections_alone_and_start_no_transaction(
    dsn: str, backends: Backends
) -> None:
    """An empty query, after which nothing is open and autocommit is as it was."""
    async with AsyncConnectionPool(dsn, min_size=2, ping_interval=0.1) as pool:
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")
            await asyncio.sleep(0.4)
            assert conn.pgconn.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        await pool.check()
        async with pool.connection() as one, pool.connection() as other:
            for each in (one, other):
                assert each.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE
                assert each.autocommit is False
        rows = backends.ask("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%'")
        assert rows == [(0,)]
        assert (await at_rest(pool)).connects == 2


async def test_check_replaces_what_is_dead(dsn: str, backends: Backends) -> None:
    """`pool.check()` looks at all that is idle, and afterwards the pool fills up again."""
    async with AsyncConnectionPool(dsn, min_size=3) as pool:
        await pool.wait()
        (victim, *_) = backends.pids()
        backends.terminate(victim)
        await pool.check()
        assert pool.stats().lost == 1
        await all_usable(pool)


async def test_a_cancelled_check_leaves_the_rest_to_the_pool(server: Server, dsn: str) -> None:
    """The caller is let go of at once, and no connection is missing after it."""
    async with AsyncConnectionPool(dsn, min_size=3, ping_timeout=30) as pool:
        await pool.wait()
        await server.pause()
        checking = asyncio.create_task(pool.check())
        await eventually(lambda: pool.stats().cleaning)
        checking.cancel()
        await asyncio.wait({checking}, timeout=5)
        assert checking.cancelled()
        await server.resume()
        assert (await at_rest(pool)).connects == 3


async def test_a_pool_can_grow_and_serve_its_waiters(dsn: str) -> None:
    """More room is used at once, by those who wait for it."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        first = await pool.acquire()
        waiters = [asyncio.create_task(pool.acquire()) for _ in range(2)]
        await eventually(lambda: pool.stats().waiting == 2)
        await pool.resize(1, 3)
        for conn in [first, *await in_time(asyncio.gather(*waiters))]:
            await pool.release(conn)
        await pool.resize(5, 8)
        assert (pool.min_size, pool.max_size) == (5, 8)
        assert (await at_rest(pool)).size == 5


async def test_a_pool_can_shrink_below_the_number_leased(dsn: str, backends: Backends) -> None:
    """Idle connections close at once, leased ones at their return, and the rest stays usable."""
    async with AsyncConnectionPool(dsn, min_size=6) as pool:
        await pool.wait()
        lent = [await pool.acquire() for _ in range(4)]
        await pool.resize(1, 2)
        await eventually(lambda: len(backends.pids()) == 4)
        for conn in lent:
            await pool.release(conn)
        await eventually(lambda: len(backends.pids()) == 2)
        await all_usable(pool)
        await pool.resize(1)
        assert pool.max_size == 1
        await eventually(lambda: len(backends.pids()) == 1)


@pytest.mark.parametrize("sizes", [(-1, 2), (3, 2), (0, 0), (0, None), (1.5, 2), (True, 2)])
async def test_a_senseless_resize_changes_nothing(dsn: str, sizes: tuple[int, int | None]) -> None:
    """An error that names the number, and the sizes of before."""
    async with AsyncConnectionPool(dsn, min_size=1, max_size=2) as pool:
        with pytest.raises((ValueError, TypeError), match="_size must"):
            await pool.resize(*sizes)
        assert (pool.min_size, pool.max_size) == (1, 2)


async def test_drain_replaces_all_there_is(dsn: str, backends: Backends) -> None:
    """Idle ones at once, those lent on their return, and those being opened before they serve."""
    async with AsyncConnectionPool(dsn, min_size=3) as pool:
        await pool.wait()
        first = backends.pids()
        lent = await pool.acquire()
        pid = await backend_of(lent)
        await pool.drain()
        await eventually(lambda: backends.pids() & first == {pid} and len(backends.pids()) == 3)
        assert await backend_of(lent) == pid
        await pool.release(lent)
        await eventually(lambda: not backends.pids() & first and len(backends.pids()) == 3)
        await all_usable(pool)


async def test_a_connection_that_was_being_opened_is_drained_too(dsn: str) -> None:
    """The connection may have been made with the setting that has just changed."""
    async with Proxy(dsn) as proxy, AsyncConnectionPool(proxy.dsn, min_size=1) as pool:
        proxy.delay = 0.1
        await eventually(lambda: proxy.connecting)
        await pool.drain()
        assert await pool.fetchval("SELECT 1") == 1
        assert proxy.accepted == 2


async def test_a_failed_connect_frees_its_place_for_the_next(dsn: str) -> None:
    """After a cut on the way the waiter is served by another attempt, and nothing is missing."""
    async with Proxy(dsn) as proxy, AsyncConnectionPool(proxy.dsn, min_size=0, max_size=2) as pool:
        proxy.hung = 2
        waiters = [asyncio.create_task(pool.acquire()) for _ in range(2)]
        await eventually(lambda: proxy.accepted == 2)
        proxy.cut()
        for conn in await in_time(asyncio.gather(*waiters)):
            await pool.release(conn)
        stats = await at_rest(pool)
        assert (stats.size, stats.connects_failed) == (2, 2)


async def test_a_refused_connection_is_not_asked_for_in_a_storm(dsn: str) -> None:
    """Too many connections for the role (53300): the pool keeps what it has and backs off."""
    with limited_role(dsn, 2) as limited:
        async with AsyncConnectionPool(limited, min_size=1, max_size=10) as pool:
            conns = [await pool.acquire(), await pool.acquire()]
            with pytest.raises(PoolTimeout, match="too many connections") as caught:
                await pool.acquire(timeout=1)
            assert isinstance(caught.value.__cause__, psycopg.errors.OperationalError)
            assert 1 <= pool.stats().connects_failed <= 12
            for conn in conns:
                await pool.release(conn)
            await asyncio.gather(*(pool.execute("SELECT 1") for _ in range(20)))
            assert pool.stats().size <= 3
