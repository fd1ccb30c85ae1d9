"""The user's check of a connection before it is leased: in a background task, with a time limit."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic

import anyio

from asyncpool._core.background import outcome
from asyncpool._core.driver import C
from asyncpool._core.entry import Entry, State
from asyncpool._core.error_factory import ErrorFactory
from asyncpool._core.ledger import Ledger
from asyncpool._core.outage_controller import OutageController
from asyncpool._core.runtime import Runtime
from asyncpool._core.store import ConnectionStore


@dataclass(eq=False, repr=False)
class Check(Generic[C]):
    """Runs the user's check on connections."""

    check: Callable[[C], Awaitable[None]]
    """The user's callback; if it raises, the connection is replaced."""
    ledger: Ledger[C]
    runtime: Runtime
    outages: OutageController[C]
    """Gets the failures of new connections."""
    store: ConnectionStore[C]
    """Closes the connections that fail."""
    errors: ErrorFactory

    async def passes(self, entry: Entry[C], timeout: float, deadline: float) -> bool:
        """Whether a newly leased entry passes the check; if not, discard it."""
        store = self.store
        if not timeout:
            # The request may not wait for a connection, but it has to wait for the check.
            deadline += self.ledger.settings.ping_timeout
        # In a background task, so that the caller's deadline and cancellation always take effect.
        work = outcome(partial(self.check, entry.conn))
        try:
            task = self.runtime.tasks.spawn(work, "check", contextvars.copy_context())
        except BaseException:  # the application's task factory raised an error
            self.ledger.cancel_lease(entry)
            self.store.discard(entry)
            raise
        try:
            await asyncio.wait({task}, timeout=deadline - self.runtime.time())
            if not task.done():
                why = "the check of a connection did not finish"
                raise self.errors.timed_out(timeout, why)
            if entry.state is not State.LEASED or (task.cancelled() and self.runtime.closed):
                raise self.errors.closed()
            # If the check itself raised CancelledError, that is raised here, as in psycopg_pool.
            error = task.result()
        except BaseException:
            self.ledger.cancel_lease(entry)
            if self.ledger.take_back(entry.conn) is not None:
                self.store.spawn(entry, self._finish(entry, task), "end of check")
            raise
        if error is None:
            store.mark_healthy(entry)
            return True
        self.runtime.record_error("check failed", error)
        if entry.uses == 1 and entry.leased_at == entry.healthy_at:
            # It was leased as soon as it was opened. As after a failed connect: back off, or new
            # connections would be opened without a pause.
            self.outages.connect_failed(error, entry)
        self.ledger.cancel_lease(entry)
        store.discard_lost(entry)
        return False

    async def _finish(self, entry: Entry[C], check: asyncio.Task[Exception | None]) -> None:
        """Wait for a check whose request has ended, then clean or discard the connection."""
        store = self.store
        error: Exception | None = TimeoutError()
        try:
            with anyio.move_on_after(self.ledger.settings.clean_timeout):
                error = await check
        finally:
            if error is None:
                store.spawn(entry, store.clean(entry, None), "reset")
            else:
                store.discard_lost(entry)
