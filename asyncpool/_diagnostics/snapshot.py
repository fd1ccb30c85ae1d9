"""A snapshot of a pool: its sizes and counters at one instant."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from contextvars import Context
from typing import Any

from asyncpool._core.admission import QueuePace
from asyncpool._core.counters import COUNTED
from asyncpool._core.entry import State
from asyncpool._core.pool import Core
from asyncpool.stats import PoolStats, distributions

LOOP_TIMEOUT = 1.0
"""Seconds that another thread waits for the pool's loop."""


def snapshot_from_any_thread(core: Core[Any]) -> PoolStats:
    """Return a snapshot for a call from any thread, made on the pool's loop if that answers."""
    home = core.home
    if home is None or not home.is_running() or asyncio._get_running_loop() is not None:
        return snapshot(core)
    made: concurrent.futures.Future[PoolStats] = concurrent.futures.Future()

    def make() -> None:
        if made.set_running_or_notify_cancel():
            made.set_result(snapshot(core))

    with contextlib.suppress(RuntimeError, TimeoutError):  # the loop has ended or is busy
        home.call_soon_threadsafe(make, context=Context())
        return made.result(LOOP_TIMEOUT)
    made.cancel()
    return snapshot(core, flush=False)


def snapshot(core: Core[Any], *, flush: bool = True) -> PoolStats:
    """Return the sizes by state and the counters.

    Args:
        core: the pool.
        flush: whether to move the recorded times into the histograms first; False in another
            thread than the pool's.
    """
    if flush:
        core.flush_times()
    ledger, counters = core.ledger, core.runtime.counters
    states = [entry.state for entry in list(ledger.entries)]
    waiting = ledger.waiting
    served = ledger.leases + counters.requests_shared
    # A request whose waiter has an error has failed, though its task has not counted it yet.
    counted = {name: getattr(counters, name) for name in COUNTED}
    counted["requests_failed"] += ledger.queue.undelivered_errors
    pace = _pace(core)
    durations: dict[str, Any] = dict(
        distributions(counters) if flush or not counters.snapshots else counters.snapshots
    )
    return PoolStats(
        name=core.settings.name,
        min_size=core.settings.min_size,
        max_size=core.settings.max_size_or_zero,
        size=ledger.size,
        opening=states.count(State.OPENING),
        idle=states.count(State.IDLE),
        leased=states.count(State.LEASED),
        cleaning=states.count(State.CLEANING),
        closing=states.count(State.CLOSING),
        waiting=waiting,
        standing=pace.standing,
        service_rate=pace.service_rate,
        expected_wait=pace.expected_wait,
        patience=pace.patience,
        requests=served
        + counted["requests_failed"]
        + counters.requests_cancelled
        + waiting
        + core.being_refused,
        **counted,
        **durations,
    )


def _pace(core: Core[Any]) -> QueuePace:
    ledger = core.ledger
    try:
        return ledger.queue.pace(
            core.settings.timeout, leased=len(ledger.leased), coming=ledger.opening
        )
    except IndexError:  # in another thread: the loop has begun a new measurement meanwhile
        return QueuePace()


def rolled_back(core: Core[Any]) -> int:
    """Return how many connections are being cleaned and will then be idle."""
    if not core.settings.keeps_idle:
        return 0
    cleaning = (each for each in core.ledger.entries if each.state is State.CLEANING)
    return sum(not each.is_retired for each in cleaning)
