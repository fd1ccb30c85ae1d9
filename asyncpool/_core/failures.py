"""Handles lost connections and statement errors, and decides which connections they affect.

A connection lost while idle is simply replaced. If the server or the network may have failed, as
when a connection is lost while in use, all idle ones are pinged before they are leased again. If
the server's role has changed (failover), all connections are replaced.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import Generic

from asyncpool._core.driver import C
from asyncpool._core.entry import Entry, State
from asyncpool._core.ledger import Ledger
from asyncpool._core.outage_controller import OutageController
from asyncpool._core.redact import describe
from asyncpool._core.runtime import Runtime
from asyncpool._core.store import ConnectionStore
from asyncpool.faults import Fault

PAUSE = 1.0
"""Minimum time in seconds between two replacements of all connections."""
BURST, BURST_TIME = 3, 0.1
"""This many idle connections lost within this many seconds suggest that the server has failed."""


@dataclass(eq=False, repr=False)
class FailureHandler(Generic[C]):
    """Handles the failures of one pool's connections."""

    ledger: Ledger[C]
    runtime: Runtime
    outages: OutageController[C]
    """Says what an error means."""
    store: ConnectionStore[C]
    """Pings and replaces connections."""
    _losses: deque[float] = field(init=False, default_factory=lambda: deque(maxlen=BURST))
    """When connections were last lost without an error from the server."""
    _replaced_at = -PAUSE
    """When all connections were last replaced."""

    def handle(self, entry: Entry[C], error: BaseException | None, lost: bool) -> None:
        """Handle a lost connection, idle or leased, or an error of a statement."""
        store = self.store
        # A retired entry closes anyway: its failure, perhaps the same one again, is not handled.
        new = not entry.is_retired
        fault = None if error is None else self.outages.fault_of(error)
        in_use = entry.state is State.LEASED
        if lost and entry.state is State.IDLE:
            store.discard_lost(entry)
        elif fault is Fault.CONNECTION and entry.state is State.IDLE:
            store.discard(entry)
        elif lost or fault is Fault.CONNECTION:
            entry.retire()
        if not new:
            return
        if fault is Fault.FAILOVER:
            now = self.runtime.time()
            if now - self._replaced_at >= PAUSE:
                self._replaced_at = now
                said = "" if error is None else describe(error)
                text = f"replacing all connections: {said}"
                self.runtime.record("failover", text, logging.WARNING, error=said)
                store.drain()
        elif fault is Fault.SERVER or (lost and error is None and (in_use or self._is_burst())):
            self._ping_idle()

    def _is_burst(self) -> bool:
        """Count a loss; return whether it is one of several in a short time."""
        losses, now = self._losses, self.runtime.time()
        losses.append(now)
        if len(losses) < BURST or now - losses[0] > BURST_TIME:
            return False
        losses.clear()
        return True

    def _ping_idle(self) -> None:
        """Ping all idle connections before they are leased again."""
        store, now = self.store, self.runtime.time()
        for entry in list(self.ledger.idle):
            # An eager ping may already have closed other entries.
            if entry.state is State.IDLE:
                then = partial(self._answered, entry, now)
                store.spawn(entry, store.ping(entry, then), "ping")

    def _answered(self, entry: Entry[C], since: float, answered: bool) -> None:
        store = self.store
        if answered:
            # Retired although it answered the ping: the server is shutting down.
            self.runtime.counters.lost += entry.is_retired
        elif any(each.opened_at <= since for each in self.ledger.entries if not each.is_retired):
            text = "the server is shutting down or has failed: replacing all connections"
            self.runtime.record("server leaving", text, logging.WARNING)
            for each in self.ledger.drain(since):
                store.discard_lost(each)
            store.refill()
