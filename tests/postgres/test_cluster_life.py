"""The life of a cluster: opening, closing, forks, loops, the list of hosts, reports."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import warnings
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from asyncpool import Budget, Cluster, Fleet, PoolClosed, PoolTimeout, PoolWrongLoop

from ._cluster import PORT, cluster_on, name_of, port_of, status
from ._tools import Proxy, eventually, in_time, run_script

if TYPE_CHECKING:
    from ._cluster import Servers


async def test_the_first_use_opens_a_cluster(trio: Servers) -> None:
    """Of either pool; `open=False` makes it an error."""
    for pool in ("read", "write"):
        cluster = Cluster(trio.dsn(), min_size=1)
        assert cluster.closed
        assert await getattr(cluster, pool).fetchval("SELECT 1") == 1
        assert not cluster.closed
        await cluster.close()
        assert cluster.closed
    cluster = Cluster(trio.dsn(), min_size=1, open=False)
    for pool in ("read", "write"):
        with pytest.raises(PoolClosed, match="is not open yet"):
            await getattr(cluster, pool).fetchval("SELECT 1")
    with pytest.raises(PoolClosed, match="is not open yet"):
        await cluster.wait()
    await cluster.open(wait=True)
    assert await cluster.read.fetchval("SELECT 1") == 1
    await cluster.close()


async def test_a_closed_cluster_is_an_error_for_all(trio: Servers) -> None:
    """Also for those that wait while it is closed; closing it again does nothing."""
    async with cluster_on(trio) as cluster:
        for each in trio.all:
            await cluster.drain(name_of(each))
        waits = asyncio.create_task(cluster.read.fetchval(PORT))
        await asyncio.sleep(0)
        async with cluster.write.connection(), cluster.write.connection():
            queued = asyncio.create_task(cluster.write.fetchval("SELECT 1, now()"))
            await eventually(lambda: cluster.write.stats().waiting)
            closing = [asyncio.create_task(cluster.close(0.5)) for _ in range(2)]
            with pytest.raises(PoolClosed):
                await in_time(waits)
            with pytest.raises(PoolClosed):
                await in_time(queued)
        await asyncio.gather(*closing)
        for pool in (cluster.read, cluster.write):
            with pytest.raises(PoolClosed, match="already closed"):
                await pool.fetchval("SELECT 1")
            with pytest.raises(PoolClosed, match="already closed"):
                async with pool.connection():
                    raise AssertionError("it is closed")
        with pytest.raises(PoolClosed, match="already closed"):
            await cluster.open()
        assert (await cluster.health()).status == "down"
        await cluster.close()


async def test_a_cluster_that_was_never_opened_is_closed_at_once() -> None:
    """There is nothing to end."""
    cluster = Cluster("host=db1,db2", min_size=1)
    await cluster.close()
    with pytest.raises(PoolClosed):
        await cluster.read.fetchval("SELECT 1")


async def test_a_cancelled_close_goes_on(trio: Servers) -> None:
    """The caller gets its CancelledError at once."""
    async with cluster_on(trio) as cluster:
        async with cluster.write.connection():
            closing = asyncio.create_task(cluster.close())
            await eventually(lambda: cluster.closed)
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
        await eventually(lambda: all(not pool.stats().size for pool in cluster.pools))


@pytest.mark.exhaustive
async def test_a_cluster_is_not_ready_in_time(trio: Servers) -> None:
    """Then it is closed, and the error says what is missing."""
    await trio.primary.kill()
    cluster = Cluster(trio.dsn(), min_size=1)
    with pytest.raises(PoolTimeout) as caught:
        await cluster.open(wait=True, timeout=0.7)
    said = str(caught.value)
    assert "was not ready within 0.7 s, so it was closed" in said
    assert f"{name_of(trio.primary)}: it is down" in said
    assert f"{name_of(trio.standbys[0])}: it is a standby" in said
    assert cluster.closed


async def test_a_dropped_cluster_warns_and_leaves_nothing(trio: Servers) -> None:
    """While one of its pools is kept, it goes on."""
    read = Cluster(trio.dsn(), min_size=1, name="dropped").read
    assert await read.fetchval("SELECT 1") == 1
    gc.collect()
    assert await read.fetchval("SELECT 1") == 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del read
        await eventually(lambda: gc.collect() >= 0 and len(asyncio.all_tasks()) == 1)
        gc.collect()
    assert any("cluster 'dropped' was dropped" in str(each.message) for each in caught)


async def test_another_event_loop_is_refused(trio: Servers) -> None:
    """With a message that says so, on either pool."""

    def use(cluster: Any) -> None:
        for work in (cluster.read.fetchval, cluster.write.fetchval):
            with pytest.raises(PoolWrongLoop, match="another event loop"):
                asyncio.run(work("SELECT 1"))
        with pytest.raises(PoolWrongLoop, match="another event loop"):
            asyncio.run(cluster.close())

    async with cluster_on(trio) as cluster:
        await asyncio.to_thread(use, cluster)
        assert await cluster.read.fetchval("SELECT 1") == 1


THREE_RUNS = """
import asyncio, sys, logging
from asyncpool import Cluster
logging.disable()  # a pool warns that it was not closed
cluster = Cluster(sys.argv[1], min_size=1)
async def use():
    return await cluster.read.fetchval("SELECT 1"), await cluster.write.fetchval("SELECT 2")
