"""The periodic maintenance: close surplus and expired connections, ping quiet ones, refill.

The ledger decides what is due. Between rounds the pool is held weakly.
"""

from __future__ import annotations

import asyncio
import weakref

import anyio

from asyncpool._core.driver import C
from asyncpool._core.entry import Entry, State
from asyncpool._core.ledger import Ledger
from asyncpool._core.pool import Core

SHORTEST_PAUSE = 0.25
"""Seconds between two rounds at least, unless a limit is shorter than twice that."""


async def run_maintenance(pool: weakref.ref[Core[C]]) -> None:
    """Run rounds until the pool is collected; closing the pool cancels this."""
    while (core := pool()) is not None:
        pause = _pause(core)
        del core
        await asyncio.sleep(pause)
        if (core := pool()) is not None:
            try:
                await make_round(core)
            except Exception:  # noqa: BLE001 - it is logged
                core.runtime.log_exception("round failed", "a maintenance round failed")
        del core


async def make_round(core: Core[C]) -> None:
    """Run one round of maintenance."""
    now = core.runtime.time()
    ledger = core.ledger
    core.outages.forget_lapsed()
    for entry in ledger.surplus(now):
        core.store.discard(entry)
    for entry in ledger.expired(now):
        ready = ledger.remaining - ledger.opening
        if ready > ledger.settings.min_size or ledger.is_full():
            core.store.discard(entry)
        elif not core.outages.outage and ledger.opening < ledger.settings.open_at_once:
            core.store.open_one(instead_of=entry)
    core.flush_times()
    core.lease_monitor.report_overdue()
    core.lease_monitor.reclaim()
    core.store.refill()
    if silent := ledger.ping_due(now):
        await ping_all(core, silent)


async def ping_all(core: Core[C], entries: list[Entry[C]]) -> None:
    """Ping entries concurrently, at most half of the idle ones, so that the rest stay usable."""
    due = iter(entries)

    async def ping_next() -> None:
        for entry in due:
            if entry.state is State.IDLE:
                await core.store.ping(entry)

    at_once = min(core.settings.ping_at_once, (len(core.ledger.idle) + 1) // 2, len(entries))
    async with anyio.create_task_group() as group:
        for _ in range(at_once):
            group.start_soon(ping_next)


def _pause(core: Core[C]) -> float:
    now = core.runtime.time()
    limits = core.settings
    shortest = min(limits.max_idle, limits.ping_interval, limits.max_lifetime, limits.leak_timeout)
    least = min(SHORTEST_PAUSE, shortest / 2)
    return max(next_due(core.ledger, now) - now, least)


def next_due(ledger: Ledger[C], now: float) -> float:
    """Return an instant before which nothing can become due, whatever happens until then."""
    limits = ledger.settings
    soonest = min(limits.max_idle, limits.ping_interval, limits.leak_timeout)
    instants = [now + min(soonest, 0.95 * limits.max_lifetime)]
    has_surplus = len(ledger.entries) > limits.min_size
    for entry in ledger.entries:
        if entry.state is State.LEASED:
            if entry.expires_at > now:
                instants.append(entry.expires_at)
            if entry.lease.may_leak:
                instants.append(max(entry.leased_at + limits.leak_timeout, now))
        elif entry.state is State.IDLE:
            if not ledger.keep_expired:
                instants.append(entry.expires_at)
            instants.append(max(entry.used_at, entry.healthy_at) + limits.ping_interval)
            if has_surplus and not ledger.keep_expired:
                instants.append(entry.used_at + limits.max_idle)
    return min(instants)
