"""What can be said of a pool at this moment in numbers."""

from __future__ import annotations

from typing import Any

from asyncpool._core import Core
from asyncpool._entry import State
from asyncpool.stats import COUNTED, PoolStats


def snapshot(core: Core[Any]) -> PoolStats:
    """The sizes by state and the counters."""
    core.stock.settle_times()
    ledger, counters = core.ledger, core.stock.counters
    states = [entry.state for entry in ledger.entries]
    waiting = ledger.waiting
    served = ledger.leases + counters.requests_shared
    # Whoever has been told so has failed, though its task has yet to run and count it.
    counted = {name: getattr(counters, name) for name in COUNTED}
    counted["requests_failed"] += ledger.line.told
    spread: dict[str, Any] = dict(counters.spread())
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
        **spread,
    )
