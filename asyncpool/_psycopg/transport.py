"""A connection's socket, watched for the connection's life, and the operation that runs on it.

The transport advances psycopg's generators as the socket becomes ready, reads what arrives while no
operation runs, and detects a hang-up of the server. It knows the socket and libpq's connection but
not the pool, and refers to psycopg's connection weakly.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import sys
import threading
import weakref
from asyncio import get_running_loop
from contextlib import suppress
from contextvars import Context, copy_context
from time import monotonic
from typing import Any, Protocol

import psycopg
from psycopg import waiting
from psycopg.pq import ConnStatus, TransactionStatus

from asyncpool._core.background import force_close
from asyncpool._psycopg.cancellation import cancel_until_ended, read_leftovers
from asyncpool._psycopg.socket_watcher import (
    DRAINING,
    ENDING,
    HUNG_UP,
    LEFTOVERS,
    READY,
    READY_R,
    SocketWatcher,
)

logger = logging.getLogger("asyncpool")

WAIT_R, WAIT_W = int(waiting.WAIT_R), int(waiting.WAIT_W)
IDLE, ACTIVE = int(TransactionStatus.IDLE), int(TransactionStatus.ACTIVE)
COPY_OUT_END = getattr(getattr(psycopg.AsyncCopy, "_end_copy_out_gen", None), "__code__", object())
"""Code object that identifies psycopg's generator which reads a COPY to its end, if it has one."""
UNDER_WAY = {ACTIVE, int(TransactionStatus.INTRANS), int(TransactionStatus.INERROR)}
KNOWN = {IDLE, int(TransactionStatus.INTRANS), int(TransactionStatus.INERROR)}
BAD = int(ConnStatus.BAD)

BUSY_TIME = 0.005
"""Seconds that work which never waits may occupy the event loop."""
INTERRUPTED, MAYBE_STANDBY = 1, 2
"""Reasons for a reset: a query was cancelled; the server may have become a standby."""
DRAIN_TIMEOUT = 5.0
"""Seconds that a cancelled query may take to end; then its connection is closed."""


RETURNED = (
    "the connection was returned to its pool, where it runs the statements of others:"
    " use a connection inside its block only"
)


def closed_error(result: str = "") -> psycopg.OperationalError:
    """Return the error for an operation on a closed connection, with what that means for it."""
    return psycopg.OperationalError(f"the connection is closed{result and ': '}{result}")


class Channel(Protocol):
    """The user of a connection in pipeline mode; see `_pipeline/channel.py`."""

    def readable(self) -> None:
        """Called when there is something to read."""

    def writable(self) -> None:
        """Called when there is room to write."""

    def lost(self) -> None:
        """Called when the connection has ended."""


