"""`asyncpool.Connection`: its waits, its notice of death, and what becomes of a cancelled query."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import psycopg
import pytest

from asyncpool import AsyncConnectionPool, Connection
from asyncpool.testing import Server
from tests.postgres._tools import (
    Backends,
    all_usable,
    at_rest,
    backend_of,
    descriptors,
    eventually,
    in_time,
    linux,
)

Kill = Callable[[Backends, Server], Awaitable[None]]


@pytest.fixture
async def conn(dsn: str) -> AsyncIterator[Connection[Any]]:
    """One that no pool knows."""
    conn = await Connection.connect(dsn, autocommit=True)
    yield conn
    await conn.close()


class TestWaits:
    async def test_copy_goes_both_ways(self, conn: Connection[Any]) -> None:
        """More than a socket takes at once, and all of it arrives."""
        await conn.execute("CREATE TEMP TABLE t (n int, x text)")
        cur = conn.cursor()
        async with cur.copy("COPY t FROM STDIN") as copy:
            for n in range(20_000):
                await copy.write_row((n, "x" * 100))
        count = 0
        async with cur.copy("COPY t TO STDOUT") as copy:
            async for _ in copy.rows():
                count += 1
        assert count == 20_000

    async def test_other_tasks_go_on_beside_a_copy(self, conn: Connection[Any]) -> None:
        """A copy that never has to wait lets them in all the same."""
        turns = 0

        async def tick() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        ticker = asyncio.create_task(tick())
        query = "COPY (SELECT repeat('x', 100) FROM generate_series(1, 200000)) TO STDOUT"
        async with conn.cursor().copy(query) as copy:
            async for _ in copy:
                pass
        ticker.cancel()
        assert turns > 20

    async def test_rows_that_nobody_asked_for_stay_on_the_server(
        self, conn: Connection[Any], asyncpool_dsn: str
    ) -> None:
        """A slow consumer of stream() stops the server, and not the client's memory."""
        query = "SELECT repeat('x', 1000) FROM generate_series(1, 100000)"
        rows = conn.cursor().stream(query)
        assert await anext(rows)
        with psycopg.connect(asyncpool_dsn, autocommit=True) as watcher:

            def waits_for_the_client() -> bool:
                row = watcher.execute(
                    "SELECT wait_event FROM pg_stat_activity WHERE pid = %s",
                    [conn.info.backend_pid],
                ).fetchone()
                return row == ("ClientWrite",)

            await eventually(waits_for_the_client)
        assert sum([1 async for _ in rows]) == 99_999

    async def test_a_pipeline_a_server_cursor_and_two_phase_commit_work(
        self, conn: Connection[Any]
    ) -> None:
        """All of them go through the same wait."""
        async with conn.pipeline():
            cursors = [await conn.execute("SELECT %s::int", [n]) for n in range(50)]
        assert [(await cur.fetchone()) for cur in cursors] == [(n,) for n in range(50)]
        async with conn.transaction():
            named = conn.cursor("named")
            named.itersize = 10
            await named.execute("SELECT generate_series(1, 105)")
            assert len([row async for row in named]) == 105
            await named.close()
        await conn.set_autocommit(False)
        await conn.tpc_begin(conn.xid(1, "one", "branch"))
        await conn.execute("SELECT 1")
        await conn.tpc_rollback()

    async def test_notifies_ends_at_its_timeout(self, conn: Connection[Any]) -> None:
        """With what has come by then."""
        await conn.execute("LISTEN here")
        await conn.execute("NOTIFY here, 'one'")
        assert [n.payload async for n in conn.notifies(timeout=0.05)] == ["one"]
        assert [n async for n in conn.notifies(timeout=0)] == []

    async def test_a_notification_reaches_an_idle_connection_at_once(
        self, conn: Connection[Any], dsn: str
    ) -> None:
        """No query has to be sent for it."""
        got: list[str] = []
        conn.add_notify_handler(lambda notify: got.append(notify.payload))
        conn.add_notice_handler(lambda _: None)
        await conn.execute("LISTEN here")
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
            await other.execute("NOTIFY here, 'now'")
        await eventually(lambda: got == ["now"])

    async def test_a_slow_consumer_of_notifies_misses_none(
        self, conn: Connection[Any], dsn: str
    ) -> None:
        """Those that come while it is busy wait for it."""
        await conn.execute("LISTEN here")
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
            got = []
            await other.execute("NOTIFY here, '0'")
            async for notify in conn.notifies(timeout=10, stop_after=5):
                got.append(notify.payload)
                if len(got) < 5:
                    await other.execute(f"NOTIFY here, '{len(got)}'")
                    await asyncio.sleep(0.01)
        assert got == ["0", "1", "2", "3", "4"]

    def test_it_may_move_to_another_loop(self, asyncpool_dsn: str) -> None:
        """As psycopg's own may, one after the other."""
        with asyncio.Runner() as first:
            conn = first.run(Connection.connect(asyncpool_dsn, autocommit=True))
            first.run(conn.execute("SELECT 1"))
            with asyncio.Runner() as second:
                second.run(conn.execute("SELECT 1"))
            first.run(conn.close())

    @pytest.mark.parametrize("base", [psycopg.AsyncConnection, Connection])
    async def test_a_users_own_class_works_in_a_pool(self, dsn: str, base: Any) -> None:
        """Derived from either; psycopg's own is not watched."""
        own = type("Own", (base,), {})
        async with AsyncConnectionPool(dsn, min_size=2, connection_class=own) as pool:
            async with pool.connection() as conn:
                assert type(conn) is own
                assert await (await conn.execute("SELECT 1")).fetchone() == (1,)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pool.execute("SELECT pg_sleep(60)"), 0.05)
            await all_usable(pool)


