"""`pool.session()`: one connection for all blocks of a task."""

from __future__ import annotations

import logging
import sys
from asyncio import current_task
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Generic

import psycopg

from asyncpool._blocks.commit import (
    failed_error,
    has_failed,
    wait_for_cancelled,
)
from asyncpool._blocks.generators import enclosing
from asyncpool._blocks.lease import Lease
from asyncpool._blocks.session import Session
from asyncpool._blocks.supports import Exc, SupportsBorrowing
from asyncpool._psycopg.driver import ACT
from asyncpool.errors import PoolError


class SessionBlock(Generic[ACT]):
    """`pool.session()`: one connection for a block and for everything its task acquires inside."""

    __slots__ = ("_lease", "_pool", "_session")

    def __init__(self, pool: SupportsBorrowing[ACT], lease: Lease[ACT]) -> None:
        self._pool = pool
        self._lease = lease
        self._session: Session[ACT] | None = None

    async def __aenter__(self) -> ACT:
        if (task := current_task()) is None:
            msg = "a session needs a running asyncio task: there is none here"
            raise PoolError(msg)
        pool, lease = self._pool, self._lease
        conn = await lease.__aenter__()
        self._session = None
        if lease.joined:
            lease.make_strict()
            return conn
        try:
            self._session = session = Session(pool._core, pool._driver, conn, task)
        except KeyError as error:
            msg = f"a session needs a connection leased from the pool: {conn!r} is not"
            await lease.__aexit__(KeyError, error, None)
            raise PoolError(msg) from None
        pool._sessions[task] = pool._sessions[conn] = session
        for generator in enclosing(sys._getframe(1), task.get_loop()):
            session.watch(generator, partial(_unregister, pool, session, task))
        return conn

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        lease, session = self._lease, self._session
        if session is None:
            await lease.__aexit__(kind, error, tb)
            return
        pool, conn = self._pool, session.conn
        _unregister(pool, session, session.task)
        _unregister(pool, session, conn)
        if session.is_clean and conn not in pool._autocommit_modes:
            await lease.__aexit__(kind, error, tb)
            return
        undo_all: Callable[[], Awaitable[object]] = session.undo_all
        if (mode := pool._autocommit_modes.pop(conn, None)) is not None:
            restore = partial(pool._driver.restore_autocommit, conn, autocommit=mode)
            undo_all = partial(session.undo_all, restore)
        try:
            if kind is None and (session.undo_error or (session.busy and session.holds())):
                await session.wait_ready(None)
            elif kind is None and session.holds():
                await wait_for_cancelled(pool._driver, conn)
        except BaseException:
            await lease.abort(undo_all)
            raise
        undone = session.undone_outside_error() if kind is GeneratorExit else None
        unfinished: psycopg.Error | None = session.unfinished_error(mode_changed=mode is not None)
        if unfinished is None and kind is None and session.holds() and has_failed(conn):
            unfinished = failed_error(conn)
        try:
            if unfinished is None and mode is None and not (session.busy and session.holds()):
                await lease.__aexit__(kind, error, tb)
            else:
                await lease.abort(undo_all)
                if unfinished is not None and kind is None:
                    raise unfinished
            if undone is not None:
                # The caller that counts on this work may be in another task than this one.
                pool._core.runtime.record("work undone", str(undone), logging.ERROR)
                raise undone
        finally:
            del unfinished, undone  # their tracebacks have this frame


def _unregister(
    pool: SupportsBorrowing[ACT], session: Session[ACT], key: object, *_: object
) -> None:
    """Remove a session from the pool's map under its task or its connection."""
    if pool._sessions.get(key) is session:
        del pool._sessions[key]
