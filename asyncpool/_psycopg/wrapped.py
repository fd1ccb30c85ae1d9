"""Statements on a connection that may be in a tracer's wrapper."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from psycopg.abc import Params, Query


def execute(
    conn: Any,
    query: Query,
    params: Params | None = None,
    *,
    prepare: bool | None = None,
    binary: bool = False,
) -> Awaitable[Any]:
    """Execute a statement so that a wrapper sees it; return its cursor.

    A wrapper without `execute` passes that call on to the connection, whose cursor it does not see:
    such a tracer wraps `cursor` only.
    """
    if hasattr(type(conn), "execute"):
        executed: Awaitable[Any] = conn.execute(query, params, prepare=prepare, binary=binary)
        return executed
    return _execute_on_cursor(conn.cursor(binary=binary), query, params, prepare)


async def _execute_on_cursor(
    cur: Any, query: Query, params: Params | None, prepare: bool | None
) -> Any:
    await cur.execute(query, params, prepare=prepare)
    return cur
