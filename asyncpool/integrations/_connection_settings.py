"""The settings of a psycopg connection that SQLAlchemy changes: read them, and restore them."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import astuple, dataclass
from typing import Any

import psycopg
from psycopg.rows import tuple_row

Conn = psycopg.AsyncConnection[Any]


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """The settings of a connection that SQLAlchemy relies on or changes."""

    autocommit: bool
    isolation_level: psycopg.IsolationLevel | None
    read_only: bool | None
    deferrable: bool | None
    row_factory: Any

    @classmethod
    def of(cls, conn: Conn) -> ConnectionSettings:
        """Read a connection's current settings."""
        return cls(
            conn.autocommit,
            conn.isolation_level,
            conn.read_only,
            conn.deferrable,
            conn.row_factory,
        )

    def apply(self, conn: Conn) -> None:
        """Apply these settings to a connection; this does no I/O.

        Raises:
            psycopg.Error: the connection is closed or in a transaction.
            RuntimeError: an operation is running on it.
        """
        now = ConnectionSettings.of(conn)
        if now == self:
            return
        conn.row_factory = self.row_factory
        values = astuple(self)[:-1]
        for name, value in zip(self.__slots__, values, strict=False):
            if value != getattr(now, name):
                run_now(getattr(conn, f"set_{name}")(value))


DEFAULTS = ConnectionSettings(False, None, None, None, tuple_row)


def dedupe_handlers(conn: Conn) -> None:
    """Remove duplicates: SQLAlchemy adds its notice handler at each "connect", also on a lease."""
    conn._notice_handlers[:] = dict.fromkeys(conn._notice_handlers)


def run_now(work: Coroutine[Any, Any, object]) -> None:
    """Run a coroutine that waits for nothing, in code that cannot await.

    psycopg's own `wait` yields to the event loop where that has been busy; such a yield is skipped.

    Raises:
        RuntimeError: the coroutine would wait for something; it was closed.
    """
    try:
        while work.send(None) is None:
            pass
    except StopIteration:
        return
    work.close()
    msg = "an operation is running on the connection"
    raise RuntimeError(msg)
