"""`explain()`: why requests wait and which tasks hold the connections. It changes no state."""

from __future__ import annotations

import asyncio
import logging
import math
from itertools import islice
from typing import Any

from psycopg.pq import TransactionStatus

from asyncpool._core.entry import Entry, State
from asyncpool._core.events import Events
from asyncpool._core.label import label_of, named
from asyncpool._core.pool import Core
from asyncpool._core.redact import describe
from asyncpool._core.runtime import Phase
from asyncpool._core.stacks import where
from asyncpool._core.waiter import Waiter
from asyncpool._diagnostics.leaks import backend_of, last_statement, transaction_of
from asyncpool._diagnostics.overload import overload, overload_advice
from asyncpool._diagnostics.snapshot import snapshot
from asyncpool.insight import ConnectionInfo, Event, Explanation, LeaseInfo, WaiterInfo
from asyncpool.stats import PoolStats

MAX_WAITERS = 100
"""Maximum number of waiters in an explanation."""
TRANSACTION_STATES = {
    TransactionStatus.IDLE: "idle",
    TransactionStatus.ACTIVE: "active",
    TransactionStatus.INTRANS: "in transaction",
    TransactionStatus.INERROR: "failed transaction",
    TransactionStatus.UNKNOWN: "closed",
}


def explain(core: Core[Any]) -> Explanation:
    """Return the pool's sizes, leases, waiters, errors, current activity and advice."""
    stats, outages = snapshot(core), core.outages
    now, error = core.runtime.time(), outages.last_error
    leases = {each.number: _lease(each, now) for each in core.ledger.leased.values()}
    held = sorted(leases.values(), key=lambda lease: -lease.age)
    return Explanation(
        name=stats.name,
        status=_status(core, stats),
        stats=stats,
        connections=tuple(_connections(core, now, leases)),
        leases=tuple(held),
        waiters=tuple(_waiter(each, now) for each in islice(core.ledger.queue, MAX_WAITERS)),
        events=tuple(shown_events(core.runtime.events, now)),
        last_error=None if error is None else describe(error),
        last_error_age=None if error is None else now - outages.last_error_at,
        overload=tuple(overload(core, stats, now)),
        doing=tuple(_doing(core, stats, now)),
        advice=tuple(_advice(core, stats, held, overload_advice(core, stats, now))),
        budget=None if (budget := core.ledger.budget) is None else budget.describe(),
    )


def _lease(entry: Entry[Any], now: float) -> LeaseInfo:
    conn, lease, stack = entry.conn, entry.lease, entry.lease.borrowed_at()
    return LeaseInfo(
        age=now - entry.leased_at,
        holder=lease.holder_name,
        label=lease.label,
        connection=repr(conn),
        borrowed_at=stack[0] if stack else "",
        stack=tuple(stack),
        waits_at=_where(lease.holder),
        pid=_pid(conn),
        transaction=TRANSACTION_STATES[transaction_of(conn)] if hasattr(conn, "pgconn") else "",
        last_sql=(last_statement(conn) or "") if stack else "",
    )


def _connections(core: Core[Any], now: float, leases: dict[int, LeaseInfo]) -> list[ConnectionInfo]:
    found = []
    for entry in sorted(core.ledger.entries, key=lambda entry: entry.number):
        conn = getattr(entry, "conn", None)
        found.append(
            ConnectionInfo(
                number=entry.number,
                state=entry.state.value,  # type: ignore[arg-type]
                age=0.0 if conn is None else now - entry.opened_at,
                since=now - _state_since(entry),
                pid=None if conn is None else _pid(conn),
                uses=entry.uses,
                lease=leases.get(entry.number),
            )
        )
    return found


def _state_since(entry: Entry[Any]) -> float:
    """Return the instant since which an entry has been in its state."""
    if entry.state is State.OPENING:
        return entry.opened_at
    if entry.state is State.LEASED:
        return entry.leased_at
    if entry.state is State.IDLE:
        return max(entry.used_at, entry.healthy_at)
    if entry.state is State.CLOSING:
        return entry.left_at
    return max(entry.used_at, entry.left_at)


