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
from asyncpool._core.redact import described
from asyncpool._core.refusals import Refusals
from asyncpool._core.store import Stock, outcome


class Check(Generic[C]):
    """What a pool was told to do with each connection before it is lent.

    Args:
        check: the user's; when it raises, the connection is replaced.
        stock: where the connections are.
        refusals: what is said to who waits in vain.
    """

    def __init__(
        self, check: Callable[[C], Awaitable[None]], stock: Stock[C], refusals: Refusals
    ) -> None:
        self._check = check
        self._stock = stock
        self._refusals = refusals

    async def passes(self, entry: Entry[C], timeout: float, deadline: float) -> bool:
        """Whether an entry just lent satisfies it; if not, it is gone."""
        stock = self._stock
        if not timeout:
            # No connection may be waited for, but the check of one has to be.
            deadline += stock.ledger.settings.ping_timeout
        # In a task of the crew: the borrower's deadline and cancellation hold whatever it does.
        work = outcome(partial(self._check, entry.conn))
        task = stock.crew.spawn(work, "check", contextvars.copy_context())
        try:
            await asyncio.wait({task}, timeout=deadline - stock.time())
            if not task.done():
                why = "the check of a connection did not end"
                raise self._refusals.timed_out(timeout, why)
            if entry.state is not State.LEASED or (task.cancelled() and stock.closing):
                raise self._refusals.closed()
            error = (
                task.result()
            )  # a CancelledError of the check's own is raised, as in psycopg_pool
        except BaseException:
            stock.ledger.annul(entry)
            if stock.ledger.take_back(entry.conn) is not None:
                stock.crew.spawn(self._settle(entry, task), "check")
            raise
        if error is None:
            stock.proved(entry)
            return True
        said = described(error)
        stock.tell("check failed", f"check failed, replaced: {said}", error=said)
        if entry.lent_at == entry.opened_at:
            # New and unfit is as good as a failed connect, and must not be repeated in a storm.
            stock.connect_failed(error, entry)
        entry.uses -= 1
        stock.found_lost(entry)
        return False

    async def _settle(self, entry: Entry[C], check: asyncio.Task[Exception | None]) -> None:
        """Wait for a check whose borrower has left."""
        stock = self._stock
        error: Exception | None = TimeoutError()
        try:
            with anyio.move_on_after(stock.ledger.settings.clean_timeout):
                error = await check
        finally:
            if error is None:
                stock.crew.spawn(stock.clean(entry, None), "reset")
            else:
                stock.found_lost(entry)