async def use_and_close():
    found = await use()
    await cluster.close()
    return found
print(asyncio.run(use()), asyncio.run(use()), asyncio.run(use_and_close()))
"""


async def test_a_new_event_loop_begins_anew(trio: Servers) -> None:
    """As a pool does, after an event loop that ended without `close()`."""
    assert await run_script(THREE_RUNS, trio.dsn()) == "(1, 2) (1, 2) (1, 2)\n"


READS = """
import asyncio, sys, logging
from asyncpool import Cluster
logging.disable()
cluster = Cluster(sys.argv[1], min_size=1)
async def read(times, pause, close=False):
    for _ in range(times):
        await cluster.read.fetchval("SELECT 1")
    await asyncio.sleep(pause)  # for looks, which are no reads
    found = sum(host.reads for host in cluster.hosts())
    if close:
        await cluster.close()
    return found
print(asyncio.run(read(1, 3.0)), asyncio.run(read(2, 0, close=True)))
"""


@pytest.mark.exhaustive
async def test_the_reads_of_a_new_event_loop_are_counted_anew(trio: Servers) -> None:
    """The looks of the last one are not taken from them."""
    assert await run_script(READS, trio.dsn()) == "1 2\n"


FORK = """
import asyncio, os, sys
from asyncpool import Cluster, PoolForked
async def main():
    async with Cluster(sys.argv[1], min_size=1) as cluster:
        await cluster.wait()
        pid = os.fork()
        if not pid:
            os._exit(in_child(cluster))
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        print(await cluster.read.fetchval("SELECT 1"), await cluster.write.fetchval("SELECT 2"))
def in_child(cluster):
    asyncio._set_running_loop(None)
    async def use():
        for pool in (cluster.read, cluster.write):
            try:
                await pool.fetchval("SELECT 1")
            except PoolForked as error:
                assert "before a fork" in str(error), error
            else:
                raise AssertionError(pool)
        await cluster.open()
        assert await cluster.read.fetchval("SELECT 1") == 1
        assert await cluster.write.fetchval("SELECT 2") == 2
        await cluster.close()
    try:
        asyncio.run(use())
    except BaseException as error:
        import traceback
        traceback.print_exc()
        return 1
    return 0
asyncio.run(main())
"""


async def test_a_forked_child_has_to_open_it_again(trio: Servers) -> None:
    """It then has connections of its own; the parent's are untouched."""
    assert await run_script(FORK, trio.dsn()) == "1 2\n"


