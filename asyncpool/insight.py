"""The result of `explain()`: frozen, made on request, true at the instant when it was made."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from asyncpool.stats import PoolStats

__all__ = ["ConnectionInfo", "Event", "Explanation", "LeaseInfo", "WaiterInfo"]

TEXT_LIMIT = 10
"""The most waiters, and the most events, in the text for people."""


@dataclass(frozen=True, slots=True)
class LeaseInfo:
    """One lease of a connection."""

    age: float
    """Seconds since the connection was leased."""
    holder: str
    """The task that borrowed it, such as "GET /orders in Task-7": its label, if any, and name."""
    connection: str
    """The connection's repr: database and transaction state, no password."""
    borrowed_at: str = ""
    """The innermost place in the program; known if the pool has a `leak_timeout`."""
    stack: tuple[str, ...] = ()
    """All known places, innermost first, such as "app.py:12 in handler"."""
    waits_at: tuple[str, ...] = ()
    """Where the task is now, innermost first; empty if not known."""
    pid: int | None = None
    """The process ID of the backend."""
    transaction: str = ""
    """"idle", "active", "in transaction", "failed transaction" or "closed"."""
    last_sql: str = ""
    """The text of its last statement, without parameters; known for an `asyncpool.Connection` if
    the pool has a `leak_timeout`."""
    label: str = ""
    """The task's label, such as the route of a request; see `asyncpool.label`."""


@dataclass(frozen=True, slots=True)
class WaiterInfo:
    """One request that waits for a connection."""

    age: float
    """Seconds since it joined the wait queue."""
    task: str
    """The task: its label, if any, and name."""
    waits_at: tuple[str, ...] = ()
    """The places in the program, innermost first."""
    label: str = ""
    """The task's label."""
    priority: int = 0
    """Its priority, from `within`."""
    flow: str | None = None
    """The flow in which it takes turns, from `within`, as text; None: none."""


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """One connection of the pool, from the start of its connect until the server has hung up."""

    number: int
    """The connection's number for its whole life; the first one of the pool has 1."""
    state: Literal["opening", "idle", "leased", "cleaning", "closing"]
    age: float
    """Seconds since it was opened; 0.0 while it is opening."""
    since: float
    """Seconds in this state."""
    pid: int | None
    """The process ID of the backend."""
    uses: int
    """How many times it was leased."""
    lease: LeaseInfo | None
    """The lease, if it is in use."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event in the life of the pool."""

    age: float
    """Seconds since the event."""
    kind: str
    """Such as "outage", "outage over", "lost", "ping failed", "leak", "resized"."""
    text: str
    level: Literal["info", "warning"]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why requests wait and who has the connections; `str()` gives the text for people."""

    name: str
    status: str
    """The sizes in one line."""
    stats: PoolStats
    connections: tuple[ConnectionInfo, ...]
    """All connections, the oldest first."""
    leases: tuple[LeaseInfo, ...]
    """The longest first."""
    waiters: tuple[WaiterInfo, ...]
    """The first 100 in the order of the wait queue; `stats.waiting` counts all."""
    events: tuple[Event, ...]
    """The last 100, the latest first."""
    last_error: str | None
    """The last failed connect or ping."""
    last_error_age: float | None
    """Seconds since `last_error`."""
    overload: tuple[str, ...]
    """Whether and why requests are refused, and how long they wait, a sentence each; empty: the
    pool is not overloaded."""
    doing: tuple[str, ...]
    """The work in the background now, a sentence each."""
    advice: tuple[str, ...]
    """Recommendations for the application, a sentence each."""
    budget: str | None
    """The connections of all pools that share its `Budget`, or of all processes of its `Fleet`."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as a dict of JSON types; an infinite number becomes None."""
        plain: dict[str, Any] = _plain(self)
        return plain

    def __str__(self) -> str:
        lines = [self.status]
        for lease in self.leases:
            lines += _lease_lines(lease)
        lines.append(f"{self.stats.waiting} waiting")
        for place, waiter in enumerate(self.waiters[:TEXT_LIMIT]):
            who = "the first" if place == 0 else "then"
            at = f", at {waiter.waits_at[0]}" if waiter.waits_at else ""
            lines.append(f"  {who} for {waiter.age:.3f} s: {waiter.task}{_place(waiter)}{at}")
        if (more := self.stats.waiting - TEXT_LIMIT) > 0:
            lines.append(f"  and {more} more")
        if self.budget is not None:
            lines.append(f"budget: {self.budget}")
        if self.last_error is not None:
            lines.append(f"last error, {self.last_error_age:.1f} s ago: {self.last_error}")
        lines += [f"overload: {each}" for each in self.overload]
        lines += [f"doing: {each}" for each in self.doing]
        lines += [f"advice: {each}" for each in self.advice]
        shown = self.events[:TEXT_LIMIT]
        lines += [f"{each.age:.1f} s ago: {each.kind}: {each.text}" for each in shown]
        return "\n".join(lines)


def _place(waiter: WaiterInfo) -> str:
    """Return the priority and the flow of a waiter that has them."""
    priority = f", priority {waiter.priority}" if waiter.priority else ""
    return priority + (f", flow {waiter.flow}" if waiter.flow is not None else "")


def _lease_lines(lease: LeaseInfo) -> list[str]:
    found = [f"  leased for {lease.age:.3f} s by {lease.holder}"]
    if lease.last_sql:
        found[0] += f", last statement {lease.last_sql!r}"
    if lease.stack:
        found.append(f"    borrowed at {lease.stack[0]}")
        found += [f"      from {place}" for place in lease.stack[1:]]
    if lease.waits_at:
        found.append(f"    its task is at {lease.waits_at[0]}")
    facts = [lease.connection]
    facts += [f"backend {lease.pid}"] if lease.pid is not None else []
    facts += [lease.transaction] if lease.transaction else []
    return [*found, "    " + ", ".join(facts)]


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return None if value == math.inf else value
