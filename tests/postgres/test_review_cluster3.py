"""More faults that a review of the cluster found; each test fails while its fault is there."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psycopg
import pytest

from asyncpool import Budget, Cluster, PoolTimeout
from asyncpool._cluster.addresses import addresses_of
from asyncpool._cluster.changes import Changes
from asyncpool._cluster.primary import Primary
from asyncpool._cluster.sight import Sight

from ._cluster import PORT, Servers, ask, cluster_on, name_of, port_of, servers, status
from ._tools import eventually, in_time


async def test_a_standby_of_an_old_primary_takes_no_reads() -> None:
    """It is current, but with a server whose timeline has ended."""
    async with servers(2) as trio:
        first, second = trio.standbys
        async with cluster_on(trio, max_lag=0.5) as cluster:
            await eventually(lambda: sum(each.takes_reads for each in cluster.hosts()) == 2)
            await first.promote()  # the old primary stays up, and `second` follows it
            await eventually(lambda: cluster.explain().primary == name_of(first), 3.0)
            ask(trio.primary, "CREATE TABLE somewhere_else (x int)")
            await cluster.write.execute("CREATE TABLE IF NOT EXISTS fresh (x int)")
            await asyncio.sleep(4.0)
            seen = status(cluster, second)
            print(seen.lag, seen.takes_reads, seen.reason)
            found = {
                await cluster.read.fetchval("SELECT to_regclass('fresh')::text") for _ in range(4)
            }
            assert found == {"fresh"}


@pytest.mark.parametrize("places", [4, 5, 6])
async def test_a_promotion_under_a_budget_and_reads(places: int) -> None:
    async with servers(2) as trio:
        first, second = trio.standbys
        options: dict[str, Any] = {"max_size": 4, "budget": Budget(places), "timeout": 5.0}
        async with cluster_on(trio, **options) as cluster:
            ended = False
            reads = 0

            async def reader() -> None:
                nonlocal reads
                while not ended:
                    try:
                        async with cluster.read.connection() as conn:
                            await conn.execute("SELECT pg_sleep(0.02)")
                            reads += 1
                    except psycopg.OperationalError:
                        await asyncio.sleep(0.01)

            tasks = [asyncio.create_task(reader()) for _ in range(30)]
            await asyncio.sleep(1.0)
            assert await cluster.write.fetchval(PORT) == port_of(trio.primary)
            await trio.primary.kill()
            await asyncio.sleep(2.5)
            seen = status(cluster, trio.primary)
            print("primary seen", seen.reachable, seen.reason)
            began = time.monotonic()
            await first.promote()
            port = await cluster.write.fetchval("SELECT inet_server_port()", timeout=5.0)
            print(places, "took", time.monotonic() - began, "reads", reads, port)
            ended = True
            await in_time(asyncio.gather(*tasks))
            assert time.monotonic() - began < 2.5


def test_an_empty_name_among_several_hosts() -> None:
    """As libpq takes it: the default for that place."""
    for conninfo in ("host=,db2 port=1,2", "host=a,b hostaddr=,1.2.3.4"):
        for each in addresses_of(conninfo):
            assert "," not in each.conninfo, each.conninfo


class _Host:
    error = fault = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.sight: Sight | None = None

    @property
    def role(self) -> str | None:
        return None if self.sight is None else "primary" if self.sight.is_primary else "standby"


def _sight(timeline: int) -> Sight:
    return Sight(0.0, timeline > 0, 1, timeline, True, 0.0)


def _pair() -> tuple[Any, Any, Primary]:
    a, b = _Host("a"), _Host("b")
    primary = Primary(Changes("x", time.monotonic), lambda: [a, b])  # type: ignore[list-item]
    return a, b, primary


def test_timelines_that_begin_again_are_followed() -> None:
    """After pg_upgrade or a restore all servers are on timeline 1."""
    a, b, primary = _pair()
    a.sight, b.sight = _sight(5), _sight(0)
    primary.choose()
    a.sight = _sight(1)
    primary.choose()
    a.error, b.sight = "down", _sight(2)
    primary.choose()
    assert primary.host is b


def test_the_primarys_own_new_timeline_is_noted() -> None:
    a, b, primary = _pair()
    a.sight, b.sight = _sight(1), _sight(0)
    primary.choose()
    a.sight = _sight(3)
    primary.choose()
    a.error, b.sight = "down", _sight(2)
    primary.choose()
    assert primary.host is a
