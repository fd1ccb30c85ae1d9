"""Whether a pooler is between a connection and the server, and shares the session with others.

A pooler in transaction mode, such as PgBouncer's, gives a session to one client for a transaction
only. What lasts longer, such as LISTEN, stays on a session that the next transaction of another
client gets. A mark on the session shows that: another client finds it, or its owner does not.
"""

from __future__ import annotations

from typing import Any

import psycopg

from asyncpool._psycopg.own_statements import run_in_autocommit

BACKEND_PID = b"SELECT pg_catalog.pg_backend_pid()"
CHANNELS = b"SELECT pg_catalog.pg_listening_channels()"


async def is_behind_pooler(conn: psycopg.AsyncConnection[Any]) -> bool:
    """Whether the process number from the connect is not that of the session.

    Clients of a pooler share its sessions, so it makes a number up for each of them.

    Raises:
        psycopg.Error: the connection is lost, or the server does not answer such a question.
    """
    return await _column(conn, BACKEND_PID) != {str(conn.info.backend_pid)}


async def is_marked(conn: psycopg.AsyncConnection[Any], channel: str) -> bool:
    """Whether the session that a connection has at the moment listens on a channel.

    Raises:
        psycopg.Error: as above.
    """
    return channel in await _column(conn, CHANNELS)


async def _column(conn: psycopg.AsyncConnection[Any], query: bytes) -> set[str]:
    """Return the values of a query's one column as text."""
    result = (await run_in_autocommit(conn, query)).pgresult
    if result is None:
        return set()
    values = (result.get_value(row, 0) for row in range(result.ntuples))
    return {value.decode(errors="replace") for value in values if value is not None}
