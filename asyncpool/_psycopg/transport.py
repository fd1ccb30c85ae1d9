"""A connection's transport: its operations, and how those that were cancelled come to their end.

The transport cancels an abandoned query on the server, reads it to its end, and ends the session.
It does not know the pool.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import sys
import threading
import weakref
from asyncio import get_running_loop
from contextlib import suppress
from contextvars import Context
from typing import Any

import psycopg

from asyncpool._core.background import force_close
from asyncpool._psycopg.cancellation import cancel_until_ended, read_leftovers
from asyncpool._psycopg.direct_future import DirectFuture
from asyncpool._psycopg.internals import COPY_OUT_END
from asyncpool._psycopg.operation import ACTIVE, OperationRunner, closed_error
from asyncpool._psycopg.socket_watcher import DRAINING, ENDING, HUNG_UP, LEFTOVERS, READY

INTERRUPTED, MAYBE_STANDBY = 1, 2
"""Reasons for a reset: a query was cancelled; the server may have become a standby."""
DRAIN_TIMEOUT = 5.0
"""Seconds that a cancelled query may take to end; then its connection is closed."""


class Transport(OperationRunner):
    """A connection's socket and all that runs on it.

    Args:
        conn: an open connection; the transport keeps a weak reference.

    Raises:
        OSError: no descriptor is left for the duplicate.
        NotImplementedError: the event loop cannot watch descriptors.
    """

    def __init__(self, conn: psycopg.AsyncConnection[Any]) -> None:
        super().__init__(conn)
        self.keep_socket = False
        """Whether `close()` of the connection leaves the socket open for the pool to close."""
        self.reset_reasons = 0
        """INTERRUPTED, MAYBE_STANDBY: what has happened since the connection was last reset."""
        self.draining: asyncio.Task[None] | None = None
        """The task that ends a cancelled query; it outlasts DRAINING if the session ends."""
        self.ended_by: BaseException | None = None
        """The error for which the connection was closed on this side, if any."""
        # At interpreter exit the process closes the socket.
        weakref.finalize(conn, self.dispose).atexit = False

    @property
    def is_ready(self) -> bool:
        """Whether the next operation may start, and the loop watches for what comes before it."""
        return self.phase is READY and self.reading

    @property
    def is_clean(self) -> bool:
        """Whether the next lease may have the connection without a reset."""
        return self.phase is READY and self.reading and not self.reset_reasons

    @property
    def has_leftovers(self) -> bool:
        """Whether a cancelled operation must be finished before the next one may start."""
        return self.phase is LEFTOVERS or self.draining is not None

    @property
    def is_unused(self) -> bool:
        """Whether no generator runs and no cancelled query is being ended."""
        return self._gen is None and self.draining is None

    def is_up(self) -> bool:
        """Whether the session has not ended, by all that the server has sent so far."""
        events = self.poll_events()
        if events & HUNG_UP:
            return False
        if events & select.POLLIN and self._gen is None:
            self.read_unsolicited()
        return self.phase < ENDING

    def abandon(self, gen: Any, conn: psycopg.AsyncConnection[Any]) -> None:
        """Stop waiting for a generator whose caller leaves, if it still runs.

        A query that is under way is cancelled and read to its end in the background.
        """
        active = self.pgconn.transaction_status == ACTIVE
        if self._gen is not gen:
            if (
                active
                and self._gen is None
                and self.draining is None
                and conn._pipeline is None
                and isinstance(sys.exception(), asyncio.CancelledError | GeneratorExit)
            ):
                # Cancelled in the turn of its result, which has begun a COPY or a stream().
                self.reset_reasons |= INTERRUPTED
                self.note_leftovers()
        elif active or conn._pipeline is not None:
            self._start_drain(conn)
        else:
            self._end()
            gen.close()

    def interrupt(self, conn: psycopg.AsyncConnection[Any]) -> None:
        """Start to end a query that was cancelled between two of its waits."""
        if self.pgconn.transaction_status == ACTIVE and self.draining is None:
            self._start_drain(conn)

    def note_leftovers(self, *, exist: bool = True) -> None:
        """Set whether a cancelled operation has left a rest, which its drain decides if it runs."""
        if self.phase < DRAINING:
            self.phase = LEFTOVERS if exist else READY

    async def wait_drained(self) -> None:
        """Wait until the task that ends a cancelled query is done."""
        while (task := self.draining) is not None:
            if task.done() or task.get_loop() is not get_running_loop():
                # The task was cancelled before it started, or its loop has ended.
                force_close(task)
                self.draining = None
                with suppress(RuntimeError):
                    self.close_connection()
                return
            await asyncio.wait({task})

    async def finish_leftovers(self, conn: Any) -> None:
        """Wait for the end of a cancelled query, and finish what remains of the operation.

        The rest of a COPY, a stream() or a pipeline is read; if that fails, the connection is
        closed. Then starts and ends of transaction blocks run that were cancelled while they
        waited here.
        """
        await self.wait_drained()
        if conn._pipeline is not None:
            return  # the pipeline's own end comes later
        had_leftovers = self.phase is LEFTOVERS
        self.note_leftovers(exist=False)
        if had_leftovers and self._is_in_query():
            gen = read_leftovers(self.pgconn)
            with suppress(StopIteration):
                self.start(gen)
                if self._gen is gen:
                    self._start_drain(conn)
                    await self.wait_drained()
            if self._is_in_query():
                self.close_connection()
        while conn._deferred:
            gen = conn._deferred.popleft()
            with suppress(StopIteration, psycopg.Error):
                future = self.start(gen)
                try:
                    await future
                except BaseException:
                    self.abandon(gen, conn)
                    raise

    def defer(self, gen: Any, conn: Any) -> None:
        """Have a generator run to its end before the next operation."""
        conn._deferred.append(gen)
        self.note_leftovers()

    def is_finished_copy_out(self, gen: Any) -> bool:
        """Whether a generator would read a COPY to its end that has ended already."""
        ended = self.pgconn.transaction_status != ACTIVE
        return ended and getattr(gen, "gi_code", None) is COPY_OUT_END

    def raise_session_end_error(self) -> None:
        """Close the connection and raise the server's announcement; only the first call raises."""
        error, self.session_end_error = self.session_end_error, None
        if error is not None:
            self.record_transaction()
            self.pgconn.finish()
            self.mark_lost()
            raise error

    def close_connection(self) -> None:
        """Close the connection and cancel the future of the operation that runs on it."""
        gen, future = self._gen, self._future
        if os.getpid() == self._pid:  # a forked child leaves the session to its parent
            self.record_transaction()
            self.pgconn.finish()
        self.mark_lost()
        if gen is not None:
            self._end()
            if future is not None:
                future.cancel()

    def release(self) -> socket.socket:
        """Stop watching; a caller that still waits gets an error. Return the socket, still open."""
        self.mark_lost()
        loop_closed = self.loop.is_closed()
        if self.draining is not None:
            force_close(self.draining) if loop_closed else self.draining.cancel()
        future = self._future
        if self._gen is not None:
            self._end()
            if future is not None and not future.done() and not loop_closed:
                future.set_exception(closed_error())
        if (channel := self.channel) is not None and not loop_closed:
            channel.lost()
        return self.socket

    def dispose(self) -> None:
        """Remove the registration and close the socket; may be called from any thread."""
        if self.socket.fileno() < 0:
            return  # the pool has waited for the end of the session, and closed it
        with suppress(RuntimeError):
            if self.reading and threading.get_ident() != self._thread and self.loop.is_running():
                self.loop.call_soon_threadsafe(self.dispose)
                return
        self.notify = None
        try:
            self.release()
        finally:
            self.socket.close()

    def _start_drain(self, conn: psycopg.AsyncConnection[Any]) -> None:
        """Start the task that cancels the query on the server and reads it to its end."""
        self.phase = max(self.phase, DRAINING)
        self.reset_reasons |= INTERRUPTED
        if self.loop.is_closed():
            self.close_connection()
            return
        future = None
        if self._gen is not None:
            self._future = future = DirectFuture(loop=self.loop)
        work = self._drain(conn, future)
        self.draining = self.loop.create_task(work, name="asyncpool: drain", context=Context())

    async def _drain(self, conn: Any, future: asyncio.Future[Any] | None) -> None:
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT):
                await cancel_until_ended(conn, future)
                if future is not None and conn._pipeline is None and self._is_in_query():
                    await cancel_until_ended(conn, None)  # only one row has ended
        except BaseException as error:
            # A cancel request that may still arrive would cancel the next query.
            late = f" within {DRAIN_TIMEOUT:g} s" if isinstance(error, TimeoutError) else ""
            self.ended_by = psycopg.OperationalError(
                f"a cancelled statement could not be ended{late}: {error!r}"
            )
            self.close_connection()
            if not isinstance(error, Exception):
                raise
        finally:
            if future is not None and future.done() and not future.cancelled():
                future.exception()  # expected: mark it as retrieved
            self.draining = None
            if self.phase is DRAINING:
                self.phase = READY
                self.note_leftovers(exist=self._is_in_query() or bool(conn._deferred))

    def _is_in_query(self) -> bool:
        """Whether libpq expects more of a query, or is in pipeline mode."""
        return self.pgconn.transaction_status == ACTIVE or bool(self.pgconn.pipeline_status)


def transport_of(conn: object) -> Transport | None:
    """Return the transport of a connection; None if the pool does not watch its socket."""
    return getattr(conn, "_transport", None)
