"""Is there a pooler between, such as PgBouncer, and what does it leave of a session?

A session that the server named itself has the process that the server says. A pooler makes up the
number, as clients come and go on the sessions that it keeps. How it shares them is seen with two
clients: whoever has another's session, or a second one of its own, is in transaction mode.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.generators import execute
from psycopg.pq import ExecStatus
from psycopg.rows import dict_row

from asyncpool import AsyncConnectionPool, Connection

Mode = Literal["session", "transaction", "statement"]

PATIENCE = 5.0
"""Seconds for each of the two: to see how it shares, and to hear what its console says."""
ROUNDS = 4
"""In which one of several sessions may be met again."""


@dataclass(frozen=True, slots=True)
class Pooler:
    """What is known of it."""

    mode: Mode | None
    """As seen, or else as its console says; None where neither is possible."""
    prepared: bool | None
    """Whether prepared statements were there on another session too; None: not seen."""
    version: str | None = None
    """Such as "PgBouncer 1.18.0"; this and the rest only where its console lets us in."""
    config: Mapping[str, str] = field(default_factory=dict)
    database: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For people."""
        return self.version or "a pooler"

    def number(self, name: str) -> int | None:
        """A setting of the database's, or else of all; None where it is unknown."""
        value = self.database.get(name) or self.config.get(name)
        return int(value) if value is not None and str(value).isdecimal() else None


async def look_behind(
    dsn: str, pool: AsyncConnectionPool[Connection[Any]], conn: Connection[Any]
) -> Pooler | None:
    """The pooler, or None where the server itself answers.

    Args:
        dsn: leads to where `conn` has been connected.
        pool: gives one connection more, if there is a pooler.
        conn: in autocommit mode.
    """
    if await _session(conn) == conn.info.backend_pid:
        return None
    console = await _ask_console(dsn, conn)
    mode: Mode | None = None
    prepared: bool | None = None
    try:
        async with asyncio.timeout(PATIENCE):
            mode, prepared = await _watch_it_share(pool, conn)
    except (psycopg.Error, TimeoutError) as error:
        if "statement pooling" in str(error):
            mode = "statement"
    database = console.get("database", {})
    said = database.get("pool_mode") or console.get("config", {}).get("pool_mode")
    return Pooler(mode or said, prepared, **console)


async def _watch_it_share(
    pool: AsyncConnectionPool[Connection[Any]], one: Connection[Any]
) -> tuple[Mode, bool | None]:
    """Have two clients use sessions in turn, one of which has prepared a statement."""
    # A name of its own: where the pooler knows nothing of it, it stays behind on a session.
    name = f"asyncpool_doctor_{uuid4().hex[:12]}"
    async with one.transaction():
        first = await _session(one)
        await _prepare(one, name)
    await pool.resize(0, 2)
    two = await pool.getconn(PATIENCE)
    try:
        for _ in range(ROUNDS):
            async with two.transaction():
                shared = await _session(two) == first
                try:
                    moved, kept = await asyncio.wait_for(_move(one, first, name), PATIENCE / 2)
                except TimeoutError:  # there is no session but that one
                    moved, kept = False, None
                if shared and kept is False:
                    await two.execute(sql.SQL("DEALLOCATE {}").format(sql.Identifier(name)))
            if moved or shared:
                return "transaction", kept
    finally:
        await pool.putconn(two)
    return "session", None


async def _move(one: Connection[Any], first: int, name: str) -> tuple[bool, bool | None]:
    """Whether it has another session by now, and whether its statement came with it."""
    async with one.transaction():
        moved = await _session(one) != first
        return moved, await _is_prepared(one, name) if moved else None


async def _session(conn: Connection[Any]) -> int:
    cursor = await conn.execute("SELECT pg_catalog.pg_backend_pid()", prepare=False)
    (pid,) = await cursor.fetchone() or (0,)
    return int(pid)


async def _prepare(conn: Connection[Any], name: str) -> None:
    conn.pgconn.send_prepare(name.encode(), b"SELECT 1")
    await conn.wait(execute(conn.pgconn))


async def _is_prepared(conn: Connection[Any], name: str) -> bool:
    conn.pgconn.send_query_prepared(name.encode(), None)
    (result,) = await conn.wait(execute(conn.pgconn))
    return bool(result.status == ExecStatus.TUPLES_OK)


async def _ask_console(dsn: str, conn: Connection[Any]) -> dict[str, Any]:
    """What PgBouncer says of itself, where this user may ask."""
    info = conn.info
    console = make_conninfo(
        dsn, host=info.host, port=info.port, dbname="pgbouncer", target_session_attrs=None
    )
    connect = psycopg.AsyncConnection[dict[str, Any]].connect
    try:
        # It knows simple queries only.
        async with (
            asyncio.timeout(PATIENCE),
            await connect(
                console,
                autocommit=True,
                cursor_factory=psycopg.AsyncClientCursor,
                row_factory=dict_row,
            ) as there,
        ):
            (version,) = await (await there.execute("SHOW VERSION")).fetchall()
            config = await (await there.execute("SHOW CONFIG")).fetchall()
            databases = await (await there.execute("SHOW DATABASES")).fetchall()
    except (psycopg.Error, TimeoutError, ValueError):
        return {}
    return {
        "version": str(version["version"]),
        "config": {row["key"]: row["value"] for row in config},
        "database": next((row for row in databases if row["name"] == info.dbname), {}),
    }
