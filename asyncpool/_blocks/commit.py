"""How the work of a block is ended: a commit is seen through, a mode is put back.

Work that was not committed is never reported as done: where a connection was closed with work that
may have been open, the end of its block raises.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import psycopg

from asyncpool._core.pool import Core
from asyncpool._core.stacks import caller
from asyncpool._psycopg.driver import ACT, IDLE, INERROR, INTRANS, PsycopgDriver
from asyncpool._psycopg.transport import Transport
from asyncpool.errors import PoolError

T = TypeVar("T")

DRIVER = str(Path(psycopg.__file__).parent)
GRACE = 10.0
"""Seconds for a commit whose caller is cancelled by then."""


async def commit(core: Core[ACT], driver: PsycopgDriver[ACT], conn: ACT) -> None:
    """Commit the work of a block, if there is any.

    Raises:
        psycopg.OperationalError: the connection is closed, and its work may be lost.
    """
    if conn.pgconn.transaction_status == IDLE and conn._tpc is None:
        return  # with no wait: a kept notifies() may have its lock, and its server may be dead
    await come_to_rest(driver, conn)
    require_ended_idle(conn)
    if conn.closed:
        return
    if has_failed(conn) and conn._tpc is None:
        text = "an error was handled in a block, so its COMMIT is a rollback"
        warn(core, "failed transaction", text, conn)
    await see_through(conn.commit)


async def come_to_rest(driver: PsycopgDriver[ACT], conn: ACT) -> None:
    """Wait until what was cancelled has ended, so that it is known whether that was an error."""
    if driver.has_left(conn):
        await see_through(partial(driver.settle, conn))


def require_ended_idle(conn: psycopg.AsyncConnection[Any]) -> None:
    """Raise for a connection that is closed, unless no work was open on it.

    Where that is not known, none was in autocommit mode: each statement has told its own end.

    Raises:
        psycopg.OperationalError: it may have been.
    """
    if conn.closed:
        transport: Transport | None = getattr(conn, "_transport", None)
        was_open = None if transport is None else transport.was_open
        if not conn.autocommit if was_open is None else was_open:
            raise closed(conn)


def closed(conn: psycopg.AsyncConnection[Any]) -> psycopg.OperationalError:
    """The error for the end of a block whose connection was closed."""
    error = psycopg.OperationalError(
        f"the connection is closed: all that the block has done since its last commit is lost"
        f" ({conn!r})"
    )
    transport: Transport | None = getattr(conn, "_transport", None)
    error.__cause__ = None if transport is None else transport.ended_by
    return error


def failed(conn: psycopg.AsyncConnection[Any]) -> psycopg.errors.InFailedSqlTransaction:
    """The error for the end of a block that is a transaction, and has failed."""
    return psycopg.errors.InFailedSqlTransaction(
        "the block has handled an error of a statement, after which nothing can be committed: all"
        " of its transaction is rolled back; put what may fail into conn.transaction(), which is a"
        f" savepoint there ({conn!r})"
    )


def has_failed(conn: psycopg.AsyncConnection[Any]) -> bool:
    """Whether its transaction can only be rolled back."""
    return int(conn.pgconn.transaction_status) == INERROR


def warn_of_open_work(core: Core[ACT], conn: ACT) -> None:
    """Log that a connection is returned in a transaction, which the pool rolls back."""
    if conn.pgconn.transaction_status in (INTRANS, INERROR):
        text = "a connection is returned in a transaction, which is rolled back"
        warn(core, "rolled back", text, conn)


def warn(core: Core[ACT], kind: str, text: str, conn: ACT) -> None:
    """Log a warning about the program's own code, once for each place in it."""
    place = caller(DRIVER)
    if core.store.events.is_first(kind, place):
        at = f" at {place}" if place else ""
        more = "further ones of this place are not logged"
        core.store.record(kind, f"{text}{at}: {conn!r}; {more}", logging.WARNING, place=place)


async def see_through(work: Callable[[], Awaitable[T]]) -> T:
    """Bring a COMMIT to its end, although an anyio scope around it is cancelled.

    Once the scope's time is up that takes `GRACE` seconds at most.

    Raises:
        PoolError: there was no answer by then.
    """
    deadline = max(anyio.current_effective_deadline(), anyio.current_time()) + GRACE
    with anyio.CancelScope(shield=True, deadline=deadline):
        return await work()
    msg = f"no answer to COMMIT in {GRACE:g} s more than allowed: what became of it is unknown"
    raise PoolError(msg)


async def turn(conn: ACT, *, autocommit: bool) -> bool:
    """Change a connection's mode, with no I/O; whether it was in the other.

    Raises:
        psycopg.ProgrammingError: a transaction is open.
    """
    if conn.autocommit == autocommit:
        return False
    await conn.set_autocommit(autocommit)
    return True


async def put_back(
    driver: PsycopgDriver[ACT], conn: ACT, *, autocommit: bool
) -> Callable[[], Awaitable[None]] | None:
    """Change the mode back; or, where that would have to wait, return it as work for the pool.

    psycopg changes it outside of transactions only, and a statement that was cancelled may not have
    come to its end yet.
    """
    if driver.is_at_rest(conn):
        with suppress(Exception):  # whatever it is, the pool finds out
            await conn.set_autocommit(autocommit)  # does not suspend
            return None
    return partial(driver.turn_back, conn, autocommit=autocommit)
