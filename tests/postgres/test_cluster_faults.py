"""A cluster whose hosts fail: nothing is lost or written twice, and who fails takes no reads."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from asyncpool import Cluster, PoolError
from asyncpool.testing import ServerUnsupported
from benchmarks._network import Network, NoNetwork
from benchmarks.cluster._trio import Trio, ledger, multi_host, port
from benchmarks.cluster._trio import trio as started

from ._tools import SOON, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.skipif(os.name != "posix", reason="servers of our own need POSIX")

MAX_LAG = 0.5
NOTICED = 10.0
"""Seconds, on a busy machine, for the allowed lag, a look and its limit: some three seconds."""
WHERE = "SELECT inet_server_port()"
IS_THERE = "SELECT EXISTS (SELECT FROM ledger WHERE id = %s)"
WRITE = "INSERT INTO ledger (id) VALUES (%s)"


@asynccontextmanager
async def trio(*, synchronous: bool = False) -> AsyncIterator[Trio]:
    """A primary with two standbys, for a test that promotes one."""
    try:
        async with started(synchronous=synchronous) as servers:
            yield servers
    except ServerUnsupported as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def servers() -> Iterator[Trio]:
    """A primary with two standbys, for tests that leave the roles as they are."""
    with asyncio.Runner() as runner:
        entered = trio()
        yield runner.run(entered.__aenter__())
        runner.run(entered.__aexit__(None, None, None))


@asynccontextmanager
async def opened(dsn: str, **options: Any) -> AsyncIterator[Cluster]:
    dsn = make_conninfo(dsn, connect_timeout=2)
    given = {"min_size": 2, "max_size": 4, "max_lag": MAX_LAG, **options}
    async with Cluster(dsn, kwargs={"autocommit": True}, **given) as cluster:
        await cluster.wait(20)
        await eventually(lambda: sum(each.takes_reads for each in cluster.hosts()) == 2)
        yield cluster


async def ports(cluster: Cluster, count: int = 40) -> Counter[int]:
    """How often each host answers, of reads that are sent in one turn."""
    return Counter(await asyncio.gather(*(cluster.read.fetchval(WHERE) for _ in range(count))))


def takes_reads(cluster: Cluster, host: int) -> bool:
    (found,) = [each for each in cluster.hosts() if each.port == host]
    return found.takes_reads


def role_of(cluster: Cluster, host: int) -> tuple[str | None, bool]:
    """The role of a host, and whether it answers."""
    (found,) = [each for each in cluster.hosts() if each.port == host]
    return found.role, found.reachable


async def until_read(cluster: Cluster, host: int) -> float:
    """Read until a host answers; return the seconds that this took."""
    start = time.monotonic()
    async with asyncio.timeout(15):
        while host not in await ports(cluster, 8):
            pass
    return time.monotonic() - start


@pytest.mark.parametrize(
    ("fail", "heal"),
    [("kill", "start"), ("pause", "resume"), ("pause_replay", "resume_replay")],
    ids=["killed", "paused", "lagging"],
)
@pytest.mark.exhaustive
async def test_a_standby_that_fails_takes_no_reads_until_it_is_back(
    servers: Trio, fail: str, heal: str
) -> None:
    """The other one answers all; the one that is back is soon read from again."""
    failed, other = port(servers.first.dsn), port(servers.second.dsn)
    async with opened(servers.dsn) as cluster:
        assert (await ports(cluster)).keys() == {failed, other}
        writing = asyncio.create_task(_keep_writing(cluster))
        try:
            await getattr(servers.first, fail)()
            await eventually(lambda: not takes_reads(cluster, failed), NOTICED)
            started = time.monotonic()
            assert (await ports(cluster)).keys() == {other}
            assert time.monotonic() - started < SOON
            await getattr(servers.first, heal)()
            assert await until_read(cluster, failed) < SOON
        finally:
            writing.cancel()
            await asyncio.wait([writing])


async def _keep_writing(cluster: Cluster) -> None:
    """Write now and then, since a standby that is told nothing does not lag."""
    while True:
        await cluster.write.execute(WRITE, [0])
        await asyncio.sleep(0.05)


@pytest.mark.exhaustive
async def test_reads_under_way_on_a_standby_that_is_killed_run_elsewhere(servers: Trio) -> None:
    """With `retry_elsewhere`, no plain read fails; those that wait in a line are moved."""
    async with opened(servers.dsn) as cluster:
        outcomes: list[object] = []

        async def keep_reading() -> None:
            while True:
                outcomes.append(await cluster.read.fetchval(WHERE, retry_elsewhere=True))

        readers = [asyncio.create_task(keep_reading()) for _ in range(8)]
        await asyncio.sleep(0.3)
        await servers.first.kill()
        before = len(outcomes)
        await eventually(lambda: len(outcomes) > before + 200)
        ended = [each for each in readers if each.done()]
        for each in readers:
            each.cancel()
        await asyncio.wait(readers)
        await servers.first.start()
        assert [each.exception() for each in ended] == []


@pytest.mark.exhaustive
async def test_a_standby_that_is_cut_off_takes_no_reads_until_it_is_back(servers: Trio) -> None:
    """Packets are dropped both ways, so that no connection breaks."""
    failed = port(servers.first.dsn)
    try:
        network = Network(servers.first.dsn).__enter__()
    except NoNetwork as error:
        pytest.skip(str(error))
    try:
        dsn = multi_host(servers.primary.dsn, network.dsn, servers.second.dsn)
        async with opened(dsn, timeout=5.0) as cluster:
            assert failed in await ports(cluster)
            network.fall_silent()
            seen = port(network.dsn)
            await eventually(lambda: not takes_reads(cluster, seen), NOTICED)
            assert (await ports(cluster)).keys() == {port(servers.second.dsn)}
            network.speak()
            assert await until_read(cluster, failed) < SOON
    finally:
        network.__exit__()


@pytest.mark.exhaustive
async def test_standbys_are_looked_at_more_often_while_the_primary_is_down(servers: Trio) -> None:
    """So that a promotion is noticed soon: five times a second, not once."""
    async with opened(servers.dsn) as cluster:

        def looks() -> int:
            standby = next(each for each in cluster.hosts() if each.role == "standby")
            return standby.stats.requests - standby.reads

        await servers.primary.kill()
        await eventually(lambda: not all(each.reachable for each in cluster.hosts()))
        before = looks()
        await eventually(lambda: looks() >= before + 5, 2.0)
        await servers.primary.start()
        await eventually(lambda: all(each.reachable for each in cluster.hosts()))


@pytest.mark.exhaustive
async def test_a_host_that_serves_nothing_new_is_looked_at_more_often(servers: Trio) -> None:
    """So that reads under way on a host that falls silent are soon run elsewhere."""
    async with opened(servers.dsn) as cluster, cluster.read.connection() as conn:

        def looks() -> int:
            (host,) = [each for each in cluster.hosts() if each.under_way]
            return host.stats.requests - host.reads

        sleeping = asyncio.create_task(conn.execute("SELECT pg_sleep(3)"))
        before = looks()
        await eventually(lambda: looks() >= before + 4, 2.0)
        sleeping.cancel()
        await asyncio.wait([sleeping])


class Writer:
    """Writes numbers one after another from several tasks, each number once."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._next = 0
        self.done: list[int] = []
        self.failed: dict[int, Exception] = {}
        self.at: list[float] = []
        """When writes were answered."""
        self._tasks = [asyncio.create_task(self._write()) for _ in range(6)]

    async def _write(self) -> None:
        while True:
            self._next += 1
            number = self._next
            try:
                await self._cluster.write.execute(WRITE, [number])
            except (psycopg.Error, PoolError) as error:
                self.failed[number] = error
            else:
                self.done.append(number)
                self.at.append(time.monotonic())
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)


