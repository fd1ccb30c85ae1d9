"""What is told of a lease that lasts too long: who, where, since when, and what it did last."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from asyncpool._core import Core
from asyncpool._entry import Entry
from asyncpool._stacks import lines, where

logger = logging.getLogger("asyncpool")

LONGEST = 500
"""Characters of a statement that are shown."""


def tell_of_leak(core: Core[Any], entry: Entry[Any], what: str) -> None:
    """Log who has a connection, and all that is known of the lease; no parameters, no password."""
    holder = entry.holder
    age = core.stock.time() - entry.lent_at
    pool = core.settings.name
    parts = [f"pool {pool!r}: a connection {what}: {age:.1f} s, by {name_of(entry)}"]
    if borrowed := borrowed_at(entry):
        parts.append("borrowed at " + "\n    from ".join(borrowed))
    else:
        parts.append("give the pool a leak_timeout to learn where it was borrowed")
    if isinstance(holder, asyncio.Task) and (waits := where(holder)):
        parts.append("its task is at " + "\n    from ".join(waits))
    status = TransactionStatus(entry.conn.pgconn.transaction_status).name
    parts.append(f"transaction status {status}")
    if (said := last_statement(entry.conn)) is not None:
        parts.append(f"last statement {said!r}")
    logger.warning("%s", "\n  ".join(parts))


def name_of(entry: Entry[Any]) -> str:
    """Who holds a leased connection."""
    if entry.shared:
        return "(one-shot statements)"
    holder = entry.holder
    if holder is None:
        return "(being handed over)"
    if isinstance(holder, str):
        return f"{holder} (it has ended)"
    return holder.get_name()


def borrowed_at(entry: Entry[Any]) -> list[str]:
    """Where it was borrowed, innermost first; nothing where that was not noted."""
    return lines(entry.trace) if entry.traced_in == entry.uses else []


def last_statement(conn: psycopg.AsyncConnection[Any]) -> str | None:
    """The text of its last statement without its values, shortened; None: it is not known."""
    query = getattr(conn, "_last_said", None)
    if query is None:
        return None
    text = _text(query)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


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
