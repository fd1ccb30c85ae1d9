"""Sends the statements of one connection, and keeps what was converted for it.

At each execution psycopg's cursor parses the placeholders of a query and looks up the dumpers of
its values and the loaders of its columns. Here they are kept: a repeated statement only has its
values dumped. The cursors of borrowed connections and the one-shot statements on it send by the
same `StatementSender`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from weakref import ref

import psycopg
from psycopg import adapt, capabilities
from psycopg.abc import Params, Query
from psycopg.pq import ExecStatus, Format

from asyncpool._psycopg.adapters import Adapters
from asyncpool._psycopg.internals import Prepare
from asyncpool._psycopg.preparing import PreparedStatements
from asyncpool._psycopg.statement import Context, Statement

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

TEXT, BINARY = Format.TEXT, Format.BINARY
FATAL = int(ExecStatus.FATAL_ERROR)

MAX_STATEMENTS = 256
"""Maximum number of cached statements; a full cache is emptied."""
MAX_TEXT_LENGTH = 4096
"""Characters beyond which a statement is not cached."""

SETTINGS = (b"client_encoding", b"DateStyle", b"IntervalStyle", b"TimeZone")
"""The session settings that psycopg's loaders and dumpers read once."""


class Execution:
    """One execution of a statement.

    Args:
        query, params, prepare: as for a cursor's `execute`.
        result_format: the format of the rows.
    """

    # Set by `StatementSender.convert`:
    statement: Statement
    key: tuple[bytes, tuple[int, ...]]
    """The key of psycopg's map of prepared statements."""
    state: Prepare
    name: bytes
    """The name of its prepared statement."""
    # Set by `StatementSender.send`:
    new: bool
    """Whether psycopg's map of prepared statements did not know the statement."""

    def __init__(
        self, query: Query, params: Params | None, prepare: bool | None, result_format: Format
    ) -> None:
        self.query = query
        self.params = params
        self.prepare = prepare
        self.format = result_format


class Version:
    """The adapters of a connection between two changes."""

    adapters: adapt.AdaptersMap | None = None
    """A copy, made when they changed; None: they are the connection's still."""


