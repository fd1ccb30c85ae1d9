"""The connection of a session, and the background tasks that work on it."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Generic, TypeVar

import anyio

from asyncpool._blocks.commit import (
    run_shielded,
)
from asyncpool._core.pool import Core
from asyncpool._core.redact import describe
from asyncpool._psycopg.cursor import Lock
from asyncpool._psycopg.driver import ACT, IDLE, PsycopgDriver
from asyncpool._psycopg.open_work import (
    in_pipeline,
    nothing_else_open,
)
from asyncpool._psycopg.operation import ACTIVE
from asyncpool.errors import ReleaseError

T = TypeVar("T")
Work = Callable[[], Awaitable[T]]


class SessionConnection(Generic[ACT]):
    """The leased connection of a session; work on it that must not be cut short runs in tasks.

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
        self.conn = conn
        self.task = task
        self.entry = core.ledger.leased[conn]
        self.core = core
        self.driver = driver
        self.lease = self.entry.lease
        self._pending: asyncio.Task[Any] | None = None
        """The background task that works, or worked last, on the connection."""
        self.undo_error: Exception | None = None
        """The error of an undo that failed, for which the pool discarded the connection."""

    async def run_in_pool_task(self, work: Work[T]) -> T:
        """Run work in a background task, shielded from anyio scopes, and wait for it."""
        return await run_shielded(partial(self._run_in_pool_task, work))

    async def undo(self, work: Work[object]) -> None:
        """Undo a part of the work in a background task; if that fails, discard the connection.

        A `task.cancel()` ends only the wait for it; then the next use of the connection waits.
        """
        task = self._start(self._undo_after(self._pending if self.busy else None, work))
        with anyio.CancelScope(shield=True):
            await asyncio.wait({task})

    @property
    def busy(self) -> bool:
        """Whether a background task works on the connection."""
        return self._pending is not None and not self._pending.done()

    @property
    def is_idle(self) -> bool:
        """Whether neither a transaction nor a pipeline is open."""
        conn = self.conn
        idle = conn.pgconn.transaction_status == IDLE
        return idle and nothing_else_open(conn)

    async def _waits_for_itself(self) -> bool:
        """Whether a stream(), COPY or notifies() of this task is open on the connection."""
        conn = self.conn
        lock: asyncio.Lock = conn.lock
        if lock.locked():
            return isinstance(lock, Lock) and await lock.is_own()
        # A COPY does not hold the lock between its steps, but no other statement can begin.
        return (
            conn.pgconn.transaction_status == ACTIVE
            and not in_pipeline(conn)
            and not self.busy
            and not self.driver.has_leftovers(conn)
        )

    async def _wait_for_lock(self, limit: float, deadline: float) -> None:
        """Wait until another operation on the connection has ended; `limit` is for the error."""
        try:
            async with asyncio.timeout_at(None if deadline == math.inf else deadline):
                async with self.conn.lock:
                    pass
        except TimeoutError:
            why = "another operation runs on the session's connection: end it first"
            raise self.core.errors.timed_out(limit, why) from None

    def holds(self) -> bool:
        """Whether the session's lease of the connection still lasts."""
        return self.entry.lease is self.lease

    def _error(self, what: str) -> ReleaseError:
        pool, task = self.core.settings.name, self.task.get_name()
        return ReleaseError(f"pool {pool!r}: {self.conn!r}, in the session of {task!r}, {what}")

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        self._pending = task = self.core.runtime.tasks.spawn(work, "session")
        return task

    async def _run_in_pool_task(self, work: Work[T]) -> T:
        task = self._start(self._run_after(self._pending if self.busy else None, work))
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

    async def _run_after(
        self, before: asyncio.Task[Any] | None, work: Work[T]
    ) -> tuple[T | None, Exception | None]:
        if before is not None:
            await asyncio.wait({before})
        try:
            return await work(), None
        except Exception as error:  # noqa: BLE001 - the waiting task raises it
            return None, error

    async def _undo_after(self, before: asyncio.Task[Any] | None, work: Work[object]) -> None:
        try:
            with anyio.fail_after(self.core.settings.clean_timeout):
                if before is not None:
                    await asyncio.wait({before})
                await work()
        except Exception as error:  # noqa: BLE001 - whatever it was, the rest must not be kept
            if self.holds() and not self.conn.closed:
                self.undo_error = error.with_traceback(None)
                said = describe(error)
                text = f"work of a session could not be undone, its connection is closed: {said}"
                self.core.runtime.record("reset failed", text, logging.WARNING, error=said)
                self.core.store.discard(self.entry)
