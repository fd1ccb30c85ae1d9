"""A cache of the converted statements of one connection.

At each execution psycopg's cursor parses the placeholders of a query and looks up the dumpers of
its values and the loaders of its columns. This cache keeps them until somebody acquires the
connection: a repeated statement only has its values dumped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from psycopg import adapt, capabilities
from psycopg.abc import Params, Query
from psycopg.pq import ExecStatus

from asyncpool._core.entry import Entry
from asyncpool._pipeline.request import Request, Statement
from asyncpool._psycopg.connection import Connection
from asyncpool._psycopg.internals import Prepare

FATAL = int(ExecStatus.FATAL_ERROR)

MAX_STATEMENTS = 256
"""Maximum number of cached statements; a full cache is emptied."""
MAX_TEXT_LENGTH = 4096
"""Characters beyond which a statement is not cached."""

SETTINGS = (b"client_encoding", b"DateStyle", b"IntervalStyle", b"TimeZone")
"""The session settings that psycopg's loaders and dumpers read once."""


class StatementCache:
    """The converted statements of one connection, and those that psycopg has prepared there.

    Args:
        conn: the connection.
    """

    def __init__(self, conn: Connection[Any]) -> None:
        self._conn = conn
        self._pgconn = conn.pgconn
        self._prepared = conn._prepared
        self._prepares = self._prepared.prepare_threshold is not None
        self._known: dict[tuple[str, bool], Statement] = {}
        self._settings = self._read_settings()
        self.last_use = 0
        """`uses` of the entry in the last lease with this cache; after any later one it is old."""

    def convert(self, request: Request) -> None:
        """Set the request's converted statement, its size, and whether it is or will be prepared.

        The values are valid until the next call.

        Raises:
            psycopg.Error, TypeError, ...: the values cannot be converted.
        """
        request.statement = statement = self._find(request.query, request.params)
        pgq, prepared = statement.pgq, self._prepared
        size = len(pgq.query)
        for value in pgq.params or ():
            if value is not None:
                size += len(value)
        request.size = size
        request.key = key = (pgq.query, pgq.types)
        name = prepared._names.get(key)
        if name is not None and request.prepare is not False and self._prepares:
            # The fast path of psycopg's own get() for a statement that is prepared already.
            prepared._names.move_to_end(key)
            request.state, request.name = Prepare.YES, name
        else:
            request.state, request.name = prepared.get(pgq, request.prepare)

    def send(self, request: Request) -> None:
        """Pass a request to libpq.

        Raises:
            psycopg.Error: libpq refused it; a part may have been sent.
        """
        pgq, pgconn, state = request.statement.pgq, self._pgconn, request.state
        if state is Prepare.NO:
            pgconn.send_query_params(pgq.query, pgq.params, pgq.types, pgq.formats, request.format)
        else:
            if state is Prepare.SHOULD:
                pgconn.send_prepare(request.name, pgq.query, pgq.types)
            pgconn.send_query_prepared(request.name, pgq.params, pgq.formats, request.format)
        request.new = (
            state is not Prepare.YES
            and self._prepared.maybe_add_to_cache(pgq, state, request.name) is not None
        )
        request.conn, request.row_factory = self._conn, self._conn.row_factory

    def record_outcome(self, request: Request) -> None:
        """Record whether a statement was prepared, and remove that result from the request's."""
        results, prepared = request.results, self._prepared
        if request.state is Prepare.SHOULD and results:
            if results[0].status == FATAL:
                prepared._names.pop(request.key, None)
            else:
                del results[0]
                if results and results[-1].status == FATAL:
                    self.forget(request)  # else it would stay prepared but unknown to psycopg
        if request.new:
            prepared.validate(request.key, request.state, request.name, results)

    def forget(self, request: Request) -> None:
        """Forget a prepared statement that is useless now."""
        if self._prepared._names.pop(request.key, None) is not None:
            self._prepared._to_flush.append(request.name)

    def evict(self) -> Iterator[None]:
        """Deallocate the prepared statements that psycopg has dropped, one for each step."""
        to_flush = self._prepared._to_flush
        while to_flush:
            name = to_flush.popleft()
            if name is not None and capabilities.has_send_close_prepared():
                self._pgconn.send_close_prepared(name)
            else:
                what = b"ALL" if name is None else name
                self._pgconn.send_query_params(b"DEALLOCATE " + what, None)
            yield

    def refresh(self) -> None:
        """Forget all that depends on the session's settings, if one has changed."""
        if (now := self._read_settings()) != self._settings:
            self._settings = now
            known, self._known = self._known, {}
            for statement in known.values():  # rows of some have not been read yet
                statement.tx = adapt.Transformer(self._conn)

    def _find(self, query: Query, params: Params | None) -> Statement:
        if type(query) is not str:
            return Statement(self._conn, query, params)
        key = (query, params is None)
        if (known := self._known.get(key)) is not None:
            if params is not None:
                known.pgq.dump(params)
            return known
        known = Statement(self._conn, query, params)
        if len(query) <= MAX_TEXT_LENGTH:
            if len(self._known) >= MAX_STATEMENTS:
                self._known.clear()
            self._known[key] = known
        return known

    def _read_settings(self) -> list[bytes | None]:
        ask = self._pgconn.parameter_status
        return [ask(name) for name in SETTINGS]


def cache_of(entry: Entry[Any]) -> StatementCache:
    """Return the cache of a connection just leased: a new one if another lease came between."""
    kept = cast("StatementCache | None", entry.statement_cache)
    if kept is None or kept.last_use != entry.uses - 1:
        kept = entry.statement_cache = StatementCache(entry.conn)
    kept.last_use = entry.uses
    return kept
