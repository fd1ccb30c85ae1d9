"""One query in PostgreSQL's terms, with what writes its values and reads its rows."""

from __future__ import annotations

from typing import Any

from psycopg import adapt
from psycopg._queries import PostgresQuery
from psycopg.abc import Params, Query

from asyncpool.connection import Connection


class Statement:
    """A query in PostgreSQL's terms, with what writes its values and reads its rows.

    Args:
        conn: the connection that it is for.
        query, params: as for a cursor's `execute`.

    Raises:
        psycopg.Error, TypeError, ...: the values cannot be converted.
    """

    __slots__ = ("pgq", "tx")

    def __init__(self, conn: Connection[Any], query: Query, params: Params | None) -> None:
        self.tx = adapt.Transformer(conn)
        self.pgq = PostgresQuery(self.tx)
        self.pgq.convert(query, params)
