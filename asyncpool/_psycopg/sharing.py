"""Which connections may carry several one-shots at a time, in pipeline mode."""

from __future__ import annotations

import logging
import sys
from typing import Any

import psycopg
from psycopg import capabilities

from asyncpool._psycopg.connection import Connection
from asyncpool._psycopg.cursor import Cursor
from asyncpool._psycopg.internals import SUPPORTED

logger = logging.getLogger("asyncpool")


def can_share(connection_class: type[Any]) -> bool:
    """Whether one-shots on such connections may run in pipeline mode, with a cursor's results."""
    if not capabilities.has_pipeline():
        logger.info("libpq has no pipeline mode: each one-shot borrows a connection")
        return False
    return _keeps_to_cursors(connection_class)


def _keeps_to_cursors(connection_class: type[Any]) -> bool:
    """Whether a class runs statements as `asyncpool.Connection` does, without overrides."""
    return (
        SUPPORTED
        and sys.platform != "win32"
        and issubclass(connection_class, Connection)
        and connection_class.execute is Connection.execute
        and connection_class.wait is Connection.wait
        and connection_class.cursor is Connection.cursor
    )


def is_shareable(conn: Any) -> bool:
    """Whether a statement in pipeline mode gives the result that the connection's cursor gives.

    The object's own class counts, so that a tracer's wrapper sees each statement.
    """
    return (
        _keeps_to_cursors(type(conn))
        and conn._transport is not None
        and not conn.closed
        and conn.cursor_factory is Cursor
        and not has_transaction_characteristics(conn)
    )


def has_transaction_characteristics(conn: psycopg.AsyncConnection[Any]) -> bool:
    """Whether transactions have characteristics such as read-only, and need a BEGIN with them."""
    return not conn.autocommit and not (
        conn.read_only is None and conn.isolation_level is None and conn.deferrable is None
    )
