"""The end of a cancelled query: what asks the server for it, and what reads up to it.

A cancel request is a short connection to the server that says which query is to end. psycopg's own
way is for a network that answers. On its versions before 3.3 libpq is asked for progress where
there was none, and then blocks the thread, and with it the event loop, until the request has gone
out: on a silent network for minutes.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import capabilities, generators, waiting
from psycopg.abc import PQGen, PQGenConn
from psycopg.pq import ExecStatus, PollingStatus
from psycopg.pq.abc import PGcancelConn, PGconn

CANCEL_TIMEOUT = 1.0
"""Seconds for a cancel request to reach the server."""

REPEAT_AFTER = 0.05
"""Seconds until a cancel request is repeated; doubled each time."""

COPY_STATES = (ExecStatus.COPY_IN, ExecStatus.COPY_OUT)

POLL_INTERVAL = 0.5
"""Seconds between two looks at nothing, which psycopg's wait insists on."""


def prepare(pgconn: PGconn) -> PGcancelConn | None:
    """The means to cancel what a connection runs, also when it is closed by then; None: no way.

    Only since libpq 17 can a request be sent without blocking.
    """
    return pgconn.cancel_conn() if capabilities.has_cancel_safe() else None


async def send_request(cancel: PGcancelConn) -> None:
    """Send one request and wait until the server has read it; once only for each `prepare`.

    Raises:
        TimeoutError: that took longer than `CANCEL_TIMEOUT`; it may still be under way.
        psycopg.OperationalError: the server cannot be reached.
    """
    async with asyncio.timeout(CANCEL_TIMEOUT):
        await waiting.wait_conn_async(_request(cancel), interval=POLL_INTERVAL)


async def insist(conn: psycopg.AsyncConnection[Any], end: asyncio.Future[Any] | None) -> None:
    """Send requests until a query has come to its end; only one where that cannot be seen.

    Raises:
        TimeoutError, psycopg.Error: a request failed, or may be under way still.
    """
    pause = REPEAT_AFTER
    while end is None or not end.done():
        if (cancel := prepare(conn.pgconn)) is not None:
            await send_request(cancel)
        else:
            await conn.cancel_safe()
        if end is None:
            return
        # A request that came before the query did has had no effect.
        await asyncio.wait({end}, timeout=pause)
        pause *= 2


def read_leftovers(pgconn: PGconn) -> PQGen[None]:
    """Take in and throw away what is left of a query, or of a pipeline."""
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
    """After an error the server skips all up to a Sync, which may not have been sent yet."""
    pgconn.pipeline_sync()
    yield from generators.send(pgconn)
    while pgconn.pipeline_status:
        results = yield from generators.fetch_many(pgconn)
        if results and results[-1].status in COPY_STATES:
            return  # there is no way out of it
        with suppress(psycopg.Error):  # there is more to be read
            pgconn.exit_pipeline_mode()


def _request(cancel: PGcancelConn) -> PQGenConn[None]:
    cancel.start()
    wait = waiting.WAIT_W
    while True:
        while not (yield cancel.socket, wait):
            pass
        status = cancel.poll()
        if status == PollingStatus.OK:
            return
        if status == PollingStatus.FAILED:
            msg = f"the cancel request failed: {cancel.get_error_message()}"
            raise psycopg.OperationalError(msg)
        wait = waiting.WAIT_R if status == PollingStatus.READING else waiting.WAIT_W
