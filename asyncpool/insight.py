"""What `explain()` tells: frozen, made on request, true for the instant in which it was made."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from asyncpool.stats import PoolStats

__all__ = ["ConnectionInfo", "Event", "Explanation", "LeaseInfo", "WaiterInfo"]

SHOWN = 10
"""The most waiters, and the most events, that the text for people has."""


@dataclass(frozen=True, slots=True)
class LeaseInfo:
    """One connection that is lent out."""

    age: float
    """Seconds since it was lent."""
    holder: str
    """The name of the task that borrowed it."""
    connection: str
    """The connection's own repr: database and transaction state, no password."""
    borrowed_at: str = ""
    """The innermost place in the program, where the pool has a `leak_timeout`."""
    stack: tuple[str, ...] = ()
    """All that are known, innermost first, such as "app.py:12 in handler"."""
    waits_at: tuple[str, ...] = ()
    """Where the task is now, innermost first, if that is known."""
    pid: int | None = None
    """The server's process."""
    transaction: str = ""
    """"idle", "active", "in transaction", "failed transaction" or "closed"."""
    last_sql: str = ""
    """The text of its last statement, without parameters; known for an `asyncpool.Connection`
    where the pool has a `leak_timeout`."""


@dataclass(frozen=True, slots=True)
class WaiterInfo:
    """One request that waits for a connection."""

    age: float
    """Seconds since it joined the line."""
    task: str
    """The name of its task."""
    waits_at: tuple[str, ...] = ()
    """The places in the program, innermost first."""


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """One place in the pool, from the moment in which its connection begins to open."""

    number: int
    """Its own as long as it lives; the pool's first is 1."""
    state: Literal["opening", "idle", "leased", "cleaning", "closing"]
    age: float
    """Seconds since it was open; 0 while it is not."""
    since: float
    """Seconds in this state."""
    pid: int | None
    """The server's process."""
    uses: int
    """How many times it was lent."""
    lease: LeaseInfo | None
    """Who has it."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that has happened to the pool."""

    age: float
    """Seconds since then."""
    kind: str
    """Such as "outage", "outage over", "lost", "ping failed", "leak", "resized"."""
    text: str
    level: Literal["info", "warning"]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why requests wait and who has the connections; `str()` of it is the text for people."""

    name: str
    status: str
    """The sizes in one line."""
    stats: PoolStats
    connections: tuple[ConnectionInfo, ...]
    """All of them, the oldest first."""
    leases: tuple[LeaseInfo, ...]
    """The longest first."""
    waiters: tuple[WaiterInfo, ...]
    """The first 100, the first first; `stats.waiting` is how many there are."""
    events: tuple[Event, ...]
    """The last 100, the latest first."""
    last_error: str | None
    """The last failed connect or ping."""
    last_error_age: float | None
    """Seconds since then."""
    doing: tuple[str, ...]
    """What the pool is at."""
    advice: tuple[str, ...]
    budget: str | None
    """What the pools of its `Budget` have."""

    def as_dict(self) -> dict[str, Any]:
        """The same in JSON's own types, an infinite bound being None."""
        plain: dict[str, Any] = _plain(self)
        return plain

    def __str__(self) -> str:
        lines = [self.status]
        for lease in self.leases:
            lines += _of_lease(lease)
        lines.append(f"{self.stats.waiting} waiting")
        for place, waiter in enumerate(self.waiters[:SHOWN]):
            who = "the first" if place == 0 else "then"
            at = f", at {waiter.waits_at[0]}" if waiter.waits_at else ""
            lines.append(f"  {who} for {waiter.age:.3f} s: {waiter.task}{at}")
        if (more := self.stats.waiting - SHOWN) > 0:
            lines.append(f"  and {more} more")
        if self.budget is not None:
            lines.append(f"budget: {self.budget}")
        if self.last_error is not None:
            lines.append(f"last error, {self.last_error_age:.1f} s ago: {self.last_error}")
        lines += [f"doing: {each}" for each in self.doing]
        lines += [f"advice: {each}" for each in self.advice]
        lines += [f"{each.age:.1f} s ago: {each.kind}: {each.text}" for each in self.events[:SHOWN]]
        return "\n".join(lines)


def _of_lease(lease: LeaseInfo) -> list[str]:
    head = f"  leased for {lease.age:.3f} s by {lease.holder}: {lease.connection}"
    if lease.stack:
        head += f", borrowed at {lease.stack[0]}"
    found = [head, *(f"      from {place}" for place in lease.stack[1:])]
    if lease.waits_at:
        found.append(f"    its task is at {lease.waits_at[0]}")
    facts = [f"backend {lease.pid}"] if lease.pid is not None else []
    facts += [lease.transaction] if lease.transaction else []
    facts += [f"last statement {lease.last_sql!r}"] if lease.last_sql else []
    return [*found, "    " + ", ".join(facts)] if facts else found


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return None if value == math.inf else value
