"""The pool's default connection class: psycopg's, with its own `wait`.

psycopg registers the socket with the event loop anew for each wait. Here it stays registered for
the connection's life. So a query costs less, a hang-up of the server is seen immediately, and a
cancelled query is ended in the background. Everything else is psycopg's.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from asyncio import CancelledError, current_task
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Self, TypeVar, cast
from weakref import ref

import psycopg
from psycopg.abc import ConnDict, Params, PQGen, Query
from psycopg.adapt import AdaptersMap
from psycopg.pq import ConnStatus
from psycopg.rows import Row

from asyncpool._psycopg.adapters import Adapters
from asyncpool._psycopg.connecting import connect, parameters, transport_for
from asyncpool._psycopg.cursor import Cursor, Lock, ServerCursor
from asyncpool._psycopg.fairness import yield_if_busy
from asyncpool._psycopg.internals import (
    BLOCK_END,
    BLOCK_START,
    COPY_END,
    NOTIFIES,
    PIPELINE_END,
    SUPPORTED,
    VERSION,
)
from asyncpool._psycopg.many import Batch
from asyncpool._psycopg.notices import on_notice
from asyncpool._psycopg.operation import ACTIVE, BAD, closed_error
from asyncpool._psycopg.pipeline import Pipeline
from asyncpool._psycopg.riding import UnsentBegin, begin_before, begin_now, send_begin
from asyncpool._psycopg.sending import StatementSender
from asyncpool._psycopg.socket_watcher import LOST, READY
from asyncpool._psycopg.transport import Transport

__all__ = ["Connection"]

RV = TypeVar("RV")

OK = int(ConnStatus.OK)
BASE = psycopg.AsyncConnection
BASE_METHODS = BASE.cursor, BASE.execute
"""psycopg's own methods: the fast path is used only while neither is overridden or patched."""
BEGINNING = send_begin, Cursor._execute_gen, Batch.run
BEGIN_THEMSELVES = {BLOCK_END, *(generator.__code__ for generator in BEGINNING)}
"""The generators before which no BEGIN is sent: they send it, or end the block that it begins."""
ENDS_CANCELLED_START = VERSION >= (3, 3)
"""Whether psycopg runs the end of a block whose start was cancelled."""


