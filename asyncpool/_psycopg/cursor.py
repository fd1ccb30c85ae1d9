"""The cursor of `asyncpool.Connection`: psycopg's, with a fast path for a single statement.

In psycopg a statement passes three coroutines and a lock before it waits, and `conn.execute()`
copies the connection's adapters for its cursor. The fast path is one coroutine and copies the
adapters on first access. It sends by the connection's `StatementSender`, and sends BEGIN
with the first statement of a transaction. Any other case takes psycopg's path.
"""

from __future__ import annotations

import asyncio
from asyncio import _get_running_loop as running_loop
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from functools import partial
from typing import Any, Self, cast
from weakref import ref

import psycopg
from psycopg import adapt, errors
from psycopg.abc import Params, PQGen, Query
from psycopg.pq import ExecStatus, Format
from psycopg.rows import AsyncRowFactory, Row

from asyncpool._psycopg.internals import generators
from asyncpool._psycopg.many import execute_many
from asyncpool._psycopg.riding import IDLE, send_begin, settled_begin, with_begin
from asyncpool._psycopg.sending import BINARY, TEXT, StatementSender, Version
from asyncpool._psycopg.socket_watcher import READY
from asyncpool._psycopg.transport import Transport

TUPLES = int(ExecStatus.TUPLES_OK)

CLOSE_TURNS = 5
"""Turns of the event loop in which it closes a generator that was dropped."""
SELF_DEADLOCK = (
    "this task has a stream(), COPY or notifies() open on the connection and would wait for itself"
    " for ever: end it first, or use another connection"
)


class Lock(asyncio.Lock):
    """A connection's lock, with a fast release where no task waits.

    An open stream(), COPY or notifies() holds the lock between its steps. A further call from the
    same task raises, because it would wait for itself for ever.
    """

    _locked: bool
    _waiters: Any
    transport: Transport | None = None
    """The transport of the connection; None where its socket is not watched."""
    holder: asyncio.Task[Any] | None = None
    """The task that has acquired the lock in an `async with`."""

    async def __aenter__(self) -> None:
        if self._locked and await self.is_own():
            raise psycopg.ProgrammingError(SELF_DEADLOCK)
        await self.acquire()
        # No loop runs where the garbage collector ends a block.
        self.holder = asyncio.current_task() if running_loop() is not None else None

    def release(self) -> None:
        """See `asyncio.Lock`."""
        self.holder = None
        if self._locked and not self._waiters:
            self._locked = False
        else:
            super().release()

    async def is_own(self) -> bool:
        """Whether an open operation of the current task holds the lock.

        The event loop closes a generator that was dropped in its next turns, so this waits for
        `CLOSE_TURNS` before the answer is true.
        """
        for _ in range(CLOSE_TURNS):
            transport = self.transport
            own = self._locked and self.holder is asyncio.current_task()
            if not own or transport is None or not transport.is_unused:
                return False
            await asyncio.sleep(0)
        return True


