"""A PgBouncer in front of each host of a cluster, as the page on PgBouncer shows it."""

from __future__ import annotations

import asyncio
import os

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from asyncpool import Cluster
from asyncpool.testing import ServerUnavailable, ServerUnsupported, postgres

from ._cli import bouncer
from ._tools import eventually, in_time
from .test_fleet_pooler import SETTINGS

pytestmark = pytest.mark.skipif(os.name != "posix", reason="servers of our own need POSIX")

STANDBY = "SELECT pg_is_in_recovery()"


@pytest.mark.exhaustive
async def test_a_cluster_sees_roles_through_the_poolers_of_its_hosts() -> None:
    """Reads go to the standby and writes to the primary, also after a promotion."""
    try:
        async with (
            postgres() as primary,
            primary.standby() as standby,
        ):
            with bouncer(primary.dsn, **SETTINGS) as one, bouncer(standby.dsn, **SETTINGS) as two:
                ports = [str(conninfo_to_dict(each)["port"]) for each in (one, two)]
                both = make_conninfo(one, host="127.0.0.1,127.0.0.1", port=",".join(ports))
                async with Cluster(
                    both, min_size=1, max_size=4, kwargs={"prepare_threshold": None}
                ) as cluster:
                    await in_time(cluster.wait())
                    await eventually(lambda: roles(cluster) == ["primary", "standby"])
                    assert await cluster.write.fetchval(STANDBY) is False
                    assert await cluster.read.fetchval(STANDBY) is True
                    await primary.stop("immediate")
                    await standby.promote()
                    reconnect(two)
                    await in_time(written(cluster), 30.0)
                    assert await cluster.read.fetchval("SELECT count(*) FROM written") == 0
                    assert roles(cluster)[1] == "primary"
    except (ServerUnavailable, ServerUnsupported) as error:
        pytest.skip(str(error))


def reconnect(dsn: str) -> None:
    """Let a PgBouncer connect again: until then it tells clients that its server is a standby."""
    console = make_conninfo(dsn, dbname="pgbouncer")
    with psycopg.connect(console, autocommit=True, cursor_factory=psycopg.ClientCursor) as admin:
        admin.execute("RECONNECT")


async def written(cluster: Cluster) -> None:
    """Write, again if PgBouncer had accepted a statement for the server that is gone."""
    while True:
        try:
            await cluster.write.execute("CREATE TABLE IF NOT EXISTS written (x int)")
        except psycopg.OperationalError:
            await asyncio.sleep(0.05)
        else:
            return


def roles(cluster: Cluster) -> list[str | None]:
    """The role of each host, in the order of the connection string."""
    return [host.role for host in cluster.hosts()]