def _waiter(waiter: Waiter[Any], now: float) -> WaiterInfo:
    task, (priority, flow) = waiter.task, waiter.place or (0, None)
    return WaiterInfo(
        age=now - waiter.joined_at,
        task="(joining)" if task is None else named(task),
        label="" if task is None else label_of(task),
        waits_at=_where(task),
        priority=priority,
        flow=None if flow is None else str(flow),
    )


def _pid(conn: Any) -> int | None:
    return backend_of(conn) if hasattr(conn, "pgconn") else None


def _where(holder: object) -> tuple[str, ...]:
    if not isinstance(holder, asyncio.Task) or holder.done():
        return ()
    return tuple(where(holder))


def shown_events(events: Events, now: float) -> list[Event]:
    """Return the kept events as shown to people, the latest first."""
    return [
        Event(
            age=now - each.at,
            kind=each.kind,
            text=each.text if each.times == 1 else f"{each.text} ({each.times} times)",
            level="warning" if each.level >= logging.WARNING else "info",
        )
        for each in reversed(events.last)
    ]


def _status(core: Core[Any], stats: PoolStats) -> str:
    states = ", ".join(
        f"{getattr(stats, state)} {state}"
        for state in ("idle", "leased", "opening", "cleaning", "closing")
    )
    sizes = f"size {stats.size} of {stats.min_size} to {core.settings.max_size_text}"
    return f"pool {stats.name!r}: {sizes}: {states}"


def _doing(core: Core[Any], stats: PoolStats, now: float) -> list[str]:
    if core.closed:
        return [f"closing: {stats.size} connections still open"] if stats.size else []
    if core.runtime.phase is not Phase.OPEN:
        return ["not open yet"]
    found = []
    outage, ledger = core.outages.outage, core.ledger
    if outage:
        next_at = core.outages.retry.at
        lasts = f"connecting has been failing for {now - outage.since:.1f} s"
        if stats.opening:
            found.append(f"{lasts}: probing")
        elif next_at < math.inf:
            found.append(f"{lasts}: the next connect in {max(next_at - now, 0.0):.1f} s")
        else:
            found.append(f"{lasts}: the next connect when a request needs it")
    elif stats.opening:
        late = f", {ledger.late} of them late" if ledger.late else ""
        found.append(f"opening {stats.opening}{late}")
    if stats.cleaning:
        found.append(f"cleaning or pinging {stats.cleaning}")
    if leaving := sum(each.is_retired for each in ledger.leased.values()):
        found.append(f"draining: {leaving} will be replaced when returned")
    if (surplus := ledger.remaining - core.settings.max_size) > 0:
        found.append(f"shrinking: {surplus} will be closed when returned")
    if ledger.budget is not None and ledger.shortfall() and ledger.is_full():
        found.append("waiting for room in the budget")
    return found


def _advice(
    core: Core[Any], stats: PoolStats, held: list[LeaseInfo], of_overload: list[str]
) -> list[str]:
    if core.closed:
        return ["the pool is closed: create a new one"]
    found = []
    if core.outages.outage:
        found.append("connecting fails: see the last error; the pool keeps trying by itself")
    found += of_overload
    if stats.waiting and stats.leased == core.settings.max_size:
        if not of_overload:
            found.append(
                "all connections are in use: return them sooner, or raise max_size with resize()"
            )
        passing = [each for each in core.ledger.leased.values() if not each.lease.is_standing]
        oldest = min((each.leased_at for each in passing), default=math.inf)
        if core.runtime.time() - oldest > core.settings.timeout:
            found.append("the longest lease is older than the timeout: is it ever returned?")
    if held and core.settings.leak_timeout == math.inf:
        found.append("set the pool's leak_timeout to see where each connection was borrowed")
    idle = [each for each in held if "transaction" in each.transaction and each.age >= 1.0]
    if idle and stats.waiting:
        who = idle[0]
        found.append(
            f"{who.holder} has had a transaction open for up to {who.age:.1f} s: end it sooner"
        )
    return found
