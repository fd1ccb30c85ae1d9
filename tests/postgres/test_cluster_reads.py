"""`cluster.read`: which host serves a read, and what happens to reads when a host goes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from asyncpool import PoolTimeout, PoolUnavailable, ReleaseError

from ._cluster import PORT, ask, cluster_on, name_of, port_of, status
from ._tools import eventually, in_time

if TYPE_CHECKING:
    from asyncpool import Cluster
    from asyncpool.testing import Server

    from ._cluster import Servers


async def only_on(cluster: Cluster[Any], trio: Servers, server: Server) -> None:
    """Let only this standby take reads, and fill it."""
    for each in trio.standbys:
        if each is not server:
            await cluster.drain(name_of(each))
    assert await cluster.read.fetchval(PORT) == port_of(server)


async def waiting_at(cluster: Cluster[Any], server: Server, work: Any) -> asyncio.Task[Any]:
    """Start work that waits in the line of a server's pool."""
    task = asyncio.create_task(work)
    await eventually(lambda: status(cluster, server).stats.waiting)
    return task


async def test_reads_are_spread_over_the_standbys(trio: Servers) -> None:
    """Sequential ones in turns, as all have the same number under way; none is on the primary."""
    async with cluster_on(trio) as cluster:
        await eventually(lambda: sum(each.takes_reads for each in cluster.hosts()) == 2)
        found = Counter([await cluster.read.fetchval(PORT) for _ in range(20)])
        assert found == {port_of(each): 10 for each in trio.standbys}
        assert await cluster.write.fetchval(PORT) == port_of(trio.primary)
        assert not await cluster.write.fetchval("SELECT pg_is_in_recovery()")
        assert [each.under_way for each in cluster.hosts()] == [0, 0, 0]


async def test_a_read_goes_where_the_fewest_are_under_way(trio: Servers) -> None:
    """However the others were begun."""
    async with cluster_on(trio, max_size=5) as cluster:
        await eventually(lambda: sum(each.takes_reads for each in cluster.hosts()) == 2)
        async with cluster.read.connection() as conn, cluster.read.transaction() as other:
            busy = {conn.info.port, other.info.port}
            assert busy == {port_of(each) for each in trio.standbys}
            third = await cluster.read.acquire()
            rest = busy - {third.info.port}
            for _ in range(3):
                assert await cluster.read.fetchval(PORT) in rest
            fourth = await cluster.read.getconn()
            assert {fourth.info.port} == rest
            await cluster.read.putconn(fourth)
            await cluster.read.release(third)
        assert [each.under_way for each in cluster.hosts()] == [0, 0, 0]


async def test_every_method_of_the_face_runs_on_a_standby(trio: Servers) -> None:
    """With and without a block."""
    ask(trio.primary, "CREATE TABLE IF NOT EXISTS face (x int)")
    await trio.heal()
    ports = {port_of(each) for each in trio.standbys}
    async with cluster_on(trio, max_size=3) as cluster:
        read = cluster.read
        assert await read.execute("SELECT 1") == "SELECT 1"
        assert await read.fetchall(PORT) in [[(port,)] for port in ports]
        assert await read.fetchone(PORT, row_factory=psycopg.rows.scalar_row) in ports
        assert await read.executemany("SELECT %s", [[1], [2]]) == 2
        assert await read.batch(["SELECT 1", ("SELECT %s::int", [2])]) == [[(1,)], [(2,)]]
        async with read.cursor(row_factory=psycopg.rows.scalar_row) as cur:
            await cur.execute(PORT)
            assert await cur.fetchone() in ports
        async with read.acquire() as conn:
            assert conn.info.port in ports
        async with read.transaction(read_only=True, isolation="repeatable read") as conn:
            assert conn.info.port in ports

        async def work(conn: Any) -> int:
            return int(conn.info.port)

        assert await read.run_transaction(work, attempts=2) in ports
        await read.check()
        await read.drain()
        await read.wait()
        assert read.stats().size >= 3
        assert {each.status for each in (await read.health()).values()} <= {"ok", "degraded"}
        assert list(read.explain()) == [name_of(each) for each in trio.all]
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await read.execute("INSERT INTO face VALUES (1)")
        with pytest.raises(ValueError, match="isolation"):
            read.transaction(isolation="nonsense")
        with pytest.raises(ValueError, match="timeout"):
            await read.fetchval("SELECT 1", timeout=-1)
        assert [each.under_way for each in cluster.hosts()] == [0, 0, 0]


