"""The connection that one task has for a while, which all that it borrows meanwhile joins.

What joins it ends in the reverse order, and in that task. All that begins, ends or undoes a part of
its work on the server is done by a task of the pool's: half of it, left by a cancellation, would be
committed with the rest.
"""

from __future__ import annotations

import asyncio
import logging
import math
import weakref
from asyncio import current_task
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Generic, TypeVar

import anyio
import psycopg

from asyncpool._blocks.commit import come_to_rest, commit, failed, has_failed, see_through
from asyncpool._blocks.generators import Generator
from asyncpool._core.pool import Core
from asyncpool._core.redact import described
from asyncpool._core.settings import duration
from asyncpool._psycopg.cursor import OWN, Lock
from asyncpool._psycopg.driver import ACT, IDLE, PsycopgDriver
from asyncpool._psycopg.transport import ACTIVE
from asyncpool.errors import PoolDeadlock, PoolError, ReleaseError

T = TypeVar("T")
Work = Callable[[], Awaitable[T]]


class Session(Generic[ACT]):
    """One lease of a connection, and who uses it inside of one another.

    Args:
        core: who has lent it.
        connector: the driver.
        conn: the connection.
        task: whose it is.
    """

    def __init__(
        self,
        core: Core[ACT],
        driver: PsycopgDriver[ACT],
        conn: ACT,
        task: asyncio.Task[Any],
    ) -> None:
        self.conn = conn
        self.task = task
        self.entry = core.ledger.leased[conn]
        self.core = core
        self.driver = driver
        self._number = self.entry.uses
        self._joins: list[Join[ACT]] = []
        """The blocks inside, the innermost last."""
        self._borrowed = 0
        """How many times it is borrowed by no block."""
        self._pending: asyncio.Task[Any] | None = None
        """What the pool does with it, or did last."""
        self._generators: list[weakref.ref[Generator]] = []
        """The async generators in which it was entered."""
        self.used_outside = False
        """Whether it was used, in an open transaction, while such a generator was suspended."""
        self.lost: Exception | None = None
        """Why the pool has closed it: a part of the work could not be undone."""

    def watch(self, generator: Generator, abandoned: Callable[[object], None]) -> None:
        """Note a generator in which it is entered.

        Args:
            generator: the generator.
            abandoned: called once nobody can resume it any more.
        """
        self._generators.append(weakref.ref(generator, abandoned))

    async def ready(self, timeout: float | None) -> None:
        """Wait until the pool has done what a cancellation has left to it.

        Raises:
            PoolTimeout: it has not within `timeout` seconds.
            PoolDeadlock: the connection is in the middle of an operation of this very task.
            PoolClosed: the pool did not wait for the session any longer.
            ReleaseError: the connection is not the session's any more.
        """
        errors = self.core.errors
        limit = self.core.settings.timeout if timeout is None else duration("timeout", timeout)
        if await self._waits_for_itself():
            name = self.task.get_name()
            raise PoolDeadlock(f"deadlock in the session of {name!r}: {OWN}", holders={name: []})
        if not self.busy and self.holds() and self.driver.has_left(self.conn):
            self._start(self._do(None, partial(self.driver.settle, self.conn)))
        if self.busy:
            assert self._pending is not None, "bug: busy with nothing"
            await asyncio.wait({self._pending}, timeout=None if limit == math.inf else limit)
            if self.busy:
                raise errors.timed_out(limit, "what was cancelled in this session goes on still")
        if self.holds():
            if self.conn.lock.locked():
                await self._take_turns(limit)
            if self._generators and not self.is_at_rest:
                self.used_outside |= any(map(_is_suspended, self._generators))
            return
        if self.core.closed:
            raise errors.closed()
        raise self._error("was closed, as a part of its work could not be undone") from self.lost

    async def _waits_for_itself(self) -> bool:
        """Whether a stream(), COPY or notifies() of this task is open on the connection."""
        conn = self.conn
        lock: asyncio.Lock = conn.lock
        if lock.locked():
            return isinstance(lock, Lock) and await lock.is_own()
        # Between its steps a COPY has no lock, and no other statement can begin.
        return (
            conn.pgconn.transaction_status == ACTIVE
            and conn._pipeline is None
            and not self.busy
            and not self.driver.has_left(conn)
        )

    async def _take_turns(self, limit: float) -> None:
        """Wait until what else uses the connection is through, be it another task or a stream()."""
        try:
            async with asyncio.timeout(None if limit == math.inf else limit), self.conn.lock:
                pass
        except TimeoutError:
            why = "the session's connection is in the middle of something: end that first"
            raise self.core.errors.timed_out(limit, why) from None

    async def join(self, timeout: float | None, *, begin: bool = False) -> Join[ACT]:
        """Begin a block inside: a savepoint where a transaction is open.

        Args:
            timeout: seconds to wait for the connection to be usable.
            begin: whether the block is a transaction where none is open.
        """
        await self.ready(timeout)
        nested = begin or not self.is_at_rest
        join = Join(self, psycopg.AsyncTransaction(self.conn) if nested else None)
        self._joins.append(join)
        if join.block is not None:
            try:
                await self._have_done(join.begin)
            except BaseException:
                self._joins.remove(join)
                await self.undo(join.undo)
                raise
        return join

    async def borrow(self, timeout: float | None) -> ACT:
        """The connection, for a use that `take_back` ends."""
        await self.ready(timeout)
        self._borrowed += 1
        return self.conn

    def take_back(self) -> None:
        """End a use by no block; the connection stays the session's.

        Raises:
            ReleaseError: there is none, or this is another task.
        """
        if current_task() is not self.task:
            raise self._error("may be returned by that task only")
        if not self._borrowed:
            raise self._error("is returned by the end of its block")
        self._borrowed -= 1

    def may_end(self, join: Join[ACT]) -> PoolError | None:
        """What is to be said of a block inside that ends now, but is not to."""
        if join not in self._joins or not self.holds():
            if self.core.closed:
                return self.core.errors.closed()
            return self._error("is not the session's any more: a block inside has outlasted it")
        if current_task() is not self.task:
            return self._error("has a block inside that ended in another task")
        if self._joins[-1] is not join:
            return self._error("has a block inside that ended before one inside of that")
        return None

    def end(self, join: Join[ACT], *, failing: bool) -> bool:
        """Take off a block inside that ends; False: it has failed, and cannot end now.

        Raises:
            ReleaseError: it cannot end now.
        """
        if (error := self.may_end(join)) is None:
            self._joins.pop()
            return True
        join.astray = True
        if not failing:
            raise error
        self.core.store.record("return failed", str(error))
        return False

    async def end_strays(self) -> None:
        """Undo what was left by blocks that did not end in their turn, if that has come."""
        while self._joins and self._joins[-1].astray:
            await self.undo(self._joins.pop().undo)

    async def have_done(self, work: Work[T]) -> T:
        """Have the pool do what no scope is to interrupt, and wait for it."""
        return await see_through(partial(self._have_done, work))

    async def undo(self, work: Work[object]) -> None:
        """Have the pool undo a part of the work; if that fails, none of it will stay.

        The wait for it can be cancelled once more; whoever uses the connection next waits then.
        """
        task = self._start(self._undo(self._pending if self.busy else None, work))
        with anyio.CancelScope(shield=True):
            await asyncio.wait({task})

    async def undo_all(self, then: Work[object] | None = None) -> None:
        """Let the pool come to the end of what it does, and then of all blocks inside."""
        if self._pending is not None:
            await asyncio.wait({self._pending})
        if self._joins:
            await self._joins[0].undo()
        if then is not None:
            await then()

    @property
    def innermost(self) -> Join[ACT] | None:
        """The block inside that was entered last."""
        return self._joins[-1] if self._joins else None

    @property
    def busy(self) -> bool:
        """Whether the pool does something with it."""
        return self._pending is not None and not self._pending.done()

    @property
    def is_at_rest(self) -> bool:
        """Whether no transaction is open, and nothing else either."""
        conn = self.conn
        idle = conn.pgconn.transaction_status == IDLE
        return idle and not (conn._num_transactions or conn._pipeline or conn._tpc)

    @property
    def is_calm(self) -> bool:
        """Whether nothing is left to be ended, and nothing was ever left to the pool."""
        return not self._joins and self._pending is None and self.is_at_rest

    def unfinished(self, *, turned: bool) -> ReleaseError | None:
        """What is to be said of blocks inside that have not ended, and have work.

        Args:
            turned: whether one of them has left the connection in another mode.
        """
        unfinished = turned or (self._joins and not self.is_at_rest)
        if not unfinished or not self.holds():
            return None
        return self._error("is rolled back: a block inside of it has not ended in its turn")

    def undone_outside(self) -> ReleaseError | None:
        """The error for the end of a generator that undoes what was done outside of it."""
        if not self.used_outside or not self.holds() or self.is_at_rest:
            return None
        return self._error(
            "is rolled back, as the async generator that holds the session was closed before its"
            " end: one-shots and blocks of the task outside of the generator are undone too"
        )

    def holds(self) -> bool:
        """Whether the connection is in this lease still."""
        return self.core.lease_number(self.conn) == self._number

    def _error(self, what: str) -> ReleaseError:
        pool, task = self.core.settings.name, self.task.get_name()
        return ReleaseError(f"pool {pool!r}: {self.conn!r}, of the session of {task!r}, {what}")

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        self._pending = task = self.core.store.tasks.spawn(work, "session")
        return task

    async def _have_done(self, work: Work[T]) -> T:
        task = self._start(self._do(self._pending if self.busy else None, work))
        await asyncio.wait({task})
        if task.cancelled():
            raise self.core.errors.closed()
        value, error = task.result()
        if error is not None:
            try:
                raise error
            finally:
                del error, task  # its traceback has this frame
        return value  # type: ignore[return-value]

    async def _do(
        self, before: asyncio.Task[Any] | None, work: Work[T]
    ) -> tuple[T | None, Exception | None]:
        if before is not None:
            await asyncio.wait({before})
        try:
            return await work(), None
        except Exception as error:  # noqa: BLE001 - it is for who waits
            return None, error

    async def _undo(self, before: asyncio.Task[Any] | None, work: Work[object]) -> None:
        try:
            with anyio.fail_after(self.core.settings.clean_timeout):
                if before is not None:
                    await asyncio.wait({before})
                await work()
        except Exception as error:  # noqa: BLE001 - whatever it was, the rest must not be kept
            if self.holds() and not self.conn.closed:
                self.lost = error.with_traceback(None)
                said = described(error)
                text = f"a session's work is not undone, closed: {said}"
                self.core.store.record("reset failed", text, logging.WARNING, error=said)
                self.core.store.discard(self.entry)


