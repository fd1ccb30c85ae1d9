"""What can be said of a pool at this moment, as numbers and as text; it changes nothing."""

from __future__ import annotations

from typing import Any

from asyncpool._core import Core
from asyncpool._entry import State
from asyncpool._leaks import borrowed_at, name_of
from asyncpool.stats import COUNTED, LeaseInfo, PoolStats


def snapshot(core: Core[Any]) -> PoolStats:
    """The sizes by state and the counters."""
    ledger, counters = core.ledger, core.stock.counters
    states = [entry.state for entry in ledger.entries]
    waiting = ledger.waiting
    served = ledger.leases + counters.requests_shared
    # Whoever has been told so has failed, though its task has yet to run and count it.
    counted = {name: getattr(counters, name) for name in COUNTED}
    counted["requests_failed"] += ledger.line.told
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
    )


def leases(core: Core[Any]) -> list[LeaseInfo]:
    """Who has a connection, the longest first."""
    now = core.stock.time()
    found = [
        LeaseInfo(
            age=now - entry.lent_at,
            holder=name_of(entry),
            connection=repr(entry.conn),
            borrowed_at=next(iter(borrowed_at(entry)), ""),
        )
        for entry in core.ledger.leased.values()
    ]
    return sorted(found, key=lambda lease: -lease.age)


def explain(core: Core[Any]) -> str:
    """Sizes, holders, waiters, the last error and what may be done, for a person to read."""
    stats, held = snapshot(core), leases(core)
    now = core.stock.time()
    states = ", ".join(
        f"{getattr(stats, state)} {state}"
        for state in ("idle", "leased", "opening", "cleaning", "closing")
    )
    sizes = f"size {stats.size} of {stats.min_size} to {core.settings.bound_in_words}"
    lines = [
        f"pool {stats.name!r}: {sizes}: {states}",
        *(
            f"  leased for {lease.age:.3f} s by {lease.holder}: {lease.connection}"
            + (f", borrowed at {lease.borrowed_at}" if lease.borrowed_at else "")
            for lease in held
        ),
        f"{stats.waiting} waiting",
    ]
    if (first := next(iter(core.ledger.line), None)) is not None:
        lines.append(f"  the first for {now - first.joined_at:.3f} s")
    if (budget := core.ledger.budget) is not None:
        spent = f"{budget.size} of {budget.max_connections} connections of {budget.pools} pools"
        lines.append(f"budget: {spent}")
    if (error := core.stock.last_error) is not None:
        age = now - core.stock.last_error_at
        lines.append(f"last error, {age:.1f} s ago: {error!r}")
    lines.extend(f"advice: {advice}" for advice in _advice(core, stats, held))
    return "\n".join(lines)


def _advice(core: Core[Any], stats: PoolStats, held: list[LeaseInfo]) -> list[str]:
    if core.closed:
        return ["the pool is closed: make a new one"]
    found = []
    if core.stock.outage:
        found.append("connecting fails: see the last error; the pool goes on trying by itself")
    if stats.waiting and stats.leased == core.settings.max_size:
        found.append("all are lent out: return them sooner, or raise max_size with resize()")
        if held[0].age > core.settings.timeout:
            found.append("the longest lease is longer than a request waits: is it ever returned?")
    return found
