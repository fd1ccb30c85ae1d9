"""Reports of leases that last too long: the task, the place, the age and the last statement."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from asyncpool._core.entry import Entry
from asyncpool._core.pool import Core
from asyncpool._core.redact import without_passwords
from asyncpool._core.stacks import where

MAX_STATEMENT_LENGTH = 500
"""Characters of a statement that are reported."""


def tell_of_leak(core: Core[Any], entry: Entry[Any], what: str) -> None:
    """Log all that is known of a lease, without parameters and passwords.

    Args:
        core: the pool.
        entry: the leased entry.
        what: the reason, which completes "a connection ...".
    """
    holder = entry.holder
    age = core.store.time() - entry.lent_at
    parts = [f"a connection {what}: {age:.1f} s, by {entry.holder_name}"]
    if borrowed := entry.borrowed_at():
        parts.append("borrowed at " + "\n    from ".join(borrowed))
    else:
        parts.append("set the pool's leak_timeout to see where it was borrowed")
    if isinstance(holder, asyncio.Task) and (waits := where(holder)):
        parts.append("its task is at " + "\n    from ".join(waits))
    parts.append(f"transaction status {transaction_of(entry.conn).name}")
    if (statement := last_statement(entry.conn)) is not None:
        parts.append(f"last statement {statement!r}")
    core.store.record(
        "leak",
        "\n  ".join(parts),
        logging.WARNING,
        task=entry.holder_name,
        age=age,
        borrowed_at=next(iter(entry.borrowed_at()), ""),
        pid=backend_of(entry.conn),
    )


def transaction_of(conn: psycopg.AsyncConnection[Any]) -> TransactionStatus:
    """Return the transaction status that libpq knows, without asking the server."""
    return TransactionStatus(conn.pgconn.transaction_status)


def backend_of(conn: psycopg.AsyncConnection[Any]) -> int | None:
    """Return the process ID of the server's backend; None for a closed connection."""
    if conn.closed:
        return None
    return conn.pgconn.backend_pid or None


def last_statement(conn: psycopg.AsyncConnection[Any]) -> str | None:
    """Return the shortened text of the last statement, without its values; None if unknown."""
    query = getattr(conn, "_last_said", None)
    if query is None:
        return None
    text = without_passwords(_text(query))
    return text if len(text) <= MAX_STATEMENT_LENGTH else f"{text[:MAX_STATEMENT_LENGTH]}..."


def _text(query: Any) -> str:
    if isinstance(query, str):
        return query
    if isinstance(query, bytes):
        return query.decode(errors="replace")
    if isinstance(query, sql.Composed):
        return "".join(_text(part) for part in query)
    if isinstance(query, sql.Literal):
        return "%s"
    if isinstance(query, sql.Composable):
        return query.as_string(None)
    return "%s".join(getattr(query, "strings", ()))
