"""Reports of leases that last too long: the task, the place, the age and the last statement."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from asyncpool._core.entry import Entry
from asyncpool._core.pool import Core
from asyncpool._core.redact import HIDDEN
from asyncpool._core.stacks import where
from asyncpool._psycopg.last_statement import last_query
from asyncpool._sql.lexer import tokens

MAX_STATEMENT_LENGTH = 500
"""Characters of a statement that are reported."""
MAX_LENGTH_READ = 10 * MAX_STATEMENT_LENGTH
"""Characters of a statement that are searched for passwords."""
_BEFORE_SECRETS = re.compile(r"passw|secret|crypt|dblink|\bconnection\b", re.IGNORECASE)
"""The names in a statement whose strings may be passwords."""
_IN_SECRETS = re.compile(r"passw|secret|://", re.IGNORECASE)
"""A part of a string that may have a password in it."""


def log_leak(core: Core[Any], entry: Entry[Any], what: str) -> None:
    """Log all that is known of a lease, without parameters and passwords.

    Args:
        core: the pool.
        entry: the leased entry.
        what: the reason, which completes "a connection ...".
    """
    lease = entry.lease
    age = core.runtime.time() - entry.leased_at
    parts = [f"a connection {what}: {age:.1f} s, by {lease.holder_name}"]
    if (statement := last_statement(entry.conn)) is not None:
        parts.append(f"last statement {statement!r}")
    if borrowed := lease.borrowed_at():
        parts.append("borrowed at " + "\n    from ".join(borrowed))
    else:
        parts.append("set the pool's leak_timeout to see where it was borrowed")
    if isinstance(lease.holder, asyncio.Task) and (waits := where(lease.holder)):
        parts.append("its task is at " + "\n    from ".join(waits))
    parts.append(f"transaction status {transaction_of(entry.conn).name}")
    core.runtime.record(
        "leak",
        "\n  ".join(parts),
        logging.WARNING,
        task=lease.holder_name,
        age=age,
        borrowed_at=next(iter(borrowed), ""),
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
    query = last_query(conn)
    if query is None:
        return None
    text = _text(query)
    shown = without_passwords(text[:MAX_LENGTH_READ])
    is_whole = len(text) <= MAX_LENGTH_READ and len(shown) <= MAX_STATEMENT_LENGTH
    return shown if is_whole else f"{shown[:MAX_STATEMENT_LENGTH]}..."


def without_passwords(sql: str) -> str:
    """Return a statement without the strings that may contain a password.

    Whether a backslash escapes depends on the session: a string in either reading counts.
    """
    parts: list[str] = []
    at = 0
    for start, end in sorted({*_secrets(sql, escapes=False), *_secrets(sql, escapes=True)}):
        if start >= at:
            parts += sql[at:start], HIDDEN
        at = max(at, end)
    return "".join([*parts, sql[at:]])


def _secrets(sql: str, *, escapes: bool) -> Iterator[tuple[int, int]]:
    """Yield the places of the strings to hide; a string without an end is of kind "bad"."""
    found = list(tokens(sql, escapes=escapes))
    names = (each.text for each in found if each.kind in ("word", "quoted"))
    names_secrets = any(map(_BEFORE_SECRETS.search, names))
    for token in found:
        if token.kind in ("string", "bad"):
            text = sql[token.start : token.end]
            if names_secrets or _IN_SECRETS.search(text):
                yield token.start, token.end


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
