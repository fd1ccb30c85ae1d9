"""The methods of the pool that borrow and return connections."""

from __future__ import annotations

from asyncio import current_task
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from typing import Any, cast, overload

from psycopg.rows import AsyncRowFactory, Row

from asyncpool._blocks.acquisition import Acquisition
from asyncpool._blocks.borrowing import Borrowing
from asyncpool._blocks.commit import commit, warn_of_open_work
from asyncpool._blocks.connection_block import ConnectionBlock
from asyncpool._blocks.cursor_block import CursorBlock, check_mode
from asyncpool._blocks.overrides import (
    ConnectionOverrideBlock,
    borrow,
    release_through_override,
)
from asyncpool._blocks.session_block import SessionBlock
from asyncpool._blocks.turn import Turn, Turns
from asyncpool._psycopg.driver import ACT


class PoolBlocks(Borrowing[ACT]):
    """Blocks on connections, and `getconn` and `putconn`."""

    _block_class: type[ConnectionBlock[ACT]]
    """The class of `connection()`'s blocks."""
    _turns: Turns

    def _usable_turns(self) -> Turns:
        self._ensure_open()
        self._core.require_usable()
        return self._turns

    def connection(self, timeout: float | None = None) -> ConnectionBlock[ACT]:
        """Borrow a connection for a block: `async with pool.connection() as conn`.

        At the end of the block its transaction is committed in the caller's task, so that errors
        surface there. If the block raises, the pool rolls back in a background task. If the
        transaction has failed and the block handled the error, the commit is a rollback as in
        psycopg, and a warning names the place.

        Args:
            timeout: seconds to wait for a connection; None: the pool's `timeout`. 0 takes an idle
                connection or fails at once.

        Raises:
            PoolTimeout: on entry, if no connection became available in time.
            TooManyRequests: on entry, if it could not be served in time, or `max_waiting` requests
                wait already.
            PoolClosed: the pool is closed, or was closed while the block waited or ran.
            psycopg.OperationalError: on exit, if the connection was closed, by anyone, while work
                may have been uncommitted.
        """
        lease = self._block_class()
        lease._pool = self
        lease._timeout = timeout
        lease._entry = None
        return lease

    def turn(self, key: Hashable, timeout: float | None = None) -> Turn:
        """Wait for the turn of a key: `async with pool.turn("stock of item 7"):`.

        One task per key is in such a block at a time; the others wait in the order of arrival. If
        they borrow their connections inside, a row that everybody updates costs one connection, and
        not all of them. It does not replace the row's lock, as other processes do not know of it.
        Tasks that take the turns of two keys in opposite order wait for each other until the
        timeout.

        Args:
            key: a hashable value, for what is updated.
            timeout: seconds to wait for the turn; None: the pool's `timeout`.

        Raises:
            PoolTimeout: on entry, if the turn did not come in time.
            TooManyRequests: on entry, if it could not come in time.
            PoolClosed: on entry, if the pool is closed, or was closed meanwhile.
            RuntimeError: on entry, if the task has the turn of this key, or a connection of the
                pool: it and the tasks before it could wait for each other for ever.
            TypeError: `key` is not hashable.
        """
        return Turn(self._usable_turns, key, timeout)

    def session(self, timeout: float | None = None) -> SessionBlock[ACT]:
        """Borrow one connection for a block and for all that this task borrows inside the block.

        The work is committed at the end and rolled back on error, as with `connection`. If a
        transaction is open, each block inside is a savepoint, and its failure undoes only its own
        work; otherwise the block inside commits its work. One-shots run in the open transaction, or
        by themselves if there is none. `release` of a connection borrowed inside ends only that
        use. `getconn(key=...)` borrows another connection. Tasks started inside are not part of the
        session. If an async generator holds the session and is abandoned, the session ends for the
        task.

        Args:
            timeout: as for `connection`.

        Raises:
            psycopg.errors.InFailedSqlTransaction: as for `transaction`.
            ReleaseError: on exit, if a block inside with work has not ended, has ended in another
                task, or could not be undone: the whole session is rolled back. Also if an async
                generator that holds the session is closed early, and the roll-back undoes work
                done outside the generator.
            PoolDeadlock: from a block or one-shot inside, while a stream(), COPY or notifies() of
                the task is open on the connection.
            psycopg.OperationalError: `PoolTimeout` and all others of `connection`.
        """
        return SessionBlock(self, self._block(timeout))

    @overload
    def cursor(
        self,
        *,
        binary: bool = False,
        row_factory: AsyncRowFactory[Row],
        autocommit: bool | None = None,
        timeout: float | None = None,
    ) -> CursorBlock[ACT, Row]: ...

    @overload
    def cursor(
        self,
        *,
        binary: bool = False,
        row_factory: None = None,
        autocommit: bool | None = None,
        timeout: float | None = None,
    ) -> CursorBlock[ACT, Any]: ...

    def cursor(
        self,
        *,
        binary: bool = False,
        row_factory: AsyncRowFactory[Any] | None = None,
        autocommit: bool | None = None,
        timeout: float | None = None,
    ) -> CursorBlock[ACT, Any]:
        """Borrow a connection for a block and open a cursor on it.

        The block commits and rolls back as that of `connection`.

        Args:
            binary: whether results come in PostgreSQL's binary format.
            row_factory: the cursor's row factory; None: the connection's.
            autocommit: the connection's mode for the block, restored however the block ends; None:
                unchanged.
            timeout: as for `connection`.

        Raises:
            TypeError: `autocommit` is neither a bool nor None.
            psycopg.OperationalError: `PoolTimeout` and all others of `connection`.
        """
        check_mode(autocommit)
        keywords: dict[str, Any] = {} if row_factory is None else {"row_factory": row_factory}
        return CursorBlock(
            self._block(timeout),
            lambda conn: conn.cursor(binary=binary, **keywords),
            autocommit,
        )

    def acquire(self, timeout: float | None = None, *, session: bool = True) -> Acquisition[ACT]:
        """Borrow a connection until `release`: `conn = await pool.acquire()`.

        `async with pool.acquire() as conn` returns it at the end of the block and commits nothing.
        A transaction that is open when the connection is returned is rolled back, with a warning
        that names the place.

        Args:
            timeout: as for `connection`.
            session: whether to take part in the task's `session()`, if it is in one; if false,
                another connection is borrowed, past a subclass's `getconn`.

        Raises:
            PoolTimeout, TooManyRequests, PoolClosed: as for `connection`.
        """
        if not session:
            return Acquisition(self, timeout, self._borrow)
        if self._overridden is None:
            return Acquisition(self, timeout)
        if self._overridden.applies("getconn"):
            return Acquisition(self, timeout, self.getconn)
        return Acquisition(self, timeout, partial(PoolBlocks.getconn, self))

    async def release(self, conn: ACT) -> None:
        """Return a connection without waiting; the pool cleans it in a background task.

        Args:
            conn: the connection that was borrowed.

        Raises:
            ReleaseError: the connection belongs to another pool or to none, or was already
                returned.
            PoolClosed: the pool was closed during the lease, and uncommitted work is lost.
        """
        changed, core = self._overridden, self._core
        if changed is not None and changed.leads("release", "putconn", conn):
            await changed.release_through(self, "putconn", conn)
            return
        if getattr(conn, "_pool", None) is not self:
            raise self._not_leased(conn)
        if (entry := core.ledger.leased.get(conn)) is not None:
            if (notes := entry.lease.notes) is None:
                # The fast path: the common case of the code below, inlined.
                if core.release_now(entry):
                    conn._pool = None
                    return
            elif notes.session is not None:
                notes.session.end_use()
                return
        warn_of_open_work(core, conn)
        self._return(conn)

    async def getconn(self, timeout: float | None = None, *, key: Hashable | None = None) -> ACT:
        """Borrow a connection as `acquire` does, or the connection that belongs to a key.

        A key keeps its connection from the first `getconn` until the connection is returned in any
        way. Further calls with the key get the same connection at once, and must take turns. Such a
        connection is never reclaimed as forgotten, since any later call may ask for it by its key,
        with the transaction that is open on it; `leak_timeout` reports it.

        Args:
            timeout: as for `connection`.
            key: any hashable; None: a connection for this caller alone.

        Raises:
            TypeError: the key is not hashable.
            PoolTimeout, TooManyRequests, PoolClosed: as for `connection`.
        """
        if key is not None:
            self._ensure_open()
            self._core.require_usable()
            return await self._keys.borrow(key, timeout, self._borrow)
        if self._sessions and (session := self._sessions.get(current_task())) is not None:
            return await session.borrow(timeout)
        return await self._borrow(timeout)

    async def putconn(self, conn: ACT, key: Hashable | None = None, *, close: bool = False) -> None:
        """Return a connection as `release` does, and free its key if it has one.

        Args:
            conn: the connection that was borrowed.
            key: the key that the connection must belong to; None: any or none.
            close: whether to close the connection instead of leasing it again; the connection of a
                session is closed at the end of the session.

        Raises:
            TypeError: the key is not hashable.
            ReleaseError: as for `release`, or the connection does not belong to the key.
            PoolClosed: as for `release`.
        """
        if key is not None:
            self._keys.require(key, conn)
        if not close:
            changed = self._overridden
            if changed is not None and changed.leads("putconn", "release", conn):
                await changed.release_through(self, "release", conn)
            else:
                await PoolBlocks.release(self, conn)
            return
        if getattr(conn, "_pool", None) is not self:
            raise self._not_leased(conn)
        if (session := self._session_of(conn)) is not None:
            session.end_use()
            session.entry.retire()
            return
        self._return(conn, discard=True)

    def _block(self, timeout: float | None) -> ConnectionBlock[ACT]:
        """Return what `connection` does, for blocks and one-shots that build on it.

        A subclass may override `connection`.
        """
        if self._overridden is not None and self._overridden.applies("connection"):
            return ConnectionOverrideBlock(self, self.connection(timeout))
        return PoolBlocks.connection(self, timeout)

    async def _borrow_conn(self, timeout: float | None) -> ACT:
        """Borrow a connection for a one-shot."""
        changed = self._overridden
        if changed is None:
            return await self._borrow(timeout)
        if not changed.applies("connection"):
            return cast("ACT", await borrow(self, timeout))
        block = self._block(timeout)
        conn = await block.__aenter__()
        changed.blocks[conn] = block
        return conn

    async def _return_conn(
        self,
        conn: ACT,
        *,
        failing: bool,
        cleanup: Callable[[], Awaitable[object]] | None = None,
        as_is: bool = False,
    ) -> None:
        """Return the connection of a one-shot, or of a block that commits nothing.

        Args:
            conn: the connection.
            failing: whether an error propagates, which an error of the return must not hide.
            cleanup: work to do with the connection before its reset.
            as_is: whether to leave a transaction uncommitted that a subclass's method has begun.
        """
        if self._overridden is None:
            self._release_lease(conn, failing=failing, cleanup=cleanup)
            return
        block = self._overridden.blocks.pop(conn, None)
        if block is None:
            try:
                if not (failing or as_is or cleanup):
                    await commit(self._core, self._driver, conn)
            except BaseException:
                await release_through_override(self, conn, failing=True)
                raise
            await release_through_override(self, conn, failing=failing, cleanup=cleanup)
        elif failing or cleanup is not None:
            await block.abort(cleanup or partial(self._driver.roll_back, conn))
        else:
            await block.__aexit__(None, None, None)
