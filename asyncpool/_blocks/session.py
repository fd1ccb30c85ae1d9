"""A session: one connection for all blocks and one-shots of a task.

Blocks inside end in reverse order and in that task. A background task of the pool begins, commits
and undoes each part of the work on the server: if a cancellation could interrupt this, a half-done
part would be committed with the rest.
"""

from __future__ import annotations

import asyncio
import math
import weakref
from asyncio import current_task
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic

import psycopg

from asyncpool._blocks.commit import commit, failed_error, has_failed, wait_for_cancelled
from asyncpool._blocks.generators import Generator, is_suspended
from asyncpool._blocks.session_connection import SessionConnection, Work
from asyncpool._blocks.transaction_options import TransactionOptions, prepare
from asyncpool._core.pool import Core
from asyncpool._core.settings import duration
from asyncpool._psycopg.begin import enter, enter_unsent, leave_unsent
from asyncpool._psycopg.cursor import SELF_DEADLOCK
from asyncpool._psycopg.driver import ACT, PsycopgDriver
from asyncpool._psycopg.open_work import open_blocks, restore_open_blocks, sync
from asyncpool.errors import PoolError, ReleaseError


class Session(SessionConnection[ACT]):
    """One lease of a connection, and the nested blocks that use it.

    Args:
        core: the pool.
        driver: the driver.
        conn: the leased connection.
        task: the task that owns the session.

    Raises:
        KeyError: the connection is not leased from this pool.
    """

    def __init__(
        self,
        core: Core[ACT],
        driver: PsycopgDriver[ACT],
        conn: ACT,
        task: asyncio.Task[Any],
    ) -> None:
        super().__init__(core, driver, conn, task)
        self._joins: list[Join[ACT]] = []
        """The blocks inside, the innermost last."""
        self._borrowed = 0
        """The number of uses by `getconn()` or `acquire()`, without a block."""
        self._generators: list[weakref.ref[Generator]] = []
        """The async generators in which the session was entered."""
        self.used_outside = False
        """Whether an open transaction was used while such a generator was suspended."""

    def watch(self, generator: Generator, abandoned: Callable[[object], None]) -> None:
        """Watch a generator in which the session is entered.

        Args:
            generator: the generator.
            abandoned: called when the generator is collected, so that it can never resume.
        """
        self._generators.append(weakref.ref(generator, abandoned))

    async def wait_ready(self, timeout: float | None) -> None:
        """Wait until the connection is free for the next statement.

        Background work that a cancellation left behind, and operations of other tasks, end first.

        Raises:
            PoolTimeout: this took more than `timeout` seconds.
            PoolDeadlock: an operation of this task itself is open on the connection.
            PoolClosed: the pool was closed and took the connection back.
            ReleaseError: the pool discarded the connection, as a part of the work was not undone.
        """
        errors = self.core.errors
        limit = self.core.settings.timeout if timeout is None else duration("timeout", timeout)
        deadline = self.core.runtime.time() + limit
        if await self._waits_for_itself():
            raise errors.session_deadlock(self.task, SELF_DEADLOCK)
        if not self.busy and self.holds() and self.driver.has_leftovers(self.conn):
            self._start(self._run_after(None, partial(self.driver.finish_cancelled, self.conn)))
        if self.busy:
            assert self._pending is not None, "bug: busy without a background task"
            await asyncio.wait({self._pending}, timeout=None if limit == math.inf else limit)
            if self.busy:
                raise errors.timed_out(limit, "a cancelled operation of this session still runs")
        if self.holds():
            if self.conn.lock.locked():
                await self._wait_for_lock(limit, deadline)
            if self._generators and not self.is_idle:
                self.used_outside |= any(map(is_suspended, self._generators))
            return
        if self.core.closed:
            raise errors.closed()
        raise self._error(
            "was closed, as a part of its work could not be undone"
        ) from self.undo_error

    async def join(
        self,
        timeout: float | None,
        *,
        begin: bool = False,
        options: TransactionOptions | None = None,
    ) -> Join[ACT]:
        """Begin a block inside: a savepoint if a transaction is open.

        Args:
            timeout: seconds to wait until the connection is free.
            begin: whether the block begins a transaction if none is open.
            options: those of this transaction.

        Raises:
            psycopg.ProgrammingError: there are options, and a transaction or pipeline is open.
        """
        await self.wait_ready(timeout)
        nested = begin or not self.is_idle
        if options is not None and not self.is_idle:
            msg = "a transaction is open in the session: transaction options need one of its own"
            raise psycopg.ProgrammingError(msg)
        block = prepare(self.conn, options, past_overrides=True) if nested else (None, [])
        join = Join(self, *block)
        self._joins.append(join)
        if join.block is not None and not join.enter_unsent():
            try:
                await self._run_in_pool_task(join.begin)
            except BaseException:
                self._joins.remove(join)
                await self.undo(join.undo)
                raise
        return join

    async def borrow(self, timeout: float | None) -> ACT:
        """Return the connection for a use that `end_use` ends."""
        await self.wait_ready(timeout)
        self._borrowed += 1
        return self.conn

    def end_use(self) -> None:
        """End a use without a block; the session keeps the connection.

        Raises:
            ReleaseError: there is no such use, or this is another task.
        """
        if current_task() is not self.task:
            raise self._error("may be returned by that task only")
        if not self._borrowed:
            raise self._error("is returned by the end of its block")
        self._borrowed -= 1

    def end_error(self, join: Join[ACT]) -> PoolError | None:
        """Return why a block inside must not end now; None: it may."""
        if join not in self._joins or not self.holds():
            if self.core.closed:
                return self.core.errors.closed()
            return self._error("cannot be used: the session ended before a block inside it")
        if current_task() is not self.task:
            return self._error("has a block inside that ended in another task")
        if self._joins[-1] is not join:
            return self._error("has a block inside that ended before a block nested in it")
        return None

    def end(self, join: Join[ACT], *, failing: bool) -> bool:
        """Remove a block inside that ends; return False if it has failed and must not end now.

        Raises:
            ReleaseError: a block that has not failed must not end now.
        """
        if (error := self.end_error(join)) is None:
            self._joins.pop()
            return True
        join.out_of_order = True
        try:
            if not failing:
                raise error
            self.core.runtime.record("return failed", str(error))
        finally:
            del error  # its traceback has this frame
        return False

    async def undo_out_of_order(self) -> None:
        """Undo the innermost blocks that ended out of order."""
        while self._joins and self._joins[-1].out_of_order:
            await self.undo(self._joins.pop().undo)

    async def undo_all(self, then: Work[object] | None = None) -> None:
        """Wait for the background task, then undo all blocks inside, then run `then`."""
        if self._pending is not None:
            await asyncio.wait({self._pending})
        if self._joins:
            await self._joins[0].undo()
        if then is not None:
            await then()

    @property
    def innermost(self) -> Join[ACT] | None:
        """The block inside that was entered last, if any."""
        return self._joins[-1] if self._joins else None

    @property
    def is_clean(self) -> bool:
        """Whether the session has nothing to end and never needed a background task."""
        return not self._joins and self._pending is None and self.is_idle

    def unfinished_error(self, *, mode_changed: bool) -> ReleaseError | None:
        """Return the error for blocks inside that have work and have not ended, if there are any.

        Args:
            mode_changed: whether one of them has changed the connection's autocommit mode.
        """
        unfinished = mode_changed or (self._joins and not self.is_idle)
        if not unfinished or not self.holds():
            return None
        return self._error("is rolled back: a block inside has not ended before the session")

    def undone_outside_error(self) -> ReleaseError | None:
        """Return the error for closing a generator, if that undoes work from outside of it."""
        if not self.used_outside or not self.holds() or self.is_idle:
            return None
        return self._error(
            "is rolled back: the async generator that holds the session was closed early, which"
            " also undoes one-shots and blocks that the task ran outside the generator"
        )


