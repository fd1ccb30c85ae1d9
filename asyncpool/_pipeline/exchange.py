"""The exchange with the server on one connection in libpq's pipeline mode.

A Sync follows each statement, so that it is a transaction of its own and its error affects no
other. The server runs the statements in the order in which they were sent.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus

from asyncpool._pipeline.profiles import INTERNAL, StatementProfiles
from asyncpool._pipeline.request import AGAIN, LARGE, Request
from asyncpool._psycopg.direct_future import DirectFuture
from asyncpool._psycopg.internals import PostgresQuery, Prepare
from asyncpool._psycopg.sending import sender_of
from asyncpool._psycopg.transport import transport_of

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

    from asyncpool._core.entry import Entry

SYNC, FATAL = int(ExecStatus.PIPELINE_SYNC), int(ExecStatus.FATAL_ERROR)
ABORTED, TUPLES = int(ExecStatus.PIPELINE_ABORTED), int(ExecStatus.TUPLES_OK)
BAD = int(ConnStatus.BAD)

NO_SUCH_STATEMENT, CANCELLED = b"26000", b"57014"


class Exchange:
    """The requests in flight on one connection, and the results that have arrived for them.

    Args:
        entry: the entry of an idle `asyncpool.Connection`, just leased.
        profiles: the profiles of the pool's statements.
    """

    shared = False
    """Whether statements may be sent behind others; then all of them are plain reads."""
    since = 0.0
    """The instant at which the first of the requests began to run."""
    load = 0
    """Bytes of the requests in flight."""
    _sent_alone = False
    """Whether the running statement was sent with none before it."""
    _timer: asyncio.TimerHandle | None = None
    """Checks the running statement; set while one is behind it."""

    def __init__(self, entry: Entry[Any], profiles: StatementProfiles) -> None:
        self.entry = entry
        """The entry of the connection, leased for the exchange."""
        self.conn = conn = entry.conn
        self.pgconn = conn.pgconn
        """libpq's connection, in pipeline mode."""
        transport = transport_of(conn)
        assert transport is not None, "bug: a connection that cannot be shared"
        self.transport = transport
        """The connection's socket."""
        self.requests: deque[Request] = deque()
        """The requests in flight in the order in which they were sent; the first one runs."""
        self.sender = sender_of(conn)
        self._completed: list[DirectFuture] = []
        """Futures of requests that have their results; their tasks have yet to go on."""
        self._to_flush = conn._prepared._to_flush
        """psycopg's queue of prepared statements to deallocate before the next statement."""
        self._profiles = profiles
        self.pgconn.enter_pipeline_mode()

    def send(self, request: Request) -> bool:
        """Send a request; return False if it is too large for a shared channel.

        If this raises, the request was not sent.

        Raises:
            psycopg.Error, TypeError, ...: its parameters cannot be converted.
        """
        if self._to_flush:
            for _ in self.sender.evict():
                self._append(Request(INTERNAL, b""))
        self.sender.convert(request)
        pgq = request.statement.pgq
        try:
            if self.shared:
                request.size = size = _size_of(pgq)
                if size > LARGE:
                    return False
            self.sender.send(request)
        except BaseException:
            with suppress(psycopg.Error):  # an error here is that of the lost connection
                self._append(Request(INTERNAL, b""))  # a Sync after a part that may be sent
            raise
        finally:
            pgq.params = None  # the cached statement keeps no values
        self._append(request)
        return True

    def _append(self, request: Request) -> None:
        pgconn = self.pgconn
        request.results, request.may_be_cancelled = [], False
        if not self.requests:
            self.since, self._sent_alone = monotonic(), True
        else:
            self.transport.cork()  # while the server is busy
            if self._timer is None:
                self._check_later()
        pgconn.pipeline_sync()
        request.channel, request.shared, request.conn = self, self.shared, self.conn
        request.row_factory = self.conn.row_factory
        self.load += request.size
        self.requests.append(request)
        if pgconn.flush():
            self.transport.watch_writable()

    def _check_later(self) -> None:
        """Called when a statement was sent behind another one and no timer is set."""
        raise AssertionError("bug: the subclass does not check what runs")

    def _read_results(self) -> int:
        """Complete the requests whose results have arrived; return how many."""
        pgconn, requests, done = self.pgconn, self.requests, 0
        while requests and not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:
                if pgconn.status == BAD:
                    break  # else this loop would not end
            elif result.status == SYNC:
                done += 1
                self._complete(self._pop_first())
            else:
                requests[0].results.append(result)
        return done

    def _pop_first(self) -> Request:
        request = self.requests.popleft()
        request.channel = None
        self.load -= request.size
        if request.ended is not None:
            request.ended.set_result(None)
        return request

    def _complete(self, request: Request) -> None:
        if request.future is None:
            return
        results, future = request.results, request.future
        if request.state is not Prepare.YES:
            self.sender.record_outcome(request, results)
        failure = results[-1] if results else None
        if failure is not None and failure.status == ABORTED:
            failure = results[0]  # the PREPARE failed
        if failure is None or (status := failure.status) != FATAL:
            if failure is not None and status == TUPLES and not self.shared:
                self.sender.refresh(request.statement)  # a plain read changes no setting
            profile = request.profile
            if profile.credit < 0 and not request.slow:
                profile.record_quick()
            if self._sent_alone:
                spent, known = monotonic() - self.since, self._profiles.round_trip
                if profile.credit <= 0 or known is None or spent < known:
                    self._profiles.record_time(spent, rises=not profile.credit)
            if not future.done():
                future.complete(None)
                self._completed.append(future)
        elif request.is_awaited and self._may_run_again(request, failure):
            request.end(AGAIN)
        else:
            request.end()
            self.transport.report_error(self._error(failure))

    def _may_run_again(self, request: Request, error: PGresult) -> bool:
        """Whether a failed statement was not run at all, or is a read that the pool cancelled."""
        state = error.error_field(DiagnosticField.SQLSTATE)
        if state == CANCELLED:
            return request.may_be_cancelled
        if request.retried or request.state is Prepare.NO:
            return False
        # A context names a function that runs, so the statement has begun.
        if error.error_field(DiagnosticField.CONTEXT) is not None:
            return False
        where = error.error_field(DiagnosticField.SOURCE_FUNCTION)
        if where == b"RevalidateCachedQuery":
            pass  # the plan is out of date: a table was altered
        elif where != b"FetchPreparedStatement" or state != NO_SUCH_STATEMENT:
            return False
        self.sender.forget(request)
        request.prepare, request.retried = False, True
        return True

    def _fatal_error(self) -> psycopg.Error | None:
        """Return the FATAL or PANIC error that the server sent to the running statement, if any."""
        results = self.requests[0].results if self.requests else None
        return self._error(results[-1]) if results and _is_fatal(results[-1]) else None

    def _error(self, result: PGresult) -> psycopg.Error:
        return psycopg.errors.error_from_result(result, encoding=self.pgconn._encoding)


def _size_of(pgq: PostgresQuery) -> int:
    size = len(pgq.query)
    for value in pgq.params or ():
        if value is not None:
            size += len(value)
    return size


def _is_fatal(result: PGresult) -> bool:
    severity = result.error_field(DiagnosticField.SEVERITY_NONLOCALIZED)
    return severity in (b"FATAL", b"PANIC")
