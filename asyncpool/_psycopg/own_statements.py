"""The statements that the pool itself sends: pings, resets, and the question for a standby."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal

import psycopg
from psycopg.cursor_async import AsyncCursor  # a tracer may replace psycopg.AsyncCursor
from psycopg.rows import tuple_row

from asyncpool._psycopg.connection import Connection
from asyncpool._psycopg.cursor import Cursor
from asyncpool._psycopg.internals import SUPPORTED
from asyncpool._psycopg.operation import BAD

ResetLevel = Literal["rollback", "session", "discard"]

# The parts of DISCARD ALL, which itself cannot be combined with another statement in one query.
# Source: https://www.postgresql.org/docs/current/sql-discard.html
SESSION = (
    "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; UNLISTEN *;"
    " SELECT pg_advisory_unlock_all()"
)
RESETS: dict[str, str] = {
    "rollback": "",
    "session": SESSION,
    "discard": f"{SESSION}; DEALLOCATE ALL; DISCARD PLANS; DISCARD TEMP; DISCARD SEQUENCES",
}


async def ping(conn: psycopg.AsyncConnection[Any]) -> None:
    """Run an empty query: one round trip that starts no transaction."""
    await run_in_autocommit(conn, b"")


async def run(conn: psycopg.AsyncConnection[Any], query: bytes) -> psycopg.AsyncCursor[Any]:
    """Run a statement of the pool itself, past overridden methods and the wrappers of tracers."""
    cur: psycopg.AsyncCursor[Any]
    if SUPPORTED and isinstance(conn, Connection):
        cur = Cursor.for_one_statement(conn, binary=False)
        cur._row_factory = tuple_row
    else:
        cur = AsyncCursor(conn, row_factory=tuple_row)
    return await cur.execute(query, prepare=False)


async def run_in_autocommit(
    conn: psycopg.AsyncConnection[Any], query: bytes
) -> psycopg.AsyncCursor[Any]:
    """Run a statement outside of any transaction."""
    if conn.autocommit:
        return await run(conn, query)
    try:
        await conn.set_autocommit(True)
        return await run(conn, query)
    finally:
        with suppress(psycopg.Error):
            await conn.set_autocommit(False)


async def is_standby(conn: psycopg.AsyncConnection[Any]) -> bool:
    """Whether its server is known to be a standby.

    Raises:
        psycopg.Error: the connection is lost.
    """
    try:
        cur = await run_in_autocommit(conn, b"SELECT pg_catalog.pg_is_in_recovery()")
    except psycopg.Error:
        if conn.pgconn.status == BAD:
            raise
        # Not every server has the function or lets every user call it.
        return conn.info.parameter_status("in_hot_standby") == "on"
    return cur.pgresult is not None and cur.pgresult.get_value(0, 0) == b"t"
