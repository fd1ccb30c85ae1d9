"""What becomes of requests when the list of a cluster's hosts changes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from asyncpool import Cluster

from ._cluster import status
from ._tools import eventually

if TYPE_CHECKING:
    from ._cluster import Servers


async def test_a_block_on_a_host_that_left_the_list_is_not_cut(trio: Servers) -> None:
    """However long it lasts: more than the 5 s that a pool gives leases when it closes."""
    full = [each.dsn for each in trio.all]
    listed = full[:2]
    async with Cluster(lambda: list(listed), min_size=1, max_size=2) as cluster:
        await cluster.wait()
        await eventually(lambda: status(cluster, trio.standbys[0]).takes_reads)
        async with cluster.read.connection() as conn:
            listed.remove(full[1])
            await eventually(lambda: len(cluster.hosts()) == 1, 10.0)
            await asyncio.sleep(5.5)
            await conn.execute("SELECT 1")
        await eventually(lambda: conn.closed)
