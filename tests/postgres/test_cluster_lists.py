"""What a callable for the hosts may do to a cluster: short lists, failures, hosts that leave."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from asyncpool import Budget, Cluster

from ._cluster import PORT, Servers, name_of, port_of, servers, status
from ._tools import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

UNLISTED = "it is no longer in the list"


@pytest.fixture
async def promoted() -> AsyncIterator[Servers]:
    """A primary on timeline 2, which is the standby, and the old one, which is still up."""
    async with servers(1) as pair:
        await pair.standbys[0].promote()
        yield pair


class Source:
    """A callable that lists hosts, and counts how often it was asked.

    Args:
        dsns: the connection strings.
    """

    def __init__(self, *dsns: str) -> None:
        self.full = list(dsns)
        self.lists = list(dsns)
        self.asked = 0

    def __call__(self) -> list[str]:
        self.asked += 1
        return list(self.lists)

    async def answers(self, number: int) -> None:
        """Wait until it has answered so many times more, and the answers were used."""
        until = self.asked + number
        await eventually(lambda: self.asked >= until)
        await asyncio.sleep(0.05)


@pytest.mark.exhaustive
async def test_a_short_list_without_the_primary_moves_no_write(promoted: Servers) -> None:
    """An old primary is up and listed; the new one is missing from some answers of the source."""
    (replica,) = promoted.standbys
    source = Source(promoted.primary.dsn, replica.dsn)
    async with Cluster(source, min_size=1, max_size=2) as cluster:
        await cluster.wait()
        source.lists.remove(replica.dsn)
        await eventually(lambda: status(cluster, replica).reason == UNLISTED, 3.0)
        await source.answers(2)
        assert await cluster.write.fetchval(PORT) == port_of(replica)
        source.lists[:] = source.full
        await eventually(lambda: status(cluster, replica).takes_reads, 3.0)
        assert await cluster.write.fetchval(PORT) == port_of(replica)
        kinds = Counter(each.kind for each in cluster.explain().events)
        assert kinds["primary"] == 1
        assert not kinds["host removed"]


@pytest.mark.exhaustive
async def test_a_short_list_cuts_no_connection_for_writes(trio: Servers) -> None:
    """The block goes on, on the same connection."""
    source = Source(*(each.dsn for each in trio.all))
    async with Cluster(source, min_size=1, max_size=2) as cluster:
        await cluster.wait()
        async with cluster.write.connection() as conn:
            await conn.execute("SELECT 1")
            source.lists.remove(trio.primary.dsn)
            await eventually(lambda: status(cluster, trio.primary).reason == UNLISTED, 3.0)
            source.lists[:] = source.full
            await eventually(lambda: status(cluster, trio.primary).reason != UNLISTED, 3.0)
            await conn.execute("SELECT 1")
        assert cluster.write.stats().connects == 1


@pytest.mark.exhaustive
async def test_a_drained_host_that_is_listed_again_is_still_drained(trio: Servers) -> None:
    """A short answer of the source does not put it back into service."""
    first = trio.standbys[0]
    source = Source(*(each.dsn for each in trio.all))
    async with Cluster(source, min_size=1, max_size=2) as cluster:
        await cluster.wait()
        await eventually(lambda: len(cluster.hosts()) == 3)
        await cluster.drain(name_of(first))
        source.lists.remove(first.dsn)
        await eventually(lambda: len(cluster.hosts()) == 2, 3.0)
        source.lists[:] = source.full
        await eventually(lambda: len(cluster.hosts()) == 3, 3.0)
        await eventually(lambda: status(cluster, first).role == "standby")
        assert status(cluster, first).reason == "it is drained"
        await cluster.resume(name_of(first))
        assert status(cluster, first).takes_reads


@pytest.mark.exhaustive
async def test_a_list_that_cannot_be_used_changes_nothing(trio: Servers) -> None:
    """As where the callable for budgets fails for a new host."""
    full = [each.dsn for each in trio.all]
    source = Source(*full[:2])
    bad = name_of(trio.standbys[1])

    def budget(host: str | None) -> Budget | None:
        if host == bad:
            raise LookupError(host)
        return None

    async with Cluster(source, min_size=1, max_size=2, budget=budget) as cluster:
        await cluster.wait()
        before = [each.name for each in cluster.hosts()]
        source.lists[:] = [full[2], full[0]]
        await eventually(
            lambda: any(each.kind == "hosts unknown" for each in cluster.explain().events), 3.0
        )
        assert [each.name for each in cluster.hosts()] == before
        assert await cluster.read.fetchval(PORT, timeout=1.0)
