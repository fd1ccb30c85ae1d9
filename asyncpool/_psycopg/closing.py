"""How a connection is closed, whatever still runs on it and whatever its class overrides."""

from __future__ import annotations

import logging
import math
import socket
from typing import Any

import anyio
import psycopg

from asyncpool._psycopg.callbacks import call
from asyncpool._psycopg.cancellation import CANCEL_TIMEOUT
from asyncpool._psycopg.connection import Connection
from asyncpool._psycopg.handle import ConnectionHandle
from asyncpool._psycopg.open_work import is_idle
from asyncpool._psycopg.operation import ACTIVE
from asyncpool._psycopg.pacing import Paced, turn_to_leave

logger = logging.getLogger("asyncpool")

PLAIN_CLOSES = psycopg.AsyncConnection.close, Connection.close
"""The `close` methods that do not suspend on a connection of a pool."""


async def end_session(conn: psycopg.AsyncConnection[Any], handle: ConnectionHandle) -> None:
    """Close a connection in its turn, and wait until the server has hung up."""
    in_pipeline = bool(conn.pgconn.pipeline_status)
    try:
        if not conn.closed:
            await turn_to_leave()
    finally:
        await Paced(disconnect(conn, handle))
    await (handle.abort() if in_pipeline else handle.hang_up())


async def disconnect(conn: psycopg.AsyncConnection[Any], handle: ConnectionHandle) -> None:
    """End what is under way, then close psycopg's connection, whether or not that succeeds."""
    try:
        if not is_idle(conn):
            await _end_work(conn, handle)
    finally:
        # Without its pool, close() does not return the connection. It is set again, because a
        # borrower may still release the connection.
        owner, conn._pool = conn._pool, None
        try:
            await close(conn)
        finally:
            conn._pool = owner


async def _end_work(conn: psycopg.AsyncConnection[Any], handle: ConnectionHandle) -> None:
    """End what is under way on a connection."""
    with anyio.move_on_after(CANCEL_TIMEOUT):
        await handle.finish_leftovers(conn)
    if conn.lock.locked():
        # A borrower is inside: its next statement is to fail.
        handle.shut_down(socket.SHUT_WR)
    working = conn.pgconn.transaction_status == ACTIVE
    if working or (conn.closed and not handle.is_hung_up()):
        await handle.cancel()
    # A task that waits on the descriptor must leave before it is closed, or the loop would
    # keep a stale registration. If it does not, the socket is shut down and it fails.
    for _ in range(2):
        with anyio.move_on_after(CANCEL_TIMEOUT / 4) as limit:
            async with conn.lock:
                pass
        if not limit.cancelled_caught:
            break
        handle.shut_down(socket.SHUT_RDWR)


async def close(conn: psycopg.AsyncConnection[Any]) -> None:
    """Call a connection's `close()`, and close it whatever an overridden one does."""
    try:
        if getattr(type(conn), "close", None) in PLAIN_CLOSES:
            await conn.close()
            return
        with anyio.move_on_after(CANCEL_TIMEOUT, shield=True):
            await call("close", conn.close, math.inf)
    except Exception:
        logger.warning("error in close() of %r", conn, exc_info=True)
    finally:
        if not conn.closed:
            conn.pgconn.finish()