class Cursor(psycopg.AsyncCursor[Row]):
    """A `psycopg.AsyncCursor` on an `asyncpool.Connection`."""

    __slots__ = ()

    _conn: Any
    """An `asyncpool.Connection`."""
    _adapters: adapt.AdaptersMap | Version  # type: ignore[assignment]
    """The cursor's own adapters, after the first access; before it, the connection's version."""

    def __init__(
        self,
        connection: psycopg.AsyncConnection[Any],
        *,
        row_factory: AsyncRowFactory[Row] | None = None,
    ) -> None:
        # In place of psycopg's, which copies the adapters.
        self._prepare(connection, row_factory or connection.row_factory, TEXT)
        self._reset()

    @classmethod
    def for_one_statement(cls, conn: psycopg.AsyncConnection[Row], *, binary: bool) -> Self:
        """Return a cursor that is about to execute a statement, which sets what is left out."""
        self = cls.__new__(cls)
        self._prepare(conn, conn.row_factory, BINARY if binary else TEXT)
        return self

    def _prepare(self, conn: Any, row_factory: Any, result_format: Format) -> None:
        self._conn = conn
        self._pgconn = conn.pgconn
        self._row_factory = row_factory
        self._adapters = conn._statements.version
        self._last_query = None
        self._closed = False
        self.arraysize = 1
        self.format = result_format

    @property
    def adapters(self) -> adapt.AdaptersMap:
        """See `psycopg.AsyncCursor.adapters`."""
        if isinstance(self._adapters, Version):
            self._adapters = adapt.AdaptersMap(self._adapters.adapters or self._conn.adapters)
            if changed := getattr(self, "_loaders_changed", None):  # since psycopg 3.3
                self._adapters._register_loader_callback = partial(changed, ref(self))
            self._last_query = None  # the next execution makes a transformer with these
        return self._adapters

    async def execute(
        self,
        query: Query,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool | None = None,
    ) -> Self:
        """See `psycopg.AsyncCursor.execute`."""
        conn = self._conn
        transport, lock = conn._transport, conn.lock
        if (
            transport is None
            or transport.phase is not READY
            or conn._pipeline is not None
            or lock._locked
            or lock._waiters
        ):
            return await super().execute(query, params, prepare=prepare, binary=binary)  # type: ignore[arg-type, misc]
        lock._locked = True
        gen = self._execute_gen(query, params, prepare=prepare, binary=binary)
        try:
            await transport.start(gen)
        except StopIteration:
            pass  # the result was there without waiting, as a server's last message may be
        except BaseException as error:
            transport.abandon(gen, conn)
            if isinstance(error, errors._NO_TRACEBACK):
                error.with_traceback(None)
            raise
        finally:
            lock.release()
        return self

    async def fetchone(self) -> Row | None:
        """See `psycopg.AsyncCursor.fetchone`."""
        result, row = self.pgresult, self._pos
        if result is None or result.status != TUPLES or self._closed:
            return await super().fetchone()
        if row >= result.ntuples:
            return None
        loaded = self._tx.load_row(row, self._make_row)
        self._pos = row + 1
        return loaded

    async def fetchall(self) -> list[Row]:
        """See `psycopg.AsyncCursor.fetchall`."""
        result, row = self.pgresult, self._pos
        if result is None or result.status != TUPLES or self._closed:
            return await super().fetchall()
        loaded = self._tx.load_rows(row, result.ntuples, self._make_row)
        self._pos = result.ntuples
        return loaded

    async def executemany(
        self, query: Query, params_seq: Iterable[Params], *, returning: bool = False
    ) -> None:
        """See `psycopg.AsyncCursor.executemany`."""
        if returning or type(self) is not Cursor or not await execute_many(self, query, params_seq):
            await super().executemany(query, params_seq, returning=returning)

    def stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Row]:
        """See `psycopg.AsyncCursor.stream`."""
        if _is_left_in_pipeline(self._conn):
            return self._stream_later(*args, **kwargs)
        return super().stream(*args, **kwargs)

    async def _stream_later(self, *args: Any, **kwargs: Any) -> AsyncIterator[Row]:
        await _leave_pipeline(self._conn)
        async with aclosing(cast("AsyncGenerator[Row]", super().stream(*args, **kwargs))) as rows:
            async for row in rows:
                yield row

    def _execute_gen(
        self,
        query: Query,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool | None = None,
    ) -> PQGen[None]:
        """Execute a statement by the connection's `StatementSender`.

        Where that is not possible, or the statement is to be prepared first, psycopg's own
        generator does it.
        """
        conn, run = self._conn, None
        unsent = None if conn._unsent_begin is None else settled_begin(conn)
        sender: StatementSender = conn._statements
        if (
            self._adapters is sender.version
            and conn._pipeline is None
            and not (self._closed or conn._prepared._to_flush)
            and type(self) is Cursor
        ):
            begins = unsent is not None or (
                not conn._autocommit and conn.pgconn.transaction_status == IDLE
            )
            result_format = self.format if binary is None else BINARY if binary else TEXT
            run = sender.begin(query, params, prepare, result_format, in_pipeline=begins)
        if run is None:
            if unsent is not None:
                yield from send_begin(conn)
            yield from super()._execute_gen(query, params, prepare=prepare, binary=binary)
            return
        if conn._traced:
            conn._last_query = query
        self._reset()
        self._query = run.statement.pgq
        if begins:
            results = yield from with_begin(conn, unsent, partial(sender.send, run))
        else:
            sender.send(run)
            results = yield from generators.execute(conn.pgconn)
        if run.new:
            sender.record_outcome(run, results)
        sender.refresh(run.statement)
        run.statement.lend(self)
        if len(results) == 1 and results[0].status == TUPLES:
            self._results = results
            self._select_current_result(0)
        else:
            self._check_results(results)
            self._set_results(results)
        self._last_query = query
        if conn._prepared._to_flush:
            yield from conn._prepared.maintain_gen(conn)

    def _start_query(self, query: Query | None = None) -> PQGen[None]:
        if self._conn._traced:
            self._conn._last_query = query
        if self._adapters is not self._conn._statements.version:
            yield from super()._start_query(query)
            return
        if self._closed:
            raise errors.InterfaceError("the cursor is closed")
        self._reset()
        if self._last_query is None or self._last_query is not query:
            self._last_query = None
            self._tx = adapt.Transformer(self._conn)
        yield from self._conn._start_query()


class ServerCursor(psycopg.AsyncServerCursor[Row]):
    """A `psycopg.AsyncServerCursor` on an `asyncpool.Connection`."""

    __slots__ = ()

    async def execute(self, *args: Any, **kwargs: Any) -> Self:
        """See `psycopg.AsyncServerCursor.execute`."""
        if _is_left_in_pipeline(self._conn):
            await _leave_pipeline(self._conn)
        return await super().execute(*args, **kwargs)


def _is_left_in_pipeline(conn: Any) -> bool:
    """Whether libpq may still be in pipeline mode after the end of a pipeline was cancelled.

    The next wait ends that mode, but psycopg refuses some operations before it waits.
    """
    transport = conn._transport
    return conn._pipeline is None and transport is not None and transport.has_leftovers


async def _leave_pipeline(conn: Any) -> None:
    async with conn.lock:
        await conn._transport.finish_leftovers(conn)