class StatementSender:
    """Sends statements on one connection; keeps the converted ones, and those prepared there.

    Args:
        conn: the connection; there is only a weak reference to it.
    """

    def __init__(self, conn: psycopg.AsyncConnection[Any]) -> None:
        self._conn = ref(conn)
        self._pgconn = conn.pgconn
        conn._prepared = self.prepared = PreparedStatements()
        """The map of the connection's prepared statements."""
        self.version = Version()
        """The version of the connection's adapters."""
        self._context: Context | None = None
        self._known: dict[tuple[str, bool], Statement] = {}
        self._setting = conn.pgconn.parameter_status
        self._settings: list[bytes | None] = []

    def copy_adapters(self, template: adapt.AdaptersMap | None) -> Adapters:
        """Return a copy of adapters, or of the global ones; a change forgets all statements."""
        return Adapters(template or psycopg.adapters, partial(_adapters_change, ref(self)))

    def adapters_change(self, adapters: adapt.AdaptersMap) -> None:
        """Forget the statements; cursors that were made before keep the adapters of that time."""
        self._known.clear()
        self.version.adapters = adapt.AdaptersMap(adapters)
        self.version = Version()

    def begin(
        self,
        query: Query,
        params: Params | None,
        prepare: bool | None,
        result_format: Format,
        *,
        in_pipeline: bool,
    ) -> Execution | None:
        """Return a converted statement; None where a cursor must execute it in psycopg's way.

        Args:
            query, params, prepare, result_format: see `Execution`.
            in_pipeline: whether it is to be sent in pipeline mode.

        Raises:
            psycopg.Error, TypeError, ...: the values cannot be converted.
        """
        execution = Execution(query, params, prepare, result_format)
        try:
            self.convert(execution)
        except Exception:
            if in_pipeline:
                return None  # psycopg finds the error after it has begun a transaction
            raise
        if execution.state is Prepare.SHOULD:
            self.prepared._prepared_idx -= 1  # psycopg gives it the name that it was given here
            return None
        if in_pipeline and not execution.statement.may_follow_begin:
            return None
        return execution

    def convert(self, execution: Execution) -> None:
        """Set the converted statement, and whether it is or will be prepared.

        The values are valid until the next call.

        Raises:
            psycopg.Error, TypeError, ...: the values cannot be converted.
        """
        self.identify(execution, self.find(execution.query, execution.params))

    def identify(self, execution: Execution, statement: Statement) -> None:
        """Set the statement of an execution, and whether it is or will be prepared."""
        execution.statement = statement
        pgq, prepared = statement.pgq, self.prepared
        execution.key = key = (pgq.query, pgq.types)
        if execution.prepare is not False and prepared.prepare_threshold is not None:
            name = prepared._names.get(key)
            if name is not None:
                # The fast path of psycopg's own get() for a statement that is prepared already.
                prepared._names.move_to_end(key)
                execution.state, execution.name = Prepare.YES, name
                return
        execution.state, execution.name = prepared.get(pgq, execution.prepare)

    def send(self, execution: Execution) -> None:
        """Pass a statement to libpq in pipeline mode, or one that needs no PREPARE.

        Raises:
            psycopg.Error: libpq refused it; a part may have been sent.
        """
        pgq, pgconn, state = execution.statement.pgq, self._pgconn, execution.state
        if state is Prepare.YES:
            pgconn.send_query_prepared(execution.name, pgq.params, pgq.formats, execution.format)
            execution.new = False
            return
        if state is Prepare.SHOULD:
            pgconn.send_prepare(execution.name, pgq.query, pgq.types)
            pgconn.send_query_prepared(execution.name, pgq.params, pgq.formats, execution.format)
        elif pgq.params or execution.format is BINARY or pgconn.pipeline_status:
            pgconn.send_query_params(
                pgq.query, pgq.params, pgq.types, pgq.formats, execution.format
            )
        else:
            pgconn.send_query(pgq.query)  # it may be several statements
        new = self.prepared.maybe_add_to_cache(pgq, state, execution.name)
        execution.new = new is not None

    def record_outcome(self, execution: Execution, results: list[PGresult]) -> None:
        """Record whether a statement was prepared, and remove that result from the others."""
        prepared = self.prepared
        if execution.state is Prepare.SHOULD and results:
            if results[0].status == FATAL:
                prepared._names.pop(execution.key, None)
            else:
                del results[0]
                if results and results[-1].status == FATAL:
                    self.forget(execution)  # else it would stay prepared but unknown to psycopg
        if execution.new:
            prepared.validate(execution.key, execution.state, execution.name, results)

    def forget(self, execution: Execution) -> None:
        """Forget a prepared statement that is useless now."""
        if self.prepared._names.pop(execution.key, None) is not None:
            self.prepared._to_flush.append(execution.name)
            self.prepared.count_alone([execution.key])

    def evict(self) -> Iterator[None]:
        """Deallocate the prepared statements that psycopg has dropped, one for each step."""
        to_flush = self.prepared._to_flush
        while to_flush:
            name = to_flush.popleft()
            if name is not None and capabilities.has_send_close_prepared():
                self._pgconn.send_close_prepared(name)
            else:
                what = b"ALL" if name is None else name
                self._pgconn.send_query_params(b"DEALLOCATE " + what, None)
            yield

    def refresh(self, statement: Statement | None = None) -> None:
        """Forget all that depends on the session's settings, if one has changed.

        Args:
            statement: a statement whose rows have not been read yet.
        """
        settings = [*map(self._setting, SETTINGS)]
        if settings != self._settings:
            self._settings = settings
            self._known.clear()
            if statement is not None:
                statement.tx = adapt.Transformer(self._make_context())

    def _make_context(self) -> Context:
        if self._context is None:
            self._context = Context(cast("psycopg.AsyncConnection[Any]", self._conn()))
        return self._context

    def find(self, query: Query, params: Params | None) -> Statement:
        """Return a converted statement with its values, which are valid until the next call.

        Raises:
            psycopg.Error, TypeError, ...: the values cannot be converted.
        """
        self.refresh()
        if type(query) is not str:
            return Statement(self._make_context(), query, params)
        key = (query, params is None)
        if (known := self._known.get(key)) is not None:
            if known.reader is not None:
                known.take_back()
            if params is not None:
                known.dump(params)
            return known
        known = Statement(self._make_context(), query, params)
        if len(query) <= MAX_TEXT_LENGTH:
            if len(self._known) >= MAX_STATEMENTS:
                self._known.clear()
            self._known[key] = known
        return known


def _adapters_change(sender: ref[StatementSender], adapters: adapt.AdaptersMap) -> None:
    if (alive := sender()) is not None:
        alive.adapters_change(adapters)


def sender_of(conn: Any) -> StatementSender:
    """Return the sender of an `asyncpool.Connection`."""
    return cast("StatementSender", conn._statements)
