"""A converted statement, and the cursor that reads its rows."""

from __future__ import annotations

import re
from typing import Any
from weakref import proxy, ref

import psycopg
from psycopg import adapt, capabilities
from psycopg.abc import Params, Query

from asyncpool._psycopg.internals import PostgresQuery

HAS_PIPELINE = capabilities.has_pipeline()
SEQUENCES = {tuple, list}
COMMAND = re.compile(rb"(?:\s|--[^\n]*\n|/\*(?:[^*]|\*(?!/))*\*/)*([A-Za-z]+)")
"""The first word of a statement, behind comments."""


class Context:
    """A connection's adapters, and the connection by a weak reference.

    The transformers of a connection's cache must not keep the connection: the pool finds one that
    was forgotten by its reference count.
    """

    def __init__(self, conn: psycopg.AsyncConnection[Any]) -> None:
        self.adapters = conn.adapters
        self.connection = proxy(conn)


class Statement:
    """A query converted for PostgreSQL, and the transformer for its values and rows.

    Args:
        context: the adapters and the connection.
        query, params: as for a cursor's `execute`.

    Raises:
        psycopg.Error, TypeError, ...: the values cannot be converted.
    """

    __slots__ = ("_places", "may_follow_begin", "pgq", "reader", "tx")

    def __init__(self, context: Context, query: Query, params: Params | None) -> None:
        self.tx = adapt.Transformer(context)
        self.pgq = PostgresQuery(self.tx)
        self.pgq.convert(query, params)
        # Of named placeholders each may stand in several places.
        is_sequence = type(params) in SEQUENCES and not self.pgq._order
        self._places = len(params) if is_sequence else -1  # type: ignore[arg-type]
        # With values psycopg sends a single command only.
        is_single = bool(self.pgq.params) or _has_one_command(self.pgq.query)
        self.may_follow_begin = HAS_PIPELINE and is_single and not _is_copy(self.pgq.query)
        """Whether it may be sent in pipeline mode, behind a BEGIN."""
        self.reader: ref[psycopg.AsyncCursor[Any]] | None = None
        """The cursor that reads rows with the transformer, until the statement runs again."""

    def dump(self, params: Params) -> None:
        """Convert the values for one more execution.

        Raises:
            psycopg.Error, TypeError, ...: the values cannot be converted.
        """
        pgq, tx = self.pgq, self.tx
        if type(params) in SEQUENCES and len(params) == self._places:
            # As in psycopg's own dump(), which looks at the kind of the parameters each time.
            pgq.params = tx.dump_sequence(params, pgq._want_formats)  # type: ignore[arg-type]
            pgq.types = tx.types or ()
            pgq.formats = tx.formats
        else:
            pgq.dump(params)

    def lend(self, cursor: psycopg.AsyncCursor[Any]) -> None:
        """Let a cursor read its rows with the transformer, until the statement runs again."""
        if self.reader is not None:
            self.take_back()
        cursor._tx = self.tx
        self.reader = ref(cursor, self._clear)

    def take_back(self) -> None:
        """Take the transformer from the cursor that reads with it, which makes one if it has to."""
        reader, self.reader = self.reader, None
        cursor: Any = None if reader is None else reader()
        if cursor is not None and cursor._tx is self.tx:
            cursor._tx, cursor._last_query = _LateTransformer(cursor), None

    def _clear(self, _reader: object = None) -> None:
        self.reader = self.pgq.params = None
        self.tx.set_pgresult(None)


class _LateTransformer:
    """The transformer of a cursor whose statement has run again; made when it is needed."""

    def __init__(self, cursor: psycopg.AsyncCursor[Any]) -> None:
        self._cursor = ref(cursor)

    def __getattr__(self, name: str) -> Any:
        cursor: Any = self._cursor()
        if cursor._tx is self:
            cursor._tx = adapt.Transformer(cursor)
            cursor._tx.set_pgresult(cursor.pgresult)
        return getattr(cursor._tx, name)


def _has_one_command(query: bytes) -> bool:
    """Whether a text is surely a single command."""
    return b";" not in query.rstrip(b"; \t\r\n")


def _is_copy(query: bytes) -> bool:
    """Whether a text is, or may be, a COPY, or no command at all."""
    command = COMMAND.match(query)
    return command is None or command[1].upper() == b"COPY"
