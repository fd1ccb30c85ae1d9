"""The servers: a primary with two standbys, and the connection string of all three."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from asyncpool.testing import Server, postgres

LEDGER = "CREATE TABLE ledger (id bigint NOT NULL); CREATE INDEX ON ledger (id)"
"""It has no key, so that a number can be in it twice."""
FIRST, SECOND = "standby_1", "standby_2"
"""The names by which the primary knows its standbys, for `synchronous_standby_names`."""


@dataclass(frozen=True)
class Trio:
    """A primary and two standbys that stream from it."""

    primary: Server
    first: Server
    second: Server

    @property
    def dsn(self) -> str:
        """A connection string with the three hosts, the primary first."""
        return multi_host(self.primary.dsn, self.first.dsn, self.second.dsn)

    async def fail_over(self) -> None:
        """Promote the first standby, and let the second one follow it."""
        await self.first.promote()
        await self.second.follow(self.first)


def multi_host(*dsns: str) -> str:
    """Return one connection string for several hosts, with the user and password of the first."""
    parts = [conninfo_to_dict(dsn) for dsn in dsns]
    hosts, ports = (",".join(str(each[name]) for each in parts) for name in ("host", "port"))
    return make_conninfo(dsns[0], host=hosts, port=ports)


def port(dsn: str) -> int:
    """Return the port of a connection string."""
    return int(conninfo_to_dict(dsn)["port"] or 0)


@asynccontextmanager
async def trio(*, synchronous: bool = False) -> AsyncIterator[Trio]:
    """Start a primary with the table `ledger`, and two standbys.

    Args:
        synchronous: whether a commit waits until the first standby has it, so that a failover to
            this standby loses nothing.
    """
    async with AsyncExitStack() as stack:
        primary = await stack.enter_async_context(postgres(max_connections=100))
        first, second = [
            await stack.enter_async_context(primary.standby(settings={"cluster_name": name}))
            for name in (FIRST, SECOND)
        ]
        async with await psycopg.AsyncConnection.connect(primary.dsn, autocommit=True) as conn:
            await conn.execute(LEDGER)
            if synchronous:
                # The standbys were copied before: neither of them has the setting when promoted.
                await conn.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{FIRST}'")
                await conn.execute("SELECT pg_reload_conf()")
        yield Trio(primary, first, second)


async def ledger(server: Server) -> list[int]:
    """Return all numbers in the ledger of a server."""
    async with await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as conn:
        cur = await conn.execute("SELECT id FROM ledger ORDER BY id")
        return [number for (number,) in await cur.fetchall()]