class Transport(SocketWatcher):
    """A connection's socket and the one operation that runs on it.

    Args:
        conn: an open connection; the transport keeps a weak reference.

    Raises:
        OSError: no descriptor is left for the duplicate.
        NotImplementedError: the event loop cannot watch descriptors.
    """

    def __init__(self, conn: psycopg.AsyncConnection[Any]) -> None:
        super().__init__(conn.pgconn.socket)
        self.pgconn = conn.pgconn
        """libpq's connection; it is finished when the connection is closed on this side."""
        self.keep_socket = False
        """Whether `close()` of the connection leaves the socket open for the pool to close."""
        self.reset_reasons = 0
        """INTERRUPTED, MAYBE_STANDBY: what has happened since the connection was last reset."""
        self.draining: asyncio.Task[None] | None = None
        """The task that ends a cancelled query; it outlasts DRAINING if the session ends."""
        self.was_open: bool | None = None
        """Whether a transaction was open when the connection ended; None if unknown."""
        self.ended_by: BaseException | None = None
        """The error for which the connection was closed on this side, if any."""
        self.channel: Channel | None = None
        """The channel that runs pipelined statements on the connection, in place of a generator."""
        self._conn = weakref.ref(conn)
        """psycopg's connection; weak, as the loop refers to the transport."""
        self._gen: Any = None
        """The generator of the operation that waits for the socket, if any."""
        self._want = WAIT_R
        """The states of the socket for which the generator waits."""
        self._future: asyncio.Future[Any] | None = None
        """Done with the generator's result; None without a generator."""
        self._context: Context | None = None
        """A copy of the caller's context, in which the generator runs; None without one."""
        # At interpreter exit the process closes the socket.
        weakref.finalize(conn, self.dispose).atexit = False

    def start(self, gen: Any) -> asyncio.Future[Any]:
        """Start a generator, to be advanced as the socket becomes ready; return its future.

        Raises:
            StopIteration: the generator ended without waiting; the exception has its value.
            psycopg.ProgrammingError: a channel runs on the connection, as it was returned.
        """
        if self.channel is not None:
            gen.close()
            raise psycopg.ProgrammingError(RETURNED)
        if (status := self.pgconn.transaction_status) != ACTIVE:  # else it is a further step
            self.was_open = True if status in UNDER_WAY else None
        want = next(gen)
        if get_running_loop() is not self.loop:
            self.move_to_running_loop()
        elif not self.reading:
            self.resume()
        self._gen = gen
        self._want = want
        self._context = copy_context()
        self._future = future = self.loop.create_future()
        if want & WAIT_W:
            self._advance(0)
        return future

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

    def set_timer(
        self, interval: float | None, timeout: float | None
    ) -> asyncio.TimerHandle | None:
        """Set a timer that ends the generator after `timeout`, or wakes it after `interval`."""
        if timeout is not None:
            return self.loop.call_later(timeout, self.time_out)
        if interval is not None:
            return self.loop.call_later(interval, self.wake)
        return None

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
        return self.phase is DRAINING or self.phase is LEFTOVERS

    def note_leftovers(self, *, exist: bool = True) -> None:
        """Set whether a cancelled operation has left a rest, which its drain decides if it runs."""
        if self.phase < DRAINING:
            self.phase = LEFTOVERS if exist else READY

    @property
    def is_unused(self) -> bool:
        """Whether no generator runs and no cancelled query is being ended."""
        return self._gen is None and self.draining is None

    def time_out(self) -> None:
        """End the generator with psycopg's timeout error, unless its result is there to be read."""
        if self._gen is not None and self._ready(WAIT_R):
            self._on_readable()
        future = self._future
        if future is not None and not future.done():
            self._end()
            future.set_exception(psycopg.errors._WaitTimeout("wait timeout expired"))

    def wake(self) -> None:
        """Advance the generator with nothing ready, as psycopg before 3.3 does in `notifies`."""
        if self._gen is not None:
            self._advance(0, woken=True)

    def raise_session_end_error(self) -> None:
        """Close the connection and raise the server's announcement; only the first call raises."""
        error, self.session_end_error = self.session_end_error, None
        if error is not None:
            self.record_transaction()
            self.pgconn.finish()
            self.mark_lost()
            raise error

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

    def _is_in_query(self) -> bool:
        """Whether libpq expects more of a query, or is in pipeline mode."""
        return self.pgconn.transaction_status == ACTIVE or bool(self.pgconn.pipeline_status)

    def is_finished_copy_out(self, gen: Any) -> bool:
        """Whether a generator would read a COPY to its end that has ended already."""
        ended = self.pgconn.transaction_status != ACTIVE
        return ended and getattr(gen, "gi_code", None) is COPY_OUT_END

    def record_transaction(self) -> None:
        """Record whether a transaction is open, which libpq forgets when it closes."""
        if (status := self.pgconn.transaction_status) in KNOWN:
            self.was_open = status != IDLE

    def interrupt(self, conn: psycopg.AsyncConnection[Any]) -> None:
        """Start to end a query that was cancelled between two of its waits."""
        if self.pgconn.transaction_status == ACTIVE and self.draining is None:
            self._start_drain(conn)

    def is_up(self) -> bool:
        """Whether the session has not ended, by all that the server has sent so far."""
        events = self.poll_events()
        if events & HUNG_UP:
            return False
        if events & select.POLLIN and self._gen is None:
            self.read_unsolicited()
        return self.phase < ENDING

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
        with suppress(RuntimeError):
            if self.reading and threading.get_ident() != self._thread and self.loop.is_running():
                self.loop.call_soon_threadsafe(self.dispose)
                return
        self.notify = None
        try:
            self.release()
        finally:
            self.socket.close()

    # The following methods run in callbacks of the event loop.

    def _on_readable(self) -> None:
        if self._gen is None:
            if self.channel is not None:
                self.channel.readable()
            else:
                self.read_unsolicited()
        elif self._want & WAIT_R:
            self._advance(READY_R)
        else:
            self._stop_reading()

    def _on_writable(self) -> None:
        if self.channel is not None:
            self.channel.writable()
        else:
            self._advance(0)

    def _advance(self, ready: int, *, woken: bool = False) -> None:
        """Advance the generator with the flags in `ready`, and on while the socket is writable."""
        gen, future, want = self._gen, self._future, self._want
        assert self._context is not None, "bug: a generator without a context"
        assert future is not None, "bug: a generator without a future"
        send, since = self._context.run, 0.0
        try:
            if ready or woken:
                want = send(gen.send, ready)
                while ready & READY_R and want & WAIT_R and self.is_hung_up():
                    want = send(gen.send, READY_R)
            while want & WAIT_W:
                # The socket is nearly always writable, so a poll saves a registration.
                now = monotonic()
                since = since or now
                if now - since > BUSY_TIME or not (ready := self._ready(want)):
                    self.watch_writable()
                    break
                want = send(gen.send, ready)
            else:
                if self._writing or not self.reading:
                    self._on_written()
            self._want = want
        except StopIteration as end:
            self._end()
            if not future.done():
                future.set_result(end.value)
        except BaseException as error:
            self._on_error(future, error)
            if not isinstance(error, Exception):
                raise
        finally:
            del future  # break the cycle: the exception's traceback refers to this frame

    def _on_written(self) -> None:
        """Stop waiting to write, and read again, which may have been stopped meanwhile."""
        self.unwatch_writable()
        self.resume()

    def _on_error(self, future: asyncio.Future[Any], error: BaseException) -> None:
        self._end()
        if not future.done():
            future.set_exception(error)
        self.report_error(error)
        if self.pgconn.status == BAD:
            self.mark_lost()

    def read_unsolicited(self) -> None:
        """Read notices, notifications and the end of the session while no operation runs."""
        conn, pgconn = self._conn(), self.pgconn
        backlog = getattr(conn, "_notifies_backlog", None)
        if (
            conn is None
            or pgconn.transaction_status in UNDER_WAY
            or (backlog is None and conn.lock.locked())
        ):
            # These are rows for a later wait, or notifications for an iteration over notifies(). Or
            # the session has ended in an open transaction. The next statement must get that error:
            # on a connection that libpq knows to be closed, psycopg ends a block silently.
            if self.is_hung_up():
                self._report_loss()
            self._stop_reading()
            return
        self.record_transaction()
        # The server's last message and the end of file take two reads.
        while True:
            with suppress(psycopg.Error):
                pgconn.consume_input()
                pgconn.is_busy()  # passes notices to their handlers
            if pgconn.status == BAD:
                self.mark_lost()
                return
            if not self.is_hung_up():
                break
        if conn._notify_handlers or backlog is not None:
            self.pass_on_notifications()

    def pass_on_notifications(self) -> None:
        """Pass the notifications that have come to their handlers."""
        pgconn = self.pgconn
        while (notify := pgconn.notifies()) is not None:
            if pgconn.notify_handler is not None:
                try:
                    pgconn.notify_handler(notify)
                except Exception:
                    # An error must not delay the other notifications until the next statement.
                    logger.exception("error in a notification handler")

    def _start_drain(self, conn: psycopg.AsyncConnection[Any]) -> None:
        """Start the task that cancels the query on the server and reads it to its end."""
        self.phase = max(self.phase, DRAINING)
        self.reset_reasons |= INTERRUPTED
        if self.loop.is_closed():
            self.close_connection()
            return
        future = None
        if self._gen is not None:
            self._future = future = self.loop.create_future()
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
            self.ended_by = psycopg.OperationalError(
                f"a cancelled statement could not be ended within {DRAIN_TIMEOUT:g} s: {error!r}"
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

    def drop(self, *, but: object) -> None:
        """End a generator that nobody waits for before its next step, but for one of this code."""
        gen, future = self._gen, self._future
        if gen is None or getattr(gen, "gi_code", None) is but:
            return
        self._end()
        gen.close()
        if future is not None and not future.done():
            future.set_result(None)

    def _end(self) -> None:
        self._gen = self._future = self._context = None
        if self._writing:
            self.unwatch_writable()
