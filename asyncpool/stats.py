"""Snapshots of a pool: frozen, made on request, true for the instant in which they were made."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from asyncpool._histogram import Histogram

__all__ = ["LeaseInfo", "PoolStats", "psycopg_keys"]


@dataclass(slots=True)
class Counters:
    """What a pool has counted since it was made; the core adds to them as things happen."""

    requests_queued: int = 0
    requests_shared: int = 0
    requests_failed: int = 0
    requests_cancelled: int = 0
    wait_time: float = 0.0
    use_time: float = 0.0
    returns_bad: int = 0
    connects: int = 0
    connects_failed: int = 0
    connect_time: float = 0.0
    lost: int = 0
    leaks: int = 0
    shared_time: float = 0.0
    """The part of the use in which one-shots shared connections."""
    wait: Histogram = field(default_factory=Histogram)
    """Of those who have waited for a connection, also in vain."""
    use: Histogram = field(default_factory=Histogram)
    """Of the leases but for those that one-shots share: such a one is as long as there are any, and
    no request's use.

    Both are only noted as they happen; `Stock.settle_times` sorts them in."""

    def note_wait(self, duration: float) -> None:
        """Somebody has waited, so many seconds."""
        self.wait_time += duration
        self.wait.fresh.append(duration)


COUNTED = tuple(
    each.name for each in fields(Counters) if each.name not in ("shared_time", "wait", "use")
)
"""What of them is in the snapshots."""


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
    """The place in the program, where the pool has a `leak_timeout`."""


@dataclass(frozen=True, slots=True)
class PoolStats:
    """The state of a pool, and what it has counted since it was made.

    `opening + idle + leased + cleaning + closing == size`. Times are seconds, summed over all
    requests and exact; nothing is rounded to milliseconds first.
    """

    name: str
    min_size: int
    max_size: int
    """0: there is no bound."""
    size: int
    opening: int
    idle: int
    leased: int
    cleaning: int
    """Being rolled back, reset or pinged."""
    closing: int
    waiting: int
    """Requests in the line."""
    requests: int
    """All that were served, have failed or were cancelled, or wait."""
    requests_queued: int
    """Those that had to wait."""
    requests_shared: int
    """Those that were one-shot statements on a connection that they share."""
    requests_failed: int
    """Those that ended in an error of the pool: no time or no room left, or the pool closed."""
    requests_cancelled: int
    """Those whose caller was cancelled while waiting; they are not failures of the pool."""
    wait_time: float
    use_time: float
    returns_bad: int
    """Connections that came back broken."""
    connects: int
    """Attempts to open a connection."""
    connects_failed: int
    connect_time: float
    """Spent in those that succeeded."""
    lost: int
    """Connections that broke while idle: found by a ping, a check, or the watch."""
    leaks: int
    """Leases that lasted longer than `leak_timeout`, or were taken back as nobody could return
    them."""


def since(now: PoolStats, before: PoolStats) -> PoolStats:
    """The same sizes, and what was counted between the two."""
    counted = {name: getattr(now, name) - getattr(before, name) for name in COUNTED}
    return replace(now, requests=now.requests - before.requests, **counted)


def psycopg_keys(stats: PoolStats) -> dict[str, int]:
    """The same under the keys of psycopg_pool's `get_stats`, times in whole milliseconds."""
    return {
        "pool_min": stats.min_size,
        "pool_max": stats.max_size,
        "pool_size": stats.size,
        "pool_available": stats.idle,
        "requests_waiting": stats.waiting,
        "requests_num": stats.requests,
        "requests_queued": stats.requests_queued,
        "requests_wait_ms": round(stats.wait_time * 1000),
        "requests_errors": stats.requests_failed,
        "usage_ms": round(stats.use_time * 1000),
        "returns_bad": stats.returns_bad,
        "connections_num": stats.connects,
        "connections_ms": round(stats.connect_time * 1000),
        "connections_errors": stats.connects_failed,
        "connections_lost": stats.lost,
    }