@pytest.mark.exhaustive
async def test_a_callable_lists_the_hosts(trio: Servers, caplog: pytest.LogCaptureFixture) -> None:
    """Hosts come and go while the cluster is open."""
    listed = [trio.primary.dsn, trio.standbys[0].dsn]

    async def hosts() -> list[str]:
        if not listed:
            raise OSError("no DNS today")
        return list(listed)

    async with Cluster(hosts, min_size=1, max_size=2) as cluster:
        await cluster.wait()
        first, second = trio.standbys
        await eventually(lambda: len(cluster.hosts()) == 2)
        await eventually(lambda: status(cluster, first).takes_reads)
        listed.append(second.dsn)
        await eventually(lambda: len(cluster.hosts()) == 3, 3.0)
        await eventually(lambda: status(cluster, second).takes_reads)
        async with cluster.read.connection() as one, cluster.read.connection() as two:
            assert {one.info.port, two.info.port} == {port_of(first), port_of(second)}
            listed.remove(first.dsn)
            await eventually(lambda: len(cluster.hosts()) == 2, 3.0)
            assert await cluster.read.fetchval(PORT) == port_of(second)
        listed.clear()
        failed = "the hosts could not be listed: OSError: no DNS today"
        await eventually(lambda: any(failed in each.getMessage() for each in caplog.records), 3.0)
        assert len(cluster.hosts()) == 2
        assert await cluster.read.fetchval(PORT) == port_of(second)
    kinds = [each.kind for each in cluster.explain().events]
    assert [kind for kind in kinds if kind in ("host added", "host removed")] == [
        "host removed",
        "host added",
    ]


@pytest.mark.parametrize("given", ["host=db1", [], [5], None])
async def test_a_callable_that_lists_no_hosts_is_seen(given: Any) -> None:
    """In the error of those that wait, and in the events."""
    async with Cluster(lambda: given, min_size=1) as cluster:
        with pytest.raises(PoolTimeout, match="no host is known"):
            await cluster.read.fetchval("SELECT 1", timeout=0.2)
        (event,) = cluster.explain().events
        assert event.kind == "hosts unknown"
        assert "the callable conninfo" in event.text
        assert cluster.read.stats().size == 0


@pytest.mark.exhaustive
async def test_a_network_that_swallows_all_is_a_host_that_is_down(trio: Servers) -> None:
    """Each look ends after a second, and the reads go elsewhere."""
    first, second = trio.standbys
    async with Proxy(first.dsn) as proxy:
        dsns = [trio.primary.dsn, proxy.dsn, second.dsn]
        async with Cluster(lambda: dsns, min_size=1, max_size=2) as cluster:
            await cluster.wait()
            await eventually(lambda: sum(each.takes_reads for each in cluster.hosts()) == 2)
            proxy.open_way.clear()
            await eventually(lambda: not cluster.hosts()[1].reachable, 3.0)
            assert "no answer within" in cluster.hosts()[1].reason
            assert await cluster.read.fetchval(PORT) == port_of(second)
            proxy.open_way.set()
            await eventually(lambda: cluster.hosts()[1].takes_reads, 3.0)


async def test_all_pools_share_a_budget(trio: Servers) -> None:
    """One for all, or one for each host and for writes."""
    asked: list[str | None] = []
    budgets: dict[str | None, Budget] = {}

    def budget_of(host: str | None) -> Budget:
        asked.append(host)
        return budgets.setdefault(host, Budget(2))

    async with cluster_on(trio, budget=Budget(6), max_size=4) as cluster:
        conns = [await cluster.write.acquire() for _ in range(2)]
        assert sum(pool.stats().size for pool in cluster.pools) <= 6
        for conn in conns:
            await cluster.write.release(conn)
    async with cluster_on(trio, budget=budget_of):
        assert asked == [*map(name_of, trio.all), None]
        assert all(budget.size >= 1 for budget in budgets.values())


async def test_each_pool_may_have_a_fleet_of_its_own(trio: Servers) -> None:
    """Two clusters share each server by them."""
    name = f"f{uuid4().hex[:8]}"
    fleets: dict[str | None, Fleet] = {}

    def fleet_of(host: str | None) -> Fleet:
        return fleets.setdefault(host, Fleet(name))

    def other(host: str | None) -> Fleet:
        return Fleet(name)

    async with (
        cluster_on(trio, budget=fleet_of, max_size=3) as cluster,
        cluster_on(trio, budget=other, max_size=3) as second,
    ):
        for each in cluster, second:
            assert await each.write.fetchval(PORT) == port_of(trio.primary)
            assert await each.read.fetchval(PORT) in map(port_of, trio.standbys)
        # On the primary each process has two pools, on a standby one.
        members = {None: 4, name_of(trio.primary): 4} | {name_of(s): 2 for s in trio.standbys}
        await eventually(
            lambda: {host: fleet.stats().members for host, fleet in fleets.items()} == members
        )
        assert all(each.stats().sees for each in fleets.values())


