"""Who looks on: the sessions that the server has, and a program that connects once in a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

ROLE = "fleet_bench"
"""The role of the processes: an ordinary one, which may not use reserved places."""
BYSTANDER = "bystander"
LOOK, CONNECT = 0.05, 0.25
"""Seconds from one look to the next, and from one connect of the bystander to the next."""
FULL = "remaining connection slots", "too many clients"
"""Texts in the error of a server that is full (53300)."""
SESSIONS = """
SELECT count(*) FROM pg_catalog.pg_stat_activity
WHERE usename = %s AND application_name <> %s
"""


@asynccontextmanager
async def role(dsn: str) -> AsyncIterator[str]:
    """Create the role of the processes; yield its connection string."""
    password = conninfo_to_dict(dsn).get("password") or ""
    name = sql.Identifier(ROLE)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(name))
        create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
        await conn.execute(create.format(name, sql.Literal(password)))
    yield make_conninfo(dsn, user=ROLE)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute(sql.SQL("DROP ROLE {}").format(name))


class Watch:
    """The sessions of the processes, and the luck of the bystander.

    Args:
        dsn: the server, for a superuser.
        member: the same for the role of the processes.
    """

    def __init__(self, dsn: str, member: str) -> None:
        self._dsn = dsn
        self._bystander = make_conninfo(member, application_name=BYSTANDER)
        self.sessions: list[tuple[float, int]] = []
        """When, in the time of `time.monotonic`, and how many."""
        self.connects = self.refused = 0
        """The bystander's connects while the server ran, and those for which it had no place."""

    async def run(self) -> None:
        """Look on until this task is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._count())
            group.create_task(self._connect())

    async def _count(self) -> None:
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(
                    self._dsn, autocommit=True
                ) as conn:
                    while True:
                        cursor = await conn.execute(SESSIONS, (ROLE, BYSTANDER))
                        (number,) = await cursor.fetchone() or (0,)
                        self.sessions.append((time.monotonic(), number))
                        await asyncio.sleep(LOOK)
            except psycopg.OperationalError:  # the server restarts
                await asyncio.sleep(LOOK)

    async def _connect(self) -> None:
        while True:
            await asyncio.sleep(CONNECT)
            try:
                conn = await psycopg.AsyncConnection.connect(self._bystander)
            except psycopg.OperationalError as error:
                is_full = any(text in str(error) for text in FULL)
                self.refused += is_full
                self.connects += is_full
            else:
                self.connects += 1
                await conn.close()