async def terminate(backends: Backends, server: Server) -> None:
    backends.terminate()


async def restart(backends: Backends, server: Server) -> None:
    await server.restart()


class TestNotice:
    @pytest.mark.parametrize("kill", [terminate, restart])
    async def test_dead_idle_connections_are_replaced_with_no_query_sent(
        self, dsn: str, backends: Backends, asyncpool_server: Server, kill: Kill
    ) -> None:
        """The loop sees their end, and the pool refills by itself."""
        async with AsyncConnectionPool(dsn, min_size=4) as pool:
            await pool.wait()
            before = backends.pids()
            await kill(backends, asyncpool_server)
            await eventually(lambda: len(backends.pids() - before) == 4)
            assert pool.stats().requests == 0
            assert pool.stats().lost == 4
            await all_usable(pool)

    async def test_no_request_fails_after_all_idle_backends_were_killed(
        self, dsn: str, backends: Backends
    ) -> None:
        """Not one of a thousand."""
        async with AsyncConnectionPool(dsn, min_size=4, max_size=8) as pool:
            await pool.wait()
            backends.terminate()  # blocks until all are gone: the loop has not heard of it yet
            results = await asyncio.gather(*(pool.fetchval("SELECT 1") for _ in range(1000)))
            assert results == [1] * 1000
            assert pool.stats().lost == 4

    async def test_one_that_dies_while_lent_is_not_lent_again(
        self, dsn: str, backends: Backends
    ) -> None:
        """Its borrower has not even sent a query."""
        async with AsyncConnectionPool(dsn, min_size=1) as pool:
            conn = await pool.acquire()
            backends.terminate()
            await eventually(lambda: conn.closed)
            await pool.release(conn)
            assert await pool.fetchval("SELECT 1") == 1

    @pytest.mark.skipif(not linux, reason="descriptors are counted in /proc")
    async def test_no_descriptor_is_left_however_it_ends(
        self, dsn: str, backends: Backends
    ) -> None:
        """Closed, killed, cancelled, or forgotten."""
        before: set[str] = set()
        for round_ in range(4):
            conns = [await Connection.connect(dsn, autocommit=True) for _ in range(6)]
            await conns[0].close()
            with contextlib.suppress(psycopg.OperationalError):
                await conns[1].execute("SELECT pg_terminate_backend(pg_backend_pid())")
            task = asyncio.create_task(conns[2].execute("SELECT pg_sleep(60)"))
            await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait({task})
            await conns[2].close()
            conns[3].pgconn.finish()
            conns[4]._pool = None  # it is not to warn of its end
            for conn in conns[1:4] + conns[5:]:
                await conn.close()
            del conns, conn, task
            gc.collect()
            await eventually(lambda: not backends.pids())
            if round_ == 0:
                before = set(descriptors())
        assert set(descriptors()) == before


class TestCancellation:
    async def test_a_cancelled_query_raises_at_once_on_a_server_that_is_stopped(
        self, dsn: str, asyncpool_server: Server
    ) -> None:
        """Its caller waits for nobody."""
        conn = await Connection.connect(dsn, autocommit=True)
        task = asyncio.create_task(conn.execute("SELECT pg_sleep(60)"))
        await asyncio.sleep(0.05)
        await asyncpool_server.pause()
        try:
            task.cancel()
            # A step for the cancellation itself, a few for the way out of psycopg.
            for _ in range(10):
                await asyncio.sleep(0)
            assert task.cancelled()
        finally:
            await asyncpool_server.resume()
        await conn.close()

    async def test_the_next_query_waits_for_the_end_of_the_cancelled_one(
        self, conn: Connection[Any]
    ) -> None:
        """And it is not hit by the cancel request, however often."""
        pid = await backend_of(conn)
        for n in range(60):
            with anyio.move_on_after(0.001 * (n % 5)):
                await conn.execute("SELECT pg_sleep(60)")
            assert await in_time(backend_of(conn)) == pid

    async def test_cancelled_twice_it_is_the_same(self, conn: Connection[Any]) -> None:
        """The second comes while the clean-up waits for the first."""

        async def work() -> None:
            try:
                await conn.execute("SELECT pg_sleep(60)")
            finally:
                await conn.execute("SELECT 1")

        task = asyncio.create_task(work())
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        assert await in_time(backend_of(conn))

    async def test_a_storm_leaves_nothing_behind(self, dsn: str, backends: Backends) -> None:
        """No more backends than `max_size`, no query left, nearly all connections survive."""
        randomness = random.Random(7)
        most = 0

        async def one(pool: AsyncConnectionPool) -> None:
            pause = randomness.choice([0, 0, 0.001, 0.003, 0.01])
            work = pool.execute("SELECT pg_sleep(60)", timeout=30)
            if randomness.random() < 0.5:
                with anyio.move_on_after(pause):
                    await work
            else:
                task = asyncio.create_task(work)
                await asyncio.sleep(pause)
                task.cancel()
                await asyncio.wait({task})

        async with AsyncConnectionPool(dsn, min_size=4) as pool:
            await pool.wait()

            async def many() -> None:
                nonlocal most
                for n in range(50):
                    await one(pool)
                    if n % 10 == 0:
                        most = max(most, len(backends.pids()))

            await in_time(asyncio.gather(*(many() for _ in range(8))), 60)
            await at_rest(pool)
            await all_usable(pool)
            assert most <= 4
            assert pool.stats().connects <= 4 + 20, pool.explain()
