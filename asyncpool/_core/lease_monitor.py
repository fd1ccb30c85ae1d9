"""A check, now and then, at who has connections: while others wait, and at those lent for long.

It finds tasks that hold all connections and wait for one more, leases whose borrower is gone, and
those that last longer than they may. None of it is looked for while a connection is lent or
returned.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import weakref
from collections.abc import Callable
from contextvars import Context
from typing import Any, Generic

from asyncpool._core.driver import C
from asyncpool._core.entry import Entry
from asyncpool._core.error_factory import ErrorFactory
from asyncpool._core.events import fields
from asyncpool._core.store import ConnectionStore

logger = logging.getLogger("asyncpool")

PAUSE = 0.25
"""Seconds between two looks while somebody waits."""


class LeaseMonitor(Generic[C]):
    """The looks at one pool.

    Args:
        stock: the connections.
        refusals: what is said to who waits in vain.
        on_leak: called once a lease that lasts too long, or is never to be returned.
        listens: whether a connection is of use though nobody has it.
    """

    def __init__(
        self,
        store: ConnectionStore[C],
        errors: ErrorFactory,
        on_leak: Callable[[Entry[C], str], None] | None,
        listens: Callable[[C], bool],
    ) -> None:
        self._store = store
        self._ledger = store.ledger
        self._errors = errors
        self._on_leak = on_leak
        self._listens = listens
        self.timer: asyncio.TimerHandle | None = None
        """None: nobody waits, as far as is known."""
        self._leases = 0
        """How many there had been at the last check."""

    def start(self) -> None:
        """Somebody waits: check, from time to time, until nobody does."""
        self._leases = self._ledger.leases
        self.timer = asyncio.get_running_loop().call_later(
            PAUSE, _check, weakref.ref(self), context=Context()
        )

    def stop(self) -> None:
        """Leave no timer behind."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def check(self) -> None:
        """See whether those who wait ever will be served."""
        self.timer = None
        ledger, before = self._ledger, self._leases
        if not ledger.queue.length:
            return
        self.start()
        self._store.sort_times()
        self.reclaim()
        if self._leases == before:
            self._break_deadlock()

    def reclaim(self) -> None:
        """Take back what was never returned, and nobody has a reference to any more."""
        for entry in list(self._ledger.leased.values()):
            holder = entry.holder
            if isinstance(holder, asyncio.Task) and holder.done():
                # Not the task itself: its outcome may be what has the connection.
                entry.holder = holder.get_name()
            # A block returns its connection by itself.
            bare = entry.manual_in == entry.uses and isinstance(entry.holder, str)
            if bare and not self._listens(entry.conn) and _is_unreferenced(entry):
                self._report(entry, "was never returned, and is taken back")
                self._store.count_use(entry)
                if self._ledger.take_back(entry.conn) is not None:
                    self._store.tasks.spawn(self._store.clean(entry, None), "reset")

    def report_overdue(self) -> None:
        """Tell of each lease that has lasted for longer than it may, once."""
        for entry in self._ledger.overdue(self._store.time()):
            self._report(entry, "is lent for longer than leak_timeout")

    def _report(self, entry: Entry[C], what: str) -> None:
        if entry.reported_in != entry.uses:
            entry.reported_in = entry.uses
            self._store.counters.leaks += 1
        if self._on_leak is not None:
            try:
                self._on_leak(entry, what)
            except Exception:
                name = self._store.name
                text = "pool %r: a leak could not be told of"
                logger.exception(text, name, extra=fields(name, "leak"))

    def _break_deadlock(self) -> None:
        """Where all connections are held by tasks that wait for one more, the last is told so.

        Only blocks count: what was borrowed by a bare `acquire` may be another task's to return.
        """
        ledger = self._ledger
        if len(ledger.leased) < max(ledger.size, ledger.settings.max_size):
            return
        holders: set[asyncio.Task[Any]] = set()
        for entry in ledger.leased.values():
            if not isinstance(entry.holder, asyncio.Task) or entry.manual_in == entry.uses:
                return
            holders.add(entry.holder)
        found = [each for each in ledger.queue if each.task in holders]
        if len({each.task for each in found}) == len(holders):
            ledger.queue.fail(found[-1], self._errors.deadlock(sorted(holders, key=_name)))


def _check(lease_monitor: weakref.ref[LeaseMonitor[Any]]) -> None:
    if (alive := lease_monitor()) is not None:
        alive.check()


def _name(task: asyncio.Task[Any]) -> str:
    return task.get_name()


def _references(entry: Entry[Any]) -> int:
    return sys.getrefcount(entry.conn)


def _is_unreferenced(entry: Entry[Any]) -> bool:
    """Whether nobody but the pool has this leased connection."""
    entry.kept = None  # it is out of date, and has it too
    return _references(entry) <= LEAST_REFERENCES


class _Sample:
    pass


def _least_references() -> int:
    """What `_references` says of a leased connection that nobody else has, on this Python."""
    entry: Entry[Any] = Entry(0.0)
    entry.conn = _Sample()
    leased = {entry.conn: entry}
    return _references(next(iter(leased.values())))


LEAST_REFERENCES = _least_references()