async def test_a_session_stays_on_its_host(trio: Servers) -> None:
    """Also one-shots and blocks inside; other tasks are not part of it."""
    async with cluster_on(trio, max_size=3) as cluster:
        await eventually(lambda: sum(each.takes_reads for each in cluster.hosts()) == 2)
        async with cluster.read.session() as conn:
            pid = conn.info.backend_pid
            assert await cluster.read.fetchval("SELECT pg_backend_pid()") == pid
            async with cluster.read.connection() as inside, cluster.read.session() as again:
                assert inside is again is conn
            got = await cluster.read.acquire()
            assert got is conn
            await cluster.read.release(got)
            other = asyncio.create_task(cluster.read.fetchval("SELECT pg_backend_pid()"))
            assert await other != pid
            assert await cluster.read.fetchval("SELECT pg_backend_pid()") == pid
        ports = {await cluster.read.fetchval(PORT) for _ in range(2)}
        assert ports == {port_of(each) for each in trio.standbys}
        assert [each.under_way for each in cluster.hosts()] == [0, 0, 0]


async def test_a_connection_of_others_is_refused(trio: Servers) -> None:
    """And one that was released already; the write pool's are not the read pool's."""
    async with cluster_on(trio) as cluster:
        conn = await cluster.read.acquire()
        await cluster.read.release(conn)
        with pytest.raises(ReleaseError, match="was not borrowed here"):
            await cluster.read.release(conn)
        other = await cluster.write.acquire()
        with pytest.raises(ReleaseError, match="was not borrowed here"):
            await cluster.read.putconn(other)
        await cluster.write.release(other)


async def test_a_forgotten_connection_does_not_count_for_ever(trio: Servers) -> None:
    """Nor one that was returned by its own pool."""
    async with cluster_on(trio) as cluster:
        conn = await cluster.read.acquire()
        host = next(each for each in cluster.hosts() if each.under_way)
        (pool,) = [each for each in cluster.pools if each.name.endswith(host.name)]
        await pool.release(conn)
        await eventually(lambda: not any(each.under_way for each in cluster.hosts()))


async def test_the_primary_takes_reads_if_asked(trio: Servers) -> None:
    """Then it is one of three."""
    async with cluster_on(trio, read_from_primary=True) as cluster:
        await eventually(lambda: all(each.takes_reads for each in cluster.hosts()))
        found = Counter([await cluster.read.fetchval(PORT) for _ in range(9)])
        assert found == {port_of(each): 3 for each in trio.all}


async def test_the_primary_takes_reads_while_no_standby_can(trio: Servers) -> None:
    """Until one can again."""
    async with cluster_on(trio) as cluster:
        for each in trio.standbys:
            await cluster.drain(name_of(each))
        assert status(cluster, trio.primary).takes_reads
        assert await cluster.read.fetchval(PORT) == port_of(trio.primary)
        await cluster.resume(name_of(trio.standbys[0]))
        assert status(cluster, trio.primary).reason == "it is the primary"
        assert await cluster.read.fetchval(PORT) == port_of(trio.standbys[0])


async def test_no_read_goes_to_the_primary_before_the_standbys_are_known(trio: Servers) -> None:
    """A read at the start waits for the first looks."""
    standbys = {port_of(each) for each in trio.standbys}
    async with cluster_on(trio, ready=False) as cluster:
        ports = await asyncio.gather(*(cluster.read.fetchval(PORT) for _ in range(8)))
        assert set(ports) <= standbys


