"""What is heard of a connection, and whether it concerns the others.

An idle one that ends is replaced by itself. Where the server or the way to it may have gone, as
when one is lost in use, the others are asked before anybody gets one of them; where the server is
not what it was, all of them are retired.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Coroutine
from typing import Any, Generic

from asyncpool._core.driver import C
from asyncpool._core.entry import RETIRED, Entry, State
from asyncpool._core.redact import described
from asyncpool._core.store import ConnectionStore
from asyncpool.faults import Fault

PAUSE = 1.0
"""Seconds within which all connections are replaced once."""
BURST, BURST_TIME = 3, 0.1
"""So many idle ones lost in so many seconds are not lost each for itself."""


class FailureHandler(Generic[C]):
    """What is heard of the connections of a pool."""

    def __init__(self, store: ConnectionStore[C]) -> None:
        self._store = store
        self._losses: deque[float] = deque(maxlen=BURST)
        """When connections were lost of late with no word from the server."""
        self._replaced_at = -PAUSE

    def handle(self, entry: Entry[C], error: BaseException | None, lost: bool) -> None:
        """One is lost, idle or lent, or a statement has failed on it."""
        store = self._store
        # Of those that are to be closed, as after the same news of another, it is none.
        new = not entry.is_retired
        fault = None if error is None else store.fault_of(error)
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
            now = store.time()
            if now - self._replaced_at >= PAUSE:
                self._replaced_at = now
                said = "" if error is None else described(error)
                text = f"all connections are replaced: {said}"
                store.record("failover", text, logging.WARNING, error=said)
                store.drain()
        elif fault is Fault.SERVER or (lost and error is None and (in_use or self._is_burst())):
            self._ping_idle()

    def _is_burst(self) -> bool:
        """Whether this is one loss of several in a moment."""
        ends, now = self._losses, self._store.time()
        ends.append(now)
        if len(ends) < BURST or now - ends[0] > BURST_TIME:
            return False
        ends.clear()
        return True

    def _ping_idle(self) -> None:
        """The server may be leaving: nothing is lent now that has not answered first."""
        store, now = self._store, self._store.time()
        for entry in list(store.ledger.idle):
            # Where tasks start eagerly, one ping's failure may have been the end of the others.
            if entry.state is State.IDLE:
                store.tasks.spawn(self._ping_one(entry, store.ping(entry), now), "ping")

    async def _ping_one(
        self, entry: Entry[C], ping: Coroutine[Any, Any, bool], since: float
    ) -> None:
        store = self._store
        if await ping:
            # It has answered, and was given up all the same: the server is leaving.
            store.counters.lost += entry.expires_at == RETIRED
        elif any(each.opened_at <= since for each in store.ledger.entries if not each.is_retired):
            text = "the server is leaving: all are replaced"
            store.record("server leaving", text, logging.WARNING)
            for each in store.ledger.drain(since):
                store.discard_lost(each)
            store.refill()
