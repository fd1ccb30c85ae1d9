"""Find and roll back open work: a transaction, its blocks, a pipeline, a two-phase transaction.

psycopg's private attributes say what is open. Where these cannot be used, its public methods are,
at the cost of one more round trip: `rollback()` raises inside a block or a two-phase transaction,
and sends nothing if no transaction is open.
"""

from __future__ import annotations

from typing import Any

import anyio
import psycopg
from psycopg.pq import TransactionStatus

from asyncpool._psycopg.handle import ConnectionHandle
from asyncpool._psycopg.internals import SUPPORTED
from asyncpool._psycopg.operation import ACTIVE
from asyncpool._psycopg.own_statements import run
from asyncpool._psycopg.riding import forget_begin
from asyncpool._psycopg.transport import transport_of

Conn = psycopg.AsyncConnection[Any]

IDLE = int(TransactionStatus.IDLE)
LOCK_TIMEOUT = 0.5
"""Seconds to wait for a task that still uses a connection that was returned."""


def is_busy(conn: Conn) -> bool:
    """Whether the connection's backend may be running a query."""
    return conn.pgconn.transaction_status == ACTIVE or bool(conn.pgconn.pipeline_status)


def is_idle(conn: Conn) -> bool:
    """Whether no transaction or operation is open."""
    transport = transport_of(conn)
    return (
        conn.pgconn.transaction_status == IDLE
        and not in_pipeline(conn)
        and not conn.lock.locked()
        and (transport is None or transport.is_ready)
    )


async def wait_for_lock(conn: Conn) -> None:
    """Wait a moment for an operation to end, such as an abandoned iteration over notifies()."""
    with anyio.move_on_after(LOCK_TIMEOUT):
        async with conn.lock:
            pass


def left_error(conn: Conn) -> psycopg.OperationalError:
    """Return the error for a transaction that cannot be rolled back."""
    return psycopg.OperationalError(f"connection left in the middle of an operation: {conn!r}")


def require_idle(conn: Conn, who: str) -> None:
    """Raise if a transaction or an operation is open.

    Args:
        conn: the connection.
        who: the callback after which this is called.
    """
    if conn.pgconn.transaction_status != IDLE:
        status = TransactionStatus(conn.pgconn.transaction_status).name
        msg = (
            f"{who} left the connection in status {status}, so it is discarded:"
            f" end the transaction in {who}"
        )
        raise psycopg.ProgrammingError(msg)


if SUPPORTED:

    def nothing_else_open(conn: Conn) -> bool:
        """Whether no block, pipeline or two-phase transaction is open."""
        return not (conn._num_transactions or conn._pipeline or conn._tpc)

    def in_pipeline(conn: Conn) -> bool:
        """Whether a pipeline is open."""
        return conn._pipeline is not None

    def in_two_phase(conn: Conn) -> bool:
        """Whether a two-phase transaction is open."""
        return conn._tpc is not None

    def open_blocks(conn: Conn) -> int:
        """Return the number of open transaction blocks, for `restore_open_blocks`."""
        return conn._num_transactions

    def restore_open_blocks(conn: Conn, number: int) -> None:
        """Restore that number after a block could not begin."""
        conn._num_transactions = number

    async def sync(conn: Conn) -> None:
        """In a pipeline, raise pending errors before the next step."""
        if conn._pipeline is not None:
            await conn._pipeline.sync()

    async def can_reset(conn: Conn, *, interrupted: bool) -> bool:
        """Whether nothing but a transaction is open.

        Args:
            interrupted: whether a query was cancelled, which may have ended blocks before psycopg
                could count them off.
        """
        if interrupted:
            conn._num_transactions = 0
            forget_begin(conn)
        return nothing_else_open(conn)

    async def roll_back(conn: Conn, handle: ConnectionHandle) -> None:
        """Roll back the open transaction; see `PsycopgDriver.roll_back`."""
        async with conn.lock:
            await handle.finish_leftovers(conn)
            resettable = await can_reset(conn, interrupted=handle.take_interrupted())
            if not resettable or is_busy(conn):
                raise left_error(conn)
            await conn.wait(conn._rollback_gen())

    async def roll_back_to(
        conn: Conn, handle: ConnectionHandle, block: psycopg.AsyncTransaction
    ) -> None:
        """Roll back a transaction block and those inside of it."""
        async with conn.lock:
            await handle.finish_leftovers(conn)
            if conn._pipeline is not None:
                await conn.wait(conn._pipeline._sync_gen())
            conn._num_transactions = block._stack_index
            forget_begin(conn)
            if conn.pgconn.transaction_status != IDLE:
                conn._num_transactions += 1  # the generator below subtracts one
                await conn.wait(block._rollback_gen(None))

    async def forget_prepared(conn: Conn) -> None:
        """Have psycopg forget its prepared statements, which were deallocated."""
        conn._prepared.clear()
        conn._prepared._to_flush.clear()

else:

    def nothing_else_open(conn: Conn) -> bool:
        """Whether none of them is open, as far as public names tell."""
        return not conn.pgconn.pipeline_status and not in_two_phase(conn)

    def in_pipeline(conn: Conn) -> bool:
        """Whether libpq is in pipeline mode."""
        return bool(conn.pgconn.pipeline_status)

    def in_two_phase(conn: Conn) -> bool:
        """Whether a block or two-phase transaction is open on an idle connection."""
        if conn.pgconn.transaction_status != IDLE:
            return False
        rollback = psycopg.AsyncConnection.rollback(conn)
        try:
            rollback.send(None)
        except StopIteration:
            return False
        except psycopg.Error as error:
            return isinstance(error, psycopg.ProgrammingError)
        rollback.close()  # it waits for the connection's lock
        return False

    def open_blocks(conn: Conn) -> int:
        """Return 0: psycopg itself restores the number."""
        return 0

    def restore_open_blocks(conn: Conn, number: int) -> None:
        """Leave it to psycopg."""

    async def sync(conn: Conn) -> None:
        """In a pipeline, raise pending errors before the next step."""
        if in_pipeline(conn):
            async with conn.pipeline() as pipeline:
                await pipeline.sync()

    async def can_reset(conn: Conn, *, interrupted: bool) -> bool:
        """Roll back; return False if more than a transaction is open."""
        try:
            await psycopg.AsyncConnection.rollback(conn)
        except psycopg.ProgrammingError:
            return False
        return True

    async def roll_back(conn: Conn, handle: ConnectionHandle) -> None:
        """Roll back the open transaction; see `PsycopgDriver.roll_back`."""
        if not await can_reset(conn, interrupted=False):
            raise left_error(conn)

    async def roll_back_to(
        conn: Conn, handle: ConnectionHandle, block: psycopg.AsyncTransaction
    ) -> None:
        """Roll back a transaction block; those inside of it must have ended."""
        error = psycopg.Rollback()
        await block.__aexit__(type(error), error, None)
        if conn.closed:
            msg = "the connection is closed"
            raise psycopg.OperationalError(msg)

    async def forget_prepared(conn: Conn) -> None:
        """Have psycopg forget its prepared statements, which it does after each ROLLBACK."""
        await run(conn, b"BEGIN; ROLLBACK")
