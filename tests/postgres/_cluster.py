"""A primary with standbys, and a cluster on them of which nothing may be left."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from asyncpool import Cluster, HostStatus
from asyncpool.testing import Server, postgres

from ._tools import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PORT = "SELECT inet_server_port()"


class Servers:
    """A primary and its standbys.

    Args:
        servers: the primary first.
    """

    def __init__(self, *servers: Server) -> None:
        self.all = servers
        self.primary, *self.standbys = servers

    def dsn(self, **options: Any) -> str:
        """One connection string with all of them as hosts."""
        hosts = ",".join(["127.0.0.1"] * len(self.all))
        ports = ",".join(str(port_of(each)) for each in self.all)
        return make_conninfo(self.primary.dsn, host=hosts, port=ports, **options)

    async def heal(self) -> None:
        """Let all of them run, and replay all."""
        for each in self.all:
            if each.state == "paused":
                await each.resume()
            if each.state == "stopped":
                await each.start()
        for each in self.standbys:
            ask(each, "SELECT pg_wal_replay_resume()")
        position = ask(self.primary, "SELECT pg_current_wal_flush_lsn()")
        for each in self.standbys:
            is_there = f"SELECT pg_last_wal_replay_lsn() >= '{position}'"
            await eventually(lambda each=each, query=is_there: ask(each, query))  # type: ignore[misc]


def port_of(server: Server) -> int:
    """The port of a server."""
    return int(str(conninfo_to_dict(server.dsn)["port"]))


def name_of(server: Server) -> str:
    """The name of a server in a cluster."""
    return f"127.0.0.1:{port_of(server)}"


def ask(server: Server, query: str) -> Any:
    """The first value of a statement that another session runs."""
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        cur = conn.execute(query.encode())
        row = cur.fetchone() if cur.description else None
    return row and row[0]


def status(cluster: Cluster[Any], server: Server) -> HostStatus:
    """What the cluster says of a server."""
    name = name_of(server)
    return next(each for each in cluster.hosts() if each.name == name)


@asynccontextmanager
async def servers(standbys: int, **settings: Any) -> AsyncIterator[Servers]:
    """A primary and standbys of its own, for a test that promotes one."""
    async with AsyncExitStack() as stack:
        primary = await stack.enter_async_context(postgres(settings=settings))
        if primary.source not in ("binaries", "wheel"):
            pytest.skip(f"{primary.source}: no standby")
        others = [await stack.enter_async_context(primary.standby()) for _ in range(standbys)]
        yield Servers(primary, *others)


@asynccontextmanager
async def cluster_on(trio: Servers, *, ready: bool = True, **options: Any) -> AsyncIterator[Any]:
    """A cluster, of which no task and no backend is left after the block."""
    application = f"test-{uuid4().hex[:12]}"
    before = asyncio.all_tasks()
    options = {"min_size": 1, "max_size": 2, "timeout": 10.0} | options
    cluster = Cluster(trio.dsn(application_name=application), **options)
    async with cluster:
        if ready:
            await cluster.wait()
            await eventually(lambda: all(each.role for each in cluster.hosts()))
            hosts = cluster.hosts()
            await eventually(lambda: sum(each.takes_reads for each in cluster.hosts()) >= 1)
            assert hosts
        yield cluster
    left = asyncio.all_tasks() - before
    assert not left, f"tasks are left: {left}"
    count = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{application}'"
    for each in trio.all:
        if each.state == "running":
            await eventually(lambda each=each: not ask(each, count))  # type: ignore[misc]
