"""The cursor of the pool's own connections: psycopg's, with a shorter way for a single statement.

Before it waits, a statement goes through three coroutines and a lock in psycopg, and the cursor
that `conn.execute()` makes for it gets a copy of the connection's adapters, which hardly anybody
looks at. Here it is one coroutine, and the copy is made when it is asked for. What is not that
plain case goes psycopg's way, and so does all on a psycopg that this was not tried with.
"""

from __future__ import annotations

import asyncio
from asyncio import _get_running_loop as running_loop
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any, Self, cast
from weakref import ref

import psycopg
from psycopg import adapt, errors
from psycopg.abc import Params, PQGen, Query
from psycopg.pq import Format
from psycopg.rows import Row

from asyncpool._psycopg.transport import Transport

TEXT, BINARY = Format.TEXT, Format.BINARY

CLOSE_TURNS = 5
OWN = (
    "a stream(), COPY or notifies() of this very task is open on the connection, and it would wait"
    " for that for ever: end it first, or use another connection"
)

TESTED = psycopg.__version__.startswith(("3.2.", "3.3."))
"""Whether this is a psycopg whose cursor is known to be made and to begin as is said here."""


class Lock(asyncio.Lock):
    """A connection's lock, released with one call where nobody waits for it.

    An open stream(), COPY or notifies() holds it between its steps: the task that has it open would
    wait for itself for ever, and gets an error.
    """

    _locked: bool
    _waiters: Any
    transport: Transport | None = None
    """The connection's."""
    holder: asyncio.Task[Any] | None = None
    """The task that has acquired it, in an `async with`."""

    async def __aenter__(self) -> None:
        if self._locked and await self.is_own():
            raise psycopg.ProgrammingError(OWN)
        await self.acquire()
        # With no loop it is a block that the garbage collector ends.
        self.holder = asyncio.current_task() if running_loop() is not None else None

    def release(self) -> None:
        """See `asyncio.Lock`."""
        self.holder = None
        if self._locked and not self._waiters:
            self._locked = False
        else:
            super().release()

    async def is_own(self) -> bool:
        """Whether an operation of this very task holds it, and nobody is about to end that.

        A generator that was dropped is closed by the event loop, in its next turns.
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
    _adapters: adapt.AdaptersMap | None  # type: ignore[assignment]
    """None until it is asked for, where the connection's own serve as well."""

    @classmethod
    def for_one_statement(cls, conn: psycopg.AsyncConnection[Row], *, binary: bool) -> Self:
        """One that is about to execute; it has the attributes that psycopg's `__init__` sets.

        Those that an execution begins with come with it. Until its own adapters are asked for,
        what is registered with the connection later reaches its next execution too.
        """
        self = cls.__new__(cls)
        self._conn = conn
        self._pgconn = conn.pgconn
        self._row_factory = conn.row_factory
        self._adapters = None
        self._last_query = None
        self._closed = False
        self.arraysize = 1
        self.format = BINARY if binary else TEXT
        return self

    @property
    def adapters(self) -> adapt.AdaptersMap:
        """See `psycopg.AsyncCursor.adapters`."""
        if self._adapters is None:
            self._adapters = adapt.AdaptersMap(self._conn.adapters)
            if changed := getattr(self, "_loaders_changed", None):  # since psycopg 3.3
                self._adapters._register_loader_callback = partial(changed, ref(self))
            self._last_query = None  # what it knows of types is the connection's
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
            or transport.draining is not None
            or transport.has_leftovers
            or transport.session_ended
            or not transport.up
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
            pass  # the answer had come before the question, as a server's last words may
        except BaseException as error:
            transport.abandon(gen, conn)
            if isinstance(error, errors._NO_TRACEBACK):
                error.with_traceback(None)
            raise
        finally:
            lock.release()
        return self

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

    def _start_query(self, query: Query | None = None) -> PQGen[None]:
        if self._conn._traced:
            self._conn._last_said = query
        if self._adapters is not None:
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
    """Whether libpq may be in a pipeline that was left: it comes out of it in the next wait.

    What psycopg refuses in a pipeline it refuses before it waits.
    """
    transport = conn._transport
    return (
        conn._pipeline is None
        and transport is not None
        and bool(transport.draining or transport.has_leftovers)
    )


async def _leave_pipeline(conn: Any) -> None:
    async with conn.lock:
        await conn._transport.finish_leftovers(conn)