@pytest.mark.parametrize("kind", ["one-shot", "block", "acquire"])
async def test_a_read_that_waits_at_a_host_which_goes_down_moves(trio: Servers, kind: str) -> None:
    """It is served by another host; what ran on the host fails."""
    first, second = trio.standbys
    async with cluster_on(trio, max_size=1) as cluster:
        await only_on(cluster, trio, first)

        async def read() -> Any:
            if kind == "one-shot":
                return await cluster.read.fetchval(PORT)
            if kind == "block":
                async with cluster.read.connection() as conn:
                    return conn.info.port
            conn = await cluster.read.acquire()
            await cluster.read.release(conn)
            return conn.info.port

        async def hold() -> None:
            async with cluster.read.connection() as conn:
                await conn.execute("SELECT pg_sleep(60)")

        holder = asyncio.create_task(hold())
        await eventually(lambda: status(cluster, first).stats.leased)
        task = await waiting_at(cluster, first, read())
        await cluster.resume(name_of(second))
        await first.kill()
        assert await in_time(task) == port_of(second)
        with pytest.raises(psycopg.OperationalError):
            await in_time(holder)
        assert [each.under_way for each in cluster.hosts()] == [0, 0, 0]


@pytest.mark.exhaustive
async def test_a_read_moves_with_the_rest_of_its_time(trio: Servers) -> None:
    """It does not wait anew where it comes to."""
    first, second = trio.standbys
    async with cluster_on(trio, max_size=1) as cluster:
        await only_on(cluster, trio, first)
        async with cluster.read.connection():
            began = time.monotonic()
            task = await waiting_at(cluster, first, cluster.read.fetchval(PORT, timeout=3.0))
            await cluster.resume(name_of(second))
            async with cluster.read.connection() as conn:
                assert conn.info.port == port_of(second)
                await eventually(lambda: time.monotonic() - began > 2.2)
                await cluster.drain(name_of(first))
                await eventually(lambda: status(cluster, second).stats.waiting)
                with pytest.raises(PoolTimeout):
                    await in_time(task)
                assert time.monotonic() - began < 5.0, "it waited for another three seconds"
        assert [each.under_way for each in cluster.hosts()] == [0, 0, 0]


async def test_without_a_host_a_read_waits_and_then_says_why(trio: Servers) -> None:
    """For each host; a read that still waits is served when a host comes back."""
    async with cluster_on(trio) as cluster:
        for each in trio.all:
            await cluster.drain(name_of(each))
        with pytest.raises(PoolTimeout) as caught:
            await cluster.read.fetchval(PORT, timeout=0.05)
        for each in trio.all:
            assert f"{name_of(each)}: it is drained" in str(caught.value)
        assert "no host takes reads within 0.05 s" in str(caught.value)
        with pytest.raises(PoolTimeout, match="no host takes reads within 0 s"):
            async with cluster.read.connection(timeout=0):
                raise AssertionError("there is none")
        task = asyncio.create_task(cluster.read.fetchval(PORT))
        await asyncio.sleep(0)
        await cluster.resume(name_of(trio.standbys[1]))
        assert await in_time(task) == port_of(trio.standbys[1])


