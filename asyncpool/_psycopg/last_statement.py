"""The last statement of a connection, which is recorded for reports of leaks."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.abc import Query


def trace_statements(conn: psycopg.AsyncConnection[Any]) -> None:
    """Start to record the last statement of a connection; any before it is forgotten."""
    traced: Any = conn
    traced._traced, traced._last_query = True, None


def last_query(conn: object) -> Query | None:
    """Return the last statement of a connection if it is recorded."""
    return getattr(conn, "_last_query", None)
