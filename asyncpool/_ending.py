"""How the work of a block is ended: a commit is seen through, a mode is put back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

import anyio

from asyncpool._psycopg import ACT, IDLE, PsycopgConnector
from asyncpool.errors import PoolError

T = TypeVar("T")

GRACE = 10.0
"""Seconds for a commit whose caller is cancelled by then."""


async def commit(conn: ACT) -> None:
    """Commit what a block has done, if it has done anything."""
    # Else nobody needs to wait: for its lock, which a kept notifies() has, or a dead server.
    idle = conn.pgconn.transaction_status == IDLE and conn._tpc is None
    if not idle and not conn.closed:
        await see_through(conn.commit)


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
    connector: PsycopgConnector[ACT], conn: ACT, *, autocommit: bool
) -> Callable[[], Awaitable[None]] | None:
    """Change the mode back; or, where that would have to wait, return it as work for the pool.

    psycopg changes it outside of transactions only, and a statement that was cancelled may not have
    come to its end yet.
    """
    if connector.is_at_rest(conn):
        with suppress(Exception):  # whatever it is, the pool finds out
            await conn.set_autocommit(autocommit)  # does not suspend
            return None
    return partial(connector.turn_back, conn, autocommit=autocommit)