class Connection(psycopg.AsyncConnection[Row]):
    """A `psycopg.AsyncConnection` whose socket the event loop always watches.

    It behaves as psycopg's does, with or without a pool, except for these points:

    - A cancelled call raises immediately. The query is cancelled on the server in the background.
      The next call on this connection waits for that; after a few seconds without success the
      connection is closed.
    - Notices and notifications reach their handlers as they arrive, also between calls.
    - A transaction block raises at its end if its connection is lost or closed by another task.
    - It uses one more file descriptor.

    Where the event loop cannot watch descriptors, as on Windows, it waits as psycopg does.
    """

    lock: Lock
    _transport: Transport | None
    _after_commit: Any = None  # the query to send with the next COMMIT, see `committing`

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._transport = None
        self.lock = Lock()
        self._statements = StatementSender(self)
        """The statements that were converted for this connection."""
        self._unsent_begin: UnsentBegin | None = None
        """The BEGIN of a block that has been entered, until it is sent with its first statement."""
        self._deferred: deque[PQGen[Any]] = deque()
        """psycopg's generators that must run before the next operation."""
        self._traced = False
        """Whether to record the last statement."""
        self._last_query: Query | None = None
        """The last statement that a cursor executed, if `_traced`."""
        self._pipeline_end_cancelled = False
        """Whether a pipeline was cancelled while it waited for its end."""
        self._unread_notifies: list[Any] = []
        """Notifications that were read for a call that was cancelled."""
        self._closed_by: asyncio.Task[Any] | None = None
        """The task whose call of `close()` has closed the connection."""
        self.pgconn.notice_handler = partial(on_notice, ref(self))
        cls = type(self)
        if cls.wait is Connection.wait and (cls.cursor, BASE.execute) == BASE_METHODS:
            self.cursor_factory = Cursor
            self.server_cursor_factory = ServerCursor

    @classmethod
    async def connect(cls, conninfo: str = "", **kwargs: Any) -> Self:
        """Connect; the arguments are those of `psycopg.AsyncConnection.connect`."""
        conn = await connect(super().connect, conninfo, kwargs)
        if not isinstance(conn, Connection):
            return conn  # a patch of psycopg's `connect` has made psycopg's own
        try:
            conn._transport = conn.lock.transport = transport_for(conn)
        except OSError as error:
            await super(Connection, conn).close()
            msg = f"cannot watch the connection's socket: {error}"
            raise psycopg.OperationalError(msg) from error
        return conn

    @classmethod
    async def _get_connection_params(cls, conninfo: str, **kwargs: Any) -> ConnDict:
        return await parameters(super()._get_connection_params, conninfo, kwargs)

    @property
    def adapters(self) -> AdaptersMap:
        """See `psycopg.AsyncConnection.adapters`."""
        if type(self._adapters) is not Adapters:
            self._adapters = self._statements.copy_adapters(self._adapters)
        return self._adapters

    async def close(self) -> None:
        """Close the connection, or return it, even if broken, to a pool with `close_returns`.

        A connection that belongs to no pool first waits for the end of a cancelled query.
        """
        transport, pool = self._transport, cast("Any", getattr(self, "_pool", None))
        if self.closed and getattr(pool, "close_returns", False):
            await pool.putconn(self)  # psycopg returns an open connection only
            return
        try:
            if transport is not None and not transport.keep_socket:
                await transport.wait_drained()
        finally:
            if transport is not None:
                transport.record_transaction()
            if not self.closed:
                await super().close()
                with suppress(RuntimeError):  # no loop runs while an abandoned pool is collected
                    self._closed_by = current_task() if self.closed else None
            if transport is not None and self.closed:
                if transport.keep_socket:
                    transport.release()
                else:
                    transport.dispose()

    def execute(
        self,
        query: Query,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool = False,
    ) -> Coroutine[Any, Any, psycopg.AsyncCursor[Row]]:
        """See `psycopg.AsyncConnection.execute`."""
        if self.cursor_factory is not Cursor or self.pgconn.status != OK:
            return super().execute(query, params, prepare=prepare, binary=binary)  # type: ignore[arg-type]
        cur: Cursor[Row] = Cursor.for_one_statement(self, binary=binary)
        return cur.execute(query, params, prepare=prepare)

    if sys.version_info >= (3, 12):
        execute = inspect.markcoroutinefunction(execute)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: Any
    ) -> None:
        if kind is None and self.closed:
            self._raise_if_work_lost()
        await super().__aexit__(kind, error, tb)

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncIterator[psycopg.AsyncTransaction]:
        """See `psycopg.AsyncConnection.transaction`.

        Raises:
            psycopg.OperationalError: at the end of the block, if the connection was lost or closed
                by another task meanwhile. In psycopg such a block ends as if it were committed.
        """
        if self._unsent_begin is not None:
            await begin_now(self)
        # A copy of psycopg's method: to wrap it would add 4 us to a block's 40.
        block = psycopg.AsyncTransaction(self, savepoint_name, force_rollback)
        if self._pipeline is not None:
            async with self.pipeline(), block, self.pipeline():
                yield block
            return
        async with block:
            yield block
            if self.pgconn.status == BAD and not block.force_rollback:
                self._raise_if_work_lost(in_block=True)

    def _raise_if_work_lost(self, *, in_block: bool = False) -> None:
        """Raise at the end of a block whose work was lost with its connection.

        A block whose own task has closed the connection does not raise.
        """
        if self._closed_by is not None and self._closed_by is current_task():
            return
        was_open = None if self._transport is None else self._transport.was_open
        if in_block or (not self._autocommit if was_open is None else was_open):
            raise closed_error("the work of this block was not committed")

    @asynccontextmanager
    async def pipeline(self) -> AsyncIterator[psycopg.AsyncPipeline]:
        """See `psycopg.AsyncConnection.pipeline`."""
        if self._unsent_begin is not None:
            await begin_now(self)
        async with super().pipeline() as pipeline:
            self._adapt_pipeline(pipeline)
            yield pipeline

    @asynccontextmanager
    async def _pipeline_nolock(self) -> AsyncIterator[psycopg.AsyncPipeline]:
        if self._unsent_begin is not None:
            await self.wait(send_begin(self))
        async with super()._pipeline_nolock() as pipeline:
            self._adapt_pipeline(pipeline)
            yield pipeline

    def _adapt_pipeline(self, pipeline: psycopg.AsyncPipeline) -> None:
        if self._transport is not None:
            pipeline.__class__ = Pipeline

    def _check_connection_ok(self) -> None:
        if (transport := self._transport) is not None and transport.session_end_error is not None:
            transport.raise_session_end_error()
        super()._check_connection_ok()

    async def wait(
        self, gen: PQGen[RV], interval: float | None = None, timeout: float | None = None
    ) -> RV:
        """See `psycopg.AsyncConnection.wait`."""
        transport = self._transport
        if transport is None:
            return await super().wait(gen, **_without_none(interval=interval, timeout=timeout))
        if transport.phase is not READY:
            await self._finish_leftovers(transport, gen)
            if transport.is_finished_copy_out(gen):
                gen.close()
                return None  # type: ignore[return-value]
        if self._unread_notifies and getattr(gen, "gi_code", None) is NOTIFIES:
            gen.close()
            missed, self._unread_notifies = self._unread_notifies, []
            return missed  # type: ignore[return-value]
        if self.pgconn.status == BAD or transport.phase is LOST:
            gen.close()  # on a closed connection some generators end as if all had been read
            raise closed_error()
        if self._unsent_begin is not None and getattr(gen, "gi_code", None) not in BEGIN_THEMSELVES:
            await begin_before(self, gen)
        copying = self.pgconn.transaction_status == ACTIVE and self._pipeline is None
        try:
            future = transport.start(gen)
        except StopIteration as end:
            if not transport.reading and self.pgconn.transaction_status != ACTIVE:
                transport.resume()
            if copying:
                await yield_if_busy(transport, self)
            return end.value  # type: ignore[no-any-return]
        timer = transport.set_timer(interval, timeout)
        try:
            return await future  # type: ignore[no-any-return]
        except BaseException as error:
            transport.abandon(gen, self)
            self._keep_notifications(gen, future)
            self._record_end_of_pipeline(gen, error)
            raise
        finally:
            del future  # break the cycle: its exception's traceback refers to this frame
            if timer is not None:
                timer.cancel()

    async def tpc_recover(self) -> list[psycopg.Xid]:
        """See `psycopg.AsyncConnection.tpc_recover`."""
        if self._unsent_begin is not None:
            await begin_now(self)
        return await super().tpc_recover()

    async def _try_cancel(self, *, timeout: float = 5.0) -> None:
        """Cancel the query; psycopg's COPY and stream() then read it to its end."""
        if (transport := self._transport) is None:
            await super()._try_cancel(timeout=timeout)
            return
        # The transport's task sends the request, so that the transport knows when it has arrived.
        transport.interrupt(self)
        await transport.wait_drained()
        # True where the query has ended: the next wait then skips psycopg's reading to its end.
        transport.note_leftovers(exist=self.pgconn.transaction_status != ACTIVE)

    def _keep_notifications(self, gen: PQGen[Any], future: asyncio.Future[Any]) -> None:
        """Keep notifications that came in the same turn as the cancellation for the next call."""
        is_read = getattr(gen, "gi_code", None) is NOTIFIES and future.done()
        if is_read and not future.cancelled() and future.exception() is None:
            self._unread_notifies += future.result()

    def _record_end_of_pipeline(self, gen: PQGen[Any], error: BaseException) -> None:
        """Record whether a pipeline's end was cancelled, as opposed to a failed statement in it."""
        if self._pipeline is not None and getattr(gen, "gi_code", None) is PIPELINE_END:
            self._pipeline_end_cancelled = not isinstance(error, Exception)

    def _defer_end_of_block(self, transport: Transport, gen: PQGen[Any]) -> None:
        """Defer the start or end of a block that was cancelled while it waited for another query.

        psycopg counts its blocks in these generators, which have not started: they must run later.
        """
        code = getattr(gen, "gi_code", None)
        if code is BLOCK_END:
            block = gen.gi_frame.f_locals["self"]  # type: ignore[attr-defined]
            block.force_rollback = True  # the block was cancelled, so it must not commit
        if code is BLOCK_END or (code is BLOCK_START and ENDS_CANCELLED_START):
            transport.defer(gen, self)

    async def _finish_leftovers(self, transport: Transport, gen: PQGen[Any]) -> None:
        """End what remains of a cancelled query; a COPY's end reads all but the cancel request."""
        transport.raise_session_end_error()
        try:
            await transport.wait_drained()
            if getattr(gen, "gi_code", None) is not COPY_END:
                await transport.finish_leftovers(self)
        except CancelledError as error:
            self._defer_end_of_block(transport, gen)
            self._record_end_of_pipeline(gen, error)
            raise


def _without_none(**limits: float | None) -> dict[str, Any]:
    """Drop limits that are None: psycopg's defaults are others, and not all versions have both."""
    return {name: value for name, value in limits.items() if value is not None}


class PlainConnection(psycopg.AsyncConnection[Row]):
    """psycopg's own connection, where its private parts cannot be used."""


if not SUPPORTED:
    PlainConnection.__name__ = PlainConnection.__qualname__ = "Connection"
    Connection = PlainConnection  # type: ignore[misc, assignment]