@pytest.mark.exhaustive
async def test_a_promotion_under_load_loses_no_write_and_doubles_none() -> None:
    """Only writes under way when the primary died may fail; the others wait in the line."""
    async with trio(synchronous=True) as servers, opened(servers.dsn) as cluster:
        writer = Writer(cluster)
        await asyncio.sleep(0.5)
        await servers.primary.kill()
        killed = time.monotonic()
        await servers.fail_over()
        promoted = time.monotonic()
        await eventually(lambda: writer.at[-1] > killed + 0.2)
        first = min(each for each in writer.at if each > killed + 0.05)
        await asyncio.sleep(0.5)
        await servers.primary.follow(servers.first)
        assert await until_read(cluster, port(servers.primary.dsn)) < SOON
        await writer.stop()
        found = Counter(await ledger(servers.first))
        roles = {each.port: each.role for each in cluster.hosts()}
    assert roles[port(servers.first.dsn)] == "primary"
    assert roles[port(servers.primary.dsn)] == "standby"
    assert first - promoted < SOON
    assert set(writer.done) <= found.keys()
    assert max(found.values()) == 1
    # Six tasks: each may have had one statement under way.
    assert len(writer.failed) <= 6, writer.failed


@pytest.mark.exhaustive
async def test_reads_of_own_writes_are_not_stale_over_a_lag_and_a_promotion() -> None:
    """A read in a context of `own_writes` fails, or sees what the context has written before."""
    async with trio(synchronous=True) as servers, opened(servers.dsn, max_lag=None) as cluster:
        numbers, found, errors = itertools.count(), list[bool](), list[Exception]()

        async def keep_asking() -> None:
            while True:
                number = next(numbers)
                try:
                    with cluster.own_writes():
                        await cluster.write.execute(WRITE, [number])
                        found.append(await cluster.read.fetchval(IS_THERE, [number]))
                except (psycopg.Error, PoolError) as error:
                    errors.append(error)
                await asyncio.sleep(0.01)

        async def until_asked(count: int) -> None:
            before = len(found)
            await eventually(lambda: len(found) > before + count)

        tasks = [asyncio.create_task(keep_asking()) for _ in range(4)]
        await until_asked(50)
        await servers.second.pause_replay()
        await until_asked(50)
        await servers.second.resume_replay()
        await servers.primary.kill()
        await servers.fail_over()
        await until_asked(50)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(found)
        assert len(errors) <= 4, errors


