"""More faults that a review of the cluster found; each test fails while its fault is there."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psycopg
import pytest

from asyncpool import Budget
from asyncpool._cluster.addresses import addresses_of

from ._cluster import PORT, cluster_on, port_of, servers, status
from ._tools import in_time


@pytest.mark.parametrize("places", [4, 5, 6])
async def test_a_promotion_under_a_budget_and_reads(places: int) -> None:
    async with servers(2) as trio:
        first, _ = trio.standbys
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