async def test_a_fleet_for_all_hosts_is_refused(trio: Servers) -> None:
    """It sees the sessions of one server only; the error says what to do."""
    fleet = Fleet("shop")
    with pytest.raises(TypeError, match=r"one server: pass a callable .* lambda host: Fleet"):
        Cluster(trio.dsn(), budget=fleet)
    with pytest.raises(ValueError, match=r"one Fleet for .* and for .*: make one for each"):
        Cluster(trio.dsn(), budget=lambda host: fleet)


async def test_the_reports_show_each_host(trio: Servers) -> None:
    """`str` for people, JSON for machines, and no password."""
    async with cluster_on(trio, name="shop") as cluster:
        await eventually(lambda: sum(each.takes_reads for each in cluster.hosts()) == 2)
        hosts = cluster.hosts()
        assert [each.name for each in hosts] == [name_of(each) for each in trio.all]
        assert [each.role for each in hosts] == ["primary", "standby", "standby"]
        assert [each.reachable for each in hosts] == [True, True, True]
        assert [each.takes_reads for each in hosts] == [False, True, True]
        explanation = cluster.explain()
        text = str(explanation)
        first = f"cluster 'shop': the primary is {name_of(trio.primary)}"
        assert text.splitlines()[0] == first
        assert f"{name_of(trio.primary)}: primary, takes no reads: it is the primary" in text
        assert f"{name_of(trio.standbys[0])}: standby, lags 0 s, takes reads" in text
        plain = json.loads(json.dumps(explanation.as_dict()))
        assert [each["role"] for each in plain["hosts"]] == ["primary", "standby", "standby"]
        password = psycopg.conninfo.conninfo_to_dict(trio.primary.dsn)["password"]
        assert str(password) not in text + json.dumps(plain)
        names = ["shop: write", *(f"shop: {each.name}" for each in hosts)]
        assert list(cluster.stats()) == [pool.name for pool in cluster.pools] == names
        health = await cluster.health()
        assert (health.status, health.reason) == ("ok", "")
        assert json.dumps(health.as_dict())
        assert repr(cluster) == (f"<Cluster 'shop' primary={name_of(trio.primary)} readable=2/3>")


async def test_events_are_logged_with_their_facts(
    trio: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    """Changes that a person should see are warnings."""
    first = trio.standbys[0]
    async with cluster_on(trio, name="shop") as cluster:
        await first.kill()
        await eventually(lambda: not status(cluster, first).reachable)
        await first.start()
        await eventually(lambda: status(cluster, first).takes_reads)
    records = [each for each in caplog.records if getattr(each, "pool", "") == "shop"]
    events = {each.pool_event: each for each in records}  # type: ignore[attr-defined]
    assert events["primary"].levelno == logging.INFO
    for kind in ("host down", "host up"):
        assert events[kind].levelno == logging.WARNING
        assert events[kind].pool_host == name_of(first)  # type: ignore[attr-defined]
        assert events[kind].getMessage().startswith(f"cluster 'shop': host {name_of(first)} ")


@pytest.mark.exhaustive
async def test_a_look_keeps_no_more_than_one_connection_alive(trio: Servers) -> None:
    """The surplus of a host is closed after `max_idle`, though it is looked at each second."""
    first = trio.standbys[0]
    async with cluster_on(trio, min_size=0, max_size=4, max_idle=0.5) as cluster:
        conns = [await cluster.read.acquire() for _ in range(6)]
        for conn in conns:
            await cluster.read.release(conn)
        assert status(cluster, first).stats.size == 3
        await eventually(lambda: status(cluster, first).stats.size == 1)
        looked = status(cluster, first).stats.requests
        await eventually(lambda: status(cluster, first).stats.requests > looked + 1)
        assert status(cluster, first).stats.connects <= 4


async def test_a_single_host_is_a_cluster_too(trio: Servers) -> None:
    """It takes writes and reads."""
    async with Cluster(make_conninfo(trio.primary.dsn), min_size=1, max_size=2) as cluster:
        assert await cluster.read.fetchval(PORT) == port_of(trio.primary)
        assert await cluster.write.fetchval(PORT) == port_of(trio.primary)
