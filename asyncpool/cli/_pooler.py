"""Detect a pooler such as PgBouncer, and how it shares the server's sessions.

Without a pooler, the process number that the client got at the connect is the session's own. A
pooler makes this number up, since clients share its sessions. Two clients show the mode: if one
gets the other's session, or a second session of its own, the pooler is in transaction mode.
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

TIME_LIMIT = 5.0
"""Seconds to detect the mode, and seconds for the queries to the console."""
ROUNDS = 4
"""Attempts to see the same session again, among several."""


@dataclass(frozen=True, slots=True)
class Pooler:
    """The facts about a pooler."""

    mode: Mode | None
    """The detected mode, or else the console's; None: unknown."""
    prepared: bool | None
    """Whether a prepared statement existed on another session too; None: unknown."""
    version: str | None = None
    """Such as "PgBouncer 1.18.0"; this and the next two need access to the console."""
    config: Mapping[str, str] = field(default_factory=dict)
    database: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """A name for people."""
        return self.version or "a pooler"

    def number(self, name: str) -> int | None:
        """Return a setting of the database, or else the global one; None: unknown."""
        value = self.database.get(name) or self.config.get(name)
        return int(value) if value is not None and str(value).isdecimal() else None


async def find_pooler(
    dsn: str, pool: AsyncConnectionPool[Connection[Any]], conn: Connection[Any]
) -> Pooler | None:
    """Return the pooler; None: the server itself answers.

    Args:
        dsn: the connection string of `conn`.
        pool: the pool for a second connection, if there is a pooler.
        conn: a connection in autocommit mode.
    """
    if await _session(conn) == conn.info.backend_pid:
        return None
    console = await _ask_console(dsn, conn)
    mode: Mode | None = None
    prepared: bool | None = None
    try:
        async with asyncio.timeout(TIME_LIMIT):
            mode, prepared = await _detect_mode(pool, conn)
    except (psycopg.Error, TimeoutError) as error:
        if "statement pooling" in str(error):
            mode = "statement"
    database = console.get("database", {})
    reported = database.get("pool_mode") or console.get("config", {}).get("pool_mode")
    return Pooler(mode or reported, prepared, **console)


async def _detect_mode(
    pool: AsyncConnectionPool[Connection[Any]], one: Connection[Any]
) -> tuple[Mode, bool | None]:
    """Let two clients use sessions in turn; the first prepares a statement."""
    # A unique name, since a pooler that does not track statements leaves it on a session.
    name = f"asyncpool_doctor_{uuid4().hex[:12]}"
    async with one.transaction():
        first = await _session(one)
        await _prepare(one, name)
    await pool.resize(0, 2)
    two = await pool.getconn(TIME_LIMIT)
    try:
        for _ in range(ROUNDS):
            async with two.transaction():
                shared = await _session(two) == first
                try:
                    check = _check_move(one, first, name)
                    moved, kept = await asyncio.wait_for(check, TIME_LIMIT / 2)
                except TimeoutError:  # the pooler has only one session
                    moved, kept = False, None
                if shared and kept is False:
                    await two.execute(sql.SQL("DEALLOCATE {}").format(sql.Identifier(name)))
            if moved or shared:
                return "transaction", kept
    finally:
        await pool.putconn(two)
    return "session", None


async def _check_move(one: Connection[Any], first: int, name: str) -> tuple[bool, bool | None]:
    """Whether the client has another session now, and whether its statement exists there."""
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
    """Read PgBouncer's version and settings from its console; empty: no access."""
    info = conn.info
    console = make_conninfo(
        dsn, host=info.host, port=info.port, dbname="pgbouncer", target_session_attrs=None
    )
    connect = psycopg.AsyncConnection[dict[str, Any]].connect
    try:
        # The console accepts simple queries only.
        async with (
            asyncio.timeout(TIME_LIMIT),
            await connect(
                console,
                autocommit=True,
                cursor_factory=psycopg.AsyncClientCursor,
                row_factory=dict_row,
            ) as admin,
        ):
            (version,) = await (await admin.execute("SHOW VERSION")).fetchall()
            config = await (await admin.execute("SHOW CONFIG")).fetchall()
            databases = await (await admin.execute("SHOW DATABASES")).fetchall()
    except (psycopg.Error, TimeoutError, ValueError):
        return {}
    return {
        "version": str(version["version"]),
        "config": {row["key"]: row["value"] for row in config},
        "database": next((row for row in databases if row["name"] == info.dbname), {}),
    }