class Join(Generic[ACT]):
    """One block inside of a session.

    Args:
        session: whose connection it uses.
        block: its transaction or savepoint; None: it begins with no transaction open, and ends
            what its statements have begun.
    """

    def __init__(self, session: Session[ACT], block: psycopg.AsyncTransaction | None) -> None:
        self.block = block
        self.astray = False
        """Whether its end has come, but not in its turn."""
        self.strict = block is not None
        """Whether its end is an error where its transaction has failed."""
        self.first: Work[object] | None = None
        """What the pool is to do after the block is undone."""
        self._session = session
        self._begun = False

    async def leave(
        self, error: BaseException | None, *, first: Work[object] | None = None
    ) -> bool:
        """End the block: commit its work or leave it to the outer transaction, or undo it.

        Args:
            error: what has ended it; None: it has come to its end.
            first: what the pool is to do, after that is undone.

        Returns:
            Whether the error is a `psycopg.Rollback` that was meant for this block.
        """
        session = self._session
        if not session.end(self, failing=error is not None):
            return False
        try:
            if error is not None:
                await session.undo(partial(self.undo, first or self.first))
            else:
                await self._finish()
        finally:
            await session.end_strays()
        return (
            self.block is not None
            and isinstance(error, psycopg.Rollback)
            and error.transaction in (None, self.block)
        )

    def is_open(self) -> bool:
        """Whether its end may come now."""
        return self._session.may_end(self) is None

    async def begin(self) -> None:
        """Begin the transaction or savepoint."""
        assert self.block is not None, "bug: a block with no transaction begins nothing"
        conn = self._session.conn
        depth = conn._num_transactions
        try:
            await self.block.__aenter__()
            await _sync(conn)
        except BaseException:
            conn._num_transactions = depth
            raise
        self._begun = True

    async def undo(self, then: Work[object] | None = None) -> None:
        """Roll back what was done in the block, and in those inside of it."""
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
            await come_to_rest(session.driver, session.conn)
            if self.strict and has_failed(session.conn):
                raise failed(session.conn)
            if self.block is None:
                await commit(session.core, session.driver, session.conn)
            else:
                await session.have_done(self._release)
        except BaseException:
            # A COMMIT that was refused has ended the transaction; a savepoint is there still.
            await session.undo(self.undo)
            raise

    async def _release(self) -> None:
        assert self.block is not None, "bug: a block with no transaction releases nothing"
        conn = self._session.conn
        if conn.closed:
            msg = "the connection is closed"
            raise psycopg.OperationalError(msg)
        await _sync(conn)
        await self.block.__aexit__(None, None, None)
        await _sync(conn)
        self._begun = False


def _is_suspended(generator: weakref.ref[Generator]) -> bool:
    """Whether code that runs now is outside of a generator."""
    alive = generator()
    return alive is not None and not alive.ag_running


async def _sync(conn: ACT) -> None:
    """In a pipeline, let errors come out before what follows."""
    if conn._pipeline is not None:
        await conn._pipeline.sync()
