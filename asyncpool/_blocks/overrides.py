"""Blocks and one-shots through the methods that a subclass of the pool overrides.

`connection` uses `getconn` and `putconn`, as in psycopg_pool; other blocks and one-shots use
`connection`. While an overriding method runs, calls of it from inside reach the pool's own method,
so that it does not recurse.
"""

from __future__ import annotations

import inspect
import sys
from asyncio import current_task
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from types import CodeType, FrameType, TracebackType
from typing import Any, Generic

import psycopg

from asyncpool._blocks.commit import (
    closed_error,
    commit,
    failed_error,
    has_failed,
    run_shielded,
    wait_for_cancelled,
)
from asyncpool._blocks.connection_block import (
    JOINED,
    PENDING,
    ConnectionBlock,
    in_use_error,
    is_still_leased,
    reject_early_return,
)
from asyncpool._blocks.supports import Exc
from asyncpool._blocks.transaction_options import TransactionOptions, prepare
from asyncpool._core.entry import Entry
from asyncpool._core.lease import Lease
from asyncpool._psycopg.begin import enter, enter_unsent
from asyncpool._psycopg.driver import ACT
from asyncpool.errors import PoolError

NO_ENTRY: Entry[Any] = Entry(0.0)
"""The entry of an object that the pool has not leased."""
NAMES = ("connection", "getconn", "putconn", "acquire", "release")


class Overrides(Generic[ACT]):
    """The methods that the class of a pool overrides.

    Args:
        own: the class.
        originals: the methods of the pool's own class, by name.
    """

    def __init__(self, own: type, originals: Mapping[str, object]) -> None:
        self._codes: dict[str, CodeType | None] = {
            name: _code_of(getattr(own, name))
            for name in NAMES
            if getattr(own, name) is not originals[name]
        }
        self._returning: set[object] = set()
        """The connections that an overriding method is releasing."""
        self.cleanups: dict[ACT, Callable[[], Awaitable[object]]] = {}
        """By connection: the work to do first when it is returned."""
        self.blocks: dict[ACT, ConnectionBlock[ACT]] = {}
        """By connection of a one-shot: its block, if `connection` is overridden."""

    def __len__(self) -> int:
        return len(self._codes)

    def __contains__(self, name: str) -> bool:
        return name in self._codes

    def applies(self, name: str) -> bool:
        """Whether a method is overridden and is not on the call stack."""
        if name not in self._codes:
            return False
        code = self._codes[name]
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and code is not None:
            if frame.f_code is code:
                return False
            frame = frame.f_back
        return code is not None

    def leads(self, name: str, other: str, conn: object) -> bool:
        """Whether the pool's own method `name` has to release a connection through `other`."""
        alone = other in self._codes and name not in self._codes
        return alone and conn not in self._returning and self.applies(other)

    async def release_through(self, pool: object, name: str, conn: object) -> None:
        """Release a connection through the method of that name."""
        self._returning.add(conn)
        try:
            await getattr(pool, name)(conn)
        finally:
            self._returning.discard(conn)


def _code_of(method: Any) -> CodeType | None:
    """Return the code object that identifies calls of a method on the stack."""
    return getattr(inspect.unwrap(method), "__code__", None)


async def borrow(pool: Any, timeout: float | None) -> Any:
    """Acquire a connection through `getconn` or `acquire`, whichever is overridden."""
    for name in ("getconn", "acquire"):
        if pool._overridden.applies(name):
            return await getattr(pool, name)(timeout=timeout)
    return await pool._borrow(timeout)


async def release_through_override(
    pool: Any, conn: Any, *, failing: bool, cleanup: Callable[[], Awaitable[object]] | None = None
) -> None:
    """Release a connection through `putconn` or `release`, whichever is overridden.

    If the block has failed, its work is rolled back first.
    """
    changed = pool._overridden
    name = next((each for each in ("putconn", "release") if each in changed), None)
    if name is None:
        pool._release_lease(conn, failing=failing, cleanup=cleanup)
        return
    cleanup = cleanup or changed.cleanups.pop(conn, None)
    if cleanup is None and failing and not pool._driver.is_clean(conn):
        cleanup = partial(pool._driver.roll_back, conn)
    try:
        if cleanup is not None:
            with suppress(Exception):  # the pool finds the same error at the release
                await run_shielded(cleanup)
    finally:
        try:
            await changed.release_through(pool, name, conn)
        except PoolError as error:
            if not failing:
                raise
            pool._core.runtime.record("return failed", str(error))