async def test_a_drained_host_gives_up_its_connections_and_comes_back(trio: Servers) -> None:
    """It keeps one, for the looks; what is in use is closed when it is returned."""
    first = trio.standbys[0]
    async with cluster_on(trio, min_size=2, max_size=4) as cluster:
        await eventually(lambda: status(cluster, first).stats.idle == 2)
        async with cluster.read.connection() as one, cluster.read.connection() as two:
            conn = one if one.info.port == port_of(first) else two
            await cluster.drain(name_of(first))
            assert not conn.closed
            assert status(cluster, first).drained
            await eventually(lambda: status(cluster, first).stats.size == 2)
        await eventually(lambda: conn.closed and status(cluster, first).stats.size == 1)
        looked = status(cluster, first).stats.requests
        await eventually(lambda: status(cluster, first).stats.requests > looked)
        await cluster.resume(name_of(first))
        assert status(cluster, first).takes_reads
        await eventually(lambda: status(cluster, first).stats.idle == 2)


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_a_host_that_returns_is_used_within_two_seconds(trio: Servers, fault: str) -> None:
    """It took no reads meanwhile, and no other read had to wait for it."""
    first, second = trio.standbys
    async with cluster_on(trio) as cluster:
        await eventually(lambda: sum(each.takes_reads for each in cluster.hosts()) == 2)
        await getattr(first, fault)()
        await eventually(lambda: not status(cluster, first).reachable, 3.0)
        assert "it is down" in status(cluster, first).reason
        for _ in range(10):
            assert await cluster.read.fetchval(PORT, timeout=0.5) == port_of(second)
        await (first.start() if fault == "kill" else first.resume())
        await eventually(lambda: status(cluster, first).takes_reads, 2.0)
        found = {await cluster.read.fetchval(PORT) for _ in range(2)}
        assert found == {port_of(first), port_of(second)}
        kinds = [each.kind for each in cluster.explain().events]
        assert kinds[:2] == ["host up", "host down"]


@pytest.mark.exhaustive
async def test_a_host_that_hangs_delays_no_other(trio: Servers) -> None:
    """The others are looked at as before."""
    first, second = trio.standbys
    async with cluster_on(trio) as cluster:
        await first.pause()
        await second.kill()
        await eventually(lambda: not status(cluster, second).reachable, 1.0)
        await second.start()
        await eventually(lambda: status(cluster, second).takes_reads, 2.0)
        await eventually(lambda: not status(cluster, first).reachable, 3.0)


@pytest.mark.exhaustive
async def test_a_host_that_lags_takes_no_reads(trio: Servers) -> None:
    """Until it has caught up."""
    first, second = trio.standbys
    ask(trio.primary, "CREATE TABLE IF NOT EXISTS lags (x int)")
    await trio.heal()
    async with cluster_on(trio, max_lag=0.5) as cluster:
        await eventually(lambda: sum(each.takes_reads for each in cluster.hosts()) == 2)
        ask(first, "ALTER SYSTEM SET recovery_min_apply_delay = '1h'")
        ask(first, "SELECT pg_reload_conf()")
        try:
            await eventually(lambda: ask(first, "SHOW recovery_min_apply_delay") == "1h")
            ask(trio.primary, "INSERT INTO lags VALUES (1)")
            await eventually(lambda: not status(cluster, first).takes_reads, 5.0)
            now = status(cluster, first)
            assert now.lag > 0.5
            assert now.reachable
            assert "it lags" in now.reason
            assert "(max_lag=0.5)" in now.reason
            for _ in range(5):
                assert await cluster.read.fetchval(PORT) == port_of(second)
        finally:
            ask(first, "ALTER SYSTEM RESET recovery_min_apply_delay")
            ask(first, "SELECT pg_reload_conf()")
        await eventually(lambda: status(cluster, first).takes_reads)
        assert status(cluster, first).lag == 0.0
        kinds = [each.kind for each in cluster.explain().events]
        assert kinds[:2] == ["host current", "host lags"]


@pytest.mark.exhaustive
async def test_a_quiet_primary_makes_no_standby_lag(trio: Servers) -> None:
    """However old the last transaction is."""
    async with cluster_on(trio, max_lag=0.0) as cluster:
        await eventually(lambda: sum(each.takes_reads for each in cluster.hosts()) == 2)
        before = [each.stats.requests for each in cluster.hosts()]
        await eventually(
            lambda: all(
                each.stats.requests > old + 2
                for each, old in zip(cluster.hosts(), before, strict=True)
            )
        )
        assert [each.lag for each in cluster.hosts()] == [0.0, 0.0, 0.0]
        assert all(each.replayed for each in cluster.hosts())


SLOW = "SELECT count(*) FROM many a, many b, many c WHERE a.x + b.x + c.x < 0"
"""A plain read that takes hours."""


