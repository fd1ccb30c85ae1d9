"""The end of a block's work: commit, and restore the autocommit mode.

Work that was not committed is never reported as done: if a connection was closed with work that
may have been open, the end of its block raises.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import psycopg

from asyncpool._core.pool import Core
from asyncpool._core.stacks import caller
from asyncpool._psycopg import committing
from asyncpool._psycopg.begin import begin_was_refused
from asyncpool._psycopg.driver import ACT, IDLE, INERROR, INTRANS, PsycopgDriver
from asyncpool._psycopg.internals import SUPPORTED
from asyncpool._psycopg.open_work import in_two_phase
from asyncpool._psycopg.transport import transport_of
from asyncpool.errors import PoolError

T = TypeVar("T")

DRIVER = str(Path(psycopg.__file__).parent)
GRACE = 10.0
"""Seconds for which a commit may go on after its caller was cancelled."""


async def commit(core: Core[ACT], driver: PsycopgDriver[ACT], conn: ACT) -> None:
    """Commit the work of a block, if there is any.

    Raises:
        psycopg.OperationalError: the connection is closed, and its work may be lost.
    """
    idle = conn.pgconn.transaction_status == IDLE
    if idle and not (conn._tpc if SUPPORTED else in_two_phase(conn)):
        return  # without a wait: an open notifies() may hold the lock, the server may be dead
    await wait_for_cancelled(driver, conn)
    require_no_lost_work(conn)
    if conn.closed:
        return
    if has_failed(conn) and not in_two_phase(conn):
        text = "a statement failed in a block that handled the error: its COMMIT is a rollback"
        warn(core, "failed transaction", text, conn)
    if committing.can_commit(conn):
        await committing.commit(conn)
    else:
        await run_shielded(conn.commit)


async def wait_for_cancelled(driver: PsycopgDriver[ACT], conn: ACT) -> None:
    """Wait until a cancelled operation has ended, so that its outcome is known."""
    if driver.has_leftovers(conn):
        await run_shielded(partial(driver.finish_cancelled, conn))


def require_no_lost_work(conn: psycopg.AsyncConnection[Any]) -> None:
    """Raise if a connection was closed with work that may have been open.

    If the state at that time is unknown, work may have been open unless the connection is in
    autocommit mode, in which each statement has reported its own outcome.

    Raises:
        psycopg.OperationalError: work may have been open.
    """
    if conn.closed:
        transport = transport_of(conn)
        was_open = None if transport is None else transport.was_open
        if not conn.autocommit if was_open is None else was_open:
            raise closed_error(conn)


def closed_error(conn: psycopg.AsyncConnection[Any]) -> psycopg.OperationalError:
    """Return the error for the end of a block whose connection was closed."""
    error = psycopg.OperationalError(
        f"the connection is closed: the work of the block since its last commit is lost ({conn!r})"
    )
    transport = transport_of(conn)
    error.__cause__ = None if transport is None else transport.ended_by
    return error


def failed_error(conn: psycopg.AsyncConnection[Any]) -> psycopg.errors.InFailedSqlTransaction:
    """Return the error for the end of a block whose transaction has failed."""
    return psycopg.errors.InFailedSqlTransaction(
        "a statement failed in a transaction block that handled the error: all of the transaction"
        " is rolled back; run statements that may fail in conn.transaction(), which is a savepoint"
        f" there ({conn!r})"
    )


def has_failed(conn: psycopg.AsyncConnection[Any]) -> bool:
    """Whether the connection's transaction has failed and can only be rolled back."""
    return int(conn.pgconn.transaction_status) == INERROR or begin_was_refused(conn)


def warn_of_open_work(core: Core[ACT], conn: ACT) -> None:
    """Log a warning if a connection is released in a transaction, which the pool rolls back."""
    if conn.pgconn.transaction_status in (INTRANS, INERROR):
        text = "a connection was returned with a transaction open, which is rolled back"
        warn(core, "rolled back", text, conn)


def warn(core: Core[ACT], kind: str, text: str, conn: ACT) -> None:
    """Log a warning about the application's code, once for each place in it."""
    place = caller(DRIVER)
    if core.runtime.events.is_first(kind, place):
        at = f", at {place}" if place else ""
        more = "logged once for this place"
        core.runtime.record(kind, f"{text}{at}: {conn!r}; {more}", logging.WARNING, place=place)


async def run_shielded(work: Callable[[], Awaitable[T]]) -> T:
    """Run work such as a COMMIT to its end, even if an anyio scope around it is cancelled.

    The work may take `GRACE` seconds beyond the deadline of the scope.

    Raises:
        PoolError: the server did not answer in that time.
    """
    deadline = max(anyio.current_effective_deadline(), anyio.current_time()) + GRACE
    with anyio.CancelScope(shield=True, deadline=deadline):
        return await work()
    msg = (
        f"no answer to a block's COMMIT or other end within {GRACE:g} s after the deadline: its"
        " outcome is unknown"
    )
    raise PoolError(msg)


def restore_autocommit(
    driver: PsycopgDriver[ACT], conn: ACT, *, autocommit: bool
) -> Callable[[], Awaitable[None]] | None:
    """Restore the autocommit mode; if that has to wait, return it as work for the pool.

    psycopg changes the mode outside transactions only, and a cancelled statement may still run.
    """
    if driver.is_idle(conn) and _set_autocommit_now(conn, autocommit=autocommit):
        return None
    return partial(driver.restore_autocommit, conn, autocommit=autocommit)


def _set_autocommit_now(conn: psycopg.AsyncConnection[Any], *, autocommit: bool) -> bool:
    """Set the mode of an idle connection without an await; return False if that is not possible.

    psycopg's `wait` yields to the event loop where that has been busy for 5 ms, although the work
    is done by then; here such a yield is skipped. An overridden method may wait for more.
    """
    if getattr(conn.__class__, "set_autocommit", None) is psycopg.AsyncConnection.set_autocommit:
        work = conn.set_autocommit(autocommit)
        try:
            while work.send(None) is None:
                pass
        except StopIteration:
            return True
        except Exception:  # noqa: BLE001 - the pool finds the same error at the release
            return False
        work.close()
    return False
