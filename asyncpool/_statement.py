"""The statements that one shared connection has seen, converted once.

psycopg parses a query's placeholders, looks up how its values are written and how its columns are
read, each time that a cursor executes it. Here that is kept for as long as the connection is
shared: what comes again only has its values written.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import adapt
from psycopg._queries import PostgresQuery
from psycopg.abc import Params, Query

KEPT = 256
"""Statements of which this is remembered; then it is begun anew."""
LONG = 4096
"""Characters of a statement that is worth remembering."""

SETTINGS = (b"client_encoding", b"DateStyle", b"IntervalStyle", b"TimeZone")
"""What psycopg's loaders and dumpers look at once, of the session's settings."""


class Statement:
    """A query in PostgreSQL's terms, with what writes its values and reads its rows.

    Args:
        conn: the connection that it is for.
        query, params: as for a cursor's `execute`.

    Raises:
        psycopg.Error, TypeError, ...: the values cannot be converted.
    """

    __slots__ = ("pgq", "tx")

    def __init__(
        self, conn: psycopg.AsyncConnection[Any], query: Query, params: Params | None
    ) -> None:
        self.tx = adapt.Transformer(conn)
        self.pgq = PostgresQuery(self.tx)
        self.pgq.convert(query, params)


class Statements:
    """Those of one connection.

    Args:
        conn: the connection.
    """

    def __init__(self, conn: psycopg.AsyncConnection[Any]) -> None:
        self._conn = conn
        self._known: dict[tuple[str, bool], Statement] = {}
        self._settings = self._look()

    def convert(self, query: Query, params: Params | None) -> Statement:
        """A statement with these values, which are its own until the next call.

        Raises:
            psycopg.Error, TypeError, ...: the values cannot be converted.
        """
        if type(query) is not str:
            return Statement(self._conn, query, params)
        key = (query, params is None)
        if (known := self._known.get(key)) is not None:
            if params is not None:
                known.pgq.dump(params)
            return known
        known = Statement(self._conn, query, params)
        if len(query) <= LONG:
            if len(self._known) >= KEPT:
                self._known.clear()
            self._known[key] = known
        return known

    def refresh(self) -> None:
        """Forget what depends on a setting of the session's, if one has changed."""
        if (now := self._look()) != self._settings:
            self._settings = now
            known, self._known = self._known, {}
            for statement in known.values():  # rows of some are still to be read
                statement.tx = adapt.Transformer(self._conn)

    def _look(self) -> list[bytes | None]:
        ask = self._conn.pgconn.parameter_status
        return [ask(name) for name in SETTINGS]