def end_reads(server: Server, part: str) -> int:
    """Terminate the backends that execute a statement with this part; return how many."""
    return int(
        ask(
            server,
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            f" WHERE state = 'active' AND query LIKE '%{part}%' AND pid <> pg_backend_pid()",
        )
    )


async def test_a_plain_read_is_run_again_elsewhere(trio: Servers) -> None:
    """Where its backend is terminated; each other host is tried once."""
    ask(trio.primary, "CREATE TABLE IF NOT EXISTS many AS SELECT generate_series(1, 3000) AS x")
    await trio.heal()
    async with cluster_on(trio) as cluster:
        await eventually(lambda: sum(each.takes_reads for each in cluster.hosts()) == 2)
        task = asyncio.create_task(cluster.read.fetchval(SLOW, retry_elsewhere=True))
        await eventually(lambda: sum(each.under_way for each in cluster.hosts()))
        first, second = trio.standbys
        if not status(cluster, first).under_way:
            first, second = second, first
        await eventually(lambda: end_reads(first, "FROM many a"))
        await eventually(lambda: status(cluster, second).under_way)
        assert not task.done()
        await eventually(lambda: end_reads(second, "FROM many a"))
        with pytest.raises(psycopg.OperationalError):
            await in_time(task)
        assert [each.under_way for each in cluster.hosts()] == [0, 0, 0]


async def test_a_read_is_run_once_unless_it_is_asked_for(trio: Servers) -> None:
    """Or if there is no other host."""
    ask(trio.primary, "CREATE TABLE IF NOT EXISTS many AS SELECT generate_series(1, 3000) AS x")
    await trio.heal()
    first, second = trio.standbys
    async with cluster_on(trio) as cluster:
        await only_on(cluster, trio, first)
        for retry in (True, False):
            task = asyncio.create_task(cluster.read.fetchval(SLOW, retry_elsewhere=retry))
            await eventually(lambda: status(cluster, first).under_way)
            if not retry:
                await cluster.resume(name_of(second))
            await eventually(lambda: end_reads(first, "FROM many a"))
            with pytest.raises(psycopg.OperationalError):
                await in_time(task)


@pytest.mark.exhaustive
async def test_a_read_under_way_on_a_host_that_hangs_is_run_elsewhere(trio: Servers) -> None:
    """As soon as the host is found to be down, and long before the read's own limit."""
    first, second = trio.standbys
    async with cluster_on(trio) as cluster:
        await only_on(cluster, trio, first)
        await first.pause()
        read = cluster.read.fetchval("SELECT inet_server_port()", retry_elsewhere=True)
        task = asyncio.create_task(read)
        await eventually(lambda: status(cluster, first).under_way == 1)
        await cluster.resume(name_of(second))
        assert await in_time(task, 4.0) == port_of(second)
        assert [each.under_way for each in cluster.hosts()] == [0, 0, 0]


async def test_a_statement_that_is_no_plain_read_is_never_run_again(trio: Servers) -> None:
    """Even if it is asked for."""
    first, second = trio.standbys
    async with cluster_on(trio) as cluster:
        await only_on(cluster, trio, first)
        sleep = "SELECT pg_sleep(60), 'never again'"
        task = asyncio.create_task(cluster.read.fetchval(sleep, retry_elsewhere=True))
        await eventually(lambda: status(cluster, first).under_way)
        await cluster.resume(name_of(second))
        await eventually(lambda: end_reads(first, "never again"))
        with pytest.raises(psycopg.errors.AdminShutdown):
            await in_time(task)