@pytest.mark.exhaustive
async def test_a_primary_that_wakes_after_a_promotion_gets_no_write() -> None:
    """It still takes itself for the primary; the one on the later timeline is."""
    async with trio() as servers, opened(servers.dsn, timeout=20.0) as cluster:
        await cluster.write.execute(WRITE, [1])
        await servers.primary.pause()
        writes = [asyncio.create_task(cluster.write.execute(WRITE, [n])) for n in range(2, 20)]
        await servers.first.promote()
        ended = await asyncio.wait_for(asyncio.gather(*writes, return_exceptions=True), 15)
        await servers.primary.resume()
        # The pool has two to four connections: more statements cannot have been under way.
        assert sum(isinstance(each, Exception) for each in ended) <= 4, ended
        await asyncio.sleep(2.5)  # looks at the old primary
        await asyncio.gather(*(cluster.write.execute(WRITE, [n]) for n in range(100, 120)))
        found = await ledger(servers.first)
        (old,) = [each for each in cluster.hosts() if each.port == port(servers.primary.dsn)]
        assert (old.role, old.takes_reads) == ("primary", False)
        assert set(range(100, 120)) <= set(found)
        done = [n for n, each in enumerate(ended, 2) if not isinstance(each, Exception)]
        assert set(done) <= set(found)


@pytest.mark.exhaustive
async def test_a_primary_that_is_cut_off_is_left_at_a_promotion() -> None:
    """When it is back it still takes itself for the primary, on the older timeline."""
    async with trio(synchronous=True) as servers:
        try:
            network = Network(servers.primary.dsn).__enter__()
        except NoNetwork as error:
            pytest.skip(str(error))
        try:
            dsn = multi_host(network.dsn, servers.first.dsn, servers.second.dsn)
            async with opened(dsn, timeout=20.0) as cluster:
                writer = Writer(cluster)
                await asyncio.sleep(0.5)
                network.fall_silent()
                await servers.first.promote()
                promoted = time.monotonic()
                await eventually(lambda: writer.at[-1] > promoted + 0.5)
                network.speak()
                await eventually(lambda: role_of(cluster, port(network.dsn)) == ("primary", True))
                await asyncio.sleep(2.5)  # looks at the old primary
                assert not takes_reads(cluster, port(network.dsn))
                await writer.stop()
                found = Counter(await ledger(servers.first))
            assert set(writer.done) <= found.keys()
            assert max(found.values()) == 1
            # Six tasks: each may have had one statement under way.
            assert len(writer.failed) <= 6, writer.failed
        finally:
            network.__exit__()


@pytest.mark.exhaustive
async def test_writes_wait_in_the_wait_queue_while_there_is_no_primary() -> None:
    """A write that comes between the end of the primary and the promotion is served after it."""
    async with trio() as servers, opened(servers.dsn, timeout=20.0) as cluster:
        await servers.primary.stop()
        writes = [asyncio.create_task(cluster.write.execute(WRITE, [n])) for n in range(20)]
        await asyncio.sleep(0.5)
        assert not any(each.done() for each in writes)
        assert (await ports(cluster)).total() == 40
        await servers.fail_over()
        start = time.monotonic()
        await asyncio.gather(*writes)
        assert time.monotonic() - start < SOON
        assert await ledger(servers.first) == list(range(20))