class Join(Generic[ACT]):
    """One block inside a session.

    Args:
        session: the session.
        block: the block's transaction or savepoint; None: no transaction is open at its start,
            and its end commits or rolls back what its statements began.
        statements: the statements to begin that transaction with.
    """

    def __init__(
        self,
        session: Session[ACT],
        block: psycopg.AsyncTransaction | None,
        statements: Sequence[bytes],
    ) -> None:
        self.block = block
        self._statements = statements
        self.out_of_order = False
        """Whether the block has ended, but out of order."""
        self.strict = block is not None
        """Whether the end of the block raises if its transaction has failed."""
        self.cleanup: Work[object] | None = None
        """Work for the background task after the block is undone."""
        self._session = session
        self._begun = False

    async def leave(
        self, error: BaseException | None, *, cleanup: Work[object] | None = None
    ) -> bool:
        """End the block: commit its work, leave it to the outer transaction, or undo it.

        Args:
            error: the error that ended the block; None: there was none.
            cleanup: work for the background task after the block is undone.

        Returns:
            Whether the error is a `psycopg.Rollback` of this block.
        """
        session = self._session
        if not session.end(self, failing=error is not None):
            return False
        try:
            if error is None:
                await self._finish()
            elif cleanup or self.cleanup or not leave_unsent(self.block):
                await session.undo(partial(self.undo, cleanup or self.cleanup))
        finally:
            await session.undo_out_of_order()
        return (
            self.block is not None
            and isinstance(error, psycopg.Rollback)
            and error.transaction in (None, self.block)
        )

    @property
    def lasts(self) -> bool:
        """Whether the block has not ended."""
        return self in self._session._joins and self._session.holds()

    def is_open(self) -> bool:
        """Whether the block may end now."""
        return self._session.end_error(self) is None

    def enter_unsent(self) -> bool:
        """Begin the transaction with its first statement; False: `begin` must be called."""
        self._begun = enter_unsent(self.block, self._statements)
        return self._begun

    async def begin(self) -> None:
        """Begin the transaction or savepoint."""
        assert self.block is not None, "bug: a block without a transaction cannot begin one"
        conn = self._session.conn
        number = open_blocks(conn)
        try:
            await enter(self.block, conn, self._statements)
            await sync(conn)
        except BaseException:
            restore_open_blocks(conn, number)
            raise
        self._begun = True

    async def undo(self, then: Work[object] | None = None) -> None:
        """Roll back the work of the block and of the blocks nested in it."""
        driver, conn, block = self._session.driver, self._session.conn, self.block
        if block is None:
            await driver.roll_back(conn)
        elif self._begun:
            await driver.roll_back_to(conn, block)
        if then is not None:
            await then()

    async def _finish(self) -> None:
        session = self._session
        try:
            await wait_for_cancelled(session.driver, session.conn)
            if self.strict and has_failed(session.conn):
                raise failed_error(session.conn)
            if self.block is None:
                await commit(session.core, session.driver, session.conn)
            elif not leave_unsent(self.block):
                await session.run_in_pool_task(self._release)
        except BaseException:
            # A refused COMMIT has ended the transaction, but a savepoint still exists.
            await session.undo(self.undo)
            raise

    async def _release(self) -> None:
        assert self.block is not None, "bug: a block without a transaction has no savepoint"
        conn = self._session.conn
        if conn.closed:
            msg = "the connection is closed"
            raise psycopg.OperationalError(msg)
        await sync(conn)
        await self.block.__aexit__(None, None, None)
        await sync(conn)
        self._begun = False