@pytest.mark.exhaustive
async def test_a_saturated_host_is_still_looked_at(trio: Servers) -> None:
    """The look is before all that wait; so the host keeps taking reads."""
    first = trio.standbys[0]
    async with cluster_on(trio, max_size=1) as cluster:
        await only_on(cluster, trio, first)
        ended = asyncio.Event()

        async def use() -> None:
            while not ended.is_set():
                async with cluster.read.connection() as conn:
                    await conn.execute("SELECT pg_sleep(0.05)")

        def has_moved(position: str | None) -> bool:
            return status(cluster, first).replayed != position

        async with asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(use())
            await eventually(lambda: status(cluster, first).stats.waiting > 5)
            for _ in range(3):
                before = status(cluster, first).replayed
                ask(trio.primary, "SELECT pg_switch_wal()")
                ask(trio.primary, "CREATE TABLE IF NOT EXISTS switched (x int)")
                ask(trio.primary, "INSERT INTO switched VALUES (1)")
                await eventually(partial(has_moved, before), 5.0)
                assert status(cluster, first).takes_reads
            ended.set()


@pytest.mark.parametrize("hangs", [True, False])
@pytest.mark.exhaustive
async def test_a_host_that_serves_nothing_is_left_while_others_serve(
    trio: Servers, hangs: bool
) -> None:
    """All its connections are in use, so that no look tells whether it hangs: a knock does."""
    first, second = trio.standbys
    async with cluster_on(trio, max_size=1) as cluster:
        await only_on(cluster, trio, first)

        async def use() -> None:
            async with cluster.read.connection() as conn:
                await conn.execute("SELECT pg_sleep(60)")

        task = asyncio.create_task(use())
        await eventually(lambda: status(cluster, first).stats.leased)
        late = await waiting_at(cluster, first, cluster.read.fetchval(PORT))
        if hangs:
            await first.pause()
        await cluster.resume(name_of(second))
        assert await in_time(late, 6.0) == port_of(second)
        now, silent = status(cluster, first), "no connection came free, and it served nothing"
        assert now.reachable is not hangs
        assert now.reason == ("it is down: no answer within 1 s" if hangs else silent)
        for _ in range(3):
            assert await cluster.read.fetchval(PORT) == port_of(second)
        if not hangs:
            # The only host that is left takes reads, however slow it is.
            await cluster.drain(name_of(second))
            assert status(cluster, trio.primary).takes_reads is False
            assert status(cluster, first).takes_reads
            assert "host silent" in [each.kind for each in cluster.explain().events]
        else:
            await first.resume()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await eventually(lambda: status(cluster, first).takes_reads, 3.0)


async def test_where_all_hosts_refuse_access_reads_fail_at_once(trio: Servers) -> None:
    """As a pool's requests do."""
    async with cluster_on(trio, ready=False, kwargs={"password": "wrong"}) as cluster:
        with pytest.raises(PoolUnavailable, match="password authentication failed"):
            await in_time(cluster.read.fetchval(PORT), 5.0)
        with pytest.raises(PoolUnavailable, match="password authentication failed"):
            await in_time(cluster.write.fetchval(PORT), 5.0)


async def test_a_read_cancelled_at_any_step_leaves_nothing(trio: Servers) -> None:
    """No count, no lease and no wait."""

    async def one_shot(cluster: Any) -> None:
        await cluster.read.fetchval("SELECT 1")

    async def retried(cluster: Any) -> None:
        await cluster.read.fetchval("SELECT 1", retry_elsewhere=True)

    async def block(cluster: Any) -> None:
        async with cluster.read.connection() as conn:
            await conn.execute("SELECT 1")

    async def session(cluster: Any) -> None:
        async with cluster.read.session():
            await cluster.read.fetchval("SELECT 1")

    async def acquired(cluster: Any) -> None:
        conn = await cluster.read.acquire()
        await cluster.read.release(conn)

    async with cluster_on(trio) as cluster:
        await eventually(lambda: sum(each.takes_reads for each in cluster.hosts()) == 2)
        for work in (one_shot, retried, block, session, acquired):
            steps, ended = 0, False
            while not ended:
                task = asyncio.create_task(work(cluster))
                for _ in range(steps):
                    await asyncio.sleep(0)
                ended = task.done()
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                assert [each.under_way for each in cluster.hosts()] == [0, 0, 0]
                steps += 1 + steps // 4
        await eventually(lambda: not any(each.stats.leased for each in cluster.hosts()))
        assert not cluster.read._router.sessions
