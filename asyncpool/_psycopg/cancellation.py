"""Cancel requests to the server, and reading a cancelled query to its end.

A cancel request is a short connection to the server that names the query to cancel. psycopg's own
implementation before 3.3 polls libpq also when the socket is not ready. libpq then blocks the
thread, and with it the event loop, until the request is sent: for minutes on a silent network.
"""

from __future__ import annotations

import asyncio
import os
from asyncio import get_running_loop
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import capabilities
from psycopg.abc import PQGen
from psycopg.pq import ExecStatus, PollingStatus
from psycopg.pq.abc import PGcancelConn, PGconn

from asyncpool._psycopg.internals import generators

CANCEL_TIMEOUT = 1.0
"""Seconds that a cancel request may take to reach the server."""

REPEAT_AFTER = 0.05
"""Seconds until a cancel request is repeated; they double each time."""

COPY_STATES = (ExecStatus.COPY_IN, ExecStatus.COPY_OUT)


def prepare(pgconn: PGconn) -> PGcancelConn | None:
    """Return an object that can cancel the connection's query, even once the connection is closed.

    None before libpq 17, whose cancel request blocks the thread.
    """
    return pgconn.cancel_conn() if capabilities.has_cancel_safe() else None


async def send_request(cancel: PGcancelConn) -> None:
    """Send one cancel request and wait until the server has read it.

    Args:
        cancel: the object from `prepare`; it serves for one request, until it is reset.

    Raises:
        TimeoutError: sending took longer than `CANCEL_TIMEOUT`; the request may still arrive.
        psycopg.OperationalError: the server cannot be reached.
    """
    async with asyncio.timeout(CANCEL_TIMEOUT):
        cancel.start()
        status: int = PollingStatus.WRITING
        while status != PollingStatus.OK:
            await _wait_ready(cancel.socket, to_read=status == PollingStatus.READING)
            status = cancel.poll()
            if status == PollingStatus.FAILED:
                msg = f"the cancel request failed: {cancel.get_error_message()}"
                raise psycopg.OperationalError(msg)


async def cancel_until_ended(
    conn: psycopg.AsyncConnection[Any], end: asyncio.Future[Any] | None
) -> None:
    """Send cancel requests until the query has ended.

    Args:
        conn: the connection that runs the query.
        end: a future that is done when the query has ended; None sends a single request.

    Raises:
        TimeoutError, psycopg.Error: a request failed; it may still arrive.
    """
    pause = REPEAT_AFTER
    while end is None or not end.done():
        if (cancel := prepare(conn.pgconn)) is not None:
            await send_request(cancel)
        else:
            await conn.cancel_safe()
        if end is None:
            return
        # A request that reaches the server before the query has no effect.
        await asyncio.wait({end}, timeout=pause)
        pause *= 2


def read_leftovers(pgconn: PGconn) -> PQGen[None]:
    """Read and drop all that remains of a query or a pipeline."""
    with suppress(psycopg.Error):
        if pgconn.pipeline_status:
            yield from _read_pipeline_leftovers(pgconn)
            return
        results = yield from generators.fetch_many(pgconn)
        while results and results[-1].status in COPY_STATES:
            with suppress(psycopg.Error):
                if results[-1].status == ExecStatus.COPY_IN:
                    yield from generators.copy_end(pgconn, b"cancelled")
                else:
                    while isinstance((yield from generators.copy_from(pgconn)), memoryview):
                        pass
            results = yield from generators.fetch_many(pgconn)


def _read_pipeline_leftovers(pgconn: PGconn) -> PQGen[None]:
    # After an error the server skips everything up to a Sync, which may not have been sent yet.
    pgconn.pipeline_sync()
    yield from generators.send(pgconn)
    while pgconn.pipeline_status:
        results = yield from generators.fetch_many(pgconn)
        if results and results[-1].status in COPY_STATES:
            return  # a COPY in a pipeline cannot be ended
        with suppress(psycopg.Error):  # libpq refuses while there is more to read
            pgconn.exit_pipeline_mode()


async def _wait_ready(descriptor: int, *, to_read: bool) -> None:
    """Wait until a socket is ready to be read or written."""
    loop = get_running_loop()
    ready = loop.create_future()
    watch, unwatch = (
        (loop.add_reader, loop.remove_reader) if to_read else (loop.add_writer, loop.remove_writer)
    )
    owner = os.getpid()
    watch(descriptor, _set_done, ready)
    try:
        await ready
    finally:
        if os.getpid() == owner:  # a forked child shares the selector with its parent
            unwatch(descriptor)


def _set_done(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