class OverriddenBlock(ConnectionBlock[ACT]):
    """`connection()` of a pool whose class overrides how a connection is acquired or released.

    The subclass may return any object, which the pool has not leased.
    """

    __slots__ = ("_conn", "_lease")

    _lease: Lease | None
    """The lease of the connection, if the pool has leased it."""

    async def __aenter__(self) -> ACT:
        pool: Any = self._pool
        if pool._sessions and current_task() in pool._sessions:
            return await super().__aenter__()
        if self._entry is not None:
            self._require_ended()
        previous, self._entry = self._entry, PENDING
        try:
            conn: ACT = await borrow(pool, self._timeout)
        except BaseException:
            self._entry = previous
            raise
        self._conn, self._lease, self._entry = conn, None, NO_ENTRY
        if (entry := pool._core.ledger.leased.get(conn)) is not None:
            self._lease, self._entry = pool._core.bind(conn), entry
        return conn

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self.joined:
            await self._join.leave(error)
            return
        pool, conn = self._pool, self._conn
        if not self.holds():
            reject_early_return(pool, conn, failing=kind is not None)
            return
        if kind is None and self._is_ours():
            try:
                await commit(pool._core, pool._driver, conn)
            except BaseException:
                await release_through_override(pool, conn, failing=True)
                raise
        await release_through_override(pool, conn, failing=kind is not None)

    def _require_ended(self) -> None:
        """See `ConnectionBlock`."""
        super()._require_ended()
        if self._entry not in (JOINED, NO_ENTRY) and self._entry.lease is self._lease:
            raise in_use_error()

    def holds(self) -> bool:
        """See `ConnectionBlock`."""
        if self.joined:
            return self._join.is_open()
        return self._lease is None or is_still_leased(self._pool, self._conn, self._lease)

    async def abort(self, cleanup: Callable[[], Awaitable[object]]) -> None:
        """See `ConnectionBlock`."""
        if self.joined:
            await self._join.leave(psycopg.Rollback(), cleanup=cleanup)
        elif self.holds():
            await release_through_override(self._pool, self._conn, failing=True, cleanup=cleanup)

    def _is_ours(self) -> bool:
        return self._lease is None or self._pool._core.lease_of(self._conn) is not None


class ConnectionOverrideBlock(OverriddenBlock[ACT]):
    """The block of other blocks and one-shots if a subclass overrides `connection`.

    Args:
        pool: the pool.
        manager: the context manager that `connection` returned.
    """

    __slots__ = ("_manager",)

    def __init__(self, pool: Any, manager: Any) -> None:
        self._pool = pool
        self._manager = manager

    async def __aenter__(self) -> ACT:
        pool = self._pool
        session = pool._sessions.get(current_task()) if pool._sessions else None
        conn: ACT = await self._manager.__aenter__()
        self._conn, self._lease = conn, pool._core.lease_of(conn)
        self._entry = pool._core.ledger.leased.get(conn, NO_ENTRY)
        if session is not None and session.conn is conn and (join := session.innermost):
            self._entry, self._join = JOINED, join
        return conn

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._manager.__aexit__(kind, error, tb)

    async def abort(self, cleanup: Callable[[], Awaitable[object]]) -> None:
        """See `ConnectionBlock`."""
        pool: Any = self._pool
        if self.joined:
            self._join.cleanup = cleanup
        else:
            pool._overridden.cleanups[self._conn] = cleanup
        error = psycopg.Rollback()
        try:
            with suppress(psycopg.Rollback):
                await self._manager.__aexit__(type(error), error, None)
        finally:
            pool._overridden.cleanups.pop(self._conn, None)


class OverriddenTransaction(Generic[ACT]):
    """`transaction()` of a pool whose class overrides how a connection is acquired or released.

    Args:
        block: acquires and releases the connection.
        options: those of the transaction.
    """

    __slots__ = ("_block", "_conn", "_options", "_transaction")

    def __init__(self, block: ConnectionBlock[ACT], options: TransactionOptions | None) -> None:
        self._block = block
        self._options = options

    async def __aenter__(self) -> ACT:
        conn = self._conn = await self._block.__aenter__()
        try:
            self._transaction, statements = prepare(conn, self._options)
            if not enter_unsent(self._transaction, statements):
                await enter(self._transaction, conn, statements)
        except BaseException as error:
            await self._block.__aexit__(type(error), error, None)
            raise
        return conn

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> bool:
        block, conn = self._block, self._conn
        if not block.holds():
            await block.__aexit__(kind, error, tb)
            return False
        refusal = None
        try:
            if kind is None:
                await wait_for_cancelled(block.pool._driver, conn)
                refusal = _refusal(conn)
            if refusal is not None:
                kind, error = type(refusal), refusal
            handled = bool(
                await run_shielded(partial(self._transaction.__aexit__, kind, error, tb))
            )
        except BaseException as failure:
            await block.__aexit__(type(failure), failure, None)
            raise
        if handled:
            kind, error, tb = None, None, None
        await block.__aexit__(kind, error, tb)
        try:
            if refusal is not None:
                raise refusal
        finally:
            del refusal, error  # its traceback has this frame
        return handled


def _refusal(conn: psycopg.AsyncConnection[Any]) -> psycopg.Error | None:
    """Return the error of a transaction that cannot be committed."""
    if conn.closed:
        return closed_error(conn)
    return failed_error(conn) if has_failed(conn) else None
