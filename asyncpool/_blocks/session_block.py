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
from asyncpool._blocks.connection_block import ConnectionBlock
from asyncpool._blocks.generators import enclosing
from asyncpool._blocks.session import Session
from asyncpool._blocks.supports import Exc, SupportsBorrowing
from asyncpool._psycopg.driver import ACT
from asyncpool.errors import PoolError


class SessionBlock(Generic[ACT]):
    """`pool.session()`: one connection for a block and for everything its task acquires inside."""

    __slots__ = ("_block", "_pool", "_session")

    def __init__(self, pool: SupportsBorrowing[ACT], block: ConnectionBlock[ACT]) -> None:
        self._pool = pool
        self._block = block
        self._session: Session[ACT] | None = None

    async def __aenter__(self) -> ACT:
        if (task := current_task()) is None:
            msg = "a session needs a running asyncio task: there is none here"
            raise PoolError(msg)
        pool, block = self._pool, self._block
        conn = await block.__aenter__()
        self._session = None
        if block.joined:
            block.make_strict()
            return conn
        try:
            self._session = session = Session(pool._core, pool._driver, conn, task)
        except KeyError as error:
            msg = f"a session needs a connection leased from the pool: {conn!r} is not"
            await block.__aexit__(KeyError, error, None)
            raise PoolError(msg) from None
        pool._sessions[task] = session
        session.lease.annotate().session = session
        for generator in enclosing(sys._getframe(1), task.get_loop()):
            session.watch(generator, partial(_unregister, pool, session))
        return conn

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        block, session = self._block, self._session
        if session is None:
            await block.__aexit__(kind, error, tb)
            return
        pool, conn, notes = self._pool, session.conn, session.lease.annotate()
        _unregister(pool, session)
        notes.session, mode = None, notes.autocommit
        if session.is_clean and mode is None:
            await block.__aexit__(kind, error, tb)
            return
        undo_all: Callable[[], Awaitable[object]] = session.undo_all
        if mode is not None:
            notes.autocommit = None
            restore = partial(pool._driver.restore_autocommit, conn, autocommit=mode)
            undo_all = partial(session.undo_all, restore)
        try:
            if kind is None and (session.undo_error or (session.busy and session.holds())):
                await session.wait_ready(None)
            elif kind is None and session.holds():
                await wait_for_cancelled(pool._driver, conn)
        except BaseException:
            await block.abort(undo_all)
            raise
        undone = session.undone_outside_error() if kind is GeneratorExit else None
        unfinished: psycopg.Error | None = session.unfinished_error(mode_changed=mode is not None)
        if unfinished is None and kind is None and session.holds() and has_failed(conn):
            unfinished = failed_error(conn)
        try:
            if unfinished is None and mode is None and not (session.busy and session.holds()):
                await block.__aexit__(kind, error, tb)
            else:
                await block.abort(undo_all)
                if unfinished is not None and kind is None:
                    raise unfinished
            if undone is not None:
                # The caller that counts on this work may be in another task than this one.
                pool._core.runtime.record("work undone", str(undone), logging.ERROR)
                raise undone
        finally:
            del unfinished, undone  # their tracebacks have this frame


def _unregister(pool: SupportsBorrowing[ACT], session: Session[ACT], *_: object) -> None:
    """Stop using the session for what its task borrows."""
    if pool._sessions.get(session.task) is session:
        del pool._sessions[session.task]
