"""The user's check of a connection before it is lent: in a task of its own, within a time limit."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Generic

import anyio

from asyncpool._core.driver import C
from asyncpool._core.entry import Entry, State
from asyncpool._core.error_factory import ErrorFactory
from asyncpool._core.redact import described
from asyncpool._core.store import ConnectionStore, outcome


class Check(Generic[C]):
    """What a pool was told to do with each connection before it is lent.

    Args:
        check: the user's; when it raises, the connection is replaced.
        stock: where the connections are.
        refusals: what is said to who waits in vain.
    """

    def __init__(
        self, check: Callable[[C], Awaitable[None]], store: ConnectionStore[C], errors: ErrorFactory
    ) -> None:
        self._check = check
        self._store = store
        self._errors = errors

    async def passes(self, entry: Entry[C], timeout: float, deadline: float) -> bool:
        """Whether an entry just lent satisfies it; if not, it is gone."""
        store = self._store
        if not timeout:
            # No connection may be waited for, but the check of one has to be.
            deadline += store.ledger.settings.ping_timeout
        # In a task of the crew: the borrower's deadline and cancellation hold whatever it does.
        work = outcome(partial(self._check, entry.conn))
        task = store.tasks.spawn(work, "check", contextvars.copy_context())
        try:
            await asyncio.wait({task}, timeout=deadline - store.time())
            if not task.done():
                why = "the check of a connection did not end"
                raise self._errors.timed_out(timeout, why)
            if entry.state is not State.LEASED or (task.cancelled() and store.closing):
                raise self._errors.closed()
            error = (
                task.result()
            )  # a CancelledError of the check's own is raised, as in psycopg_pool
        except BaseException:
            store.ledger.cancel_lease(entry)
            if store.ledger.take_back(entry.conn) is not None:
                store.tasks.spawn(self._finish(entry, task), "check")
            raise
        if error is None:
            store.mark_healthy(entry)
            return True
        said = described(error)
        store.record("check failed", f"check failed, replaced: {said}", error=said)
        if entry.lent_at == entry.opened_at:
            # New and unfit is as good as a failed connect, and must not be repeated in a storm.
            store.connect_failed(error, entry)
        entry.uses -= 1
        store.discard_lost(entry)
        return False

    async def _finish(self, entry: Entry[C], check: asyncio.Task[Exception | None]) -> None:
        """Wait for a check whose borrower has left."""
        store = self._store
        error: Exception | None = TimeoutError()
        try:
            with anyio.move_on_after(store.ledger.settings.clean_timeout):
                error = await check
        finally:
            if error is None:
                store.tasks.spawn(store.clean(entry, None), "reset")
            else:
                store.discard_lost(entry)
