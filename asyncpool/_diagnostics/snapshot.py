"""What can be said of a pool at this moment in numbers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from contextvars import Context
from typing import Any

from asyncpool._core.counters import COUNTED
from asyncpool._core.entry import State
from asyncpool._core.pool import Core
from asyncpool.stats import PoolStats, spread

BUSY = 1.0
"""Seconds for which another thread waits for the pool's loop."""


def beside(core: Core[Any]) -> PoolStats:
    """A snapshot, made on the pool's loop though another thread has asked for it."""
    home = core.home
    if home is None or not home.is_running() or asyncio._get_running_loop() is not None:
        return snapshot(core)
    made: concurrent.futures.Future[PoolStats] = concurrent.futures.Future()

    def make() -> None:
        if made.set_running_or_notify_cancel():
            made.set_result(snapshot(core))

    with contextlib.suppress(RuntimeError, TimeoutError):  # it ends in this moment, or is busy
        home.call_soon_threadsafe(make, context=Context())
        return made.result(BUSY)
    made.cancel()
    return snapshot(core, settle=False)


def snapshot(core: Core[Any], *, settle: bool = True) -> PoolStats:
    """The sizes by state and the counters.

    Args:
        core: the pool.
        settle: whether to sort in the times that were only noted so far; not in another thread.
    """
    if settle:
        core.store.sort_times()
    ledger, counters = core.ledger, core.store.counters
    states = [entry.state for entry in list(ledger.entries)]
    waiting = ledger.waiting
    served = ledger.leases + counters.requests_shared
    # Whoever has been told so has failed, though its task has yet to run and count it.
    counted = {name: getattr(counters, name) for name in COUNTED}
    counted["requests_failed"] += ledger.queue.unseen_errors
    durations: dict[str, Any] = dict(
        spread(counters) if settle or not counters.snapshots else counters.snapshots
    )
    return PoolStats(
        name=core.settings.name,
        min_size=core.settings.min_size,
        max_size=core.settings.bound,
        size=ledger.size,
        opening=states.count(State.OPENING),
        idle=states.count(State.IDLE),
        leased=states.count(State.LEASED),
        cleaning=states.count(State.CLEANING),
        closing=states.count(State.CLOSING),
        waiting=waiting,
        requests=served + counted["requests_failed"] + counters.requests_cancelled + waiting,
        **counted,
        **durations,
    )
